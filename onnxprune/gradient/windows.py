"""Gradients of ops that slide a window: convolutions both ways, and pooling.

With strides ``s``, dilations ``d`` and a kernel of ``k`` taps, an output of ``m`` positions reaches over
``(m - 1) s + (k - 1) d + 1`` positions of the padded input. The end padding is taken from that reach and the real
size, so that every rounding of output sizes (floor, ceil, SAME) is one case.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxprune.gradient.tape import Dims, Grads, NoGradient, Tape, vjp
from onnxprune.gradient.taps import Window, taps_gradient
from onnxprune.ops.base import Node


def window(t: Tape, node: Node, kernel: Sequence[int], x: str, y: str) -> Window:
    """Find the window that moves over ``x`` and gives ``y``."""
    spatial = len(kernel)
    strides = tuple(int(s) for s in node.attr("strides") or [1] * spatial)
    dilations = tuple(int(d) for d in node.attr("dilations") or [1] * spatial)
    pads = [int(p) for p in node.attr("pads") or [0] * 2 * spatial]
    auto = node.attr("auto_pad", "NOTSET") or "NOTSET"
    sizes, results = t.dims(x)[2:], t.dims(y)[2:]
    if len(sizes) != spatial:
        raise NoGradient("its kernel and its input differ in rank")
    begin, end, known = [], [], True
    for i, (n, m, k, s, d) in enumerate(zip(sizes, results, kernel, strides, dilations, strict=True)):
        wide = (k - 1) * d + 1
        left, right = pads[i], pads[spatial + i]
        if n is None or m is None:
            if (auto.startswith("SAME") and s > 1) or node.attr("ceil_mode", 0):
                raise NoGradient("its padding depends on a dynamic size")
            known, total = False, wide - 1
        else:
            total = (m - 1) * s + wide - n
        if auto == "VALID":
            left, right = 0, 0
        elif auto.startswith("SAME"):
            whole = max(total, 0)
            left = whole // 2 if auto == "SAME_UPPER" else whole - whole // 2
            right = whole - left
        if n is not None and m is not None and node.attr("ceil_mode", 0) and (m - 1) * s >= n + left:
            raise NoGradient("its last window lies in the padding, where runtimes differ")
        begin.append(left)
        end.append(right if n is None or m is None else total - left)
    return Window(tuple(kernel), strides, dilations, tuple(begin), tuple(end), known)


def spread(t: Tape, dy: str, weight: str, w: Window, group: int, x: str) -> str:
    """Write the transposed convolution that takes a gradient back to the shape of ``x``.

    Parameters
    ----------
    weight : str
        [outputs, inputs / group, taps...], the layout of Conv.
    x : str
        A forward tensor of the spatial sizes to be reached.
    """
    reach = [(k - 1) * d for k, d in zip(w.kernel, w.dilations, strict=True)]
    near = all(b <= r for b, r in zip(w.begin, reach, strict=True))
    near = near and all(max(e, 0) <= r for e, r in zip(w.end, reach, strict=True))
    if set(w.strides) == {1} and not any(w.unread) and near and (weight in t.model or t.opset >= 10):
        pads = [r - b for r, b in zip(reach, w.begin, strict=True)]
        pads += [r - e for r, e in zip(reach, w.end, strict=True)]
        turned = _turned(t, weight, group)
        shape = list(w.kernel)
        return t.op("Conv", dy, turned, group=group, dilations=w.dilations, pads=pads, kernel_shape=shape)
    image = t.op(
        "ConvTranspose", dy, weight, group=group, strides=w.strides, dilations=w.dilations, pads=w.pads,
        output_padding=w.unread if any(w.unread) else None, kernel_shape=list(w.kernel),
    )  # fmt: skip
    if w.known or set(w.strides) == {1}:
        return image
    if t.opset < 11:
        raise NoGradient("its padding depends on a dynamic size, which needs opset 11")
    missing = t.op(
        "Sub",
        t.slice(t.op("Shape", x), [0], [2], [1 << 30]),
        t.slice(t.op("Shape", image), [0], [2], [1 << 30]),
    )
    zeros = t.ints_const([0, 0])
    none = t.ints_const([0] * (len(w.kernel) + 2))
    return t.op("Pad", image, t.op("Concat", none, zeros, missing, axis=0))


def _turned(t: Tape, weight: str, group: int) -> str:
    """Return a Conv weight with its taps reversed and its channels swapped, for the gradient as a Conv."""
    if weight in t.model:
        w = np.asarray(t.model.weight(weight))
        outputs, inputs, *taps = w.shape
        flipped = np.flip(w, tuple(range(2, w.ndim))).reshape(group, outputs // group, inputs, *taps)
        return t.const(np.swapaxes(flipped, 1, 2).reshape(group * inputs, outputs // group, *taps))
    outputs, inputs, *taps = t.static(weight, range(len(t.dims(weight))))
    axes = [2 + i for i, k in enumerate(taps) if k > 1]
    if axes:
        back = [t.ints_const([value] * len(axes)) for value in (-1, -(1 << 30))]
        weight = t.op("Slice", weight, *back, t.ints_const(axes), t.ints_const([-1] * len(axes)))
    split = t.reshape(weight, [group, outputs // group, inputs, *taps])
    swapped = t.transpose(split, [0, 2, 1, *(3 + i for i in range(len(taps)))])
    return t.reshape(swapped, [group * inputs, outputs // group, *taps])


def _spatial_sum(t: Tape, dy: str, rank: int) -> str:
    return t.reduce("ReduceSum", dy, [0, *range(2, rank)], keep=False)


def _static_sizes(t: Tape, *names: str) -> list[list[int]]:
    return [t.static(n, range(2, len(t.dims(n)))) for n in names]


@vjp("Conv")
def conv(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, y, weight = node.inputs[0], node.outputs[0], node.inputs[1]
    group = int(node.attr("group", 1))
    w = window(t, node, t.static(weight, range(2, len(t.dims(weight)))), x, y)
    grads = {}
    if 0 in need:
        grads[0] = spread(t, dy[0], weight, w, group, x)
    if 1 in need:
        big, small = _static_sizes(t, x, y)
        channels = t.static(weight, [0, 1])
        fewer = t.static(y, [1]) < t.static(x, [1])
        grads[1] = taps_gradient(t, x, dy[0], w, group, (big, small), channels, fewer=fewer)
    if 2 in need:
        grads[2] = _spatial_sum(t, dy[0], len(t.dims(y)))
    return grads


@vjp("ConvTranspose")
def conv_transpose(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, y, weight = node.inputs[0], node.outputs[0], node.inputs[1]
    group = int(node.attr("group", 1))
    kernel = t.static(weight, range(2, len(t.dims(weight))))
    w = _transposed_window(node, kernel, t.dims(x)[2:], t.dims(y)[2:])
    grads = {}
    if 0 in need:
        pulled = t.op(
            "Conv", dy[0], weight, group=group, strides=w.strides, dilations=w.dilations, pads=w.pads
        )
        if any(w.unread):
            axes = [2 + i for i in range(len(kernel))]
            pulled = t.slice(pulled, axes, [0] * len(kernel), t.static(x, axes))
        grads[0] = pulled
    if 1 in need:
        if group > 1:
            raise NoGradient("the weight of a ConvTranspose with groups")
        big, small = _static_sizes(t, y, x)
        grads[1] = taps_gradient(t, dy[0], x, w, group, (big, small), t.static(weight, [0, 1]))
    if 2 in need:
        grads[2] = _spatial_sum(t, dy[0], len(t.dims(y)))
    return grads


def _transposed_window(node: Node, kernel: list[int], small: Dims, big: Dims) -> Window:
    spatial = len(kernel)
    strides = tuple(int(s) for s in node.attr("strides") or [1] * spatial)
    dilations = tuple(int(d) for d in node.attr("dilations") or [1] * spatial)
    pads = [int(p) for p in node.attr("pads") or [0] * 2 * spatial]
    extra = [int(e) for e in node.attr("output_padding") or [0] * spatial]
    auto = node.attr("auto_pad", "NOTSET") or "NOTSET"
    if auto.startswith("SAME") and any(extra):
        raise NoGradient("auto_pad beside output_padding, where runtimes differ")
    begin, end, known = [], [], True
    for i, (n, m) in enumerate(zip(small, big, strict=True)):
        left = pads[i]
        if n is None or m is None:
            if node.attr("output_shape") or auto.startswith("SAME") or extra[i] >= strides[i]:
                raise NoGradient("its padding depends on a dynamic size")
            known = False
            begin.append(0 if auto == "VALID" else left)
            end.append(0 if auto == "VALID" else pads[spatial + i])
            continue
        total = (n - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - m
        if auto == "VALID":
            left = 0
        elif node.attr("output_shape") or auto.startswith("SAME"):
            whole = max(total + extra[i], 0)
            left = whole // 2 if auto == "SAME_UPPER" else whole - whole // 2
        begin.append(left)
        end.append(total - left)
    return Window(tuple(kernel), strides, dilations, tuple(begin), tuple(end), known)


def _planes(t: Tape, value: str, like: str) -> str:
    """Lay batch and channels together: [N * C, 1, sizes...]."""
    sizes = t.dims(like)[2:]
    if None not in sizes:
        return t.reshape(value, [-1, 1, *(s for s in sizes if s is not None)])
    rest = t.slice(t.shape(like), [0], [2], [1 << 30])
    return t.reshape(value, t.op("Concat", t.ints_const([-1, 1]), rest, axis=0))


@vjp("AveragePool")
def average_pool(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, y = node.inputs[0], node.outputs[0]
    w = window(t, node, [int(k) for k in node.attrs["kernel_shape"]], x, y)
    shares = t.mul(dy[0], t.const(1 / _counts(t, node, w, x, y)))
    ones = t.const(np.ones((1, 1, *w.kernel)))
    return {0: t.like(spread(t, _planes(t, shares, y), ones, w, 1, x), x)}


def _counts(
    t: Tape, node: Node, w: Window, x: str, y: str
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Positions that each window averages over, of the output's spatial shape."""
    if not w.known:
        if any(w.pads):
            raise NoGradient("its windows are padded at a dynamic size")
        return np.full([1] * len(w.kernel), float(prod(w.kernel)))
    sizes, results = _static_sizes(t, x, y)
    spatial, pads = len(w.kernel), [int(p) for p in node.attr("pads") or [0] * 2 * len(w.kernel)]
    outer = int(node.attr("count_include_pad", 0))
    same = (node.attr("auto_pad", "NOTSET") or "NOTSET").startswith("SAME")
    count = np.ones([1] * spatial)
    for i in range(spatial):
        start = np.arange(results[i])[:, None] * w.strides[i] - w.begin[i]
        at = start + np.arange(w.kernel[i]) * w.dilations[i]
        low = -w.begin[i] if outer else 0
        high = sizes[i] + ((max(w.end[i], 0) if same else pads[spatial + i]) if outer else 0)
        along = ((at >= low) & (at < high)).sum(axis=1)
        count = count * along.reshape([-1 if a == i else 1 for a in range(spatial)])
    return count.astype(np.float64)


@vjp("MaxPool")
def max_pool(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """Each window's gradient goes to its first largest position; windows may overlap.

    A convolution with an identity kernel lays the positions of a window side by side; the same kernel transposed puts
    the gradients back.
    """
    x, y = node.inputs[0], node.outputs[0]
    w = window(t, node, [int(k) for k in node.attrs["kernel_shape"]], x, y)
    taps, spatial = prod(w.kernel), len(w.kernel)
    eye = t.const(np.eye(taps).reshape(taps, 1, *w.kernel))
    low = float(np.finfo(t.dtype).min)
    padded = t.pad(_planes(t, x, x), [0, 0, *w.begin], [0, 0, *w.pads[spatial:]], low)
    laid = t.op("Conv", padded, eye, strides=w.strides, dilations=w.dilations)
    first = t.op("ArgMax", laid, axis=1, keepdims=1)
    if any(w.unread):  # the last positions may hold windows that the pool doesn't have
        axes = [2 + i for i in range(spatial)]
        first = t.slice(first, axes, [0] * spatial, t.static(y, axes))
    numbers = t.ints_const(np.arange(taps).reshape(1, taps, *[1] * spatial))
    shares = t.mul(t.mask(t.op("Equal", first, numbers)), _planes(t, dy[0], y))
    return {0: t.like(spread(t, shares, eye, w, 1, x), x)}


@vjp("GlobalAveragePool")
def global_average(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x = node.inputs[0]
    count = t.op("Div", t.op("Size", x), t.op("Size", node.outputs[0]))
    share = t.op("Div", dy[0], t.op("Cast", count, to=t.elem(x)))
    return {0: t.expand(share, x)}


@vjp("GlobalMaxPool")
def global_max(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, y = node.inputs[0], node.outputs[0]
    hits = t.mask(t.op("Not", t.op("Less", x, y)))
    ties = t.reduce("ReduceSum", hits, range(2, len(t.dims(x))))
    return {0: t.mul(hits, t.op("Div", dy[0], ties))}
