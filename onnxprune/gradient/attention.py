"""Gradients of fused attention, and of the rotation of its queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
from onnx import TensorProto

from onnxprune.gradient.heads import (
    ByHead,
    added_by,
    apart,
    attend,
    hidden,
    later,
    length_of,
    of_mask,
    parted,
    places_of,
    plus,
    together,
    with_past,
)  # fmt: skip
from onnxprune.gradient.tape import Grads, NoGradient, Tape, vjp
from onnxprune.ops.base import Node


def _input(node: Node, slot: int) -> str:
    return node.inputs[slot] if node.has(slot) else ""


def _refuse(node: Node, slots: dict[int, str], **attrs: str) -> None:
    for slot, what in slots.items():
        if node.has(slot):
            raise NoGradient(f"it has {what}")
    for name, what in attrs.items():
        if node.attr(name, 0) not in (0, 0.0, -1):
            raise NoGradient(f"it has {what}")


def _take_pasts(t: Tape, pasts: tuple[str, str], back: list[str], first: int) -> dict[int, str]:
    """Take the gradients of both caches, from the slot ``first`` on, off those of all keys and values, in place."""
    grads = {}
    for n, past in enumerate(pasts):
        if past:
            grads[first + n], back[n + 1] = parted(t, past, back[n + 1])
    return grads


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
    q, k, v = (apart(t, name, n) if flat else name for name, n in zip(node.inputs[:3], counts, strict=True))
    pasts = _input(node, 4), _input(node, 5)
    k, v = with_past(t, pasts[0], k), with_past(t, pasts[1], v)
    added = [added_by(t, node.inputs[3])] if node.has(3) else []
    if node.attr("is_causal", 0):
        added.append(later(t, q, k, pasts[0] or None))
    scale = float(node.attr("scale", 0.0)) or 1 / sqrt(width)
    dy4 = apart(t, out, heads) if flat else out
    if not out:
        raise NoGradient("only its cache is used")
    got = attend(t, ByHead(q, k, v, heads, groups, scale, tuple(added)), dy4)
    back = [got.q, plus(t, got.k, new_k), plus(t, got.v, new_v)]
    grads = {**_take_pasts(t, pasts, back, 4), **dict(enumerate(back))}
    if flat:
        grads |= {slot: together(t, grads[slot]) for slot in range(3)}
    if 3 in need:
        grads[3] = of_mask(t, node.inputs[3], got.scores)
    return {slot: grad for slot, grad in grads.items() if slot in need}


def _ms_added(t: Tape, node: Node, keys: str, padding: int, bias: int) -> list[str]:
    """What onnxruntime's forms add to the scores: a bias, and a mask [B, T] of positions that count or how many do."""
    added = [node.inputs[bias]] if node.has(bias) else []
    if node.has(padding):
        name, rank = node.inputs[padding], node.rank(padding)
        if rank > 2 or (rank == 1 and node.shape(padding) != node.shape(0)[:1]):
            raise NoGradient("its mask is neither a number for each position nor how many count")
        if rank == 1:
            counts = t.unsqueeze(t.op("Cast", name, to=TensorProto.INT64), [1])
            seen = t.op("Less", t.unsqueeze(places_of(t, keys), [0]), counts)
        else:
            seen = t.op("Cast", name, to=TensorProto.BOOL)
        low = t.const(float(node.attr("mask_filter_value", -10000.0)))
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
        by_head.append(apart(t, with_bias, heads) if rank == 3 else with_bias)
    pasts = _input(node, 6), _input(node, 7)
    k, v = with_past(t, pasts[0], by_head[1]), with_past(t, pasts[1], by_head[2])
    added = _ms_added(t, node, k, 4, 5)
    if node.attr("unidirectional", 0):
        added.append(later(t, by_head[0], k, pasts[0] or None))
    width = t.static(node.inputs[0], [2])[0] // heads
    scale = float(node.attr("scale", 0.0)) or 1 / sqrt(width)
    got = attend(t, ByHead(by_head[0], k, v, heads, heads, scale, tuple(added)), apart(t, out, heads))
    back = [got.q, plus(t, got.k, new_k), plus(t, got.v, new_v)]
    grads = {**_take_pasts(t, pasts, back, 6), **dict(enumerate(back))}
    for slot, rank in enumerate(ranks):
        grads[slot] = together(t, grads[slot]) if rank == 3 else grads[slot]
    if 3 in need:
        if min(ranks) == 4:
            raise NoGradient("its bias isn't added to all of Q, K and V")
        sums = [t.reduce("ReduceSum", grads[slot], [0, 1], keep=False) for slot in range(3)]
        grads[3] = t.op("Concat", *sums, axis=0)
    if 5 in need:
        grads[5] = of_mask(t, node.inputs[5], got.scores)
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
    q, k, v = (apart(t, part, heads) for part in parts)
    added = _ms_added(t, node, k, 3, 5)
    if node.attr("unidirectional", 0):
        added.append(later(t, q, k))
    scale = float(node.attr("scale", 0.0)) or 1 / sqrt(widths[0] // heads)
    got = attend(t, ByHead(q, k, v, heads, heads, scale, tuple(added)), apart(t, out, heads))
    back = t.op("Concat", *(together(t, grad) for grad in (got.q, got.k, got.v)), axis=2)
    grads = {}
    if 0 in need:
        grads[0] = t.matmul(back, t.transpose(weight, [1, 0]))
    if 1 in need:
        every = t.transpose(t.reshape(x, [-1, rows]), [1, 0])
        grads[1] = t.matmul(every, t.reshape(back, [-1, total]))
    if 2 in need:
        grads[2] = t.reduce("ReduceSum", back, [0, 1], keep=False)
    if 5 in need:
        grads[5] = of_mask(t, node.inputs[5], got.scores)
    return grads


@vjp("GroupQueryAttention", domain="com.microsoft")
def group_query(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """Q, K, V (or all in Q), past K, V, lengths, total, cosines, sines, ids, mask, sinks -> Y, present K, V.

    A query sees the keys up to its own, and what counts of the cache. Rows beyond a sample's length are padding, and
    what they give counts for nothing.
    """
    _refuse(node, {11: "sinks"}, softcap="a soft cap", smooth_softmax="sinks", local_window_size="a window")
    out, new_k, new_v, scores = _all(dy, 4)
    if scores or not out:
        raise NoGradient("its scores are outputs, too" if scores else "only its cache is used")
    pasts = _input(node, 3), _input(node, 4)
    if need & {3, 4} and (new_k or new_v):
        raise NoGradient("a cache goes through it")
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
    q, k, v = (apart(t, x, n) for x, n in zip(flat, (heads, groups, groups), strict=True))
    before = _before(t, node, q)
    turns = _Turns.of(t, node, before, q) if node.attr("do_rotary", 0) else None
    if turns is not None:
        q, k = turns.turned(t, q), turns.turned(t, k)
    k, v = with_past(t, pasts[0], k), with_past(t, pasts[1], v)
    unseen = _unseen(t, pasts[0], before, q, k)
    added = (node.inputs[10], unseen) if node.has(10) else (unseen,)
    scale = float(node.attr("scale", 0.0)) or 1 / sqrt(width)
    got = attend(t, ByHead(q, k, v, heads, groups, scale, added), apart(t, out, heads))
    back = [got.q, got.k, got.v]
    grads = _take_pasts(t, pasts, back, 3)
    for slot, new in enumerate((new_k, new_v), 1):
        if new:
            back[slot] = t.op("Add", back[slot], _taken(t, new, before, q))
    if turns is not None:
        back[:2] = [turns.turned(t, x, back=True) for x in back[:2]]
    flat_grads = [together(t, x) for x in back]
    grads |= {0: t.op("Concat", *flat_grads, axis=2)} if packed else dict(enumerate(flat_grads))
    if 10 in need:
        grads[10] = of_mask(t, node.inputs[10], got.scores)
    return {slot: grad for slot, grad in grads.items() if slot in need}


def _before(t: Tape, node: Node, queries: str) -> str:
    """How many positions of the cache count for each sample: [B, 1]; the input says how many do in all, less one."""
    last = t.reshape(t.op("Cast", node.inputs[5], to=TensorProto.INT64), [-1, 1])
    count = t.op("Sub", t.op("Add", last, t.ints_const([1])), length_of(t, queries))
    return t.op("Where", t.op("Greater", count, t.ints_const([0])), count, t.ints_const([0]))


def _unseen(t: Tape, past: str, before: str, queries: str, keys: str) -> str:
    """What hides keys that come after a query, and places of the cache that don't count: [S, T] or [B, 1, S, T]."""
    if not past:
        return later(t, queries, keys)
    rows, columns, count = places_of(t, queries), t.unsqueeze(places_of(t, keys), [0]), length_of(t, past)
    after = t.op("Greater", t.op("Sub", columns, count), t.unsqueeze(rows, [1]))
    empty = t.op("And", t.op("Less", columns, count), t.op("Not", t.op("Less", columns, before)))
    return hidden(t, t.op("Or", after, t.unsqueeze(empty, [1, 2])))


def _taken(t: Tape, cache: str, before: str, queries: str) -> str:
    """Take from the gradient of the cache that is given what lies where a node's own keys or values went."""
    places = t.unsqueeze(t.op("Add", before, places_of(t, queries)), [2])
    chosen = t.mask(t.op("Equal", places, t.unsqueeze(places_of(t, cache), [0, 1])))
    return t.matmul(t.unsqueeze(chosen, [1]), cache)


@dataclass(frozen=True)
class _Turns:
    """The rotation of a node's queries and keys, by their places."""

    places: str
    cosines: str
    sines: str
    interleaved: int

    @classmethod
    def of(cls, t: Tape, node: Node, before: str, queries: str) -> _Turns:
        """Places are an input, or follow what counts of the cache."""
        places = node.inputs[9] if node.has(9) else t.op("Add", before, places_of(t, queries))
        return cls(places, node.inputs[7], node.inputs[8], int(node.attr("rotary_interleaved", 0)))

    def turned(self, t: Tape, value: str, back: bool = False) -> str:
        """Rotate heads [B, H, S, d], or a gradient back."""
        sines = t.op("Neg", self.sines) if back else self.sines
        given = (value, self.places, self.cosines, sines)
        return t.op("RotaryEmbedding", *given, domain="com.microsoft", interleaved=self.interleaved)


@vjp("RotaryEmbedding")
@vjp("RotaryEmbedding", domain="com.microsoft")
def rotary(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """A rotation is undone by that of the opposite angle; data, cosines, sines are what it reads, and places."""
    sine = 3 if node.domain else 2
    if need != {0}:
        raise NoGradient("its angles are computed from what is to be changed")
    rest = [name if slot != sine else t.op("Neg", name) for slot, name in enumerate(node.inputs) if slot]
    return {0: t.op("RotaryEmbedding", dy[0], *rest, domain=node.domain, **node.attrs)}
