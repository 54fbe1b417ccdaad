"""Gradients of sums and averages over axes: reductions, softmax, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.gradient.movement import along
from onnxprune.gradient.tape import Grads, NoGradient, Tape, vjp
from onnxprune.ops.base import Node, normal


def _axes(t: Tape, node: Node) -> list[int]:
    rank = len(t.dims(node.inputs[0]))
    axes = t.ints(node, "axes", 1)
    if not axes:
        return [] if node.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(normal(a, rank) for a in axes)


def _kept(t: Tape, node: Node, value: str, axes: list[int]) -> str:
    """Give a reduced value its axes of length one back."""
    return value if int(node.attr("keepdims", 1)) else t.unsqueeze(value, axes)


@vjp("ReduceSum", "ReduceMean")
def reduce_sum(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x = node.inputs[0]
    share = _kept(t, node, dy[0], _axes(t, node))
    if node.op == "ReduceMean":
        count = t.op("Div", t.op("Size", x), t.op("Size", node.outputs[0]))
        share = t.op("Div", share, t.op("Cast", count, to=t.elem(x)))
    return {0: t.expand(share, x)}


@vjp("ReduceSumSquare")
def sum_square(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    return {0: t.mul(_kept(t, node, dy[0], _axes(t, node)), t.scaled(node.inputs[0], 2))}


@vjp("ReduceL2")
def reduce_l2(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    share = _kept(t, node, t.op("Div", dy[0], node.outputs[0]), _axes(t, node))
    return {0: t.mul(share, node.inputs[0])}


@vjp("ReduceL1", "ReduceLogSum")
def reduce_l1(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, y, axes = node.inputs[0], node.outputs[0], _axes(t, node)
    if node.op == "ReduceL1":
        return {0: t.mul(_kept(t, node, dy[0], axes), t.op("Sign", x))}
    return {0: t.expand(_kept(t, node, t.op("Div", dy[0], t.op("Exp", y)), axes), x)}


@vjp("ReduceLogSumExp")
def log_sum_exp(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    axes = _axes(t, node)
    over = t.op("Sub", node.inputs[0], _kept(t, node, node.outputs[0], axes))
    return {0: t.mul(_kept(t, node, dy[0], axes), t.op("Exp", over))}


@vjp("ReduceMax", "ReduceMin")
def reduce_max(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    axes, x = _axes(t, node), node.inputs[0]
    beats = "Less" if node.op == "ReduceMax" else "Greater"
    hits = t.mask(t.op("Not", t.op(beats, x, _kept(t, node, node.outputs[0], axes))))
    share = t.op("Div", _kept(t, node, dy[0], axes), t.reduce("ReduceSum", hits, axes))
    return {0: t.mul(hits, share)}


def _softmax_axes(t: Tape, node: Node) -> list[int]:
    rank = len(t.dims(node.inputs[0]))
    if node.opset >= 13:
        return [normal(int(node.attr("axis", -1)), rank)]
    return list(range(normal(int(node.attr("axis", 1)), rank), rank))  # one block of all axes from there on


@vjp("Softmax")
def softmax(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    y = node.outputs[0]
    mean = t.reduce("ReduceSum", t.mul(dy[0], y), _softmax_axes(t, node))
    return {0: t.mul(y, t.op("Sub", dy[0], mean))}


@vjp("LogSoftmax")
def log_softmax(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    total = t.reduce("ReduceSum", dy[0], _softmax_axes(t, node))
    return {0: t.op("Sub", dy[0], t.mul(t.op("Exp", node.outputs[0]), total))}


@vjp("BatchNormalization")
def batch_norm(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    if node.attr("training_mode", 0) or any(node.outputs[1:]):
        raise NoGradient("it is in training mode")
    x, scale, _, mean, var = node.inputs
    rank = len(t.dims(x))
    spread = t.op("Add", var, t.const(float(node.attr("epsilon", 1e-5))))
    root = t.op("Reciprocal", t.op("Sqrt", spread))
    others = [0, *range(2, rank)]
    grads = {}
    if 0 in need:
        grads[0] = t.mul(dy[0], _channels(t, t.mul(scale, root), rank))
    if 1 in need:
        centred = t.mul(t.op("Sub", x, _channels(t, mean, rank)), _channels(t, root, rank))
        grads[1] = t.reduce("ReduceSum", t.mul(dy[0], centred), others, keep=False)
    if 2 in need:
        grads[2] = t.reduce("ReduceSum", dy[0], others, keep=False)
    if need & {3, 4}:
        raise NoGradient("its statistics are computed from what is to be changed")
    return grads


@vjp("LRN")
def local_response(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """``y = x s^-b``, ``s = k + a / n sum of x^2`` over ``n`` channels around each."""
    x, size = node.inputs[0], int(node.attrs["size"])
    (channels,) = t.static(x, [1])
    apart = np.arange(channels)[None] - np.arange(channels)[:, None]
    near = ((apart >= -((size - 1) // 2)) & (apart <= size // 2)).astype(np.float64)
    share, power = float(node.attr("alpha", 1e-4)) / size, float(node.attr("beta", 0.75))
    total = along(t, t.scaled(t.mul(x, x), share), 1, t.const(near))
    total = t.op("Add", total, t.const(float(node.attr("bias", 1.0))))
    root = t.op("Pow", total, t.const(-power))
    back = along(t, t.op("Div", t.mul(t.mul(dy[0], x), root), total), 1, t.const(near.T))
    return {0: t.op("Sub", t.mul(dy[0], root), t.scaled(t.mul(x, back), 2 * share * power))}


def _channels(t: Tape, vector: str, rank: int) -> str:
    """Lay a vector of channels along axis 1."""
    return t.reshape(vector, [-1, *[1] * max(rank - 2, 0)])


@dataclass(frozen=True)
class _Unit:
    """A value with its mean over some axes taken away (where ``centred``), divided by the root of its mean square.

    Attributes
    ----------
    value, root : str
        What comes out, and the factor that made it so.
    axes : list of int
    centred : bool
    """

    value: str
    root: str
    axes: list[int]
    centred: bool

    @classmethod
    def of(cls, t: Tape, x: str, axes: list[int], epsilon: float, centred: bool = True) -> _Unit:
        """Compute it again from what the node read."""
        x = t.op("Sub", x, t.reduce("ReduceMean", x, axes)) if centred else x
        spread = t.op("Add", t.reduce("ReduceMean", t.mul(x, x), axes), t.const(epsilon))
        root = t.op("Reciprocal", t.op("Sqrt", spread))
        return cls(t.mul(x, root), root, axes, centred)

    def back(self, t: Tape, grad: str) -> str:
        """Return the gradient of what it was made of from its own."""
        along = t.mul(self.value, t.reduce("ReduceMean", t.mul(grad, self.value), self.axes))
        if self.centred:
            grad = t.op("Sub", grad, t.reduce("ReduceMean", grad, self.axes))
        return t.mul(self.root, t.op("Sub", grad, along))


def _epsilon(node: Node, default: float = 1e-5) -> float:
    return float(node.attr("epsilon", default))


@vjp("InstanceNormalization")
def instance_norm(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, scale = node.inputs[:2]
    rank = len(t.dims(x))
    axes = list(range(2, rank))
    unit = _Unit.of(t, x, axes, _epsilon(node))
    grads = {}
    if 0 in need:
        grads[0] = unit.back(t, t.mul(dy[0], _channels(t, scale, rank)))
    if 1 in need:
        grads[1] = t.reduce("ReduceSum", t.mul(dy[0], unit.value), [0, *axes], keep=False)
    if 2 in need:
        grads[2] = t.reduce("ReduceSum", dy[0], [0, *axes], keep=False)
    return grads


@vjp("GroupNormalization")
def group_norm(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, scale = node.inputs[:2]
    count = int(node.attrs["num_groups"])
    (channels,) = t.static(x, [1])
    # scale and shift are for groups before opset 21, for channels since
    rows = count if t.static(scale, [0])[0] == count else channels
    unit = _Unit.of(t, t.reshape(x, [0, count, -1]), [2], _epsilon(node))
    grads = {}
    if 0 in need:
        scaled = t.mul(t.reshape(dy[0], [0, rows, -1]), _channels(t, scale, 3))
        grads[0] = t.like(unit.back(t, t.reshape(scaled, [0, count, -1])), x)
    if 1 in need:
        each = t.mul(t.reshape(dy[0], [0, count, -1]), unit.value)
        grads[1] = t.reduce("ReduceSum", t.reshape(each, [0, rows, -1]), [0, 2], keep=False)
    if 2 in need:
        grads[2] = t.reduce("ReduceSum", t.reshape(dy[0], [0, rows, -1]), [0, 2], keep=False)
    return grads


@vjp("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    if any(dy[1:]):
        raise NoGradient("its statistics are used, too")
    x, y = node.inputs[0], node.outputs[0]
    rank = len(t.dims(x))
    axes = list(range(normal(int(node.attr("axis", -1)), rank), rank))
    unit = _Unit.of(t, x, axes, _epsilon(node), centred=node.op == "LayerNormalization")
    grads = {}
    if 0 in need:
        grads[0] = unit.back(t, t.mul(dy[0], node.inputs[1]))
    if 1 in need:
        grads[1] = t.unbroadcast(t.mul(dy[0], unit.value), node.inputs[1], y)
    if 2 in need:
        grads[2] = t.unbroadcast(dy[0], node.inputs[2], y)
    return grads


@vjp("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def skip_norm(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """Data, skip, scale, [shift,] bias -> Y, mean, deviation, sum of data, skip and bias."""
    out, *statistics, total = [*dy, *[""] * (4 - len(dy))]
    if any(statistics) or not out:
        raise NoGradient("its statistics are used, too" if out else "only its sum is used")
    centred = node.op == "SkipLayerNormalization"
    scale, shift, bias = 2, 3 if centred else -1, 4 if centred else 3
    x, y = node.inputs[0], node.outputs[0]
    added = [slot for slot in (1, bias) if node.has(slot)]
    for slot in added:
        x = t.op("Add", x, node.inputs[slot])
    unit = _Unit.of(t, x, [len(t.dims(y)) - 1], _epsilon(node, 1e-12 if centred else 1e-5), centred)
    grads = {}
    if need & {0, *added}:
        back = unit.back(t, t.mul(out, node.inputs[scale]))
        back = t.op("Add", back, total) if total else back
        grads = {slot: t.unbroadcast(back, node.inputs[slot], y) for slot in (0, *added) if slot in need}
    if scale in need:
        grads[scale] = t.unbroadcast(t.mul(out, unit.value), node.inputs[scale], y)
    if shift in need:
        grads[shift] = t.unbroadcast(out, node.inputs[shift], y)
    return grads


@vjp("LpNormalization")
def lp_norm(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    if int(node.attr("p", 2)) != 2:
        raise NoGradient("it isn't of squares")
    x, y = node.inputs[0], node.outputs[0]
    axes = [normal(int(node.attr("axis", -1)), len(t.dims(x)))]
    along = t.mul(y, t.reduce("ReduceSum", t.mul(dy[0], y), axes))
    return {0: t.op("Div", t.op("Sub", dy[0], along), t.reduce("ReduceL2", x, axes))}


@vjp("CumSum")
def cum_sum(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    turned = 1 - int(node.attr("reverse", 0))
    kept = int(node.attr("exclusive", 0))
    return {0: t.op("CumSum", dy[0], node.inputs[1], reverse=turned, exclusive=kept)}
