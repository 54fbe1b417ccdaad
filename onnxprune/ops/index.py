"""Ops that look elements up, sort or count them: the axis they work along is locked, the others pass."""

from __future__ import annotations

from onnxprune.ops.axes import join, names, text
from onnxprune.ops.base import Node, Row, normal, op

_RUN_TIME = "its indices are computed at run time"


def _along(node: Node, axes: set[int], outputs: int = 1, new: bool = False) -> Row:
    """Lock some axes; with ``new`` they have another length in the outputs."""
    letters = names(node.rank())
    left = text(name + "!" * (n in axes) for n, name in enumerate(letters))
    right = text(f"t{n}!" if new and n in axes else name + "!" * (n in axes) for n, name in enumerate(letters))
    return Row(join([left], [right] * outputs), why={letters[a]: f"{node.op} works along it" for a in axes})


@op("TopK")
def top_k(node: Node) -> Row:
    return _along(node, {node.axis(-1)}, outputs=len(node.outputs), new=True)


@op("CumSum", "CumProd")
def cumulate(node: Node) -> Row:
    return _along(node, {normal(int(node.value(1).reshape(-1)[0]), node.rank())})


@op("Trilu")
def trilu(node: Node) -> Row:
    return _along(node, {node.rank() - 1, node.rank() - 2})


@op("ReverseSequence")
def reverse_sequence(node: Node) -> Row:
    return _along(node, {int(node.attr("batch_axis", 1)), int(node.attr("time_axis", 0))})


@op("EyeLike")
def eye_like(node: Node) -> Row:
    return _along(node, {0, 1})


@op("OneHot")
def one_hot(node: Node) -> Row:
    axes = list(names(node.rank()))
    at = node.axis(-1, node.rank() + 1)
    return Row(join([text(axes)], [text([*axes[:at], "d!", *axes[at:]])]), why={"d": "one for each value"})


def _beside(node: Node, others: tuple[int, ...]) -> tuple[int, list[str], list[str]]:
    """Axis, letters of the data and of the operands of the indices' shape: tied only where all lengths agree."""
    axis, shape = node.axis(0), node.shape(0)
    data, rest = list(names(len(shape))), list(names(len(shape)))
    for n, size in enumerate(shape):
        if n == axis or any(node.shape(slot)[n] != size for slot in others):
            data[n] += "!"
            rest[n] = f"i{n}!"
    return axis, data, rest


@op("GatherElements")
def gather_elements(node: Node) -> Row:
    axis, data, index = _beside(node, (1,))
    index[axis] = f"i{axis}"
    return Row(join([text(data), text(index)], [text(index)]), why={data[axis].rstrip("!"): _RUN_TIME})


@op("ScatterElements", "Scatter")
def scatter_elements(node: Node) -> Row:
    axis, data, index = _beside(node, (1, 2))
    return Row(join([text(data), text(index), text(index)], [text(data)]), why={data[axis].rstrip("!"): _RUN_TIME})


@op("GatherND")
def gather_nd(node: Node) -> Row:
    batch, depth = int(node.attr("batch_dims", 0)), node.shape(1)[-1]
    data, index = list(names(node.rank())), [f"i{n}" for n in range(node.rank(1) - 1)]
    index[:batch] = data[:batch]
    why = {data[n]: _RUN_TIME for n in range(batch, batch + depth)}
    left = [name + "!" * (batch <= n < batch + depth) for n, name in enumerate(data)]
    return Row(join([text(left), text([*index, "d!"])], [text([*index, *data[batch + depth :]])]), why=why)


@op("ScatterND")
def scatter_nd(node: Node) -> Row:
    depth = node.shape(1)[-1]
    data, index = list(names(node.rank())), [f"i{n}!" for n in range(node.rank(1) - 1)]
    left = [name + "!" * (n < depth) for n, name in enumerate(data)]
    why = {data[n]: _RUN_TIME for n in range(depth)}
    return Row(join([text(left), text([*index, "d!"]), text([*index, *data[depth:]])], [text(left)]), why=why)
