"""The smallest weights go: the score of a weight is ``|w_ij|``, or ``w_ij^2``, which ranks them alike.

Shapes: without samples a stored weight of any shape; with samples ``W`` (d, O), see `onnxprune.sparsity.task`. Tiles
go by the sum of their squares.

References
----------
Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 (arXiv 1506.02626).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.sparsity.task import Curved, Mask, Matrix, Solver, Task, mask_of

__all__ = ["READS", "WORK", "score", "solve"]

#: What it looks at.
READS = "weights"
#: An output of d regressors takes about d to this power.
WORK = 1


def score(magnitude: NDArray[Any]) -> NDArray[Any]:
    """Return what is ranked, the lowest going first: the magnitudes themselves."""
    return magnitude


class _Magnitude(Curved):
    def at(self, sparsity: float) -> tuple[Mask, Matrix]:
        keep = mask_of(self.task, self.task.prior**2, sparsity)
        return keep, np.where(keep, self.task.prior, 0.0)


def solve(task: Task) -> Solver:
    """Rank by magnitude where there are samples, which then serve the refit; see `onnxprune.sparsity.task`."""
    return _Magnitude(task)
