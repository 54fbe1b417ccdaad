"""Rankings: what criteria give and allocations read.

A ratio reads the order and, over the whole model, the scores; a budget reads the order and the errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOOR", "Ranking"]

#: Share of the units of a group that always stay under a budget.
FLOOR = 0.1


@dataclass(frozen=True)
class Ranking:
    """How the units of a group go.

    Attributes
    ----------
    order : int64[units]
        The first to go first.
    error : float64[units + 1]
        Of each count that goes; infinite where a budget doesn't allow a count.
    scores : float64[units]
        Of each unit, comparable between groups; the order sorts them, and infinity never goes.
    """

    order: NDArray[np.int64]
    error: NDArray[np.float64]
    scores: NDArray[np.float64]
