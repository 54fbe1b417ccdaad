"""Convolutions and matrix products: the ops that contract channels."""

from __future__ import annotations

from onnxprune.ops.axes import broadcast, text
from onnxprune.ops.base import Node, Refusal, Row, op

_ROLES = ("data", "weight", "bias")
_CONV = "n (g i) *s!, (g o) i *k!, (g o)? -> n (g o) *t!"


@op("Conv")
def conv(node: Node) -> Row:
    return Row(_CONV, sizes={"g": int(node.attr("group", 1))}, attrs={"group": "g"}, roles=_ROLES)


@op("FusedConv", "NhwcFusedConv", domain="com.microsoft")
def fused_conv(node: Node) -> Row | Refusal:
    """The fourth input is added before the activation."""
    if node.op != "FusedConv":
        return Refusal(f"{node.op} keeps its channels last, in a layout of its own")
    row = conv(node)
    signature = row.text.replace("(g o)? ->", "(g o)?, n (g o) *t!? ->")
    return Row(signature, sizes=row.sizes, attrs=row.attrs, roles=(*_ROLES, "data"))


@op("ConvInteger")
def conv_integer(node: Node) -> Row:
    point = "()?" if not node.has(3) or node.rank(3) == 0 else "(g o)?" if node.shape(3)[0] > 1 else "1?"
    signature = f"n (g i) *s!, (g o) i *k!, ()?, {point} -> n (g o) *t!"
    if node.has(2) and node.rank(2) == 1:
        signature = signature.replace("()?,", "1?,", 1)
    sizes = {"g": int(node.attr("group", 1))}
    return Row(signature, sizes=sizes, attrs={"group": "g"}, zeros={0: 2}, roles=("data", "weight", "quant", "quant"))


@op("ConvTranspose")
def conv_transpose(node: Node) -> Row:
    signature = "n (g i) *s!, (g i) o *k!, (g o)? -> n (g o) *t!"
    return Row(signature, sizes={"g": int(node.attr("group", 1))}, attrs={"group": "g"}, roles=_ROLES)


@op("DeformConv")
def deform_conv(node: Node) -> Row | Refusal:
    if node.attr("offset_group", 1) != 1:
        return Refusal("DeformConv: offsets of several groups tie channels to offsets")
    signature = "n (g i) *s!, (g o) i *k!, n z! *t!, (g o)?, n y! *t!? -> n (g o) *t!"
    roles = ("data", "weight", "data", "bias", "data")
    return Row(signature, sizes={"g": int(node.attr("group", 1))}, attrs={"group": "g"}, roles=roles)


@op("Gemm")
@op("FusedGemm", domain="com.microsoft")
def gemm(node: Node) -> Row:
    left = "k m" if node.attr("transA", 0) else "m k"
    right = "n k" if node.attr("transB", 0) else "k n"
    bias = ""
    if node.has(2):
        rows = node.shape(0)[1 if node.attr("transA", 0) else 0]
        columns = node.shape(1)[0 if node.attr("transB", 0) else 1]
        axes = broadcast((node.shape(2), (rows, columns)))[0]
        bias = ", " + text({"a": "m", "b": "n", "1": "1"}[a] for a in axes)
    return Row(f"{left}, {right}{bias} -> m n", roles=_ROLES)


def product(node: Node, trans_a: bool = False, trans_b: bool = False, point: str = "") -> str:
    """Text of a (batched) matrix product with NumPy's rule for batch axes and vectors."""
    a, b = node.shape(0), node.shape(1)
    batch_a, batch_b, batch = broadcast((a[:-2], b[:-2]), "batch")
    left = ["k"] if len(a) == 1 else [*batch_a, *(["k", "m"] if trans_a else ["m", "k"])]
    right = ["k"] if len(b) == 1 else [*batch_b, *(["n", "k"] if trans_b else ["k", "n"])]
    out = [*batch, *(["m"] if len(a) > 1 else []), *(["n"] if len(b) > 1 else [])]
    return f"{text(left)}, {text(right)}{point} -> {text(out)}"


@op("MatMul")
def matmul(node: Node) -> Row:
    return Row(product(node), roles=("data", "weight"))


@op("FusedMatMul", "TransposeMatMul", domain="com.microsoft")
def fused_matmul(node: Node) -> Row | Refusal:
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        return Refusal(f"{node.op}: transposed batch axes are not described")
    return Row(product(node, bool(node.attr("transA", 0)), bool(node.attr("transB", 0))), roles=("data", "weight"))


@op("MatMulInteger")
def matmul_integer(node: Node) -> Row | Refusal:
    points = []
    for slot in (2, 3):
        if node.has(slot) and max(node.shape(slot), default=1) > 1:
            if slot == 2 or node.rank(slot) != 1:
                return Refusal("MatMulInteger: zero points of each row are not described")
            points.append("n?")
        else:
            points.append("1?" if node.has(slot) and node.rank(slot) == 1 else "()?")
    signature = product(node, point=f", {', '.join(points)}")
    return Row(signature, zeros={0: 2}, roles=("data", "weight", "quant", "quant"))


@op("Einsum")
def einsum(node: Node) -> Row | Refusal:
    equation = "".join(node.attrs["equation"].split())
    if "." in equation:
        return Refusal("Einsum: an ellipsis is not described")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    if any(len(set(term)) != len(term) for term in (*terms, right)):
        return Refusal("Einsum: a diagonal is not described")
    sizes: dict[str, set[int]] = {}
    for slot, term in enumerate(terms):
        for name, size in zip(term, node.shape(slot), strict=True):
            sizes.setdefault(name, set()).add(size)
    if any(len(found) > 1 for found in sizes.values()):
        return Refusal("Einsum: a broadcast letter is not described")
    return Row(f"{', '.join(text(term) for term in terms)} -> {text(right)}", roles=("data", "weight"))
