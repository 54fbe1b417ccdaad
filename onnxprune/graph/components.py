"""Components of a graph of numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["components"]

Ints = NDArray[np.int64]


def components(n: int, u: Ints, v: Ints) -> Ints:
    """Return for each of ``n`` elements the least element that is connected with it through pairs ``u``-``v``.

    Min-label hooking with full shortcutting (Shiloach and Vishkin, J. Algorithms 1982), a few vectorised rounds.
    """
    label = np.arange(n, dtype=np.int64)
    while True:
        a, b = label[u], label[v]
        open_ = a != b
        if not open_.any():
            return label
        u, v, a, b = u[open_], v[open_], a[open_], b[open_]
        np.minimum.at(label, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = label[label]
            if np.array_equal(shorter, label):
                break
            label = shorter
