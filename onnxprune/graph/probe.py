"""Types of tensors, found by one run of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.files.bodies import body_of, gathered, stepped
from onnxprune.model import Model
from onnxprune.runtime import binding
from onnxprune.runtime.binding import Shape, Typed
from onnxprune.runtime.inputs import random_inputs
from onnxprune.runtime.session import RunError, open_session

__all__ = ["declared_types", "probe_types"]


def probe_types(model: Model, inputs: Mapping[str, Shape], names: Iterable[str]) -> dict[str, Typed]:
    """Find the types of tensors by running the model once, on random inputs.

    Parameters
    ----------
    model : Model
    inputs : mapping
        Input -> shape.
    names : iterable of str
        Outputs of nodes.

    Returns
    -------
    dict
        Tensor -> (element type, shape); empty where the model can't be run.
    """
    many = stepped(model.proto.graph)
    wanted = [name for name in dict.fromkeys(names) if name not in many]
    types = _probed(model, inputs, wanted)
    if types or not wanted:
        return types
    for group in _apart(model, wanted):  # a branch that isn't taken may not run
        types |= _probed(model, inputs, group)
    return types


def _apart(model: Model, names: Iterable[str]) -> list[list[str]]:
    """Put names together that are computed in the same body; nothing where all are in the main graph."""
    bodies = {name: body_of(node) for node in model.proto.graph.node for name in node.output}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(bodies.get(name, ""), []).append(name)
    return list(groups.values()) if len(groups) > 1 else []


def _probed(model: Model, inputs: Mapping[str, Shape], wanted: list[str]) -> dict[str, Typed]:
    try:
        types = open_session(model, wanted).types
        elements = {n: _ELEMENTS[types[n]] for n in wanted if types.get(n) in _ELEMENTS}
        probe = model.fork()  # asks for shapes, not for the tensors themselves
        ask = {n: f"onnxprune/shape/{i}" for i, n in enumerate(elements)}
        probe.proto.graph.node.extend(
            onnx.helper.make_node("Shape", [n], [shape]) for n, shape in ask.items()
        )
        session = open_session(probe, ask.values())
        feeds = random_inputs(model, inputs, np.random.default_rng(0))
        shapes = session.run(feeds, list(ask.values()))
    except RunError:
        return {}
    found = {n: (elements[n], tuple(int(s) for s in shapes[ask[n]])) for n in elements}
    return _without_steps(model, found)


def _without_steps(model: Model, found: Mapping[str, Typed]) -> dict[str, Typed]:
    """Leave out what is empty since a Loop ran no step: its other axes are zeros there, too, whatever they are."""
    none = {n for n, (_, shape) in found.items() if 0 in (shape or ())}
    empty = gathered(model.proto.graph) & none
    for index in model.order if empty else ():
        node = model.proto.graph.node[index]
        if not empty.isdisjoint(node.input):
            empty |= none.intersection(node.output)
    return {n: typed for n, typed in found.items() if n not in empty}


_ELEMENTS = {
    f"tensor({name})": getattr(TensorProto, kind) for name, kind in {
        "float": "FLOAT", "double": "DOUBLE", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "bool": "BOOL",
        "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "uint16":
        "UINT16", "uint32": "UINT32", "uint64": "UINT64", "string": "STRING",
    }.items()
}  # fmt: skip


def declared_types(model: Model, inputs: Mapping[str, Shape], names: list[str]) -> dict[str, Typed]:
    """Return the types that a model declares of tensors, under a binding: behind ops that nobody here knows."""
    graph = model.proto.graph
    sizes: dict[str, int] = {}
    for value in binding.real_inputs(graph):
        for dim, size in zip(binding.declared(value) or (), inputs.get(value.name, ()), strict=False):
            if isinstance(dim, str):
                sizes[dim] = size
    wanted, types = set(names), dict[str, Typed]()
    for value in (*graph.value_info, *graph.output):
        axes = binding.declared(value) if value.name in wanted else None
        shape = [sizes.get(a, 0) if isinstance(a, str) else a for a in axes or (0,)]
        if axes is not None and all(shape):
            types[value.name] = (value.type.tensor_type.elem_type, tuple(shape))
    return types
