"""Reductions: a sum contracts; a maximum of fewer channels is another number, which may be asked for; the rest looks
at all elements. A mean contracts too, since how many there were can be put right; but not where it is, or was, taken
off what it is a mean of, as in a LayerNorm. A zero raises no maximum of what is never below zero.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from onnxprune.ops.axes import join, mark, names, text
from onnxprune.ops.base import FLOATS, Cut, Edit, Multiplied, Node, Row, emitter, normal, op
from onnxprune.ops.traits import Trait

LOCKS = {
    "ReduceSum": "", "ReduceSumSquare": "", "ReduceL1": "", "ReduceL2": "", "ReduceLogSum": "", "ReduceMean": "~",
    "GlobalAveragePool": "~", "ReduceMax": "~", "ReduceMin": "~", "ReduceProd": "!", "ReduceLogSumExp": "!",
}  # fmt: skip
WHY = {
    "ReduceMean": "averaged over",
    "GlobalAveragePool": "averaged over",
    "ReduceMax": "a maximum is taken over it",
    "ReduceMin": "a minimum is taken over it",
}


@op("ReduceSumSquare", "ReduceL1", "ReduceL2", traits=Trait.ZEROS | Trait.NATURAL)
@op("ReduceLogSum", "ReduceProd", "ReduceLogSumExp")
@op("ReduceSum", traits=Trait.LINEAR | Trait.ZEROS)
@op("ReduceMean", "GlobalAveragePool", traits=Trait.LINEAR | Trait.MEAN)
@op("ReduceMax", "ReduceMin", traits=Trait.MEAN)
def reduce(node: Node) -> Row:
    """Zeros add nothing to sums and norms, so that cutting equals masking."""
    rank = node.rank()
    if node.op == "GlobalAveragePool":
        return _over(node, set(range(2, rank)), _lock(node))
    given = node.ints("axes", 1, 13 if node.op == "ReduceSum" else 18)
    if not given and node.attr("noop_with_empty_axes", 0):
        # still applied element by element: |x|, x * x, log(x)
        return Row("*s -> *s")
    axes = {normal(axis, rank) for axis in given} if given else set(range(rank))
    row = _over(node, axes, _lock(node))
    # the greatest of several is that of the others, if one of them is the least number
    return (
        replace(row, lowest={names(rank)[min(axes)]: 0}) if node.op == "ReduceMax" and len(axes) == 1 else row
    )


@emitter("ReduceMean", "GlobalAveragePool")
def mean_of_all(node: Node, cut: Cut) -> list[Edit]:
    """The mean of n numbers of which the masked ones are zero is n' / n times that of the n' which are left."""
    if not _counts(node):
        return []
    left = prod(cut.new_shape(0)) / prod(cut.new_out_shape(0))
    share = left * prod(node.out_shape()) / prod(node.shape(0))
    return [] if share == 1 else [Multiplied(0, share)]


def _lock(node: Node) -> str:
    exact = node.is_natural(0) if node.op == "ReduceMax" else Trait.LINEAR in node.traits and _counts(node)
    return "" if Trait.MEAN in node.traits and exact else LOCKS[node.op]


def _counts(node: Node) -> bool:
    """Whether a masked element counts as a zero in a mean, and the mean isn't rounded to a whole number."""
    return node.elem(0) in FLOATS and (node.is_square(0) or not node.is_centred(0))


@op("ArgMax", "ArgMin", traits=Trait.CHOICE)
def arg(node: Node) -> Row:
    """Where the greatest (least) element is."""
    axis = node.axis(0)
    row, letter = _over(node, {axis}, "!"), names(node.rank())[axis]
    lowest = {letter: 0} if node.op == "ArgMax" else {}
    return replace(row, places={0: letter}, lowest=lowest, fewest=dict.fromkeys(lowest, 1))


def _over(node: Node, axes: set[int], lock: str) -> Row:
    letters, keep = names(node.rank()), node.attr("keepdims", 1)
    right = text("1" if i in axes else name for i, name in enumerate(letters) if keep or i not in axes)
    why = {letters[axis]: WHY.get(node.op, "reduced over") for axis in axes} if lock else {}
    return Row(join([text(mark(letters, axes, lock))], [right]), why=why)
