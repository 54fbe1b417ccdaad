"""What a criterion asks of samples: moments of the layers that read a group, or runs of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxprune.reconstruction.least_squares import Consumer, Curve
    from onnxprune.reconstruction.probe import Probe

__all__ = ["Measure"]


@dataclass(frozen=True)
class Measure:
    """How units are ranked on samples; one of the two functions at most is there.

    Attributes
    ----------
    curve : callable, optional
        (the layers that read a group, units that stay) -> its loss curve.
    scores : callable, optional
        Probe -> group -> float64[units], of all groups at once; the highest stay.
    swaps : bool
        Whether units are exchanged while that lowers the error of a refit, where one layer alone reads the group.
    """

    curve: Callable[[Sequence[Consumer], int], Curve] | None = None
    scores: Callable[[Probe], Mapping[str, NDArray[np.float64]]] | None = None
    swaps: bool = False
