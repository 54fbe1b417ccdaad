"""Gradients of ops that work element by element, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from onnxprune.gradient.tape import Grads, NoGradient, Tape, float_type, vjp
from onnxprune.ops.base import Node

Slope = Callable[[Tape, Node], str]


def unary(*names: str, domain: str = "") -> Callable[[Slope], Slope]:
    """Register an op by its slope: the factor that multiplies the output's gradient."""

    def register(slope: Slope) -> Slope:
        @vjp(*names, domain=domain)
        def rule(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
            return {0: t.mul(dy[0], slope(t, node))}

        return slope

    return register


def _above(t: Tape, name: str, bound: float) -> str:
    return t.mask(t.op("Greater", name, t.const(bound)))


@vjp("Identity", "Dropout")
def identity(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    if node.op == "Dropout" and node.has(2) and bool(t.value(node, 2).any()):
        raise NoGradient("it is in training mode")
    return {0: dy[0]}


@vjp("Cast", "CastLike")
def cast(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    elem = t.elem(node.inputs[0])
    if not float_type(elem):
        raise NoGradient("it reads no 32- or 64-bit floats")
    return {0: t.op("Cast", dy[0], to=elem)}


@vjp("Neg")
def neg(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    return {0: t.op("Neg", dy[0])}


@unary("Relu")
def relu(t: Tape, node: Node) -> str:
    return _above(t, node.outputs[0], 0)


@unary("LeakyRelu", "Elu")
def leaky(t: Tape, node: Node) -> str:
    alpha = float(node.attr("alpha", 0.01 if node.op == "LeakyRelu" else 1.0))
    positive = _above(t, node.inputs[0], 0)
    low = t.const(alpha)
    if node.op == "Elu":  # y + alpha on the left
        low = t.op("Add", node.outputs[0], low)
    return t.op("Add", positive, t.mul(t.op("Sub", t.const(1), positive), low))


@vjp("PRelu")
def prelu(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, slope = node.inputs
    positive = _above(t, x, 0)
    negative = t.op("Sub", t.const(1), positive)
    grads = {}
    if 0 in need:
        grads[0] = t.mul(dy[0], t.op("Add", positive, t.mul(negative, slope)))
    if 1 in need:
        grads[1] = t.unbroadcast(t.mul(dy[0], t.mul(negative, x)), slope, node.outputs[0])
    return grads


@unary("Clip")
def clip(t: Tape, node: Node) -> str:
    x, masks = node.inputs[0], []
    for slot, attr, compare in ((1, "min", "Greater"), (2, "max", "Less")):
        bound = t.const(float(node.attrs[attr])) if attr in node.attrs else ""
        bound = node.inputs[slot] if node.has(slot) else bound
        if bound:
            masks.append(t.mask(t.op(compare, x, bound)))
    if not masks:
        return t.const(1)
    return masks[0] if len(masks) == 1 else t.mul(*masks)


def _both(t: Tape, name: str, low: float, high: float) -> str:
    return t.mul(_above(t, name, low), t.mask(t.op("Less", name, t.const(high))))


@unary("Sigmoid")
def sigmoid(t: Tape, node: Node) -> str:
    y = node.outputs[0]
    return t.mul(y, t.op("Sub", t.const(1), y))


@unary("HardSigmoid")
def hard_sigmoid(t: Tape, node: Node) -> str:
    return t.scaled(_both(t, node.outputs[0], 0, 1), float(node.attr("alpha", 0.2)))


@unary("HardSwish")
def hard_swish(t: Tape, node: Node) -> str:
    x = node.inputs[0]
    inside = t.mul(_both(t, x, -3, 3), t.op("Add", t.scaled(x, 1 / 3), t.const(0.5)))
    return t.op("Add", inside, t.mask(t.op("Not", t.op("Less", x, t.const(3)))))


@unary("Tanh")
def tanh(t: Tape, node: Node) -> str:
    y = node.outputs[0]
    return t.op("Sub", t.const(1), t.mul(y, y))


def _normal_density(t: Tape, x: str, square: float, factor: float) -> str:
    return t.scaled(t.op("Exp", t.scaled(t.mul(x, x), -square)), factor)


@unary("Erf")
def erf(t: Tape, node: Node) -> str:
    return _normal_density(t, node.inputs[0], 1, 2 / math.sqrt(math.pi))


@unary("Gelu")
@unary("Gelu", domain="com.microsoft")
def gelu(t: Tape, node: Node) -> str:
    x = node.inputs[0]
    return _tanh_slope(t, x) if node.attr("approximate", "none") == "tanh" else _gelu_slope(t, x)


def _gelu_slope(t: Tape, x: str) -> str:
    share = t.op("Add", t.const(0.5), t.scaled(t.op("Erf", t.scaled(x, math.sqrt(0.5))), 0.5))
    return t.op("Add", share, t.mul(x, _normal_density(t, x, 0.5, 1 / math.sqrt(2 * math.pi))))


def _tanh_slope(t: Tape, x: str) -> str:
    """Slope of the approximation of Gelu by tanh."""
    root = math.sqrt(2 / math.pi)
    square = t.mul(x, x)
    inner = t.mul(t.scaled(x, root), t.op("Add", t.const(1), t.scaled(square, 0.044715)))
    tanh = t.op("Tanh", inner)
    steep = t.op("Add", t.const(root), t.scaled(square, 3 * 0.044715 * root))
    flat = t.op("Add", t.const(0.5), t.scaled(tanh, 0.5))
    rise = t.mul(t.op("Sub", t.const(1), t.mul(tanh, tanh)), steep)
    return t.op("Add", flat, t.mul(t.scaled(x, 0.5), rise))


@vjp("BiasGelu", "FastGelu", domain="com.microsoft")
def bias_gelu(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x = t.op("Add", *node.inputs[:2]) if node.has(1) else node.inputs[0]
    back = t.mul(dy[0], _gelu_slope(t, x) if node.op == "BiasGelu" else _tanh_slope(t, x))
    return {slot: t.unbroadcast(back, node.inputs[slot], node.outputs[0]) for slot in need}


@unary("Swish")
@unary("QuickGelu", domain="com.microsoft")
def swish(t: Tape, node: Node) -> str:
    x = node.inputs[0]
    steep = t.scaled(x, float(node.attr("alpha", 1.702 if node.domain else 1.0)))
    gate = t.op("Sigmoid", steep)
    return t.mul(gate, t.op("Add", t.const(1), t.mul(steep, t.op("Sub", t.const(1), gate))))


@unary("Mish")
def mish(t: Tape, node: Node) -> str:
    x = node.inputs[0]
    gate = t.op("Tanh", t.op("Softplus", x))
    rise = t.mul(t.mul(x, t.op("Sigmoid", x)), t.op("Sub", t.const(1), t.mul(gate, gate)))
    return t.op("Add", gate, rise)


@unary("Selu")
def selu(t: Tape, node: Node) -> str:
    alpha, gamma = float(node.attr("alpha", 1.6732632)), float(node.attr("gamma", 1.0507010))
    positive = _above(t, node.inputs[0], 0)
    low = t.op("Add", node.outputs[0], t.const(alpha * gamma))
    return t.op("Add", t.scaled(positive, gamma), t.mul(t.op("Sub", t.const(1), positive), low))


@unary("Celu")
def celu(t: Tape, node: Node) -> str:
    down = t.op("Min", node.inputs[0], t.const(0))
    return t.op("Exp", t.scaled(down, 1 / float(node.attr("alpha", 1.0))))


@unary("Softplus")
def softplus(t: Tape, node: Node) -> str:
    return t.op("Sigmoid", node.inputs[0])


@unary("Softsign")
def softsign(t: Tape, node: Node) -> str:
    below = t.op("Add", t.const(1), t.op("Abs", node.inputs[0]))
    return t.op("Reciprocal", t.mul(below, below))


@unary("Exp")
def exp(t: Tape, node: Node) -> str:
    return node.outputs[0]


@unary("Log")
def log(t: Tape, node: Node) -> str:
    return t.op("Reciprocal", node.inputs[0])


@unary("Sqrt")
def sqrt(t: Tape, node: Node) -> str:
    return t.op("Div", t.const(0.5), node.outputs[0])


@unary("Reciprocal")
def reciprocal(t: Tape, node: Node) -> str:
    return t.op("Neg", t.mul(node.outputs[0], node.outputs[0]))


@unary("Abs")
def absolute(t: Tape, node: Node) -> str:
    return t.op("Sign", node.inputs[0])


@unary("Sin")
def sin(t: Tape, node: Node) -> str:
    return t.op("Cos", node.inputs[0])


@unary("Cos")
def cos(t: Tape, node: Node) -> str:
    return t.op("Neg", t.op("Sin", node.inputs[0]))


@unary("Tan")
def tan(t: Tape, node: Node) -> str:
    return t.op("Add", t.const(1), t.mul(node.outputs[0], node.outputs[0]))


@unary("Sinh", "Cosh")
def hyperbolic(t: Tape, node: Node) -> str:
    return t.op("Cosh" if node.op == "Sinh" else "Sinh", node.inputs[0])


@unary("Atan", "Atanh", "Asin", "Acos", "Asinh", "Acosh")
def inverse(t: Tape, node: Node) -> str:
    """Return ``1 / (c + s x^2)``, or 1 beside the root of that."""
    sign, constant = {"Atan": (1, 1), "Asinh": (1, 1), "Acosh": (1, -1)}.get(node.op, (-1, 1))
    x = node.inputs[0]
    below = t.op("Add", t.const(constant), t.scaled(t.mul(x, x), sign))
    root = below if node.op in ("Atan", "Atanh") else t.op("Sqrt", below)
    slope = t.op("Reciprocal", root)
    return t.op("Neg", slope) if node.op == "Acos" else slope


@unary("ThresholdedRelu", "Shrink")
def beyond(t: Tape, node: Node) -> str:
    if node.op == "ThresholdedRelu":
        return _above(t, node.inputs[0], float(node.attr("alpha", 1.0)))
    return _above(t, t.op("Abs", node.inputs[0]), float(node.attr("lambd", 0.5)))


@vjp("Add", "Sub", "Sum", "Mean")
def add(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    given = t.scaled(dy[0], 1 / len(node.inputs)) if node.op == "Mean" else dy[0]
    grads = {}
    for slot in need:
        sign = t.op("Neg", given) if node.op == "Sub" and slot == 1 else given
        grads[slot] = t.unbroadcast(sign, node.inputs[slot], node.outputs[0])
    return grads


@vjp("Mul")
def mul(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    return {
        slot: t.unbroadcast(t.mul(dy[0], node.inputs[1 - slot]), node.inputs[slot], node.outputs[0])
        for slot in need
    }


@vjp("Div")
def div(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    over = t.op("Div", dy[0], node.inputs[1])
    grads = {}
    if 0 in need:
        grads[0] = t.unbroadcast(over, node.inputs[0], node.outputs[0])
    if 1 in need:
        change = t.op("Neg", t.mul(over, node.outputs[0]))
        grads[1] = t.unbroadcast(change, node.inputs[1], node.outputs[0])
    return grads


@vjp("Pow")
def power(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    x, p = node.inputs
    if 1 in need:
        raise NoGradient("the exponent is computed from what is to be changed")
    if t.elem(p) != t.elem(x):
        p = t.op("Cast", p, to=t.elem(x))
    slope = t.mul(p, t.op("Pow", x, t.op("Sub", p, t.const(1))))
    return {0: t.unbroadcast(t.mul(dy[0], slope), x, node.outputs[0])}


@vjp("Max", "Min")
def extreme(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    y = node.outputs[0]
    beats = "Less" if node.op == "Max" else "Greater"
    hits = [t.mask(t.op("Not", t.op(beats, x, y))) for x in node.inputs]
    ties = hits[0]
    for hit in hits[1:]:
        ties = t.op("Add", ties, hit)
    share = t.op("Div", dy[0], ties)
    return {slot: t.unbroadcast(t.mul(share, hits[slot]), node.inputs[slot], y) for slot in need}


@vjp("Where")
def where(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    chosen = t.mask(node.inputs[0])
    grads = {}
    for slot in need - {0}:
        share = chosen if slot == 1 else t.op("Sub", t.const(1), chosen)
        grads[slot] = t.unbroadcast(t.mul(dy[0], share), node.inputs[slot], node.outputs[0])
    return grads
