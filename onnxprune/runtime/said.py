"""Inputs whose values say a size: lengths, totals of what is cached and what is new, and how often a Loop runs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from onnxprune.files.bodies import ENTRY
from onnxprune.ops import moved
from onnxprune.runtime.binding import Shape, input_axes, real_inputs, terms

__all__ = ["said_in_values"]

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
#: Slots of a GroupQueryAttention: keys of the cache, lengths less one, and the total.
_CACHE, _LENGTHS, _TOTAL = 3, 5, 6
#: How often a Loop runs: without a step what it gathers has no length, and an axis of one element is none by itself.
_STEPS = 2


def said_in_values(graph: onnx.GraphProto, inputs: Mapping[str, Shape]) -> dict[str, int]:
    """Return the values of integer inputs that say a size: named like an axis, read as a length, or counting steps.

    Parameters
    ----------
    graph : GraphProto
    inputs : mapping
        Input -> shape.

    Returns
    -------
    dict
        Input -> the value of all its elements.
    """
    sizes: dict[str, int] = {}
    for name, axes in input_axes(graph).items():
        for axis, size in zip(axes or (), inputs.get(name, ()), strict=False):
            if isinstance(axis, str):
                sizes.setdefault(axis, size)
    named = _by_name(sizes)
    names = {v.name: v for v in real_inputs(graph) if v.type.tensor_type.elem_type in _INTEGERS}
    values = {n: sizes[n] for n in names if n in sizes and all(d == 1 for d in inputs.get(n, ()))}
    values |= {n: _STEPS for n in _counts(graph) if n in names and n not in values}
    readers = [n for n in graph.node if n.op_type == "GroupQueryAttention" and len(n.input) > _TOTAL]
    makers = {name: made for made in graph.node for name in made.output} if readers and named is None else {}
    for node in readers:
        said = {node.input[_LENGTHS]: 1, node.input[_TOTAL]: 0}
        if any(name in names and name not in values for name in said):  # layers mostly share them
            whole = _by_slot(node, makers, inputs) if named is None else named
            values |= {n: whole - less for n, less in said.items() if n in names and whole is not None}
    return values


def _counts(graph: onnx.GraphProto) -> set[str]:
    """Return what Loops read as the number of their steps, and what that is made of by moving and casting."""
    found = {n.input[0] for n in graph.node if n.op_type.removesuffix(ENTRY) == "Loop" and n.input[0]}
    makers = {name: made for made in graph.node for name in made.output} if found else {}
    todo = list(found)
    while todo:
        node = makers.get(todo.pop())
        if node is not None:
            cast = node.op_type == "Cast"
            read = {
                node.input[n]
                for n in (range(1) if cast else moved(node.op_type, len(node.input), node.domain))
            }
            todo += read - found
            found |= read
    return found


def _by_name(sizes: Mapping[str, int]) -> int | None:
    """Return the total of cached and new positions, as names of axes tell it; None where they don't."""
    whole = next((s for a, s in sizes.items() if "total" in a or {"past", "seq"} <= _parts(a)), None)
    past = next((s for a, s in sizes.items() if "past" in a and not terms(a)), 0)
    new = next((s for a, s in sizes.items() if "seq" in a and not {"past", "total"} & _parts(a)), None)
    return past + new if whole is None and new is not None else whole


def _by_slot(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], inputs: Mapping[str, Shape]
) -> int | None:
    """Return what the cache of an attention holds and what the inputs that its keys come from add to it."""
    cache = inputs.get(node.input[_CACHE], ()) if node.input[_CACHE] else (0, 0, 0)
    todo, seen = [node.input[1] or node.input[0]], set[str]()
    while todo and len(cache) > 2:
        name = todo.pop()
        if name not in seen and len(inputs.get(name, ())) > 1:  # tokens or embeddings: batch, positions, ...
            return cache[2] + inputs[name][1]
        if name not in seen and name in makers:
            read = makers[name].input  # of a layer before, the cache is none of the tokens
            todo += read[:_CACHE] if makers[name].op_type == node.op_type else read
        seen.add(name)
    return None


def _parts(axis: str) -> set[str]:
    """Return which of the words past, total and seq a name has; a sum of past and another has both."""
    return {word for word in ("past", "total", "seq") if word in axis} - (
        {"seq"} if "past" in axis and not terms(axis) else set()
    )
