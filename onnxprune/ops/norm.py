"""Normalisations. What is averaged over is locked (softly: a cut is possible, but inexact); the rest is free."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

from onnxprune.ops.axes import join, mark, names, onto, text
from onnxprune.ops.base import (
    Cut,
    Edit,
    Elem,
    Multiplied,
    Node,
    Row,
    SetAttr,
    Shape,
    emitter,
    literal,
    normal,
    op,
)
from onnxprune.ops.traits import Trait

WIDTH = "the normalisation averages over this axis"
ALONE = "normalised over"
ROLES = ("data", "scale", "bias")
#: Norms without a mean, and the epsilon that they have where they don't say.
_RMS = frozenset({"RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"})
_EPSILON, _SKIP_EPSILON = 1e-5, 1e-12
STATISTICS = {1: Elem.FLOAT, 2: Elem.FLOAT}


@dataclass(frozen=True)
class Skip:
    """A norm with a sum in front of it, in one node.

    Attributes
    ----------
    added : tuple of int
        Slots of what is added: two values, and a bias that may be absent.
    affine : tuple of int
        Slots that the norm alone reads.
    norm : str
        The op that does the same to a sum.
    total : int
        The output that is the sum, where it is given.
    """

    added: tuple[int, int, int]
    affine: tuple[int, ...]
    norm: str
    total: int = 3


#: (domain, op type) -> how it is spelled.
SKIPS = {
    ("com.microsoft", "SkipLayerNormalization"): Skip((0, 1, 4), (2, 3), "LayerNormalization"),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): Skip(
        (0, 1, 3), (2,), "SimplifiedLayerNormalization"
    ),
}

literal("n c *s!, c, c -> n c *s!", ["InstanceNormalization"], why={"s": WIDTH}, roles=ROLES)
literal("n c! *s -> n c! *s", ["LRN"], why={"c": "each channel is divided by its neighbours"})


@op("BatchNormalization", traits=Trait.OVERWRITES)
def batch_norm(node: Node) -> Row:
    """With given statistics each channel is on its own."""
    roles = ("data", "scale", "bias", "mean", "var")
    if node.attr("training_mode", 0):  # statistics of the batch itself, as in weight standardisation
        return Row("n! c *s!, c, c, c, c -> n! c *s!, c, c", why={"n": WIDTH, "s": WIDTH}, roles=roles)
    if node.opset < 9 and not node.attr("spatial", 1):
        return Row("n *s, *s, *s, *s, *s -> n *s", roles=roles)
    return Row(
        "n c *s, c, c, c, c -> n c *s, c, c, c, c" if node.gives(1) else "n c *s, c, c, c, c -> n c *s",
        roles=roles,
    )


@op("GroupNormalization")
def group_norm(node: Node) -> Row:
    """Whole groups are exact; channels of each group change its average."""
    scale = "g" if node.opset < 21 else "(g c)"
    row = f"n (g c~) *s!, {scale}, {scale} -> n (g c~) *s!"
    return Row(
        row,
        {"g": int(node.attrs["num_groups"])},
        attrs={"num_groups": "g"},
        why={"c": WIDTH, "s": WIDTH},
        roles=ROLES,
    )


@op("GroupNorm", "SkipGroupNorm", domain="com.microsoft")
def group_norm_last(node: Node) -> Row:
    """GroupNorm with the channels last; SkipGroupNorm adds a skip and a bias first, and gives the sum too."""
    axes = "n *s! (g c~)" if node.attr("channels_last", 1) else "n (g c~) *s!"
    row = f"{axes}, (g c), (g c) -> {axes}"
    if node.op == "SkipGroupNorm":
        whole = node.shape(0)
        skip = node.shape(3)
        other = (
            axes
            if len(skip) == len(whole) and skip[1] == whole[1]
            else "n " + "1 " * (len(skip) - 2) + "(g c)"
        )
        row = f"{axes}, (g c), (g c), {other}, (g c)? -> {axes}, {axes}"
    roles = (*ROLES, "data", "bias")
    return Row(
        row,
        {"g": int(node.attrs["groups"])},
        attrs={"groups": "g"},
        why={"c": WIDTH, "s": WIDTH},
        roles=roles,
    )


def epsilon_of(op_type: str) -> float:
    """Return the epsilon of a norm that doesn't say one."""
    return _SKIP_EPSILON if op_type.startswith("Skip") else _EPSILON


@op("LayerNormalization", "SimplifiedLayerNormalization", traits=Trait.ASIDE)
@op("RMSNormalization")
@op("LayerNormalization", "SimplifiedLayerNormalization", domain="com.microsoft")
def layer_norm(node: Node) -> Row:
    """Normalise the axes from ``axis`` on; outputs 1 and 2 are statistics, with axes of length 1."""
    shape = node.shape(0)
    axis = node.axis(-1)
    letters = names(len(shape))
    lock = "^" if _is_rms(node) else "~"
    axes = [
        "1" if size == 1 else name
        for size, name in zip(shape, mark(letters, range(axis, len(shape)), lock), strict=True)
    ]
    plain = [name.removesuffix("^") for name in axes]
    affine = [text(onto(node.shape(slot), shape, letters)) for slot in (1, 2) if node.has(slot)]
    rest = text([*axes[:axis], *["1"] * (len(shape) - axis)])
    row = join([text(axes), *affine], [text(plain), rest, rest])
    why = {} if lock == "^" else dict.fromkeys(letters[axis:], WIDTH)
    return Row(row, why=why, roles=ROLES, elems=STATISTICS)


def _is_rms(node: Node) -> bool:
    """Whether a norm has no mean to take off, and its statistics are nobody's."""
    return node.op in _RMS and not node.gives(1) and not node.gives(2)


@emitter("RMSNormalization", "SimplifiedLayerNormalization")
@emitter("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def rms(node: Node, cut: Cut) -> list[Edit]:
    """The mean of n squares of which the masked ones are zero is n' / n times that of the n' which are left.

    So x / sqrt(mean + e) * w is what is left of x / sqrt(mean' + e n / n') * (w sqrt(n / n')).
    """
    axis = node.rank() - 1 if node.op.startswith("Skip") else node.axis(-1)
    more = prod(node.shape(0)[axis:]) / prod(cut.new_shape(0)[axis:])
    if more == 1 or not _is_rms(node):
        return []
    scale = 2 if node.op.startswith("Skip") else 1
    return [
        SetAttr("epsilon", node.attr("epsilon", epsilon_of(node.op)) * more),
        Multiplied(scale, sqrt(more)),
    ]


@op("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def skip_layer_norm(node: Node) -> Row:
    """Add a skip (and a bias), normalise the last axis. Outputs: result, mean, inverse deviation, sum."""
    rank = node.rank()
    letters = [*names(rank - 1), "z"]
    whole = tuple(node.shape(0))
    exact = _is_rms(node)
    lock = "^" if exact else "~"
    data = text(mark(letters, [rank - 1], lock))
    summed = mark(letters, [rank - 1], "^" if exact else "")
    skip = text(onto(_same_rank(node.shape(1), rank), whole, summed)[rank - node.rank(1) :])
    rest = text([*letters[:-1], "1"])
    simplified = node.op != "SkipLayerNormalization"
    affine = f"z, z{'^' if exact else ''}?" if simplified else "z, z?, z?"
    # a sum, all terms of which must be zero: one factor of a product would be enough
    roles = ("data", "range" if exact else "data", "scale", "bias", *(() if simplified else ("bias",)))
    result = text(letters) if exact else data
    row = f"{data}, {skip}, {affine} -> {result}, {rest}, {rest}, {result}"
    return Row(row, why={} if exact else {"z": WIDTH}, roles=roles, elems=STATISTICS)


def _same_rank(shape: Shape, rank: int) -> Shape:
    return (1,) * (rank - len(shape)) + shape


@op("LpNormalization")
def lp_norm(node: Node) -> Row:
    """Zeros add nothing to the norm, so the axis is summed over."""
    letters = names(node.rank())
    return Row(f"{text(mark(letters, [node.axis(-1)], '^'))} -> {text(letters)}")


@op("MeanVarianceNormalization")
def mean_variance(node: Node) -> Row:
    """Normalise over some axes; by default over all but the channels."""
    rank = node.rank()
    axes = {normal(int(axis), rank) for axis in node.attr("axes", [0, 2, 3])}
    row = text(mark(names(rank), axes, "~"))
    return Row(f"{row} -> {row}", why={names(rank)[axis]: WIDTH for axis in axes})


@op("Hardmax", traits=Trait.JUMP)
@op("Softmax", "LogSoftmax")
def softmax(node: Node) -> Row:
    """Before opset 13 the axes from ``axis`` on are one."""
    rank = node.rank()
    axis = node.axis(-1 if node.opset >= 13 else 1)
    locked = [axis] if node.opset >= 13 else range(axis, rank)
    row = text(mark(names(rank), locked))
    alone = node.op == "Softmax" and len(locked) == 1  # the logarithm of nothing is no number
    lowest = {names(rank)[axis]: 0} if alone else {}
    return Row(f"{row} -> {row}", why={names(rank)[i]: ALONE for i in locked}, lowest=lowest)


@op("BiasSoftmax", domain="com.microsoft")
def bias_softmax(node: Node) -> Row:
    """Softmax(data + bias); the bias is broadcast over axes that lie in front of ``axis``."""
    rank, axis = node.rank(), node.axis(1)
    letters = mark(names(rank), range(axis, rank))
    whole, bias = node.shape(0), node.shape(1)
    if len(bias) != rank:
        bias = _same_rank(bias, rank)
    return Row(
        join([text(letters), text(onto(bias, whole, letters)[rank - node.rank(1) :])], [text(letters)])
    )
