"""Recurrent layers: hidden units are free; a unit's past is read by the others, so that R contracts it (``h^``)."""

from __future__ import annotations

from onnxprune.ops.base import Node, Refusal, Row, op
from onnxprune.ops.traits import Trait

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
WHY = {
    "t": "steps of a sequence", "y": "directions of a recurrence", "q": "gates", "r": "gates", "p": "gates",
}  # fmt: skip
ROLES = (
    "data",
    "weight",
    "weight",
    "bias",
    "data",
    "data",
    "data",
    "weight",
    "quant",
    "quant",
    "quant",
    "quant",
)


def _row(node: Node, weights: str, tail: str = "") -> Row:
    """Write a layer whose W and R have the axes ``weights`` (``{}`` is the last one)."""
    gates = GATES[node.op]
    lstm = "LSTM" in node.op
    first = bool(node.attr("layout", 0))
    data, whole, last = ("b t! i", "b t! y! h", "b y! h") if first else ("t! b i", "t! y! b h", "y! b h")
    sizes = {"q": gates, "r": 2 * gates}
    inputs = [data, weights.format("i"), weights.format("h^"), "y! (r! h)?", "b?", f"{last}?"]
    if lstm:
        inputs += [f"{last}?", "y! (p! h)?"]
        if node.has(7):
            sizes["p"] = 3
    if not node.has(3):
        del sizes["r"]
    row = ", ".join(inputs) + tail + f" -> {whole}, {last}" + f", {last}" * lstm
    attrs = {"hidden_size": "h"} if "hidden_size" in node.attrs else {}
    return Row(row, sizes=sizes, attrs=attrs, why=WHY, roles=ROLES)


@op("LSTM", "GRU", "RNN", traits=Trait.RECURRENT)
def recurrent(node: Node) -> Row | Refusal:
    """X, W, R, B, lengths, initial states, (peepholes) -> all states, last states."""
    return _row(node, "y! (q! h) {}")


@op("DynamicQuantizeLSTM", domain="com.microsoft", traits=Trait.RECURRENT)
def quantized(node: Node) -> Row | Refusal:
    """An LSTM whose weights are quantized (and transposed), and whose data is quantized on the way."""
    if not (node.rank(8) == node.rank(10) == 1):
        tail = ", y! (q! h), y! (q! h), y! (q! h), y! (q! h)"
    else:
        tail = ", y!, y!, y!, y!"
    row = _row(node, "y! {} (q! h)", tail)
    # the range of the state is taken over all hidden units, that of the data over all inputs and the batch
    text = row.text.replace("b i,", "b~ i~,").replace("h^", "h^~").replace("h^~", "h~^")
    return Row(
        text,
        sizes=row.sizes,
        attrs=row.attrs,
        zeros={1: 9, 2: 11},
        why={**WHY, "h": "quantized on the way", "i": "quantized on the way"},
        roles=ROLES,
    )
