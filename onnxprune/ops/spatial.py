"""Ops over windows and grids: channels pass, positions don't."""

from __future__ import annotations

from onnxprune.ops.axes import join, names, text
from onnxprune.ops.base import Node, Refusal, Row, literal, op

literal("n c *s! -> n c *t!", ["AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
literal("n c *s!, n *t! q! -> n c *t!", ["GridSample"])
literal("n c *s!, r q!, r -> r c *t!", ["RoiAlign"])
literal("n c *s!, r q! -> r c *t!", ["MaxRoiPool"])


@op("MaxPool")
def max_pool(node: Node) -> Row:
    """The indices count through all channels."""
    if node.gives(1):
        why = dict.fromkeys("nc", "the indices of MaxPool count through this axis")
        return Row("n! c! *s! -> n! c! *t!, n! c! *t!", why=why)
    return Row("n c *s! -> n c *t!")


@op("Col2Im")
def col2im(node: Node) -> Row:
    width = 1
    for size in node.value(2).reshape(-1):
        width *= int(size)
    return Row("n (c k!) l! -> n c *t!", sizes={"k": width})


@op("Resize", "Upsample")
def resize(node: Node) -> Row | Refusal:
    """An axis that keeps its size at scale 1 is passed through."""
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        return Refusal("Resize: a crop moves every axis")
    shape, out = node.shape(0), node.out_shape()
    scales = _scales(node)
    left, right = list(names(len(shape))), list(names(len(shape)))
    for n, (size, wide) in enumerate(zip(shape, out, strict=True)):
        if size != wide or (scales is not None and scales[n] != 1.0):
            left[n] += "!"
            right[n] = f"t{n}!"
    return Row(join([text(left)], [text(right)]))


def _scales(node: Node) -> list[float] | None:
    """Scale of each axis, None where sizes are given instead."""
    if node.op == "Upsample" and node.opset < 9:
        return [float(s) for s in node.attrs["scales"]]
    slot = 1 if node.op == "Upsample" or node.opset < 11 else 2
    if not node.has(slot) or (node.values[slot] is not None and node.values[slot].size == 0):
        return None
    given = [float(s) for s in node.value(slot).reshape(-1)]
    axes = node.attr("axes")
    if axes is None:
        return given
    found = [1.0] * node.rank()
    for axis, scale in zip(axes, given, strict=True):
        found[axis] = scale
    return found
