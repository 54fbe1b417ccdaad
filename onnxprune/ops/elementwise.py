"""Ops that work element by element, one rule for all: axes are tied from the right, length 1 is broadcast."""

from __future__ import annotations

from onnxprune.ops.axes import broadcast, join, text
from onnxprune.ops.base import Elem, Node, Refusal, Row, literal, op
from onnxprune.ops.traits import Trait, declare

EACH = Trait.ELEMENTWISE | Trait.OVERWRITES
UNARY = """
Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Log Mish
Selu Sigmoid Sin Sinh Softplus Softsign Swish Tan Tanh
""".split()  # noqa: SIM905  a table
EXACT_UNARY = "Abs BitwiseNot Neg Not Reciprocal Relu Sqrt".split()  # noqa: SIM905  a table
BROADCASTING = "Mean PRelu Pow StringConcat Sum SwiGLU".split()  # noqa: SIM905  a table
EXACT_BROADCASTING = """
Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Min Mul Or Sub Where Xor
""".split()  # noqa: SIM905  a table
RANDOM = [
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
]
ROLES = dict.fromkeys(("Add", "Sub", "Sum", "BiasGelu", "FastGelu", "BiasAdd"), "bias") | {
    "Mul": "scale",
    "Div": "scale",
}

literal("*s -> *s", UNARY, traits=EACH)
literal("*s -> *s", EXACT_UNARY, traits=EACH | Trait.EXACT)
literal("*s -> *s", ["Ceil", "Floor", "Round", "Sign"], traits=EACH | Trait.EXACT | Trait.JUMP)
literal("*s -> *s", ["Shrink", "ThresholdedRelu"], traits=EACH | Trait.JUMP)
literal(  # the element of an optional that is a plain tensor is that tensor
    "*s -> *s", ["Identity", "OptionalGetElement"],
    traits=Trait.ELEMENTWISE | Trait.VIEW | Trait.MOVEMENT | Trait.EXACT,
)  # fmt: skip
literal("*s -> *s", ["BitCast"], traits=Trait.ELEMENTWISE | Trait.VIEW)
literal("*s -> *s", ["Cast", "IsInf", "IsNaN"], traits=Trait.ELEMENTWISE | Trait.EXACT)
literal("*s -> *s", ["Gelu", "QuickGelu", "ScaledSiLU"], domain="com.microsoft", traits=EACH)
literal("*s, ()?, ()? -> *s", ["Clip"], traits=EACH | Trait.EXACT)
literal("*s, *like -> *s", ["CastLike"], roles=("data", "unread"), traits=Trait.EXACT)


for _name in ("Add", "Sum"):
    declare(("", _name), Trait.SUM)
for _name in ("Abs", "Ceil", "Clip", "Floor", "Identity", "Relu", "Round", "Sign"):
    declare(("", _name), Trait.IDEMPOTENT)
for _name in ("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softplus", "Sqrt"):
    declare(("", _name), Trait.NATURAL)


@op(*BROADCASTING, traits=EACH)
@op(*EXACT_BROADCASTING, traits=EACH | Trait.EXACT)
@op("Mod", traits=EACH | Trait.EXACT | Trait.JUMP)
@op(
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    traits=Trait.ELEMENTWISE | Trait.EXACT | Trait.COMPARISON,
)
@op("BiasGelu", "FastGelu", "BiasAdd", domain="com.microsoft", traits=EACH)
def elementwise(node: Node) -> Row | Refusal:
    """Tie the axes as numpy broadcasts them."""
    if node.opset < 7 and not node.domain and node.attr("broadcast"):
        return Refusal("broadcasting of opset 6 and before is not described")
    shapes = tuple(node.shape(i) if node.has(i) else None for i in range(len(node.inputs)))
    role = ROLES.get(node.op, "data")
    roles = tuple(role if constant else "data" for constant in node.constant)
    if len(set(shapes)) == 1:
        return Row(", ".join(["*s"] * len(shapes)) + " -> *s", roles=roles)
    *inputs, output = broadcast(shapes)
    operands = [text(axes) + "?" * (shape is None) for axes, shape in zip(inputs, shapes, strict=True)]
    return Row(join(operands, [text(output)]), roles=roles)


@op("Dropout", traits=Trait.ELEMENTWISE | Trait.VIEW | Trait.RANDOM)
def dropout(node: Node) -> Row | Refusal:
    """At inference the identity (with a mask of ones); in training it is random."""
    if node.has(2) and node.value(2).any():
        return Refusal("Dropout in training mode is random")
    return Row("*s, ()?, ()? -> *s, *s")


@op("BiasDropout", domain="com.microsoft", traits=EACH | Trait.RANDOM)
def bias_dropout(node: Node) -> Row | Refusal:
    """Dropout(data + bias) + residual."""
    if node.has(4) and node.value(4).any():
        return Refusal("BiasDropout in training mode is random")
    bias = "*s c" if node.rank(1) == node.rank(0) else "c"
    row = f"*s c, {bias}, *s c?, ()?, ()? -> *s c, *s c"
    return Row(row, roles=("data", "bias", "data"), elems={1: Elem.BOOL})


@op(*RANDOM, traits=Trait.RANDOM)
def random(node: Node) -> Refusal:
    """No cut of a random tensor gives the elements that it had."""
    return Refusal(f"{node.op} is random: its elements change with its shape")
