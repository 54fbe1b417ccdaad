"""States of zeros that a recurrent layer begins with: left out, which says the same.

Exporters give all layers of a stack slices of one tensor of zeros. Through it what has nothing to do with each other
would lose the same units.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, numpy_helper

from onnxprune.model import Model
from onnxprune.ops import Trait, moved, traits_of

__all__ = ["STATES", "begun"]

#: Inputs of a recurrent layer that are states to begin with.
STATES = 5, 6


def begun(model: Model) -> Model:
    """Return a model whose recurrent layers begin with no states that are zeros: the same one, or a fork.

    Parameters
    ----------
    model : Model
        Without local functions.
    """
    found = _zeros(model)
    if not found:
        return model
    fork = model.fork()
    for number, slots in found.items():
        node = fork.proto.graph.node[number]
        for slot in slots:
            node.input[slot] = ""
        while not node.input[-1]:
            del node.input[-1]
    return fork


def _zeros(model: Model) -> dict[int, list[int]]:
    """Return the numbers of recurrent layers, and which of their states are zeros."""
    graph, found = model.proto.graph, dict[int, list[int]]()
    layers = [
        n for n, node in enumerate(graph.node) if Trait.RECURRENT in traits_of(node.op_type, node.domain)
    ]
    if not layers:
        return found
    made = {name: node for node in graph.node for name in node.output if name}
    given = {value.name for value in graph.input}
    for number in layers:
        inputs = graph.node[number].input
        slots = [
            s for s in STATES if s < len(inputs) and inputs[s] and _is_zero(inputs[s], model, made, given)
        ]
        if slots:
            found[number] = slots
    return found


def _is_zero(name: str, model: Model, made: Mapping[str, NodeProto], given: set[str]) -> bool:
    """Whether a tensor holds zeros alone, whatever is fed."""
    stack = [name]
    for _ in range(1000):  # exporters need a handful
        if not stack:
            return True
        name = stack.pop()
        node = made.get(name)
        if name in model and name not in given:
            if np.any(model.weight(name)):
                return False
        elif node is None:
            return False
        elif node.op_type == "ConstantOfShape" and not node.domain:
            if any(np.any(numpy_helper.to_array(a.t)) for a in node.attribute):
                return False
        else:
            slots = moved(node.op_type, len(node.input), node.domain)
            if not slots:
                return False
            stack += [node.input[slot] for slot in slots]
    return False
