"""The right side of law 1 for residual branches: the original, in which what they add is multiplied by 0."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph.depth import Depth
from onnxprune.graph.spelling import added
from onnxprune.model import Model

__all__ = ["multiplied"]

PREFIX = "onnxprune/depth"


def multiplied(depth: Depth, names: Iterable[str]) -> Model:
    """Return the original with the output of these branches multiplied by 0, where it is added to the stream.

    Parameters
    ----------
    depth : Depth
    names : iterable of str
        Of branches.

    Raises
    ------
    ValueError
        If there is no such branch.
    """
    analysis = depth.analysis
    model = depth.original.model.fork()
    graph = model.proto.graph
    ordered = [graph.node[i] for i in model.order]
    made = {name: number for number, node in enumerate(ordered) for name in node.output if name}
    before: dict[int, list[onnx.NodeProto]] = {}
    for count, branch in enumerate(depth.chosen(names)):
        number, slot = branch.term
        value = analysis.coupling.nodes[number].node.outputs[0]
        if value in depth.spelled:  # one node adds and normalises
            fused = depth.spelled[value]
            value, slot = fused.result, added(fused, slot)
        number = made[value]
        elem = analysis.tracer.types[branch.value][0]
        zero = model.add(f"{PREFIX}/zero", np.zeros((), helper.tensor_dtype_to_np_dtype(elem)))
        nothing = f"{PREFIX}/{count}"
        product = helper.make_node("Mul", [branch.value, zero], [nothing], name=nothing)
        before.setdefault(number, []).append(product)
        ordered[number].input[slot] = nothing
    nodes = [n for number, node in enumerate(ordered) for n in (*before.get(number, ()), node)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return model
