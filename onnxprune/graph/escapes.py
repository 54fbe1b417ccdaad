"""Sizes that leave the reach of the rewriter.

A size that the graph computes from a Shape is computed anew after a cut, and every reader with a row is given
what it must read. A graph output, a body of If, Loop or Scan and an op without a row can't be given anything:
they would see the new size. So what such a size counts must not be cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.values import evaluate
from onnxprune.ops import Node

__all__ = ["counted"]


def counted(
    nodes: Sequence[Node],
    values: Mapping[str, NDArray[Any]],
    ranks: Mapping[str, int],
    escaped: Sequence[str],
) -> Iterator[tuple[str, int]]:
    """Yield (tensor, axis) for each axis whose length some escaped value depends on.

    Parameters
    ----------
    nodes : sequence of Node
        Of the main graph.
    values : mapping
        Tensor -> value, where it is known before the model runs.
    ranks : mapping
        Tensor -> rank, for the tensors whose shape is taken.
    escaped : sequence of str
        Names that are read where nothing can be mended.
    """
    producer = {name: node for node in nodes for name in node.outputs if name}
    todo, seen = [name for name in escaped if name in values], set[str]()
    while todo:
        name = todo.pop()
        node = producer.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        source = producer.get(node.inputs[0]) if node.op in ("Gather", "Slice") else None
        if node.op in ("Shape", "Size"):
            yield from ((node.inputs[0], axis) for axis in _axes(node, ranks))
        elif source is not None and source.op == "Shape":
            axes = np.asarray(_axes(source, ranks), np.int64)
            given = [axes, *(values.get(n) for n in node.inputs[1:])]
            picked = evaluate(node.op, dict(node.attrs), given, [bool(n) for n in node.inputs])
            yield from (
                (source.inputs[0], int(axis)) for axis in np.ravel(axes if picked is None else picked)
            )
            todo += node.inputs[1:]
        else:
            todo += node.inputs


def _axes(node: Node, ranks: Mapping[str, int]) -> range:
    rank = ranks.get(node.inputs[0], 0)
    return range(rank)[slice(node.attr("start", 0), node.attr("end"))]
