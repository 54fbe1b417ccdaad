"""Gradients of fused attention, and of the rotation of its queries and keys.

Scores and their softmax are computed again in the backward pass: no node gives them out. Where onnxruntime's forms of
attention carry a cache that isn't empty, or lengths, which positions count isn't known before the run: there are no
gradients then.

References
----------
Dao et al., "FlashAttention", arXiv 2205.14135, appendix B.2: the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
from onnx import TensorProto

from onnxprune.gradient.tape import Grads, NoGradient, Tape, vjp
from onnxprune.ops.base import Node

#: What is added to the score of a position that must not be seen.
UNSEEN = -1e30
_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Given:
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
class _Grads:
    """Gradients in the shapes of what is read; ``scores`` [B, H, S, T] of all that is added."""

    q: str
    k: str
    v: str
    scores: str


def _attend(t: Tape, given: _Given, dy: str) -> _Grads:
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
    return _Grads(
        t.matmul(inner, k),
        _summed(t, t.matmul(_turned(t, inner), given.q), given),
        _summed(t, t.matmul(_turned(t, shares), dy), given),
        raw,
    )


def _turned(t: Tape, value: str) -> str:
    return t.transpose(value, [0, 1, 3, 2])


def _repeated(t: Tape, value: str, given: _Given) -> str:
    """Give each head of the queries its keys or values."""
    if given.heads == given.groups:
        return value
    times = t.ints_const([1, 1, given.heads // given.groups, 1, 1])
    by_head = t.op("Expand", t.unsqueeze(value, [2]), times)
    width = t.op("Slice", t.op("Shape", value), *(t.ints_const([n]) for n in (3, 4)))
    return t.reshape(by_head, t.op("Concat", t.ints_const([0, given.heads, -1]), width, axis=0))


def _summed(t: Tape, value: str, given: _Given) -> str:
    """Add up what the heads of queries give to the keys or values that they share."""
    if given.heads == given.groups:
        return value
    width = t.op("Slice", t.op("Shape", value), *(t.ints_const([n]) for n in (3, 4)))
    shared = t.ints_const([0, given.groups, given.heads // given.groups, -1])
    return t.reduce("ReduceSum", t.reshape(value, t.op("Concat", shared, width, axis=0)), [2], keep=False)


def _apart(t: Tape, value: str, heads: int) -> str:
    """[B, S, heads * width] -> [B, heads, S, width]."""
    return t.transpose(t.reshape(value, [0, 0, heads, -1]), [0, 2, 1, 3])


def _together(t: Tape, value: str) -> str:
    """[B, heads, S, width] -> [B, S, heads * width]."""
    return t.reshape(t.transpose(value, [0, 2, 1, 3]), [0, 0, -1])


def _length(t: Tape, value: str) -> str:
    """Number of positions of [B, H, T, d], as a list of one."""
    return t.op("Slice", t.op("Shape", value), *(t.ints_const([n]) for n in (2, 3)))


def _later(t: Tape, queries: str, keys: str, before: str | None = None) -> str:
    """What hides keys that come after a query, of which ``before`` more keys come first: [S, T]."""
    zero, one = (t.ints_const(np.array(n)) for n in (0, 1))
    count = [t.op("Gather", t.op("Shape", x), t.ints_const(np.array(2)), axis=0) for x in (queries, keys)]
    rows, columns = (t.op("Range", zero, n, one) for n in count)
    if before is not None:
        rows = t.op("Add", rows, _length(t, before))
    hidden = t.op("Greater", t.unsqueeze(columns, [0]), t.unsqueeze(rows, [1]))
    return t.op("Where", hidden, t.const(UNSEEN), t.const(0))


def _mask(t: Tape, name: str) -> str:
    """A mask of booleans, or of what is added, as what is added."""
    if t.elem(name) == TensorProto.BOOL:
        return t.op("Where", name, t.const(0), t.const(UNSEEN))
    return name


def _of_mask(t: Tape, name: str, scores: str) -> str:
    """Sum the gradient of the scores over the axes along which a mask was broadcast."""
    dims = t.dims(name)
    if len(dims) < 4:
        scores = t.reduce("ReduceSum", scores, range(4 - len(dims)), keep=False)
    axes = [i for i, size in enumerate(dims) if size == 1]
    return t.reduce("ReduceSum", scores, axes) if axes else scores


def _with_past(t: Tape, past: str, value: str) -> str:
    return t.op("Concat", past, value, axis=2) if past else value


def _parted(t: Tape, past: str, grad: str) -> tuple[str, str]:
    """Gradients of the past and of what came after it."""
    axis, start, far = t.ints_const([2]), t.ints_const([0]), t.ints_const([_FAR])
    count = _length(t, past)
    return t.op("Slice", grad, start, count, axis), t.op("Slice", grad, count, far, axis)


def _plus(t: Tape, grad: str, other: str) -> str:
    return t.op("Add", grad, other) if other else grad


def _input(node: Node, slot: int) -> str:
    return node.inputs[slot] if node.has(slot) else ""


def _refuse(node: Node, slots: dict[int, str], **attrs: str) -> None:
    for slot, what in slots.items():
        if node.has(slot):
            raise NoGradient(f"it has {what}")
    for name, what in attrs.items():
        if node.attr(name, 0) not in (0, 0.0, -1):
            raise NoGradient(f"it has {what}")


def _all(dy: Sequence[str], count: int) -> list[str]:
    return [*dy, *[""] * (count - len(dy))]


@vjp("Attention")
def attention(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """Q, K, V, mask, past K, past V, lengths -> Y, present K, present V, scores."""
    _refuse(node, {6: "lengths"}, softcap="a soft cap")
    out, new_k, new_v, scores = _all(dy, 4)
    if scores:
        raise NoGradient("its scores are outputs, too")
    flat = len(t.dims(node.inputs[0])) == 3
    if flat:
        heads, groups = int(node.attrs["q_num_heads"]), int(node.attrs["kv_num_heads"])
        width = t.static(node.inputs[0], [2])[0] // heads
    else:
        heads, width = t.static(node.inputs[0], [1, 3])
        (groups,) = t.static(node.inputs[1], [1])
    counts = (heads, groups, groups)
    q, k, v = (_apart(t, name, n) if flat else name for name, n in zip(node.inputs[:3], counts, strict=True))
    pasts = _input(node, 4), _input(node, 5)
    k, v = _with_past(t, pasts[0], k), _with_past(t, pasts[1], v)
    added = [_mask(t, node.inputs[3])] if node.has(3) else []
    if node.attr("is_causal", 0):
        added.append(_later(t, q, k, pasts[0] or None))
    scale = float(node.attr("scale", 0.0)) or 1 / sqrt(width)
    dy4 = _apart(t, out, heads) if flat else out
    if not out:
        raise NoGradient("only its cache is used")
    got = _attend(t, _Given(q, k, v, heads, groups, scale, tuple(added)), dy4)
    grads = {0: got.q}
    for slot, past, grad in ((1, pasts[0], _plus(t, got.k, new_k)), (2, pasts[1], _plus(t, got.v, new_v))):
        if past:
            grads[slot + 3], grad = _parted(t, past, grad)
        grads[slot] = grad
    if flat:
        grads |= {slot: _together(t, grads[slot]) for slot in range(3)}
    if 3 in need:
        grads[3] = _of_mask(t, node.inputs[3], got.scores)
    return {slot: grad for slot, grad in grads.items() if slot in need}


def _ms_added(t: Tape, node: Node, padding: int, bias: int) -> list[str]:
    """What onnxruntime's forms add to the scores: a mask [B, T] of positions that count, and a bias."""
    added = [node.inputs[bias]] if node.has(bias) else []
    if node.has(padding):
        name = node.inputs[padding]
        if len(t.dims(name)) != 2:
            raise NoGradient("its mask isn't one number for each position")
        low = t.const(float(node.attr("mask_filter_value", -10000.0)))
        seen = t.op("Cast", name, to=TensorProto.BOOL)
        added.append(t.unsqueeze(t.op("Where", seen, t.const(0), low), [1, 2]))
    return added


@vjp("MultiHeadAttention", domain="com.microsoft")
def multi_head(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """Q, K, V, bias, padding mask, mask, past K, past V, length, beams -> Y, present K, present V, scores."""
    _refuse(node, {8: "a length", 9: "beams"})
    out, new_k, new_v, scores = _all(dy, 4)
    if scores or not out:
        raise NoGradient("its scores are outputs, too" if scores else "only its cache is used")
    if not (node.has(1) and node.has(2)) or len(t.dims(node.inputs[0])) != 3:
        raise NoGradient("Q, K and V are packed in one tensor")
    heads = int(node.attrs["num_heads"])
    ranks = [len(t.dims(name)) for name in node.inputs[:3]]
    biases = _cut_bias(t, node) if node.has(3) else ["", "", ""]
    by_head = []
    for name, rank, bias in zip(node.inputs[:3], ranks, biases, strict=True):
        with_bias = t.op("Add", name, bias) if bias and rank == 3 else name
        by_head.append(_apart(t, with_bias, heads) if rank == 3 else with_bias)
    pasts = _input(node, 6), _input(node, 7)
    k, v = _with_past(t, pasts[0], by_head[1]), _with_past(t, pasts[1], by_head[2])
    added = _ms_added(t, node, 4, 5)
    if node.attr("unidirectional", 0):
        added.append(_later(t, by_head[0], k, pasts[0] or None))
    width = t.static(node.inputs[0], [2])[0] // heads
    scale = float(node.attr("scale", 0.0)) or 1 / sqrt(width)
    got = _attend(t, _Given(by_head[0], k, v, heads, heads, scale, tuple(added)), _apart(t, out, heads))
    grads = {0: got.q}
    for slot, past, grad in ((1, pasts[0], _plus(t, got.k, new_k)), (2, pasts[1], _plus(t, got.v, new_v))):
        if past:
            grads[slot + 5], grad = _parted(t, past, grad)
        grads[slot] = grad
    for slot, rank in enumerate(ranks):
        grads[slot] = _together(t, grads[slot]) if rank == 3 else grads[slot]
    if 3 in need:
        if min(ranks) == 4:
            raise NoGradient("its bias isn't added to all of Q, K and V")
        sums = [t.reduce("ReduceSum", grads[slot], [0, 1], keep=False) for slot in range(3)]
        grads[3] = t.op("Concat", *sums, axis=0)
    if 5 in need:
        grads[5] = _of_mask(t, node.inputs[5], got.scores)
    return {slot: grad for slot, grad in grads.items() if slot in need}


def _cut_bias(t: Tape, node: Node) -> list[str]:
    width = t.static(node.inputs[0], [2])[0]
    (total,) = t.static(node.inputs[3], [0])
    ends = [0, width, 2 * width, total]
    return [t.slice(node.inputs[3], [0], [low], [high]) for low, high in pairwise(ends)]


@vjp("Attention", domain="com.microsoft")
def packed_attention(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """Data, weight of Q, K, V, bias, padding mask, past, mask, length -> Y, present."""
    _refuse(node, {4: "a cache", 6: "a length"}, do_rotary="a rotation of its own")
    out, present = _all(dy, 2)
    if present or not out:
        raise NoGradient("its cache is used")
    x, weight = node.inputs[:2]
    heads = int(node.attrs["num_heads"])
    rows, total = t.static(weight, [0, 1])
    widths = [int(w) for w in node.attr("qkv_hidden_sizes") or [total // 3] * 3]
    made = t.matmul(x, weight)
    if node.has(2):
        made = t.op("Add", made, node.inputs[2])
    ends = np.cumsum([0, *widths]).tolist()
    parts = [t.slice(made, [2], [low], [high]) for low, high in pairwise(ends)]
    q, k, v = (_apart(t, part, heads) for part in parts)
    added = _ms_added(t, node, 3, 5)
    if node.attr("unidirectional", 0):
        added.append(_later(t, q, k))
    scale = float(node.attr("scale", 0.0)) or 1 / sqrt(widths[0] // heads)
    got = _attend(t, _Given(q, k, v, heads, heads, scale, tuple(added)), _apart(t, out, heads))
    back = t.op("Concat", *(_together(t, grad) for grad in (got.q, got.k, got.v)), axis=2)
    grads = {}
    if 0 in need:
        grads[0] = t.matmul(back, t.transpose(weight, [1, 0]))
    if 1 in need:
        every = t.transpose(t.reshape(x, [-1, rows]), [1, 0])
        grads[1] = t.matmul(every, t.reshape(back, [-1, total]))
    if 2 in need:
        grads[2] = t.reduce("ReduceSum", back, [0, 1], keep=False)
    if 5 in need:
        grads[5] = _of_mask(t, node.inputs[5], got.scores)
    return grads


@vjp("GroupQueryAttention", domain="com.microsoft")
def group_query(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """Q, K, V (or all in Q), past K, V, lengths, total, cosines, sines, ids, mask, sinks -> Y, present K, V.

    Without a cache, or with an empty one: each query sees the keys up to its own. Rows beyond a sample's length are
    padding, and what they give counts for nothing.
    """
    _refuse(node, {11: "sinks"}, softcap="a soft cap", smooth_softmax="sinks", local_window_size="a window")
    out, new_k, new_v = _all(dy, 3)[:3]
    if not out or any(_all(dy, 4)[3:]):
        raise NoGradient("only its cache is used" if not out else "its scores are outputs, too")
    for slot in (3, 4):
        if node.has(slot) and t.dims(node.inputs[slot])[2] != 0:
            raise NoGradient("its cache isn't empty")
    heads, groups = int(node.attrs["num_heads"]), int(node.attrs["kv_num_heads"])
    packed = not node.has(1)
    (size,) = t.static(node.inputs[0], [2])
    width = size // (heads + 2 * groups) if packed else size // heads
    ends = np.cumsum([0, heads, groups, groups]) * width
    flat = (
        [t.slice(node.inputs[0], [2], [int(low)], [int(high)]) for low, high in pairwise(ends)]
        if packed
        else list(node.inputs[:3])
    )
    q, k, v = (_apart(t, x, n) for x, n in zip(flat, (heads, groups, groups), strict=True))
    turns = bool(node.attr("do_rotary", 0))
    if turns:
        q, k = (_rotated(t, node, x) for x in (q, k))
    added = [node.inputs[10]] if node.has(10) else []
    scale = float(node.attr("scale", 0.0)) or 1 / sqrt(width)
    terms = (*added, _later(t, q, k))
    got = _attend(t, _Given(q, k, v, heads, groups, scale, terms), _apart(t, out, heads))
    back = [got.q, _plus(t, got.k, new_k), _plus(t, got.v, new_v)]
    if turns:
        back[:2] = [_rotated(t, node, x, back=True) for x in back[:2]]
    together = [_together(t, x) for x in back]
    grads = {0: t.op("Concat", *together, axis=2)} if packed else dict(enumerate(together))
    if 10 in need:
        grads[10] = _of_mask(t, node.inputs[10], got.scores)
    return {slot: grad for slot, grad in grads.items() if slot in need}


def _rotated(t: Tape, node: Node, value: str, back: bool = False) -> str:
    """Rotate heads [B, H, S, d] as the node does, or a gradient back."""
    cosines, sines = node.inputs[7:9]
    places = node.inputs[9] if node.has(9) else t.ints_const([0])
    sines = t.op("Neg", sines) if back else sines
    attrs = {"interleaved": int(node.attr("rotary_interleaved", 0))}
    return t.op("RotaryEmbedding", value, places, cosines, sines, domain="com.microsoft", **attrs)


@vjp("RotaryEmbedding")
@vjp("RotaryEmbedding", domain="com.microsoft")
def rotary(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """A rotation is undone by that of the opposite angle; data, cosines, sines are what it reads, and places."""
    sine = 3 if node.domain else 2
    if need != {0}:
        raise NoGradient("its angles are computed from what is to be changed")
    rest = [name if slot != sine else t.op("Neg", name) for slot, name in enumerate(node.inputs) if slot]
    return {0: t.op("RotaryEmbedding", dy[0], *rest, domain=node.domain, **node.attrs)}
