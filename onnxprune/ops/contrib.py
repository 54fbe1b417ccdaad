"""Other fused ops of onnxruntime (domain com.microsoft) that have channels."""

from __future__ import annotations

from onnxprune.ops.axes import join, mark, names, text
from onnxprune.ops.base import Elem, Node, Refusal, Row, literal, normal, op
from onnxprune.ops.norm import WIDTH

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
literal("k! h, (), () -> 1 h s! t!", ["RelativePositionBias"], MICROSOFT, roles=("weight", "shape", "shape"))
literal(
    "b! s! c, b! -> n! c, *x!, *y!, *z!",
    ["RemovePadding"],
    MICROSOFT,
    elems=dict.fromkeys((1, 2, 3), Elem.INT32),
)
literal("n! c, b! s! -> b! s! c", ["RestorePadding"], MICROSOFT)
literal(
    "w! c, *i, ()?, ()? -> *i c",
    ["TorchEmbedding"],
    MICROSOFT,
    why={"w": "looked up"},
    roles=("weight", "data"),
)


@op("EmbedLayerNormalization", domain=MICROSOFT)
def embed(node: Node) -> Row | Refusal:
    """Ids, segments, three tables, scale, bias, mask, positions -> normalised sum, lengths, sum."""
    row = "b! s!, b! s!?, w! z~, p! z, q! z?, z, z, *m!?, *i!? -> b! s! z, b!, b! s! z"
    why = {"z": WIDTH, "s": "positions have a table", "w": "looked up", "p": "looked up", "q": "looked up"}
    roles = ("data", "data", "weight", "weight", "weight", "scale", "bias")
    return Row(row, why=why, roles=roles, elems={0: 2, 1: Elem.INT32, 2: 2})


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
