"""Reductions: a sum contracts, a mean averages, everything else looks at all elements."""

from __future__ import annotations

from onnxprune.ops.axes import join, names, text
from onnxprune.ops.base import Node, Row, normal, op

_LOCKS = {
    "ReduceSum": "", "ReduceSumSquare": "", "ReduceL1": "", "ReduceL2": "", "ReduceMean": "~", "ReduceMax": "!",
    "ReduceMin": "!", "ReduceProd": "!", "ReduceLogSum": "", "ReduceLogSumExp": "!",
}  # fmt: skip
_WHY = {"~": "averaged over", "!": "reduced over"}


@op(*_LOCKS)
def reduce(node: Node) -> Row:
    """Zeros add nothing to sums and norms, so that cutting equals masking."""
    rank = node.rank()
    given = node.ints("axes", 1, 13 if node.op == "ReduceSum" else 18)
    if not given and node.attr("noop_with_empty_axes", 0):
        return Row("*s -> *s")
    axes = {normal(a, rank) for a in given} if given else set(range(rank))
    return _row(node, axes, _LOCKS[node.op])


@op("ArgMax", "ArgMin")
def arg(node: Node) -> Row:
    return _row(node, {node.axis(0)}, "!")


def _row(node: Node, axes: set[int], lock: str) -> Row:
    letters, keep = names(node.rank()), node.attr("keepdims", 1)
    left = text(name + lock if n in axes else name for n, name in enumerate(letters))
    right = text("1" if n in axes else name for n, name in enumerate(letters) if keep or n not in axes)
    return Row(join([left], [right]), why={letters[a]: _WHY[lock] for a in axes} if lock else {})
