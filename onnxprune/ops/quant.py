"""Quantization: scales and zero points belong to the tensor, to the channels of one axis, or to blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from onnxprune.ops.axes import broadcast, join, mark, names, quant, text
from onnxprune.ops.base import Elem, Node, Refusal, Row, literal, op
from onnxprune.ops.linear import matrix_quant, product
from onnxprune.ops.packed import holds
from onnxprune.ops.traits import Trait


class QuantFields(TypedDict):
    """Fields that all rows of an op share."""

    roles: tuple[str, ...]
    elems: dict[int, int | Elem]


EACH = Trait.ELEMENTWISE | Trait.OVERWRITES
BLOCK = "quantized in blocks"
DATA = ("data", "quant", "quant")

literal(
    "*s, ()?, ()?, ()?, ()? -> *s",
    ["QLinearLeakyRelu", "QLinearSigmoid"],
    domain="com.microsoft",
    traits=EACH,
)


@op("DynamicQuantizeLinear")
def dynamic(node: Node) -> Row | Refusal:
    """The range is taken over the whole tensor and always holds zero, so that zeros add nothing to it."""
    letters = names(node.rank())
    return Row(join([text(mark(letters, range(len(letters)), "^"))], [text(letters), "()", "()"]))


@op("QuantizeLinear", "DequantizeLinear")
@op("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
def linear(node: Node) -> Row | Refusal:
    """x, scale, zero point: one for the tensor, one for each index of ``axis``, or one for each block along it."""
    shape, scale = node.shape(0), node.shape(1)
    letters = list(names(len(shape)))
    result: int | Elem = 1 if node.op == "DequantizeLinear" else 2 if node.has(2) else Elem.UINT8
    known: QuantFields = {"roles": DATA, "elems": {0: result}}
    if scale in ((), (1,)) and not node.attr("block_size", 0):
        one = text(["1"] * len(scale))
        zero = text(["1"] * node.rank(2)) if node.has(2) else "()"
        return Row(f"{text(letters)}, {one}, {zero}? -> {text(letters)}", **known)
    axis = node.axis(1)
    if len(scale) == 1 and not node.attr("block_size", 0):
        if scale[0] != shape[axis]:
            raise ValueError(f"{scale[0]} scales for an axis of {shape[axis]}")
        own = letters[axis]
        return Row(f"{text(letters)}, {own}, {own}? -> {text(letters)}", **known)
    block = int(node.attr("block_size", 0))
    whole = block > 0 and scale[axis] * block == shape[axis]  # else the last block isn't
    data = text([*letters[:axis], "(zq zw!)" if whole else "zk!", *letters[axis + 1 :]])
    own = text([*letters[:axis], "zq" if whole else "zq!", *letters[axis + 1 :]])
    sizes = {"zq": scale[axis], "zw": block} if whole else {}
    why = dict.fromkeys(("zk", "zq", "zw"), BLOCK)
    return Row(f"{data}, {own}, {own}? -> {data}", sizes=sizes, why=why, **known)


@op("QLinearAdd", "QLinearMul", domain="com.microsoft", traits=EACH)
def qlinear_binary(node: Node) -> Row | Refusal:
    """A, scale, zero, B, scale, zero, C's scale, zero: broadcast."""
    a, b, c = broadcast((node.shape(0), node.shape(3)))
    own = [_one(node, slot) for slot in (1, 2, 4, 5, 6, 7)]
    return Row(
        join([text(a), *own[:2], text(b), *own[2:]], [text(c)]), roles=(*DATA, *DATA, "quant", "quant")
    )


@op("QLinearWhere", domain="com.microsoft", traits=EACH)
def qlinear_where(node: Node) -> Row | Refusal:
    """Condition, X, scale, zero, Y, scale, zero, Z's scale, zero: broadcast."""
    condition, x, y, z = broadcast((node.shape(0), node.shape(1), node.shape(4)))
    own = [_one(node, slot) for slot in (2, 3, 5, 6, 7, 8)]
    return Row(join([text(condition), text(x), *own[:2], text(y), *own[2:]], [text(z)]), elems={0: 1})


@op("QLinearSoftmax", domain="com.microsoft")
def qlinear_softmax(node: Node) -> Row | Refusal:
    """Softmax of quantized data; the attribute ``opset`` says whose."""
    rank, axis = node.rank(), node.axis(-1)
    old = int(node.attrs["opset"]) < 13
    row = text(mark(names(rank), range(axis, rank) if old else [axis]))
    return Row(f"{row} -> {row}", why=dict.fromkeys(names(rank)[axis:], "normalised over"))


def _one(node: Node, slot: int) -> str:
    if not node.has(slot):
        return "()?"
    return quant(node.shape(slot), 0, "", "a scale or zero point") + "?"


@op("QGemm", domain="com.microsoft")
def qgemm(node: Node) -> Row | Refusal:
    """A, scale, zero, B, scale, zero, C, y's scale, zero."""
    across, down = bool(node.attr("transA", 0)), bool(node.attr("transB", 0))
    columns = node.shape(3)[not down]
    own = [
        _one(node, 1),
        _one(node, 2),
        *(quant(node.shape(i), columns, "n", "a scale or zero point") for i in (4, 5)),
    ]
    bias = "n" if not node.has(6) or node.rank(6) == 1 else "1 n" if node.shape(6)[0] == 1 else "m n"
    last = [_one(node, 7) if node.has(7) else "()?", _one(node, 8) if node.has(8) else "()?"]
    left, right = "k m" if across else "m k", "n k" if down else "k n"
    row = join([left, own[0], own[1], right, own[2], own[3], bias + "?", *last], ["m n"])
    roles = ("data", "quant", "quant", "weight", "quant", "quant", "bias", "quant", "quant")
    result: int | Elem = (
        8 if node.has(8) else Elem.FLOAT
    )  # without a scale and zero point the result is float
    return Row(row, zeros={0: 2, 3: 5}, roles=roles, elems={0: result})


@op("MatMulIntegerToFloat", domain="com.microsoft")
def matmul_integer_to_float(node: Node) -> Row | Refusal:
    """A, B, A's scale, B's scale, A's zero, B's zero, bias."""
    a, b, y = product(node.shape(0), node.shape(1))
    own = [matrix_quant(node, slot, side, axes, letter) + "?" for slot, side, axes, letter in _quartet(a, b)]
    zeros = {slot: zero for slot, zero in ((0, 4), (1, 5)) if node.has(zero)}
    roles = ("data", "weight", "quant", "quant", "quant", "quant", "bias")
    row = join([text(a), text(b), *own, "n?"], [text(y)])
    return Row(row, zeros=zeros, roles=roles, elems={0: 2})


def _quartet(a: list[str], b: list[str]) -> list[tuple[int, int, list[str], str]]:
    return [(2, 0, a, "m"), (3, 1, b, "n"), (4, 0, a, "m"), (5, 1, b, "n")]


@op("DynamicQuantizeMatMul", domain="com.microsoft")
def dynamic_matmul(node: Node) -> Row | Refusal:
    """A (quantized on the way, over its range, to which zeros add nothing), B, B's scale, zero, bias."""
    a, b, y = product(node.shape(0), node.shape(1))
    own = [matrix_quant(node, slot, 1, b, "n") + "?" for slot in (2, 3)]
    data = mark(
        a, (i for i, letter in enumerate(a) if letter in y), "^"
    )  # its rows, too, have a part in the range
    zeros = {1: 3} if node.has(3) else {}
    roles = ("range", "weight", "quant", "quant", "bias")
    return Row(join([text(data), text(b), *own, "n?"], [text(y)]), zeros=zeros, roles=roles)


@holds("MatMulNBits", domain="com.microsoft")
def matmul_bits_held(attrs: Mapping[str, Any]) -> dict[int, int]:
    """Weights and zero points."""
    bits = int(attrs.get("bits", 4))
    return {1: bits, 3: bits}


@op("MatMulNBits", domain="com.microsoft")
def matmul_bits(node: Node) -> Row | Refusal:
    """Weights packed along K in blocks: N is free, K by whole blocks (scales may be flat: N times blocks).

    Zero points are numbers as wide as the weights', packed along the blocks, or one each. K is locked where its last
    block isn't whole, where inputs are permuted, or where it isn't known what the zero points are.
    """
    width, size, count = int(node.attrs["K"]), int(node.attrs["block_size"]), int(node.attrs["N"])
    blocks, bits = -(-width // size), matmul_bits_held(node.attrs)[1]
    flat = node.rank(2) == 1
    zero, each, packs = "()", blocks, {}
    if node.has(3):
        each = node.shape(3)[-1] // (count if node.rank(3) == 1 else 1)
        letter = "q" if each == blocks else "z!"
        zero = f"(n {letter})" if node.rank(3) == 1 else f"n {letter}"
        if each != blocks and node.constant[3] and 8 % bits == 0 and each == -(-blocks * bits // 8):
            packs = {3: ("q", bits)}
    index = "k!?" if node.has(4) else "()?"
    whole = width % size == 0 and not node.has(4) and (each == blocks or bool(packs))
    data = "(q w!)" if whole else "k!"
    if not whole:
        zero, packs = zero.replace("q", "q!"), {}
    block = "q" if whole else "q!"
    scale = f"(n {block})" if flat else f"n {block}"
    row = f"*b {data}, n {block} p!, {scale}, {zero}?, {index}, n? -> *b n"
    sizes = {"q": blocks, "z": each, "w": size}
    roles = ("data", "weight", "quant", "quant", "quant", "bias")
    why = dict.fromkeys("kqwzp", BLOCK)
    rows = (f"b.{axis}" for axis in range(node.rank() - 1))
    macs = ((*rows, *("qw" if whole else "k"), "n"),)  # of the numbers, which bytes and scales don't show
    return Row(
        row, sizes=sizes, attrs={"N": "n"}, why=why, roles=roles, kinds={1: ""}, packs=packs, macs=macs
    )
