"""Masks of patterns on weights in the canonical layout ``[blocks, outputs, inputs, taps]``.

The best mask of a pattern keeps the greatest sum of scores ``s >= 0`` that the pattern allows. For N:M that is the N
greatest of each M neighbours along the inputs; for tiles (a block, a kernel, a vector, a single weight) the tiles with
the greatest sums. What is left over where M or a tile doesn't divide an axis stays dense.

References
----------
Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378: 2:4, and what hardware makes of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.options.pattern import Pattern
from onnxprune.runtime.binding import Shape

__all__ = ["best_of", "expand", "holds", "lowest", "tail", "tile_scores", "tiles"]

Array = NDArray[Any]
Mask = NDArray[np.bool_]
#: Elements that are handled at a time, so that they stay in the cache.
CHUNK = 1 << 19


def tiles(pattern: Pattern, shape: Shape) -> Shape:
    """Return the size of a tile along outputs, inputs and taps; for N:M that of a group."""
    _, outputs, _, taps = shape
    return {
        "n:m": (1, max(pattern.of, 1), 1),
        "unstructured": (1, 1, 1),
        "block": (pattern.rows, pattern.columns, 1),
        "kernel": (1, 1, taps),
        "vector": (outputs, 1, 1),
    }[pattern.kind]


def tail(pattern: Pattern, shape: Shape) -> tuple[int, int]:
    """Return how many outputs and inputs are left over where tiles don't divide; they stay dense."""
    size = tiles(pattern, shape)
    return shape[1] % size[0], shape[2] % size[1]


def tile_scores(pattern: Pattern, squares: Array) -> NDArray[np.float32]:
    """Add up scores over the tiles.

    Parameters
    ----------
    pattern : Pattern
    squares : array [blocks, outputs, inputs, taps]
        Not negative.

    Returns
    -------
    float32[blocks, tiles of outputs, tiles of inputs, tiles of taps]
    """
    size, shape = tiles(pattern, squares.shape), squares.shape
    if size == (1, 1, 1):
        return np.asarray(squares, np.float32)
    rest = tail(pattern, shape)
    inner = squares[:, : shape[1] - rest[0], : shape[2] - rest[1]]
    parts = [inner.shape[1] // size[0], inner.shape[2] // size[1], shape[3] // size[2]]
    split = inner.reshape(shape[0], parts[0], size[0], parts[1], size[1], parts[2], size[2])
    return np.asarray(split.sum(axis=(2, 4, 6), dtype=np.float32))


def lowest(scores: Array, count: int) -> Mask:
    """Return a mask of what stays when the ``count`` lowest go; of equals the first go."""
    keep = np.ones(scores.size, bool)
    if count >= scores.size:
        keep[:] = False
    elif count > 0:
        flat = scores.reshape(-1)
        limit = np.partition(flat, count - 1)[count - 1]
        keep = flat > limit
        ties = np.flatnonzero(flat == limit)
        surplus = count - int(np.count_nonzero(flat < limit))
        keep[ties[surplus:]] = True
    return keep.reshape(scores.shape)


def expand(pattern: Pattern, keep: Mask, shape: Shape) -> Mask:
    """Return a mask of weights from one of tiles; tails stay."""
    size = tiles(pattern, shape)
    for axis, times in zip((1, 2, 3), size, strict=True):
        if times > 1:
            keep = np.repeat(keep, times, axis=axis)
    if keep.shape == shape:
        return keep
    whole = np.ones(shape, bool)
    whole[:, : keep.shape[1], : keep.shape[2], : keep.shape[3]] = keep
    return whole


def best_of(scores: Array, keep: int, of: int) -> Mask:
    """Return the mask of N:M: of every ``of`` inputs the ``keep`` highest stay; of equals the first.

    Parameters
    ----------
    scores : array [blocks, outputs, inputs, taps]
        In any layout of memory; the mask gets the same.
    """
    mask = np.ones_like(scores, dtype=bool)
    full = scores.shape[2] // of * of
    if keep == of or not full:
        return mask
    if keep == 0:
        mask[:, :, :full] = False
        return mask
    axis = max(range(4), key=lambda a: (scores.strides[a] if a != 2 else -1) * (scores.shape[a] > 1))
    step = max(1, CHUNK * scores.shape[axis] // max(scores.size, 1))
    for first in range(0, scores.shape[axis], step):
        part: tuple[Any, ...] = (*[slice(None)] * axis, slice(first, first + step))
        into, given = mask[part][:, :, :full], scores[part][:, :, :full]
        split = (*given.shape[:2], full // of, of, given.shape[3])
        (_two_of_four if (keep, of) == (2, 4) else _sorted)(given.reshape(split), into.reshape(split), keep)
    return mask


def _two_of_four(given: Array, into: Mask, keep: int) -> None:
    """Mark the two highest of four by six comparisons: one that beats two of the three others is among them."""
    a, b, c, d = (np.ascontiguousarray(given[:, :, :, i]) for i in range(4))
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
    into[:, :, :, 0] = (ab & (ac | ad)) | (ac & ad)
    ba, cb, dc = ~ab, ~bc, ~cd
    into[:, :, :, 1] = (ba & (bc | bd)) | (bc & bd)
    ca, da, db = ~ac, ~ad, ~bd
    into[:, :, :, 2] = (ca & (cb | cd)) | (cb & cd)
    into[:, :, :, 3] = (da & (db | dc)) | (db & dc)


def _sorted(given: Array, into: Mask, keep: int) -> None:
    order = np.argsort(-given if given.dtype.kind == "f" else ~given, axis=3, kind="stable")
    into[...] = False
    np.put_along_axis(into, order[:, :, :, :keep], True, axis=3)


def holds(pattern: Pattern, zero: Mask) -> bool:
    """Whether weights whose zeros are given follow an N:M pattern, in every whole group of inputs."""
    full = zero.shape[2] // pattern.of * pattern.of
    if not full:
        return False
    split = zero[:, :, :full].reshape(*zero.shape[:2], full // pattern.of, pattern.of, zero.shape[3])
    count = np.zeros(np.delete(split.shape, 3), np.uint16)
    for i in range(pattern.of):  # faster than a sum over a short axis
        count += split[:, :, :, i]
    return bool((count >= pattern.of - pattern.keep).all())
