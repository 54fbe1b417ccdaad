"""Other fused ops of onnxruntime (domain com.microsoft) that have channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.ops.axes import join, mark, names, text
from onnxprune.ops.base import Elem, Node, Refusal, Row, literal, normal, op
from onnxprune.ops.norm import WIDTH
from onnxprune.ops.packed import holds
from onnxprune.ops.quant import BLOCK
from onnxprune.ops.traits import Trait

MICROSOFT = "com.microsoft"

literal(
    "b s (q! c), (q! c) -> b s c", ["BiasSplitGelu"], MICROSOFT, sizes={"q": 2}, why={"q": "value and gate"}
)
literal(
    "n *s! c -> n *t! c",
    ["NhwcMaxPool"],
    MICROSOFT,
    why=dict.fromkeys("st", "windows run over these positions"),
)
literal(
    "b! s! c, b! -> n! c, *x!, *y!, *z!",
    ["RemovePadding"],
    MICROSOFT,
    elems=dict.fromkeys((1, 2, 3), Elem.INT32),
    traits=Trait.BY_DATA,
)
literal("n! c, b! s! -> b! s! c", ["RestorePadding"], MICROSOFT)
literal(
    "w! c, *i, ()?, ()? -> *i c",
    ["TorchEmbedding"],
    MICROSOFT,
    why={"w": "looked up"},
    roles=("weight", "data"),
    traits=Trait.LOOKUP,
)


@op("RelativePositionBias", domain=MICROSOFT)
def position_bias(node: Node) -> Row | Refusal:
    """Bias of each head for each bucket, numbers of queries and keys -> bias of queries and keys, by heads."""
    sides = {"s": 1, "t": 2}
    known = {
        letter: int(v.reshape(-1)[0])
        for letter, slot in sides.items()
        if (v := node.values[slot]) is not None
    }
    return Row("k! h, *x!, *y! -> 1 h s! t!", sizes=known, roles=("weight", "shape", "shape"))


@op("EmbedLayerNormalization", domain=MICROSOFT, traits=Trait.LOOKUP)
def embed(node: Node) -> Row | Refusal:
    """Ids, segments, three tables, scale, bias, mask, positions -> normalised sum, lengths, sum."""
    row = "b! s!, b! s!?, w! z~, p! z, q! z?, z, z, *m!?, *i!? -> b! s! z, b!, b! s! z"
    why = {"z": WIDTH, "s": "positions have a table", "w": "looked up", "p": "looked up", "q": "looked up"}
    roles = ("data", "data", "weight", "weight", "weight", "scale", "bias")
    return Row(row, why=why, roles=roles, elems={0: 2, 1: Elem.INT32, 2: 2}, looked={"w": 0})


@op("QEmbedLayerNormalization", domain=MICROSOFT, traits=Trait.LOOKUP)
def quantized_embed(node: Node) -> Row | Refusal:
    """Ids, segments, three tables, scale, bias, mask; scales and zero points of all five -> normalised sum, lengths."""
    own = ["()", "()", "()?", "()", "()"]
    row = join(["b! s!", "b! s!?", "w! z~", "p! z", "q! z?", "z", "z", "*m!?", *own, *own], ["b! s! z", "b!"])
    why = {"z": WIDTH, "s": "positions have a table", "w": "looked up", "p": "looked up", "q": "looked up"}
    roles = ("data", "data", "weight", "weight", "weight", "scale", "bias", "data", *("quant",) * 10)
    zeros = {slot: zero for slot, zero in zip(range(2, 7), range(13, 18), strict=True) if node.has(zero)}
    return Row(row, why=why, roles=roles, zeros=zeros, elems={0: 8, 1: Elem.INT32}, looked={"w": 0})


@holds("GatherBlockQuantized", domain=MICROSOFT)
def gather_blocks_held(attrs: Mapping[str, Any]) -> dict[int, int]:
    """The table and its zero points."""
    bits = int(attrs.get("bits", 4))
    return {0: bits, 3: bits}


@op("GatherBlockQuantized", domain=MICROSOFT, traits=Trait.LOOKUP)
def gather_blocks(node: Node) -> Row | Refusal:
    """Gather from a table that is quantized in blocks along one axis; bytes may hold several values of the last."""
    rank, block = node.rank(), int(node.attr("block_size", 128))
    axis, along = node.axis(0, name="gather_axis"), node.axis(1, name="quantize_axis")
    table, scales = names(rank), node.shape(2)
    packed = 8 // gather_blocks_held(node.attrs)[0]
    wide = [-(-node.shape(0)[along] * m // block) == scales[along] for m in (1, packed)]
    if packed > 1 and along == rank - 1 and wide == [True, True]:
        return Refusal("GatherBlockQuantized of a table of one block doesn't say how many values a byte has")
    whole = packed == 1 or along != rank - 1 or wide[0]
    result = [text("*i") if n == axis else f"{letter}!" for n, letter in enumerate(table)]
    sizes: dict[str, int] = {}
    if not whole:
        result[-1], sizes = "w!", {"w": node.shape(0)[-1] * packed}
    rows = f"{table[axis]}!"  # a scale, and a zero point, for each row that is looked up
    own, zero = (
        [
            "1" if size == 1 else rows if n == axis != along else f"{letter}{n}!"
            for n, size in enumerate(shape)
        ]
        for letter, shape in (("q", scales), ("z", node.shape(3) if node.has(3) else ()))
    )
    row = join(
        [text(mark(table, range(rank), "!")), "*i", text(own), text(zero) + "?" if zero else "()?"],
        [text(result)],
    )
    roles = ("weight", "data", "quant", "quant")
    reasons = dict.fromkeys({*table, "w"} | {a.rstrip("!") for a in (*own, *zero)}, BLOCK)
    reasons[table[axis]] = "looked up"
    return Row(row, sizes=sizes, roles=roles, elems={0: 2}, why=reasons, looked={table[axis]: 1})


@op("QLinearReduceMean", domain=MICROSOFT)
def reduce_mean(node: Node) -> Row | Refusal:
    """Mean of quantized data."""
    rank = node.rank()
    axes = {normal(int(axis), rank) for axis in node.attr("axes") or range(rank)}
    letters, keep = names(rank), node.attr("keepdims", 1)
    result = text("1" if i in axes else name for i, name in enumerate(letters) if keep or i not in axes)
    return Row(
        join([text(mark(letters, axes, "~"))], [result]),
        why={letters[axis]: "averaged over" for axis in axes},
    )
