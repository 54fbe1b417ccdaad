"""How many rows of a layer are enough: a sequential test on those that are held out.

After growing shares of the samples the layer is fitted to its rows so far, with all its regressors. What such a fit W'
gains over the one before, W, on the rows that are held out,

    gain = 1 - e(W') / e(W),    e: mean squared error,

falls like regressors over rows. Where it is under `STILL`, samples that come later give only one in `THIN` of their
rows: each sample still counts, and products of rows, which cost most, become few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.evidence import Collector, Evidence, Rows
from onnxprune.reconstruction.grouped import loss_of, refits
from onnxprune.reconstruction.least_squares import Fit

__all__ = ["Enough"]

#: Shares of the samples after which the test is made.
CHECKS = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
#: The gain that ends it, and what is taken of later rows.
STILL, THIN = 0.03, 8
#: The ridge of its fits, as a share of the regressors' mean variance.
RIDGE = 1e-3
#: Rows for each regressor, and of any layer, below which none is left out.
FEWEST, LEAST = 16, 1 << 14


@dataclass
class Enough:
    """The test of one layer.

    Attributes
    ----------
    samples : int
        Samples in all batches.
    """

    samples: int
    seen: int = 0
    still: bool = False
    _checks: int = 0
    _fits: Sequence[Fit] = ()

    def thinned(self, rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
        """Return the rows of the next batch that are to be added, and where they stand among those that were drawn."""
        at = np.arange(len(rows.index))
        if self.still:
            at = np.concatenate([at[: rows.fitting : THIN], at[rows.fitting :: THIN]])
        return Rows(rows.index[at], int((at < rows.fitting).sum())), at

    def look(self, collector: Collector, count: int) -> None:
        """Make the test where it is due.

        Parameters
        ----------
        collector : Collector
            Of a layer that isn't wide, with what was added so far.
        count : int
            Samples of the last batch.
        """
        self.seen += count
        passed = sum(self.seen >= share * self.samples for share in CHECKS)
        if self.still or passed == self._checks:
            return
        self._checks = passed
        # regressors in the order in which they are read, which the test doesn't mind
        evidence = Evidence(collector.view, collector.fitting, collector.aside)
        width = evidence.view.width
        if min(evidence.fitting.n, 4 * evidence.aside.n) < max(FEWEST * width, LEAST):
            return
        train, held_out = evidence.train(), evidence.held_out()
        every, none = np.arange(width), np.zeros((width, evidence.view.outputs))
        fits = refits(train, [every] * len(train), RIDGE, [none] * len(train))
        before, now = (loss_of(held_out, some) for some in (self._fits or fits, fits))
        self.still = bool(self._fits) and before - now < STILL * before
        self._fits = fits
