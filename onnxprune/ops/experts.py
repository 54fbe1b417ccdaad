"""Mixtures of experts: of each token, a router chooses ``k`` of ``e`` experts, each a network of two layers.

The inner units of all experts are one axis: rows of the first matrix (two a unit where a gate is fused into it), and
columns of the second. Quantized weights hold several values a byte, and have a scale for each block along the columns:
units go by as many as fill whole bytes and blocks. A silenced unit has scales of zero, for bytes have no zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd, lcm, prod
from typing import Any

from onnxprune.ops.axes import join
from onnxprune.ops.base import Elem, Node, Refusal, Row, op
from onnxprune.ops.packed import holds

__all__: list[str] = []

MICROSOFT = "com.microsoft"
WHY = {
    "e": "the router chooses among experts", "q": "value and gate",
    "w": "units that share bytes or blocks of quantized weights",
    "v": "channels that share bytes or blocks of quantized weights",
}  # fmt: skip
GATED = ("swiglu", "geglu")
#: swiglu_fusion -> factors of the rows: units by grains, and both rows of a unit side by side or in halves.
#: Slots of QMoE's matrices: weights, bias, scales, zero points.
QUANTIZED = ((2, 4, 3, 11), (5, 7, 6, 12), (8, 10, 9, 13))
ROWS: dict[int, tuple[str, ...]] = {0: ("j", "w!"), 1: ("j", "w!", "q!"), 2: ("q!", "j", "w!")}


@dataclass(frozen=True)
class _Matrix:
    """Slots of one matrix (-1: there is no such slot), bits of a quantized value (0: floats), factors of its axes."""

    weight: int
    bias: int
    scales: int
    zeros: int
    bits: int
    rows: tuple[str, ...] = ROWS[0]
    column: str = "h^"


@op("MoE", domain=MICROSOFT)
def mixture(node: Node) -> Row | Refusal:
    """Tokens, scores of experts; weights and biases of the first matrix, the second, the gate's -> tokens."""
    return _row(node, [(2, 3, -1, -1), (4, 5, -1, -1), (6, 7, -1, -1)], (0, 0, 0), 0)


@holds("QMoE", domain=MICROSOFT)
def quantized_held(attrs: Mapping[str, Any]) -> dict[int, int]:
    """Weights and zero points of the three matrices."""
    bits = _bits(attrs)
    return {slots[i]: n for slots, n in zip(QUANTIZED, bits, strict=True) for i in (0, 3)}


def _bits(attrs: Mapping[str, Any]) -> tuple[int, int, int]:
    every = int(attrs.get("expert_weight_bits", 4))
    one, two, three = (int(attrs.get(f"fc{n}_expert_weight_bits", every)) for n in (1, 2, 3))
    return one, two, three


@op("QMoE", domain=MICROSOFT)
def quantized_mixture(node: Node) -> Row | Refusal:
    """MoE; weights, scales and biases of three matrices, their zero points, weights of the chosen experts."""
    kind = str(node.attr("quant_type", "int"))
    if kind != "int":
        return Refusal(f"QMoE with weights of quant_type '{kind}' is not described")
    if any(node.has(slot) for slot in range(15, len(node.inputs))):
        return Refusal("QMoE with global or activation scales is not described")
    layout = int(node.attr("weights_prepacked", -1))
    if layout > 0 or (layout < 0 and node.elem(0) != Elem.FLOAT):  # no kernel of a GPU takes 32 bits
        return Refusal("QMoE's weights may be laid out for a GPU, unless weights_prepacked is 0")
    return _row(node, [*QUANTIZED], _bits(node.attrs), int(node.attr("block_size", 0)))


def _row(node: Node, slots: list[tuple[int, int, int, int]], bits: tuple[int, int, int], block: int) -> Row:
    fused = int(node.attr("swiglu_fusion", 0)) if node.attr("activation_type", "relu") in GATED else 0
    firsts = [_Matrix(*slots[0], bits=bits[0], rows=ROWS[fused])]
    if node.has(slots[2][0]):
        firsts.append(_Matrix(*slots[2], bits=bits[2]))
    second = _Matrix(*slots[1], bits=bits[1], rows=("h", "v!"), column="j")
    writer = _Writer(node, block)
    writer.grains(firsts, second)
    for matrix in (*firsts, second):
        writer.write(matrix)
    return writer.row(firsts)


@dataclass
class _Writer:
    """Writes the operands of a node; ``sizes``: those of their letters."""

    node: Node
    block: int
    sizes: dict[str, int] = field(default_factory=dict)
    inputs: dict[int, str] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)

    def grains(self, firsts: list[_Matrix], second: _Matrix) -> None:
        """Find how many units, and how many channels, go together."""
        units, hidden = self.columns(second), self.node.shape(0)[-1]
        for matrix in firsts:
            rows, wanted = self.node.shape(matrix.weight)[1], units * (2 if "q!" in matrix.rows else 1)
            if rows != wanted:
                raise ValueError(f"{rows} rows of a first matrix for {units} units")
        down, along = [n for m in firsts for n in self.down(m)], [n for m in firsts for n in self.along(m)]
        for letters, size, steps in (
            ("jw", units, [*down, *self.along(second)]),
            ("hv", hidden, [*along, *self.down(second)]),
        ):
            grain = lcm(*steps)
            grain = grain if size % grain == 0 else size
            self.sizes |= {letters[0]: size // grain, letters[1]: grain}
        self.sizes |= {"q": 2, "k": int(self.node.attr("k", 1))}

    def columns(self, matrix: _Matrix) -> int:
        """Return how many values a row of a matrix has."""
        last = self.node.shape(matrix.weight)[-1]
        return last * 8 // matrix.bits if matrix.bits else last

    def along(self, matrix: _Matrix) -> list[int]:
        """Return numbers that a cut of a matrix's columns must be multiples of."""
        if not matrix.bits:
            return []
        byte = 8 // gcd(8, matrix.bits)
        blocks = [self.block, self.block * (byte if self.node.has(matrix.zeros) else 1)]
        return [byte, *(blocks if self.block else [])]

    def down(self, matrix: _Matrix) -> list[int]:
        """Return numbers that a cut of a matrix's rows must be multiples of: bytes hold zero points of several."""
        if not matrix.bits or self.block or not self.node.has(matrix.zeros):
            return []
        return [8 // gcd(8, matrix.bits * (2 if matrix.rows == ROWS[1] else 1))]

    def write(self, matrix: _Matrix) -> None:
        """Write the operands of one matrix."""
        row, slot = f"({' '.join(matrix.rows)})", matrix.weight
        self.inputs[slot] = f"e! {row} {self.inside(slot, matrix.column)}"
        self.roles[slot] = "packed" if matrix.bits else "weight"
        if self.node.has(matrix.bias):
            self.inputs[matrix.bias], self.roles[matrix.bias] = f"e! {row}", "bias"
        if matrix.bits:
            blocks = f" {self.inside(matrix.scales, matrix.column)}" if self.block else ""
            self.inputs[matrix.scales], self.roles[matrix.scales] = f"e! {row}{blocks}", "quant"
        if matrix.bits and self.node.has(matrix.zeros):
            self.inputs[matrix.zeros], self.roles[matrix.zeros] = f"e! {self.points(matrix)}", "packed"

    def points(self, matrix: _Matrix) -> str:
        """Write the zero points: of each row and block, or of each row, several a byte."""
        if self.block:
            return f"({' '.join(matrix.rows)}) {self.inside(matrix.zeros, matrix.column)}"
        outer = [factor for factor in matrix.rows if factor in ("j", "h")]
        return self.inside(matrix.zeros, *(["q!"] if matrix.rows == ROWS[2] else []), *outer)

    def inside(self, slot: int, *outer: str) -> str:
        """Write an axis of grains with something in them: values, bytes, blocks."""
        count = prod(self.sizes[factor.rstrip("!^")] for factor in outer)
        self.sizes[f"n{slot}"] = self.node.shape(slot)[-1] // count
        return f"({' '.join(outer)} n{slot}!)"

    def row(self, firsts: list[_Matrix]) -> Row:
        """Write the row."""
        batch, rows = ("b s", "(b s)") if self.node.rank() == 3 else ("b", "b")
        self.inputs |= {0: f"{batch} (h^ v!)", 1: f"{rows} e!"}
        if self.node.has(14):
            self.inputs[14] = f"{rows} e!"
        count = max(self.inputs) + 1
        text = join((self.inputs.get(slot, "()?") for slot in range(count)), [f"{batch} (h v!)"])
        tokens, unit = (*batch.split(), "k", "h", "v"), ("j", "w")
        whole = {"weight": "boi", "packed": ""}
        macs = [(*tokens, *(factor.rstrip("!") for factor in m.rows)) for m in firsts]
        return Row(
            text,
            sizes=self.sizes,
            why=WHY | {name: WHY["w"] for name in self.sizes if name not in WHY},
            roles=tuple(self.roles.get(slot, "data") for slot in range(count)),
            lowest={} if self.node.attr("use_sparse_mixer", 0) else {"e": 1},
            fewest={"e": self.sizes["k"]},
            kinds={slot: whole[role] for slot, role in self.roles.items() if role in whole},
            macs=(*macs, (*tokens, *unit)),
        )
