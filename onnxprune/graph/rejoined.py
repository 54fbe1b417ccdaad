"""Parts of a tensor that are put together again without anything between, in whatever order: one Gather.

A part of one channel is an axis of one element, from which nothing can go, so such channels would all stay. Rules:

1. All inputs of a Concat are outputs of one Split along the same axis, and the length of each output is the same at all
   sizes of the dynamic axes. Where no part is of one element all is left as it is: longer parts are cut as they are.
2. A Gather of the same elements takes the Concat's place, or an Identity where that is all of them in their order. The
   Split stays as long as anything reads its outputs.
3. What is split is no graph input, whose axes stay in any case.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from onnx import NodeProto, helper

from onnxprune.graph.branches import Certain
from onnxprune.graph.trace import attributes
from onnxprune.model import Model

__all__ = ["rejoined"]

_OWN = ("", "ai.onnx")


def rejoined(model: Model) -> Model:
    """Return a model in which single parts that are joined again are gathered: the same one if none is, else a fork.

    Parameters
    ----------
    model : Model
        Without local functions.
    """
    found = _joined(model)
    if not found:
        return model
    known, fork = Certain(model), None
    for number, split in found.items():
        index, whole = _index(model.proto.graph.node[number], split, known)
        if index is not None:
            fork = fork or model.fork()
            _gather(fork, number, split.input[0], index, whole)
    if fork is None:
        return model
    fork.refresh()
    return fork


def _joined(model: Model) -> dict[int, NodeProto]:
    """Return the number of each Concat whose inputs one Split makes, and that Split."""
    graph = model.proto.graph
    inputs = {value.name for value in graph.input}
    made = {
        name: node
        for node in graph.node
        if node.op_type == "Split" and node.domain in _OWN and node.input[0] not in inputs
        for name in node.output
    }
    found = {}
    for number, node in enumerate(graph.node if made else ()):
        if node.op_type == "Concat" and node.domain in _OWN and len(node.input) > 1:
            splits = [made.get(name) for name in node.input]
            if splits[0] is not None and all(split is splits[0] for split in splits):
                found[number] = splits[0]
    return found


def _index(node: NodeProto, split: NodeProto, known: Certain) -> tuple[np.ndarray | None, int]:
    """Return which elements of what is split are joined, and how many there are; None where rule 1 doesn't hold."""
    shapes = [known.shapes.get(name) for name in split.output]
    rank = len(shapes[0] or ())
    axis, own = attributes(node).get("axis", 1), attributes(split).get("axis", 0)
    if not rank or (axis - own) % rank:
        return None, 0
    lengths = [shape[own % rank] if shape and len(shape) == rank else -1 for shape in shapes]
    if min(lengths) < 1 or 1 not in lengths:
        return None, 0
    starts = dict(zip(split.output, accumulate([0, *lengths]), strict=False))
    sizes = dict(zip(split.output, lengths, strict=True))
    return np.concatenate([starts[n] + np.arange(sizes[n]) for n in node.input]), sum(lengths)


def _gather(model: Model, number: int, source: str, index: np.ndarray, whole: int) -> None:
    """Let a Gather, or an Identity, stand for a Concat, in place."""
    node = model.proto.graph.node[number]
    if np.array_equal(index, np.arange(whole)):
        new = helper.make_node("Identity", [source], list(node.output), name=node.name)
    else:
        given = model.add(f"{node.output[0]}/index", index.astype(np.int64))
        axis = attributes(node).get("axis", 1)
        new = helper.make_node("Gather", [source, given], list(node.output), name=node.name, axis=axis)
    node.CopyFrom(new)
