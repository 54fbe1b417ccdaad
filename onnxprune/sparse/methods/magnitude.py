"""The smallest weights go.

References
----------
Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 (arXiv 1506.02626).
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

__all__ = ["DATA", "score"]

#: Whether samples are needed.
DATA = False


def score(magnitude: NDArray[Any]) -> NDArray[Any]:
    """Return what is ranked, the lowest going first: the magnitudes themselves."""
    return magnitude
