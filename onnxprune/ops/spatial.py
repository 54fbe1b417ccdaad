"""Ops over windows and grids: channels pass, positions don't."""

from __future__ import annotations

from math import prod

from onnxprune.ops.axes import join, names, quant, text
from onnxprune.ops.base import Node, Refusal, Row, literal, normal, op
from onnxprune.ops.traits import Trait

WINDOW = dict.fromkeys("st", "windows run over these positions")
PLACES = dict.fromkeys("st", "looked up at coordinates that are computed") | {"q": "coordinates"}
IMAGES = {"n": "images are picked by number", **PLACES}

literal("n c *s! -> n c *t!", ["AveragePool"], why=WINDOW, traits=Trait.WINDOW | Trait.LINEAR | Trait.ZEROS)
literal("n c *s! -> n c *t!", ["LpPool"], why=WINDOW, traits=Trait.WINDOW | Trait.ZEROS)
literal("n c *s!, n *t! q! -> n c *t!", ["GridSample"], why=PLACES)
literal("n c *s!, n *t! q! -> n c *t!", ["GridSample"], domain="com.microsoft", why=PLACES)
literal("n! c *s!, r q!, r -> r c *t!", ["RoiAlign"], why=IMAGES)
literal("n! c *s!, r q! -> r c *t!", ["MaxRoiPool"], why=IMAGES)
COUNTED = {**WINDOW, **dict.fromkeys("nc", "indices count through it")}
literal("n! c! *s!, n! c! *s! -> n! c! *t!", ["MaxUnpool"], why=COUNTED)


@op("GlobalMaxPool", traits=Trait.MEAN)
@op("GlobalLpPool", traits=Trait.ZEROS)
def global_pool(node: Node) -> Row | Refusal:
    """All positions become one."""
    return Row(f"n c *s! -> n c{' 1' * (node.rank() - 2)}", why=WINDOW)


@op("MaxPool", traits=Trait.WINDOW | Trait.MEAN | Trait.ASIDE)
def max_pool(node: Node) -> Row | Refusal:
    """The optional indices count through all images and channels, so that they lock them."""
    if node.gives(1):
        why = {**WINDOW, **dict.fromkeys("nc", "the indices of MaxPool count through this axis")}
        return Row("n! c! *s! -> n! c! *t!, n! c! *t!", why=why)
    return Row("n c *s! -> n c *t!", why=WINDOW)


@op("QLinearAveragePool", "QLinearGlobalAveragePool", domain="com.microsoft")
def qlinear_pool(node: Node) -> Row | Refusal:
    """Pools of quantized data, whose channels may come last: x, scale, zero, y's scale, zero."""
    last = bool(node.attr("channels_last", 0))
    data, result = ("n *s! c", "n *t! c") if last else ("n c *s!", "n c *t!")
    slots = range(1, len(node.inputs))
    own = [quant(node.shape(i) if node.has(i) else None, 0, "", "a scale or zero point") + "?" for i in slots]
    return Row(join([data, *own], [result]), why=WINDOW, roles=("data", "quant", "quant", "quant", "quant"))


@op("Col2Im")
def col2im(node: Node) -> Row | Refusal:
    """Columns hold the positions of a block for each channel."""
    size = prod(int(i) for i in node.value(2).reshape(-1))
    return Row("n (c k!) l! -> n c *t!", sizes={"k": size}, why=dict.fromkeys("klt", "positions of blocks"))


@op("Resize", "Upsample", traits=Trait.LINEAR | Trait.ZEROS)
def resize(node: Node) -> Row | Refusal:
    """An axis that keeps its length at scale 1 is passed through; the others are interpolated."""
    mode = node.attr("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_half_pixel_for_nn":
        return Refusal(f"{node.op}: {mode} moves every axis")
    shape, out = node.shape(0), node.out_shape()
    cropped = crops(node) if mode == "tf_crop_and_resize" else set()
    if mode == "tf_crop_and_resize" and node.attr("extrapolation_value", 0.0):
        return Refusal(f"{node.op}: {mode} fills in an extrapolation_value")
    scale = scales(node)
    if scale is None and node.has(3):
        node.value(3)  # raises where the sizes are computed at run time: they couldn't be rewritten
    policy = node.attr("keep_aspect_ratio_policy", "stretch")  # else all sizes decide on the one scale
    given = range(0) if policy == "stretch" else node.attr("axes") or range(len(shape))
    given = {normal(int(axis), len(shape)) for axis in given}
    left, right = list(names(len(shape))), list(names(len(shape)))
    why: dict[str, str] = {}
    for axis, (size, wide) in enumerate(zip(shape, out, strict=True)):
        if axis in given or axis in cropped or size != wide or (scale is not None and scale[axis] != 1.0):
            why |= {left[axis]: "resized", f"t{axis}": "resized"}
            left[axis], right[axis] = left[axis] + "!", f"t{axis}!"
    return Row(join([text(left)], [text(right)]), why=why)


def crops(node: Node) -> set[int]:
    """Return the axes of which only a region of interest is resized; raises where that is computed at run time."""
    starts, ends = node.value(1).reshape(2, -1)
    axes = node.attr("axes") or range(node.rank())
    whole = (starts == 0) & (ends == 1)
    return {
        normal(int(axis), node.rank()) for axis, all_of_it in zip(axes, whole, strict=True) if not all_of_it
    }


def scales(node: Node) -> list[float] | None:
    """Return the scale of each axis, None where sizes are given instead, or where scales follow from known sizes."""
    if node.op == "Upsample" and node.opset < 9:
        return [float(s) for s in node.attrs["scales"]]
    slot = 1 if node.op == "Upsample" or node.opset < 11 else 2
    if not node.has(slot) or (slot < len(node.shapes) and node.shapes[slot] == (0,)):
        return None
    given = [float(s) for s in node.value(slot).reshape(-1)]
    axes = node.attr("axes")
    if axes is None:
        return given
    scales = [1.0] * node.rank()
    for axis, scale in zip(axes, given, strict=True):
        scales[axis] = scale
    return scales
