"""Masks without samples: magnitudes, compared within a weight tensor or over all, and weights with zeros put in.

The score of a tile ``T`` is ``sum of w^2 over T`` (its mean over ``T`` where tensors are compared with each other), and
the lowest scores go, as many as the sparsity says: of each tensor ("local"), or of all together under one threshold
("global"). Shapes: weights as they are stored, viewed as ``[blocks, outputs, inputs, taps]``.

References
----------
Han et al., arXiv 1506.02626; for the two scopes Blalock et al., "What is the State of Neural Network Pruning?",
arXiv 2003.03033, section 2.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import registry
from onnxprune.model import Model
from onnxprune.options.pattern import Pattern
from onnxprune.sparsity.masks import best_of, expand, lowest, tile_scores, tiles
from onnxprune.sparsity.weights import SparseWeight

__all__ = ["blanked", "keys", "masks", "squares"]

Array = NDArray[Any]
Mask = NDArray[np.bool_]
#: With one threshold for all tensors, this share of the tiles of each stays.
LEAST = 0.01


def keys(target: SparseWeight, weight: Array) -> Array:
    """Return numbers in the order of the magnitudes of a stored weight; fast, and without a copy in float.

    The bits of a float without its sign are an unsigned integer in the order of its magnitude.
    """
    if target.zero is not None:
        distance = np.abs(weight.astype(np.int32) - np.asarray(target.zero, np.int32))
        return distance if target.scale is None or target.scale.ndim == 0 else distance * target.scale
    kind: Any = {2: np.uint16, 4: np.uint32, 8: np.uint64}[weight.dtype.itemsize]
    return np.asarray(weight.view(kind) & kind(np.iinfo(kind).max >> 1))


def squares(target: SparseWeight, weight: Array) -> Array:
    """Return the squared real values of a stored weight, in float32."""
    if target.zero is None:
        return np.square(weight, dtype=np.float32)
    scale = 1.0 if target.scale is None else target.scale
    real = (weight.astype(np.float32) - np.asarray(target.zero, np.float32)) * np.asarray(scale, np.float32)
    return np.asarray(np.square(real))


def masks(
    model: Model, targets: Sequence[SparseWeight], pattern: Pattern, sparsity: float, scope: str, method: str
) -> Iterator[tuple[SparseWeight, Mask]]:
    """Yield for each target which of its weights stay, in the stored shape.

    Parameters
    ----------
    model : Model
    targets : sequence of SparseWeight
    pattern : Pattern
    sparsity : float
        Share of the tiles that go; not used by N:M.
    scope : str
        ``"local"`` or ``"global"``.
    method : str
        The name of one without samples.
    """
    score = registry.load("onnxprune.sparsity.methods", method).score
    if scope == "global":
        yield from _together(model, targets, pattern, sparsity, score)
        return
    for target in targets:
        weight = model.weight(target.name)
        if pattern.fixed:
            mask = best_of(target.layout.view(score(keys(target, weight))), pattern.keep, pattern.of)
        else:
            mask = _alone(target, weight, pattern, sparsity, score)
        yield target, target.layout.back(mask)


def _alone(target: SparseWeight, weight: Array, pattern: Pattern, sparsity: float, score: Any) -> Mask:
    if tiles(pattern, target.shape) == (1, 1, 1):
        return lowest(target.layout.view(score(keys(target, weight))), round(sparsity * weight.size))
    scores = tile_scores(pattern, target.layout.view(score(squares(target, weight))))
    return expand(pattern, lowest(scores, round(sparsity * scores.size)), target.shape)


def _together(
    model: Model, targets: Sequence[SparseWeight], pattern: Pattern, sparsity: float, score: Any
) -> Iterator[tuple[SparseWeight, Mask]]:
    """One threshold for the mean magnitude of tiles over all tensors, by weights; a few of each tensor stay."""
    parts, weights = [], []
    for target in targets:
        stored = target.layout.view(score(squares(target, model.weight(target.name))))
        size = int(np.prod(tiles(pattern, target.shape)))
        scores = tile_scores(pattern, stored).astype(np.float32) / size
        if sparsity < 1:
            safe = scores.size - max(int(LEAST * scores.size), 1)
            if 0 <= safe < scores.size:
                scores = np.where(lowest(scores, safe), np.inf, scores).astype(np.float32)
        parts.append(scores)
        weights.append(np.broadcast_to(np.int64(size), scores.size))
    flat = np.concatenate([p.ravel() for p in parts]) if parts else np.zeros(0, np.float32)
    order = np.argsort(flat, kind="stable")
    total = np.concatenate(weights)[order].cumsum() if parts else np.zeros(0)
    count = int(np.searchsorted(total, sparsity * (total[-1] if total.size else 0) + 0.5, side="right"))
    keep = np.ones(flat.size, bool)
    keep[order[:count]] = False
    if sparsity < 1:
        keep |= np.isinf(flat)
    first = 0
    for target, scores in zip(targets, parts, strict=True):
        part = keep[first : first + scores.size].reshape(scores.shape)
        yield target, target.layout.back(expand(pattern, part, target.shape))
        first += scores.size


def blanked(target: SparseWeight, weight: Array, keep: Mask) -> Array:
    """Return a stored weight with zeros (the zero point, where it is quantised) where it isn't kept."""
    zero: Any = weight.dtype.type(0) if target.zero is None else np.asarray(target.zero, weight.dtype)
    if keep.all():
        return weight
    return np.asarray(np.where(keep, weight, zero))
