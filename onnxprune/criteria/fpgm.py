"""Geometric median: units near the middle of all units go first, since the others can stand in for them.

    score(u) = sum over v of |W_u - W_v|

W_u are the weights that produce the unit (its filters, of all producers of the group, each tensor scaled to the same
mean norm); where nothing of the group produces it, those that read it.

References
----------
He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
CVPR 2019, arXiv 1811.00250, section 3: the filter that the geometric median is nearest to is found by the sum of its
distances to the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.criteria._norm import (
    BLOCK,
    Floats,
    Weight,
    by_mean,
    keep_strange,
    positions,
    real,
    sums_of,
    unit_positions,
    weights_of,
)
from onnxprune.graph.group_types import Group, Member

__all__ = ["READS", "score"]

READS = "weights"

#: Entries of the distance matrix that are held at a time.
PANEL = 1 << 22

_Sources = list[tuple[Member, NDArray[Any], float]]


def score(group: Group, weight: Weight, rng: np.random.Generator) -> Floats:
    """Return the summed distance of each unit's weights to those of the other units.

    Distances come from the Gram matrix, ``|a - b|^2 = |a|^2 + |b|^2 - 2 a.b``, summed over blocks of the weights: the
    work is units^2 x weights of a unit, the memory a few dozen megabytes.

    Parameters
    ----------
    group : Group
    weight : callable
        Name -> values.
    rng : Generator
        Not used.

    Returns
    -------
    float64[units]
        Of mean 1, so that groups compare.
    """
    weights = weights_of(group, weight)
    weights = [(m, w) for m, w in weights if not m.contracted] or weights
    strange = np.zeros(group.units, np.bool_)
    sources: _Sources = []
    for member, array in weights:
        squares = sums_of(member, array, group.units, 2)
        strange |= ~np.isfinite(squares)
        mean = float(squares[np.isfinite(squares)].mean()) if np.isfinite(squares).any() else 0.0
        if mean > 0:
            sources.append((member, array, 1 / np.sqrt(mean)))
    scores = np.zeros(group.units)
    rows = max(1, PANEL // group.units)
    for first in range(0, group.units, rows):
        part = slice(first, min(first + rows, group.units))
        distance = _squared_distances(group, sources, part, strange)
        np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
        distance[:, strange] = 0
        distance[np.arange(part.stop - first), np.arange(first, part.stop)] = 0
        scores[part] = distance.sum(axis=1)
    scores[strange] = np.inf
    return by_mean(keep_strange(group, scores))


def _squared_distances(group: Group, sources: _Sources, rows: slice, strange: NDArray[np.bool_]) -> Floats:
    """Return the squared distances of some units (rows) to all units."""
    distance = np.zeros((rows.stop - rows.start, group.units))
    for matrix in _matrices(group, sources):
        matrix[strange] = 0
        matrix -= matrix.mean(axis=0)  # distances stay, and less is lost when near-equals are subtracted
        square = np.einsum("uk,uk->u", matrix, matrix)
        distance += square[rows, None]
        distance += square[None]
        gram = matrix[rows] @ matrix.T
        gram *= 2
        distance -= gram
    return distance


def _matrices(group: Group, sources: _Sources) -> Iterator[NDArray[Any]]:
    """Yield the sources as blocks ``(units, k)``, zero where a unit has none there."""
    for member, array, scale in sources:
        block = positions(member, array)
        before, _, after = block.shape
        for owners, at in unit_positions(member.unit, group.units):
            step = max(1, 2 * BLOCK // max(1, owners.size * after))
            wide = max(1, 2 * BLOCK // max(1, owners.size))
            for first in range(0, before, step):
                for left in range(0, after, wide):
                    part = real(block[first : first + step, at, left : left + wide])
                    matrix = np.zeros((group.units, part.shape[0] * part.shape[2]), part.dtype)
                    matrix[owners] = part.transpose(1, 0, 2).reshape(owners.size, -1)
                    matrix *= part.dtype.type(scale)
                    yield matrix
