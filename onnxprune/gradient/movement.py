"""Gradients of ops that move values, and of linear maps along one axis (Resize, reflecting Pad)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.gradient.tape import Grads, NoGradient, Tape, vjp
from onnxprune.ops.base import Node, normal
from onnxprune.runtime.session import open_session

Array = NDArray[Any]


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    return {0: t.like(dy[0], node.inputs[0])}


@vjp("Transpose")
def transpose(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    rank = len(t.dims(node.inputs[0]))
    perm = [int(p) for p in node.attr("perm") or reversed(range(rank))]
    return {0: t.transpose(dy[0], [perm.index(i) for i in range(rank)])}


@vjp("Concat")
def concat(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    axis = normal(int(node.attrs["axis"]), len(t.dims(node.outputs[0])))
    grads, first = {}, 0
    for slot, name in enumerate(node.inputs):
        size = t.static(name, [axis])[0]
        if slot in need:
            grads[slot] = t.slice(dy[0], [axis], [first], [first + size])
        first += size
    return grads


@vjp("Split")
def split(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    rank = len(t.dims(node.inputs[0]))
    parts = [g or t.scaled(y, 0.0) for g, y in zip(dy, node.outputs, strict=True)]
    return {0: t.op("Concat", *parts, axis=normal(int(node.attr("axis", 0)), rank))}


@vjp("Slice")
def slicing(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x = node.inputs[0]
    dims = t.dims(x)
    starts, ends = t.ints(node, "starts", 1) or [], t.ints(node, "ends", 2) or []
    axes = t.ints(node, "axes", 3)
    steps = t.ints(node, "steps", 4) or [1] * len(starts)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        at = normal(axis, len(dims))
        size = dims[at]
        if size is None:
            if start == 0 and end >= 1 << 30 and step == 1:
                continue  # the whole axis
            raise NoGradient("it cuts a dynamic axis")
        stop = None if step < 0 and end < -size else end
        dy = [select_back(t, dy[0], at, np.arange(size)[start:stop:step], size)]
    return {0: dy[0]}


def select_back(t: Tape, dy: str, axis: int, index: Array, size: int) -> str:
    """Write the gradient of ``y = take(x, index, axis)`` with a constant index on an axis of ``size``."""
    if len(index) == size and (index == np.arange(size)).all():
        return dy
    if len(np.unique(index)) < len(index):
        one_hot = np.arange(size)[:, None] == index
        return along(t, dy, axis, t.const(one_hot))
    source = np.full(size, len(index))  # a slab of zeros behind the last one
    source[index] = np.arange(len(index))
    zero = t.scaled(t.slice(dy, [axis], [0], [1]), 0.0)
    return t.op("Gather", t.op("Concat", dy, zero, axis=axis), t.ints_const(source), axis=axis)


def along(t: Tape, value: str, axis: int, matrix: str) -> str:
    """Multiply an axis by a matrix [new, old].

    All after the axis is one column, all before it is a batch.
    """
    shape = t.op("Shape", value)
    before, after = t.slice(shape, [0], [0], [axis]), t.slice(shape, [0], [axis + 1], [1 << 30])
    own = t.slice(shape, [0], [axis], [axis + 1])
    flat = t.reshape(value, t.op("Concat", before, own, t.ints_const([-1]), axis=0))
    turned = t.matmul(matrix, flat)
    return t.reshape(turned, t.op("Concat", before, t.ints_const([-1]), after, axis=0))


@vjp("Gather")
def gather(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, index = node.inputs
    rank = len(t.dims(x))
    axis = normal(int(node.attr("axis", 0)), rank)
    size = t.static(x, [axis])[0]
    width = len(t.dims(index))
    try:
        known = t.value(node, 1) % size
    except NoGradient:
        known = None
    if width == 0:
        dy = [t.unsqueeze(dy[0], [axis])]
    if known is not None and width <= 1:
        return {0: select_back(t, dy[0], axis, known.reshape(-1), size)}
    ids = t.reshape(t.op("Cast", index, to=onnx.TensorProto.INT64), [1, -1])
    positive = t.op(
        "Add", ids, t.op("Mul", t.op("Cast", t.op("Less", ids, t.ints_const(0)), to=7), t.ints_const(size))
    )
    one_hot = t.mask(t.op("Equal", t.ints_const(np.arange(size)[:, None]), positive))
    shape = t.shape(x)
    before, after = t.slice(shape, [0], [0], [axis]), t.slice(shape, [0], [axis + 1], [1 << 30])
    # [before, indices, after]: the axes of the index become one, then the axes behind it
    joined = t.reshape(dy[0], t.op("Concat", before, t.ints_const([-1]), after, axis=0))
    return {0: along(t, joined, axis, one_hot)}


@vjp("TopK")
def top_k(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """What was taken goes back to where it was; zeros are made anew, since scores may be infinite where masked."""
    if t.opset < 9:
        raise NoGradient(f"nothing writes to places in opset {t.opset}")
    x, places = node.inputs[0], node.outputs[1]
    axis = normal(int(node.attr("axis", -1)), len(t.dims(x)))
    zeros = t.expand(t.const(np.zeros(1)), x)
    scatter = "ScatterElements" if t.opset >= 11 else "Scatter"
    return {0: t.op(scatter, zeros, places, dy[0], axis=axis)}


@vjp("Trilu")
def trilu(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    return {0: t.op("Trilu", dy[0], *node.inputs[1:], upper=int(node.attr("upper", 1)))}


@vjp("Pad")
def pad(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    if need != {0}:
        raise NoGradient("its value to fill with is computed from what is to be changed")
    dims = t.dims(node.inputs[0])
    pads = t.ints(node, "pads", 1) or []
    axes = t.ints(node, "axes", 3) if node.has(3) else list(range(len(dims)))
    mode = {"wrap": "wrap", "edge": "edge", "reflect": "reflect"}.get(str(node.attr("mode", "constant")), "")
    value = dy[0]
    for i, axis in enumerate(axes or []):
        before, after, at = pads[i], pads[len(pads) // 2 + i], normal(axis, len(dims))
        if before == after == 0:
            continue
        size = t.static(node.inputs[0], [at])[0]
        if mode and min(before, after) < 0:
            raise NoGradient("it crops and reflects")
        if mode:
            index = np.pad(np.arange(size), (before, after), mode=mode)  # type: ignore[call-overload]
            value = select_back(t, value, at, index, size)
            continue
        left = max(before, 0)
        value = t.slice(value, [at], [left], [left + size + min(before, 0) + min(after, 0)])
        if min(before, after) < 0:
            kept = np.arange(size)[max(-before, 0) : size + min(after, 0)]
            value = select_back(t, value, at, kept, size)
    return {0: value}


@vjp("Expand")
def expand(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    return {0: t.unbroadcast(dy[0], node.inputs[0], node.outputs[0])}


@vjp("Tile")
def tile(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    dims, value = t.dims(node.inputs[0]), dy[0]
    for axis, repeats in enumerate(t.value(node, 1).tolist()):
        if repeats != 1:
            size = dims[axis]
            if size is None:
                raise NoGradient("it repeats a dynamic axis")
            value = along(t, value, axis, t.const(np.tile(np.eye(size), repeats)))
    return {0: value}


@vjp("DepthToSpace")
def depth_to_space(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    c, h, w = t.static(node.inputs[0], [1, 2, 3])
    b = int(node.attrs["blocksize"])
    parts = t.reshape(dy[0], [-1, c // b**2, h, b, w, b])
    perm = [0, 1, 3, 5, 2, 4] if node.attr("mode", "DCR") == "CRD" else [0, 3, 5, 1, 2, 4]
    return {0: t.like(t.transpose(parts, perm), node.inputs[0])}


@vjp("SpaceToDepth")
def space_to_depth(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    c, h, w = t.static(node.inputs[0], [1, 2, 3])
    b = int(node.attrs["blocksize"])
    parts = t.reshape(dy[0], [-1, b, b, c, h // b, w // b])
    return {0: t.like(t.transpose(parts, [0, 3, 4, 1, 5, 2]), node.inputs[0])}


@vjp("Resize", "Upsample")
def resize(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """A Resize is a matrix for each axis; it is measured on the identity, under the node's own attributes."""
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise NoGradient("it crops")
    x, y = node.inputs[0], node.outputs[0]
    value = dy[0]
    for axis, (n, m) in enumerate(zip(t.dims(x), t.dims(y), strict=True)):
        if n == m and (n is not None or axis == 0):
            continue
        if n is None or m is None:
            raise NoGradient("its sizes are dynamic")
        value = along(t, value, axis, t.const(_measured(t, node, axis, n, m)))
    return {0: value}


def _measured(t: Tape, node: Node, axis: int, n: int, m: int) -> Array:
    """Return the matrix [n, m] that takes a gradient along an axis back."""
    rank = len(t.dims(node.inputs[0]))
    slot = 1 if t.opset < 11 else 2
    scales = None
    if "scales" in node.attrs:
        scales = np.asarray(node.attrs["scales"])
    elif node.has(slot):
        given = t.value(node, slot)
        scales = given if given.size == rank else None
    factor = float(scales[axis]) if scales is not None and scales.size == rank else m / n
    attrs = {k: v for k, v in node.attrs.items() if k not in ("scales", "axes", "keep_aspect_ratio_policy")}
    weights = {"scales": np.array([1, 1, 1, factor], np.float32)}
    inputs = ["x", "scales"]
    if node.op == "Upsample" and t.opset < 9:
        inputs, attrs = ["x"], {**attrs, "scales": [1.0, 1.0, 1.0, factor]}
    elif t.opset >= 11:
        weights["roi"] = np.zeros(0, np.float32)
        inputs = ["x", "roi", "scales"]
        if scales is None:
            weights["sizes"] = np.array([1, n, 1, m], np.int64)
            weights["scales"] = np.zeros(0, np.float32)
            inputs = ["x", "roi", "scales", "sizes"]
    graph = helper.make_graph(
        [helper.make_node(node.op, inputs, ["y"], **attrs)],
        "resize",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, n, 1, n])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(w, name) for name, w in weights.items() if name in inputs],
    )
    opsets = [helper.make_opsetid("", t.opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    matrix = open_session(model).run({"x": np.eye(n, dtype=np.float32).reshape(1, n, 1, n)})["y"]
    if prod(matrix.shape) != n * m:
        raise NoGradient("its sizes can't be told axis by axis")
    return np.asarray(matrix).reshape(n, m)
