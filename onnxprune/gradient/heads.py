"""Attention by heads in the backward pass: scores and their softmax are computed again, as no node gives them out.

References
----------
Dao et al., "FlashAttention", arXiv 2205.14135, appendix B.2: the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxprune.gradient.tape import Tape

__all__ = [
    "ByHead", "HeadGrads", "added_by", "apart", "attend", "hidden", "later", "length_of", "of_mask", "parted",
    "places_of", "plus", "together", "with_past",
]  # fmt: skip

#: What is added to the score of a position that must not be seen.
UNSEEN = -1e30
_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ByHead:
    """What attention reads, by heads: ``q`` [B, H, S, d], ``k`` [B, G, T, d], ``v`` [B, G, T, v].

    ``added`` broadcasts to [B, H, S, T] and is added to the scores.
    """

    q: str
    k: str
    v: str
    heads: int
    groups: int
    scale: float
    added: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeadGrads:
    """Gradients in the shapes of what is read; ``scores`` [B, H, S, T] of all that is added."""

    q: str
    k: str
    v: str
    scores: str


def attend(t: Tape, given: ByHead, dy: str) -> HeadGrads:
    """Backward pass from the gradient [B, H, S, v] of ``softmax(scale * q k' + added) v``."""
    k, v = _repeated(t, given.k, given), _repeated(t, given.v, given)
    scores = t.scaled(t.matmul(given.q, _turned(t, k)), given.scale)
    for term in given.added:
        scores = t.op("Add", scores, term)
    shares = t.op("Softmax", scores, axis=3)
    back = t.matmul(dy, _turned(t, v))
    mean = t.reduce("ReduceSum", t.mul(back, shares), [3])
    raw = t.mul(shares, t.op("Sub", back, mean))
    inner = t.scaled(raw, given.scale)
    return HeadGrads(
        t.matmul(inner, k),
        _summed(t, t.matmul(_turned(t, inner), given.q), given),
        _summed(t, t.matmul(_turned(t, shares), dy), given),
        raw,
    )


def _turned(t: Tape, value: str) -> str:
    return t.transpose(value, [0, 1, 3, 2])


def _repeated(t: Tape, value: str, given: ByHead) -> str:
    """Give each head of the queries its keys or values."""
    if given.heads == given.groups:
        return value
    times = t.ints_const([1, 1, given.heads // given.groups, 1, 1])
    by_head = t.op("Expand", t.unsqueeze(value, [2]), times)
    return _regrouped(t, by_head, [0, given.heads, -1], value)


def _summed(t: Tape, value: str, given: ByHead) -> str:
    """Add up what the heads of queries give to the keys or values that they share."""
    if given.heads == given.groups:
        return value
    shared = _regrouped(t, value, [0, given.groups, given.heads // given.groups, -1], value)
    return t.reduce("ReduceSum", shared, [2], keep=False)


def _regrouped(t: Tape, value: str, shape: list[int], like: str) -> str:
    """Give a value another shape but for its last axis, which is that of ``like``."""
    return t.reshape(value, t.op("Concat", t.ints_const(shape), _size(t, like, 3), axis=0))


def _size(t: Tape, value: str, axis: int) -> str:
    """The size of one axis, as a list of one."""
    return t.op("Slice", t.op("Shape", value), *(t.ints_const([n]) for n in (axis, axis + 1)))


def apart(t: Tape, value: str, heads: int) -> str:
    """[B, S, heads * width] -> [B, heads, S, width]."""
    return t.transpose(t.reshape(value, [0, 0, heads, -1]), [0, 2, 1, 3])


def together(t: Tape, value: str) -> str:
    """[B, heads, S, width] -> [B, S, heads * width]."""
    return t.reshape(t.transpose(value, [0, 2, 1, 3]), [0, 0, -1])


def length_of(t: Tape, value: str) -> str:
    """Number of positions of [B, H, T, d], as a list of one."""
    return _size(t, value, 2)


def places_of(t: Tape, value: str) -> str:
    """Numbers of the positions of [B, H, T, d], from 0 on: [T]."""
    zero, one = (t.ints_const(np.array(n)) for n in (0, 1))
    return t.op("Range", zero, t.op("Gather", t.op("Shape", value), t.ints_const(np.array(2)), axis=0), one)


def later(t: Tape, queries: str, keys: str, before: str | None = None) -> str:
    """What hides keys that come after a query, of which ``before`` more keys come first: [S, T]."""
    rows, columns = places_of(t, queries), places_of(t, keys)
    if before is not None:
        rows = t.op("Add", rows, length_of(t, before))
    return hidden(t, t.op("Greater", t.unsqueeze(columns, [0]), t.unsqueeze(rows, [1])))


def hidden(t: Tape, where: str) -> str:
    return t.op("Where", where, t.const(UNSEEN), t.const(0))


def added_by(t: Tape, name: str) -> str:
    """A mask of booleans, or of what is added, as what is added."""
    if t.elem(name) == TensorProto.BOOL:
        return t.op("Where", name, t.const(0), t.const(UNSEEN))
    return name


def of_mask(t: Tape, name: str, scores: str) -> str:
    """Sum the gradient of the scores over the axes along which a mask was broadcast."""
    dims = t.dims(name)
    if len(dims) < 4:
        scores = t.reduce("ReduceSum", scores, range(4 - len(dims)), keep=False)
    axes = [i for i, size in enumerate(dims) if size == 1]
    return t.reduce("ReduceSum", scores, axes) if axes else scores


def with_past(t: Tape, past: str, value: str) -> str:
    return t.op("Concat", past, value, axis=2) if past else value


def parted(t: Tape, past: str, grad: str) -> tuple[str, str]:
    """Gradients of the past and of what came after it."""
    axis, start, far = t.ints_const([2]), t.ints_const([0]), t.ints_const([_FAR])
    count = length_of(t, past)
    return t.op("Slice", grad, start, count, axis), t.op("Slice", grad, count, far, axis)


def plus(t: Tape, grad: str, other: str) -> str:
    return t.op("Add", grad, other) if other else grad
