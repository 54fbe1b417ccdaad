"""What a layer alone needs: it makes up for its own units that go.

With its old weights W0 (d, O) and the moments H (d, d) of its present inputs, on those that stay, S,

    W_S = (H_SS + lam I)^-1 ((H W0)_S + lam W0_S)

gives what it gave with all of them. No target is asked, so there is no noise to be learnt; still, where rows are few,
samples that are held out choose lam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.grouped import loss_of, refits
from onnxprune.reconstruction.least_squares import Fit, Regression

__all__ = ["Local"]

Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]

#: The ridges that are tried, as shares of the regressors' mean variance; where rows are many the first.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class Local:
    """The weights with which a layer gives on what stays, as nearly as it can, what it gives on all that it reads.

    Attributes
    ----------
    kept : sequence of int64
        Regressors that stay, for each block.
    old, prior : float64[blocks, width, outputs]
        Its weights, and the same, zero outside of ``kept``.
    share : float
        The ridge.
    """

    kept: Sequence[Ints]
    old: Matrix
    prior: Matrix
    share: float = RIDGES[0]
    last: tuple[Sequence[Regression], list[Matrix]] | None = None

    def weights(self, problems: Sequence[Regression]) -> list[Matrix]:
        """Return them by what is known of the blocks' inputs; the old ones where nothing goes."""
        if self.last is None or self.last[0] is not problems:
            self.last = problems, self._fitted(problems)
        return self.last[1]

    def settle(self, train: Sequence[Regression], held_out: Sequence[Regression]) -> None:
        """Take the ridge with which they serve held-out samples best: a stronger one as long as it gets better."""
        if self._whole:
            return
        own, others = self._own(train), self._own(held_out)
        best = np.inf
        for share in RIDGES:
            fits = refits(own, self.kept, share, list(self.prior))
            error = loss_of(others, fits)
            if error >= best:
                break
            best, self.share, self.last = error, share, (train, [fit.w for fit in fits])

    @property
    def _whole(self) -> bool:
        """Whether nothing goes."""
        return all(len(rows) == len(w) for rows, w in zip(self.kept, self.old, strict=True))

    def _own(self, problems: Sequence[Regression]) -> list[Regression]:
        """Return the regressions on what the layer itself gives."""
        return [problem.through(w) for problem, w in zip(problems, self.old, strict=True)]

    def _fitted(self, problems: Sequence[Regression]) -> list[Matrix]:
        if self._whole:
            return list(self.prior)
        return [fit.w for fit in refits(self._own(problems), self.kept, self.share, list(self.prior))]

    def pulled(self, problems: Sequence[Regression], share: float) -> list[Fit]:
        """Return refits that a ridge pulls to them."""
        return refits(problems, self.kept, share, self.weights(problems))

    def fits(self, problems: Sequence[Regression]) -> list[Fit]:
        """Return them with biases that make the means agree."""
        return [Fit(w, p.my - p.mx @ w) for p, w in zip(problems, self.weights(problems), strict=True)]
