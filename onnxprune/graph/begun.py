"""States of zeros that a recurrent layer begins with: each layer's are its own.

Exporters give all layers of a stack slices of one tensor of zeros. Through it what has nothing to do with each other
would lose the same units. Zeros as many as the samples that are fed are left out, which says the same; those of a
number that is fixed stay, as weights of their own, since with them go the sizes that the model takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from onnxprune.files.bodies import fresh_name
from onnxprune.graph.known import opsets_of, weights_of
from onnxprune.graph.trace import TraceError, Tracer
from onnxprune.model import Model
from onnxprune.ops import Trait, moved, traits_of

__all__ = ["STATES", "begun"]

#: Inputs of a recurrent layer that are states to begin with.
STATES = 5, 6


def begun(model: Model) -> Model:
    """Return a model whose recurrent layers begin with zeros of their own, or with nothing: the same one, or a fork.

    Parameters
    ----------
    model : Model
        Without local functions.
    """
    graph = model.proto.graph
    made = {name: node for node in graph.node for name in node.output if name}
    found = _zeros(model, made)
    if not found:
        return model
    fixed = _fixed(model, {name for states in found.values() for name in states.values()}, made)
    fork = model.fork()
    taken = {*fork.names(), *made, *(value.name for value in graph.input)}
    for number, states in found.items():
        node, own = fork.proto.graph.node[number], dict[str, str]()
        for slot, name in states.items():
            if name in fixed and name not in own:
                zeros = fixed[name]
                own[name] = name if zeros is None else fresh_name(f"{name}_{number}", taken)
                if zeros is not None:
                    fork.proto.graph.initializer.append(numpy_helper.from_array(zeros, own[name]))
                    taken.add(own[name])
            node.input[slot] = own.get(name, "")
        while not node.input[-1]:
            del node.input[-1]
    fork.refresh()
    return fork


def _zeros(model: Model, made: Mapping[str, NodeProto]) -> dict[int, dict[int, str]]:
    """Return the numbers of recurrent layers, and which of their states are zeros that others may read as well."""
    graph, found = model.proto.graph, dict[int, dict[int, str]]()
    layers = [
        n for n, node in enumerate(graph.node) if Trait.RECURRENT in traits_of(node.op_type, node.domain)
    ]
    if not layers:
        return found
    given = {value.name for value in graph.input}
    readers = Counter(name for node in graph.node for name in set(node.input))
    for number in layers:
        states = {
            slot: name
            for slot, name in enumerate(graph.node[number].input)
            if slot in STATES and name and (name in made or readers[name] > 1)
        }
        states = {slot: name for slot, name in states.items() if _is_zero(name, model, made, given)}
        if states:
            found[number] = states
    return found


def _fixed(model: Model, names: set[str], made: Mapping[str, NodeProto]) -> dict[str, NDArray[Any] | None]:
    """Return zeros in the place of the tensors whose shape is one whatever is fed, None where it isn't known."""
    graph, roots = model.proto.graph, dict[str, set[str]]()
    given = {value.name for value in graph.input}
    for name in names:
        seen, stack = {name}, [name]
        while stack:
            node = made.get(stack.pop())
            stack += [new for new in (node.input if node else ()) if new and new not in seen]
            seen.update(stack)
        if not seen & given:
            roots[name] = seen
    if not roots:
        return {}
    wanted, tracer = set[str]().union(*roots.values()), Tracer(opsets_of(model), weights_of(model))
    for number in model.order:
        if not wanted.isdisjoint(graph.node[number].output):
            with suppress(TraceError):
                tracer.visit(graph.node[number])
    types = {name: tracer.types.get(name, (0, None)) for name in roots}
    return {
        name: None if shape is None else np.zeros(shape, helper.tensor_dtype_to_np_dtype(elem))
        for name, (elem, shape) in types.items()
    }


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
