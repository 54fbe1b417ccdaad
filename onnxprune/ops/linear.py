"""Ops that sum products: convolutions, matrix products, Einsum."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.ops.axes import broadcast, join, quant, text
from onnxprune.ops.base import Elem, Node, Refusal, Row, Shape, op
from onnxprune.ops.traits import Trait

KERNEL = dict.fromkeys("skt", "the positions of a convolution")
WEIGHTS = ("data", "weight", "bias", "data")
QUANTIZED = ("data", "quant", "quant", "weight", "quant", "quant", "quant", "quant", "bias")


def _grouped(
    row: str, node: Node, roles: tuple[str, ...] = WEIGHTS, zeros: Mapping[int, int] | None = None
) -> Row:
    """Write a row with g groups; with one group, g is left out."""
    groups = int(node.attr("group", 1))
    if groups == 1:
        row = row.replace("(g i)", "i").replace("(g o)", "o")
        return Row(row, why=KERNEL, roles=roles, zeros=zeros or {})
    return Row(row, sizes={"g": groups}, attrs={"group": "g"}, why=KERNEL, roles=roles, zeros=zeros or {})


def _windows(
    row: str, node: Node, roles: tuple[str, ...] = WEIGHTS, zeros: Mapping[int, int] | None = None
) -> Row:
    """Write the row of a convolution: positions pass where each of the result is made of the one at its place."""
    kernel = node.attr("kernel_shape") or node.shape(roles.index("weight"))[2:]
    ones = ((kernel, 1), (node.attr("strides") or (), 1), (node.attr("pads") or (), 0),
            (node.attr("output_padding") or (), 0))  # fmt: skip
    if "output_shape" not in node.attrs and all(n == one for numbers, one in ones for n in numbers):
        row = row.replace("*s!", "*s").replace("*t!", "*s")
    return _grouped(row, node, roles, zeros)


@op("Conv", traits=Trait.WINDOW | Trait.GEMM)
def conv(node: Node) -> Row | Refusal:
    """Convolution of 1 to 3 dimensions, in groups."""
    return _windows("n (g i) *s!, (g o) i *k!, (g o)? -> n (g o) *t!", node)


@op("FusedConv", domain="com.microsoft", traits=Trait.WINDOW | Trait.GEMM)
def fused_conv(node: Node) -> Row | Refusal:
    """Conv, plus a tensor of the output's shape, plus an activation."""
    return _windows("n (g i) *s!, (g o) i *k!, (g o)?, n (g o) *t!? -> n (g o) *t!", node)


@op("NhwcConv", "NhwcFusedConv", domain="com.microsoft")
def nhwc_conv(node: Node) -> Row | Refusal:
    """FusedConv with the channels last in data, not in weights."""
    return _windows("n *s! (g i), (g o) i *k!, (g o)?, n *t! (g o)? -> n *t! (g o)", node)


@op("ConvTranspose")
def conv_transpose(node: Node) -> Row | Refusal:
    """Transposed convolution: the weight's outer axis is the input's."""
    return _windows("n (g i) *s!, (g i) o *k!, (g o)? -> n (g o) *t!", node)


@op("ConvInteger", traits=Trait.WINDOW)
def conv_integer(node: Node) -> Row | Refusal:
    """Convolution of integers, a zero point for the data and one (or one a channel) for the weight."""
    size = node.shape(1)[0]
    own = [
        quant(node.shape(i), size * (i - 2), "(g o)", "a zero point") if node.has(i) else "()" for i in (2, 3)
    ]
    row = f"n (g i) *s!, (g o) i *k!, {own[0]}?, {own[1]}? -> n (g o) *t!"
    return _windows(row, node, ("data", "weight", "quant", "quant"), _zeros(node, (0, 2), (1, 3)))


@op("QLinearConv", traits=Trait.WINDOW | Trait.GEMM)
def qlinear_conv(node: Node) -> Row | Refusal:
    """Quantized convolution: x, scale, zero, w, scale, zero, y's scale, zero, bias."""
    size = node.shape(3)[0]
    own = [
        quant(node.shape(i), size * (i in (4, 5)), "(g o)", "a scale or zero point")
        for i in (1, 2, 4, 5, 6, 7)
    ]
    row = f"n (g i) *s!, {own[0]}, {own[1]}, (g o) i *k!, {', '.join(own[2:])}, (g o)? -> n (g o) *t!"
    return _windows(row, node, QUANTIZED, {0: 2, 3: 5})


def _zeros(node: Node, *pairs: tuple[int, int]) -> dict[int, int]:
    return {slot: zero for slot, zero in pairs if node.has(zero)}


@op("DeformConv", traits=Trait.WINDOW)
def deform_conv(node: Node) -> Row | Refusal:
    """Convolution at learnt offsets; more than one group of offsets splits the channels once more and locks them."""
    row = "n (g i) *s!, (g o) i *k!, n p! *t!, (g o)?, n q! *t!? -> n (g o) *t!"
    roles = ("data", "weight", "data", "bias", "data")
    if node.attr("offset_group", 1) == 1:
        return _grouped(row, node, roles)
    why = dict.fromkeys("gi", "groups of offsets split the channels")
    return Row(row.replace("(g i)", "(g! i!)"), sizes={"g": int(node.attr("group", 1))}, why=why, roles=roles)


@op("CausalConvWithState")
@op("CausalConvWithState", domain="com.microsoft")
def causal_conv(node: Node) -> Row | Refusal:
    """Depthwise causal convolution over time; its last inputs are a state."""
    if node.attr("ndim", 1) != 1 or node.attr("channels_last", 0) or node.attr("state_window", 0):
        return Refusal(f"{node.op} of several dimensions, or with channels last, is not described")
    return Row("n c t!, c 1 k!, c?, n c s!? -> n c t!, n c s!", roles=WEIGHTS)


@op("Gemm", traits=Trait.GEMM)
@op("FusedGemm", domain="com.microsoft", traits=Trait.GEMM)
def gemm(node: Node) -> Row | Refusal:
    """Matrix product of two matrices, either transposed, plus a broadcast bias."""
    across, down = bool(node.attr("transA", 0)), bool(node.attr("transB", 0))
    row = f"{'k m' if across else 'm k'}, {'n k' if down else 'k n'}"
    if node.has(2):
        row += ", " + _bias(node.shape(2), node.shape(0)[across], node.shape(1)[not down])
    return Row(f"{row} -> m n", roles=WEIGHTS)


def _bias(shape: Shape, rows: int, columns: int) -> str:
    """Write a bias that broadcasts to (rows, columns)."""
    axes = []
    for size, whole, letter in zip(reversed(shape), (columns, rows), "nm", strict=False):
        if size not in (1, whole):
            raise ValueError(f"a bias of shape {list(shape)} for ({rows}, {columns})")
        axes.append("1" if size == 1 != whole else letter)
    return text(reversed(axes))


def product(
    one: Shape, two: Shape, left: str = "m k", right: str = "k n"
) -> tuple[list[str], list[str], list[str]]:
    """Write the axes of numpy.matmul's operands and of its result."""
    batch_one, batch_two, batch = broadcast((one[:-2], two[:-2]), "b")
    a = ["k"] if len(one) == 1 else [*batch_one, *left.split()]
    b = ["k"] if len(two) == 1 else [*batch_two, *right.split()]
    return a, b, [*batch, *["m"] * (len(one) > 1), *["n"] * (len(two) > 1)]


def _sides(node: Node, *slots: int) -> tuple[str, ...]:
    return tuple("weight" if node.constant[slot] else "data" for slot in slots)


@op("MatMul", traits=Trait.GEMM)
def matmul(node: Node) -> Row | Refusal:
    """numpy.matmul: batch axes broadcast, the rest is a matrix product."""
    a, b, y = product(node.shape(0), node.shape(1))
    return Row(join([text(a), text(b)], [text(y)]), roles=_sides(node, 0, 1))


@op("MatMulInteger")
@op("MatMulInteger16", domain="com.microsoft")
def matmul_integer(node: Node) -> Row | Refusal:
    """Matmul of integers, with zero points for the tensor or by row and column."""
    a, b, y = product(node.shape(0), node.shape(1))
    own = [matrix_quant(node, 2, 0, a, "m") + "?", matrix_quant(node, 3, 1, b, "n") + "?"]
    roles = (*_sides(node, 0, 1), "quant", "quant")
    row, zeros = join([text(a), text(b), *own], [text(y)]), _zeros(node, (0, 2), (1, 3))
    return Row(row, zeros=zeros, roles=roles, elems={0: Elem.INT32})


def matrix_quant(node: Node, slot: int, data: int, axes: list[str], letter: str) -> str:
    """Write a scale or zero point of a matrix: of the tensor, of each row or column, or of those of each matrix."""
    if not node.has(slot):
        return "()"
    shape, whole = node.shape(slot), node.shape(data)
    if 1 < len(shape) == len(axes):
        if any(size not in (1, full) for size, full in zip(shape, whole, strict=True)):
            raise ValueError(f"a scale or zero point of shape {list(shape)} for {list(whole)}")
        return text("1" if size == 1 else own for size, own in zip(shape, axes, strict=True))
    return quant(shape, whole[axes.index(letter)] if letter in axes else 0, letter, "a scale or zero point")


@op("QLinearMatMul", traits=Trait.GEMM)
def qlinear_matmul(node: Node) -> Row | Refusal:
    """Quantized matmul: a, scale, zero, b, scale, zero, y's scale, zero."""
    a, b, y = product(node.shape(0), node.shape(3))
    own = [matrix_quant(node, slot, 0, a, "m") for slot in (1, 2)]
    other = [matrix_quant(node, slot, 3, b, "n") for slot in (4, 5)]
    last = [_result_quant(node.shape(slot), node.out_shape(), y) for slot in (6, 7)]
    return Row(join([text(a), *own, text(b), *other, *last], [text(y)]), zeros={0: 2, 3: 5}, roles=QUANTIZED)


def _result_quant(shape: Shape, whole: Shape, axes: list[str]) -> str:
    if 1 < len(shape) == len(whole):
        return text("1" if size == 1 else own for size, own in zip(shape, axes, strict=True))
    return quant(shape, 0, "", "the result's scale or zero point")


@op(
    *("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "GemmFastGelu"),
    domain="com.microsoft",
    traits=Trait.GEMM,
)
def fused_matmul(node: Node) -> Row | Refusal:
    """Matmul with transposed operands, a scale and an activation (and GemmFastGelu's bias).

    With ``transBatchA`` the first axis of A goes behind the batch axes, and so with B: sequences before batches.
    """
    turned = [bool(node.attr(f"transBatch{x}", 0)) and node.rank(n) > 2 for n, x in enumerate("AB")]
    left = "k m" if node.attr("transA", 0) else "m k"
    right = "n k" if node.attr("transB", 0) else "k n"
    one, two = (
        (*shape[1:-1], shape[0], shape[-1]) if turn else shape
        for turn, shape in zip(turned, (node.shape(0), node.shape(1)), strict=True)
    )
    a, b, y = product(one, two, left, right)
    a, b = ([x[-2], *x[:-2], x[-1]] if turn else x for turn, x in zip(turned, (a, b), strict=True))
    return Row(
        join([text(a), text(b)] + ["n?"] * (len(node.inputs) > 2), [text(y)]),
        roles=(*_sides(node, 0, 1), "bias"),
    )


@op("Einsum")
def einsum(node: Node) -> Row | Refusal:
    """The equation is the row. Letters twice in one operand take a diagonal: locked."""
    equation = "".join(str(node.attrs["equation"]).split())
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(node.inputs):
        raise ValueError(f"{len(terms)} operands in {equation!r} for {len(node.inputs)} inputs")
    dots = [
        node.rank(i) - len(term.replace("...", "")) if "..." in term else 0 for i, term in enumerate(terms)
    ]
    batch = [f"batch{i}" for i in range(max(dots))]
    axes = [_einsum_axes(term, batch[len(batch) - count :]) for term, count in zip(terms, dots, strict=True)]
    if not arrow:
        once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        right = "..." * ("..." in left) + "".join(once)
    sizes: dict[str, int] = {}
    for i, own in enumerate(axes):
        for name, size in zip(own, node.shape(i), strict=True):
            if size != 1 and sizes.get(name, 1) not in (1, size):
                raise ValueError(f"{name!r} is {sizes[name]} and {size} in {equation!r}")
            sizes[name] = max(size, sizes.get(name, 1))
    double = {name for own in axes for name in own if own.count(name) > 1}

    def write(names: list[str], shape: list[int]) -> str:
        return text(
            "1" if size == 1 else n + "!" * (n in double) for n, size in zip(names, shape, strict=True)
        )

    inputs = [write(own, list(node.shape(i))) for i, own in enumerate(axes)]
    result = _einsum_axes(right, batch)
    row = join(inputs, [write(result, [sizes[name] for name in result])])
    return Row(row, roles=_sides(node, *range(len(terms))), why=dict.fromkeys(double, "a diagonal is taken"))


def _einsum_axes(term: str, batch: list[str]) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *(batch if dots else []), *after]


@op("Det")
def determinant(node: Node) -> Row | Refusal:
    """One number a matrix."""
    return Row("*b m! n! -> *b", why=dict.fromkeys("mn", "a determinant needs the whole matrix"))
