"""Gradients of sums and averages over axes: reductions, softmax, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def _channels(t: Tape, vector: str, rank: int) -> str:
    """Lay a vector of channels along axis 1."""
    return t.reshape(vector, [-1, *[1] * max(rank - 2, 0)])


@vjp("InstanceNormalization")
def instance_norm(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, scale = node.inputs[:2]
    rank = len(t.dims(x))
    axes = list(range(2, rank))
    factor = _channels(t, scale, rank)
    others = [0, *axes]
    return _normalised(
        t, (node, dy[0], need), axes, factor, lambda g: t.reduce("ReduceSum", g, others, keep=False)
    )


@vjp("LayerNormalization")
def layer_norm(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    if any(node.outputs[1:]):
        raise NoGradient("its statistics are outputs, too")
    x, scale, y = node.inputs[0], node.inputs[1], node.outputs[0]
    rank = len(t.dims(x))
    axes = list(range(normal(int(node.attr("axis", -1)), rank), rank))
    return _normalised(t, (node, dy[0], need), axes, scale, lambda g: t.unbroadcast(g, scale, y))


def _normalised(
    t: Tape,
    given: tuple[Node, str, frozenset[int]],
    axes: list[int],
    factor: str,
    gather: Callable[[str], str],
) -> Grads:
    """Gradients of ``factor * (x - mean) / sqrt(var + eps) + shift`` with the statistics taken over some axes."""
    node, dy, need = given
    x = node.inputs[0]
    centred = t.op("Sub", x, t.reduce("ReduceMean", x, axes))
    var = t.reduce("ReduceMean", t.mul(centred, centred), axes)
    root = t.op("Reciprocal", t.op("Sqrt", t.op("Add", var, t.const(float(node.attr("epsilon", 1e-5))))))
    unit = t.mul(centred, root)
    grads = {}
    if 0 in need:
        g = t.mul(dy, factor)
        along = t.mul(unit, t.reduce("ReduceMean", t.mul(g, unit), axes))
        rest = t.op("Sub", t.op("Sub", g, t.reduce("ReduceMean", g, axes)), along)
        grads[0] = t.mul(root, rest)

    if 1 in need:
        grads[1] = gather(t.mul(dy, unit))
    if 2 in need:
        grads[2] = gather(dy)
    return grads
