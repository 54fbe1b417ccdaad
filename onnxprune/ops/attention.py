"""Fused attention: ``k`` heads of keys and values, ``r`` query heads for each, widths ``d`` of Q and K, ``v`` of V.

Q and K contract ``d`` (also where a cache of keys makes it an output). The scale of the scores follows from the
width of a head where no attribute says otherwise: a cut of ``d`` writes the old one down.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import numpy as np

from onnxprune.ops.axes import join, text
from onnxprune.ops.base import Cut, Edit, Node, Refusal, Row, SetAttr, Shape, emitter, op
from onnxprune.ops.traits import Trait

WHY = {
    "b": "masks count the batch", "s": "positions attend to each other", "t": "positions attend to each other",
    "p": "positions attend to each other", "u": "positions attend to each other", "d": "rotated in pairs",
}  # fmt: skip


def _mask(shape: Shape | None, heads: int, letters: str = "(k r)") -> str:
    """Write a mask that broadcasts to (batch, heads, queries, keys)."""
    if shape is None:
        return "()?"
    axes = ["m0!", "1" if len(shape) > 2 and shape[-3] == 1 else letters, "m2!", "m3!"][4 - len(shape) :]
    if len(shape) > 2 and shape[-3] not in (1, heads):
        raise ValueError(f"a mask of shape {list(shape)} for {heads} heads")
    return text("1" if size == 1 else axis for size, axis in zip(shape, axes, strict=True)) + "?"


def _shape(node: Node, slot: int) -> Shape | None:
    return node.shape(slot) if node.has(slot) else None


def _macs(
    node: Node, letters: tuple[str, str, str, str], past: int | None = None
) -> tuple[tuple[str, ...], ...]:
    """Return the letters of the products of heads, width, width of values, keys: scores of all queries and keys, and
    sums of values; of keys in a cache (at the slot ``past``), too.
    """
    heads, width, value, keys = letters
    every = [keys, "p"] if past is not None and node.has(past) else [keys]
    return tuple(("b", *heads, "s", one, last) for one in every for last in (width, value))


@op("Attention")
def attention(node: Node) -> Row | Refusal:
    """Q, K, V, mask, past K, past V, lengths -> Y, present K, present V, scores."""
    q, k = node.shape(0), node.shape(1)
    heads = int(node.attrs["q_num_heads"]) if len(q) == 3 else q[1]
    groups = int(node.attrs["kv_num_heads"]) if len(q) == 3 else k[1]
    if heads % groups:
        raise ValueError(f"{heads} heads of queries for {groups} of keys")
    mask = _mask(_shape(node, 3), heads)
    if len(q) == 3:
        data = ["b! s! (k r d^)", "b! t! (k d^)", "b! t! (k v)"]
        result = "b! s! (k r v)"
    else:
        data, result = ["b! (k r) s! d^", "b! k t! d^", "b! k t! v"], "b! (k r) s! v"
    inputs = [*data, mask, "b! k p! d^?", "b! k p! v?", "b!?"]
    row = join(inputs, [result, "b! k u! d", "b! k u! v", "b! (k r) s! u!"])
    attrs = {"kv_num_heads": "k"} if len(q) == 3 else {}
    macs = _macs(node, ("kr", "d", "v", "t"), past=4)
    return Row(row, sizes={"k": groups, "r": heads // groups}, attrs=attrs, why=WHY, macs=macs)


@op("LinearAttention")
def linear_attention(node: Node) -> Row | Refusal:
    """Q, K, V, state, decay, update rate -> Y, state. Only whole heads: the rules of update mix widths."""
    heads, groups = int(node.attrs["q_num_heads"]), int(node.attrs["kv_num_heads"])
    decay = "b! s! k?" if node.has(4) and node.shape(4)[-1] == groups else "b! s! (k d!)?"
    beta = "b! s! 1?" if node.has(5) and node.shape(5)[-1] == 1 else "b! s! k?"
    row = f"b! s! (k r d!), b! s! (k d!), b! s! (k v!), b! k d! v!?, {decay}, {beta} -> b! s! (k r v!), b! k d! v!"
    why = {**WHY, "d": "the state's update mixes it", "v": "the state's update mixes it"}
    return Row(row, sizes={"k": groups, "r": heads // groups}, attrs={"kv_num_heads": "k"}, why=why)


@op("GroupQueryAttention", domain="com.microsoft")
def group_query(node: Node) -> Row | Refusal:
    """Q, K, V (or all in Q), past K, V, lengths, total, cosines, sines, ids, mask, sinks, norms, lengths -> Y, K, V."""
    heads, groups = int(node.attrs["num_heads"]), int(node.attrs["kv_num_heads"])
    if (
        node.has(12)
        or node.has(13)
        or any(node.attr(f"{side}_quant_type", "NONE") != "NONE" for side in "kv")
    ):
        return Refusal("GroupQueryAttention with a quantized cache is not described")
    if node.has(1):
        data = ["b! s! (k r d!)", "b! t! (k d!)", "b! t! (k d!)"]
    else:
        data = ["b! s! (k r d! + k d! + k d!)", "()?", "()?"]
    cache = "b! k p! d!?"
    rest = ["*l!", "*l2!", "*l3!?", "*l4!?", "*l5!?", _mask(_shape(node, 10), heads)]
    last = ["(k r)?", "()?", "()?", "d!?", "d!?", "b!?"]
    results = ["b! s! (k r d!)", "b! k u! d!", "b! k u! d!", "b! (k r) s! x!"]
    row = join([*data, cache, cache, *rest, *last], results)
    why = {**WHY, "d": "onnxruntime takes only heads of a multiple of 8", "x": WHY["u"]}
    macs = _macs(node, ("kr", "d", "d", "t" if node.has(1) else "s"), past=3)
    sizes = {"k": groups, "r": heads // groups}
    return Row(row, sizes=sizes, attrs={"kv_num_heads": "k"}, why=why, macs=macs)


@op("MultiHeadAttention", domain="com.microsoft")
def multi_head(node: Node) -> Row | Refusal:
    """Q, K, V, bias, padding mask, mask, past K, past V, length, beams -> Y, present K, present V, scores."""
    heads, rank = int(node.attrs["num_heads"]), node.rank()
    mask = _mask(_shape(node, 5), heads, "h")
    d = "d!" if node.has(8) or node.has(9) else "d^"  # a buffer that is shared is laid out for its width
    if rank == 5:  # packed (batch, sequence, heads, 3, width)
        data, v = ["b! s! h q! d", "()?", "()?"], "d"
    elif node.has(1) and node.rank(1) == 5:
        data, v = ["b! s! (h d)", "b! t! h q! d", "()?"], "d"
    elif node.has(1) and node.rank(1) == 4:
        data, v = [f"b! s! (h {d})", f"b! h t! {d}", "b! h t! d"], "d"
    else:
        v = "d" if node.has(6) else "v"  # onnxruntime wants both caches to be of one width
        data = [f"b! s! (h {d})", f"b! t! (h {d})?", f"b! t! (h {v})?"]
    inputs = [
        *data,
        f"(h {d} + h {d} + h {v})?",
        "*m!?",
        mask,
        f"b! h p! {d}?",
        f"b! h p! {v}?",
        "*l!?",
        "*x!?",
    ]
    row = join(inputs, [f"b! s! (h {v})", "b! h u! d", f"b! h u! {v}", "b! h s! w!"])
    roles = ("data", "data", "data", "bias")
    why = {**WHY, "q": "Q, K and V", "w": WHY["u"]}
    macs = _macs(node, ("h", "d", v, "t" if node.has(1) else "s"), past=6)
    return Row(row, sizes={"h": heads}, attrs={"num_heads": "h"}, why=why, roles=roles, macs=macs)


@op("DecoderMaskedMultiHeadAttention", domain="com.microsoft")
def decoder_multi_head(node: Node) -> Row | Refusal:
    """Q, K, V, padding mask, mask, past K, past V, length, beams, their origins, bias -> Y, K, V, scores."""
    heads = int(node.attrs["num_heads"])
    if not node.has(1):
        return Refusal("DecoderMaskedMultiHeadAttention of packed Q, K and V is not described")
    mask = _mask(_shape(node, 4), heads, "h")
    d = "d!" if node.attr("past_present_share_buffer", 0) else "d^"
    if node.rank(1) == 4:
        data = [f"b! s! (h {d})", f"b! h t! {d}", "b! h t! d"]
    else:
        data = [f"b! s! (h {d})", f"b! t! (h {d})", "b! t! (h d)"]
    cache = [f"b! h p! {d}?", "b! h p! d?"]
    inputs = [*data, "*m!?", mask, *cache, "*l!?", "*x!?", "*y!?", f"(h {d} + h {d} + h d)?"]
    row = join(inputs, ["b! s! (h d)", "b! h u! d", "b! h u! d", "b! h s! w!"])
    roles = (*("data",) * 10, "bias")
    why = {**WHY, "d": "a shared buffer is laid out for its width", "w": WHY["u"]}
    macs = _macs(node, ("h", "d", "d", "t"), past=5)
    return Row(row, sizes={"h": heads}, attrs={"num_heads": "h"}, why=why, roles=roles, macs=macs)


def _packed_macs(node: Node, value: str, past: int) -> tuple[tuple[str, ...], ...]:
    """Return the letters of the products of attention that makes Q, K and V of data."""
    made = (("b", "s", "i", "h", last) for last in ("d", "d", value))
    return (*made, *_macs(node, ("h", "d", value, "s"), past))


@op("Attention", domain="com.microsoft")
def fused_attention(node: Node) -> Row | Refusal:
    """Data, weight of Q, K, V, bias, padding mask, past, mask, length -> Y, present."""
    heads = int(node.attrs["num_heads"])
    widths = node.attr("qkv_hidden_sizes") or [node.shape(1)[1] // 3] * 3
    both = node.has(4) or node.gives(1)  # K and V in one tensor
    v = "d" if both else "v"
    d = "d!" if node.attr("do_rotary", 0) else "d^"
    packed = f"(h {d} + h {d} + h {v})"
    present = "q! b! h u! d"
    mask = _mask(_shape(node, 5), heads, "h")
    inputs = ["b! s! i", f"i {packed}", f"{packed}?", "*m!?", "q! b! h p! d?", mask, "*l!?"]
    sizes = {"h": heads, "d": widths[0] // heads, v: widths[2] // heads}
    row = join(inputs, [f"b! s! (h {v})", present])
    roles = ("data", "weight", "bias")
    return Row(
        row,
        sizes=sizes,
        attrs={"num_heads": "h"},
        why={**WHY, "q": "K and V"},
        roles=roles,
        kinds={1: "io"},
        macs=_packed_macs(node, v, past=4),
    )


@op("QAttention", domain="com.microsoft")
def quantized_attention(node: Node) -> Row | Refusal:
    """Attention of quantized data and weights: data, weight, bias, scales, mask, zeros, past."""
    heads, width = int(node.attrs["num_heads"]), node.shape(1)[1]
    packed = "(h d^ + h d^ + h d)"
    per = {slot: packed if node.has(slot) and node.shape(slot) == (width,) else "*w!" for slot in (4, 7)}
    inputs = ["b! s! i", f"i {packed}", packed, "*x!", per[4], "*m!?", "*y!?", f"{per[7]}?", "q! b! h p! d?"]
    row = join(inputs, ["b! s! (h d)", "q! b! h u! d"])
    zeros = {slot: zero for slot, zero in ((0, 6), (1, 7)) if node.has(zero)}
    sizes = {"h": heads, "d": width // 3 // heads}
    return Row(
        row,
        sizes=sizes,
        attrs={"num_heads": "h"},
        zeros=zeros,
        elems={0: 3, 1: 3},
        why={**WHY, "q": "K and V"},
        roles=("data", "weight", "bias"),
        kinds={1: "io"},
        macs=_packed_macs(node, "d", past=8),
    )


@op("RotaryEmbedding", traits=Trait.LOOKUP)
@op("RotaryEmbedding", domain="com.microsoft", traits=Trait.LOOKUP)
def rotary(node: Node) -> Row | Refusal:
    """Heads are free; a head's elements are rotated in pairs."""
    rest = "*x!, *y!, *z!?" if not node.domain else "*x!, *y!, *z!"
    if not node.domain and not node.has(3) and node.rank(1) == 3:  # cosines and sines of each position
        same = node.shape(1)[0] == node.shape(0)[0]  # else a batch of that size is looked for
        rest = "c! s! x!, c! s! x!, ()?" if same else "b! s! x!, b! s! x!, ()?"
    if node.rank() == 4:
        return Row(f"b! h s! d!, {rest} -> b! h s! d!", why=WHY)
    heads = int(node.attr("num_heads", 0)) or node.shape(0)[-1] // (
        2 * node.shape(1 if not node.domain else 2)[-1]
    )
    attrs = {"num_heads": "h"} if node.attr("num_heads", 0) else {}
    return Row(f"b! s! (h d!), {rest} -> b! s! (h d!)", sizes={"h": heads}, attrs=attrs, why=WHY)


def _width(cut: Cut, axis: int, width: int) -> int:
    """Return how many elements of a head of query 0 are kept."""
    return len(np.unique(cut.kept(0, axis) % width))


def _scale(node: Node, old: int, new: int) -> list[Edit]:
    return [SetAttr("scale", 1 / sqrt(old))] if old != new and not node.attr("scale", 0.0) else []


@emitter("Attention")
@emitter(
    "MultiHeadAttention", "DecoderMaskedMultiHeadAttention", "GroupQueryAttention", domain="com.microsoft"
)
def heads(node: Node, cut: Cut) -> list[Edit]:
    """Number of query heads (a multiple of the keys') and the scale."""
    name = "num_heads" if node.domain else "q_num_heads"
    if node.rank() == 5:
        return _scale(node, node.shape(0)[4], cut.new_shape(0)[4])
    if node.rank() == 4:
        return _scale(node, node.shape(0)[3], cut.new_shape(0)[3])
    count = int(node.attrs[name])
    packed = node.op == "GroupQueryAttention" and not node.has(1)
    width = node.shape(0)[2] // (count + 2 * int(node.attrs["kv_num_heads"]) if packed else count)
    kept = cut.kept(0, 2)
    left = len(np.unique(kept[kept < count * width] // width))
    edits = _scale(node, width, _width(cut, 2, width))
    return edits + ([SetAttr(name, left)] if left != count else [])


@emitter("Attention", "QAttention", domain="com.microsoft")
def packed_heads(node: Node, cut: Cut) -> list[Edit]:
    """Widths of Q, K and V, and the scale."""
    count = int(node.attrs["num_heads"])
    widths = list(node.attr("qkv_hidden_sizes") or [node.shape(1)[1] // 3] * 3)
    kept = cut.kept(1, 1)
    ends = np.cumsum([0, *widths])
    new = [int(((kept >= low) & (kept < high)).sum()) for low, high in pairwise(ends)]
    old = widths[0] // count
    edits = _scale(node, old, len(np.unique(kept[kept < widths[0]] % old)))
    if new != widths and ("qkv_hidden_sizes" in node.attrs or len(set(new)) > 1):
        edits.append(SetAttr("qkv_hidden_sizes", new))
    return edits


@emitter("LinearAttention")
def linear_heads(node: Node, cut: Cut) -> list[Edit]:
    """Number of query heads."""
    count = int(node.attrs["q_num_heads"])
    width = node.shape(0)[2] // count
    left = len(cut.kept(0, 2)) // width
    return [SetAttr("q_num_heads", left)] if left != count else []
