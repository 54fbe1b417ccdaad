"""`If` whose condition is decided before any run: its branch takes its place.

Exporters leave such nodes behind where a size was compared with a number. Rules:

1. The condition is *decided* if it follows from weights (that are no graph inputs) and from sizes that ONNX's inference
   proves for all sizes of the dynamic axes. What depends on any other size stays open, whatever a guess of it gives.
2. The branch's nodes, weights and declared types stand where the `If` stood; its outputs have the names of the
   `If`'s. Another name stays as it is unless it is taken, those of nodes too: a graph may have none twice, but bodies
   beside each other may.
3. That is repeated until nothing is decided any more, so that nested ones go too. An `If` in the body of a Loop, a Scan
   or an undecided `If` stays.
4. What no output needs then goes: what led to the condition, and what only other branches read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper

from onnxprune.files.bodies import fresh_name, made_in, renamed
from onnxprune.files.protowalk import all_names, subgraphs
from onnxprune.graph.live import names_of, needed, remove
from onnxprune.graph.trace import attributes
from onnxprune.graph.values import MAX_ELEMENTS, evaluate
from onnxprune.model import Model
from onnxprune.ops import Trait, moved, traits_of
from onnxprune.wall import board as wall

__all__ = ["Certain", "settle"]

Array = NDArray[Any]
Part = tuple[Array, NDArray[np.bool_]]  # a value, and which of its elements are known


def settle(model: Model) -> Model:
    """Return a model in which every decided `If` is its branch: the same one if it has none, else a fork.

    Parameters
    ----------
    model : Model
        Without local functions.
    """
    settled = model
    while True:
        decided = _decided(settled)
        if not decided:
            break
        settled = _inlined(settled.fork() if settled is model else settled, decided)
    if settled is not model and not model.proto.training_info:  # that reads weights by name
        remove(settled, names_of(settled) - needed(settled))
    return settled


def _decided(model: Model) -> dict[str, bool]:
    """Return the conditions of the main graph's `If`s that are decided."""
    wanted = {n.input[0] for n in model.proto.graph.node if _is_if(n)}
    if not wanted:
        return {}
    known = Certain(model)
    conditions = {name: known.of(name) for name in sorted(wanted)}
    return {
        n: bool(p[0].ravel()[0])
        for n, p in conditions.items()
        if p is not None and p[0].size == 1 and p[1].all()
    }


def _is_if(node: NodeProto) -> bool:
    return node.op_type == "If" and node.domain in ("", "ai.onnx") and len(node.input) == 1


class Certain:
    """Values that are the same for all sizes of the dynamic axes, found backwards from what is asked for."""

    def __init__(self, model: Model) -> None:
        graph = model.proto.graph
        self.model = model
        # before IR 4 every weight had to be declared as an input as well, and none can be given
        self.inputs = {v.name for v in graph.input} if model.proto.ir_version >= 4 else set()
        self.made = {name: node for node in graph.node for name in node.output if name}
        self.seen: dict[str, Part | None] = {}

    def of(self, name: str) -> Part | None:
        """Return what is known of a tensor, None where nothing is."""
        stack = [name]
        while stack:
            top = stack[-1]
            node = self.made.get(top)
            todo = [
                n
                for n in (node.input if node is not None and self._reads(node) else ())
                if n and n not in self.seen
            ]
            if todo and top not in self.seen:
                self.seen.setdefault(top, None)  # a graph has no cycles, but this must end in any case
                stack += todo
                continue
            stack.pop()
            self.seen[top] = self._value(top, node)
        return self.seen[name]

    def _reads(self, node: NodeProto) -> bool:
        return node.op_type not in ("Shape", "Size", "Constant") and node.domain in ("", "ai.onnx")

    def _value(self, name: str, node: NodeProto | None) -> Part | None:
        if name in self.model and name not in self.inputs:
            info = self.model.info(name)
            if info.nbytes > 8 * MAX_ELEMENTS or not info.nbytes:
                return None
            array = np.asarray(self.model.weight(name)).reshape(info.dims)
            return (array, np.ones(array.shape, bool)) if array.dtype.kind in "iubf" else None
        if node is None or len(node.output) != 1 or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in ("Shape", "Size"):
            return self._size(node)
        return _computed(node, [self.seen.get(n) if n else None for n in node.input])

    def _size(self, node: NodeProto) -> Part | None:
        dims = self.shapes.get(node.input[0])
        if dims is None:
            return None
        attrs = attributes(node)
        if node.op_type == "Shape":
            part = np.asarray(dims, np.int64)[slice(attrs.get("start", 0), attrs.get("end"))]
            return np.maximum(part, 0), part >= 0
        whole = np.asarray(np.prod(dims, dtype=np.int64))
        return whole, np.asarray(min(dims, default=0) >= 0)

    @cached_property
    def shapes(self) -> Mapping[str, list[int]]:
        """Tensor -> its sizes as far as ONNX's inference proves them, -1 where it doesn't."""
        return {n: [d if isinstance(d, int) else -1 for d in dims] for n, dims in self.named.items()}

    @cached_property
    def named(self) -> Mapping[str, list[int | str]]:
        """The same, with the names of sizes that aren't proved: equal names are equal sizes, "" is any."""
        proto = self.model.skeleton()
        try:
            with wall.stage("Inferring shapes"):
                proto = onnx.shape_inference.infer_shapes(_undeclared(proto), data_prop=True)
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            proto = onnx.ModelProto()
        found: dict[str, list[int | str]] = {n: list(self.model.info(n).dims) for n in self.model.names()}
        for value in (*proto.graph.value_info, *self.model.proto.graph.input):
            tensor = value.type.tensor_type
            if value.type.HasField("tensor_type") and tensor.HasField("shape"):
                dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
                found.setdefault(value.name, dims)
        return found


def _undeclared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out what is only declared of tensors inside: it may name one size where there are many."""
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto


def _computed(node: NodeProto, inputs: list[Part | None]) -> Part | None:
    attrs = {k: v for k, v in attributes(node).items() if not isinstance(v, GraphProto)}
    given = [bool(n) for n in node.input]
    if any(g and p is None for g, p in zip(given, inputs, strict=True)):
        return None
    values = [None if p is None else p[0] for p in inputs]
    masks = [None if p is None else p[1] for p in inputs]
    value = evaluate(node.op_type, attrs, values, given)
    if value is None:
        return None
    if all(m is None or m.all() for m in masks):
        return value, np.ones(value.shape, bool)
    if Trait.ELEMENTWISE | Trait.EXACT in traits_of(node.op_type, node.domain):
        mask = np.ones(value.shape, bool)
        for own in masks:
            mask = mask & (True if own is None else own)
        return value, mask
    # what a movement does to a value it does to what is known of it
    data = len(moved(node.op_type, len(inputs), node.domain))
    if not data or not all(m is None or m.all() for m in masks[data:]):
        return None
    known = evaluate(node.op_type, attrs, [*masks[:data], *values[data:]], given)
    return None if known is None else (value, np.asarray(known, bool))


def _inlined(model: Model, decided: Mapping[str, bool]) -> Model:
    """Put branches in the place of their `If`s, in place."""
    graph = model.proto.graph
    taken, made = set(all_names(model.proto)), Counter(made_in(graph))
    going = [_is_if(node) and node.input[0] in decided for node in graph.node]
    called = {node.name for node, goes in zip(graph.node, going, strict=True) if not goes}
    nodes: list[NodeProto] = []
    for node, goes in zip(graph.node, going, strict=True):
        if goes:
            made.subtract(name for body in subgraphs(node) for name in made_in(body))
            inner = _branch(node, decided[node.input[0]], graph, (taken, made))
            for one in inner:
                one.name = _fresh(one.name, called) if one.name else ""
            nodes += inner
        else:
            nodes.append(node)
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    model.refresh()
    return model


def _branch(
    node: NodeProto, condition: bool, graph: GraphProto, names_in_use: tuple[set[str], Counter[str]]
) -> list[NodeProto]:
    """Return the nodes of a branch, and move its weights and types to the main graph."""
    taken, made = names_in_use
    name = "then_branch" if condition else "else_branch"
    body = next(a.g for a in node.attribute if a.name == name)
    own = [n for inner in body.node for n in inner.output if n]
    weights = [t.name for t in body.initializer] + [t.values.name for t in body.sparse_initializer]
    names: dict[str, str] = {}
    copies: list[tuple[str, str]] = []
    for value, output in zip(body.output, node.output, strict=True):
        if not output:
            continue
        if value.name in own and value.name not in names:
            names[value.name] = output
        else:  # a weight, a tensor of the graph around it, or an output for the second time
            copies.append((value.name, output))
    for inner in (*own, *weights):  # names of bodies beside each other may be equal
        if inner not in names:
            names[inner] = _fresh(f"{inner}_1", taken) if made[inner] > 0 else inner
            made[names[inner]] += 1
    for tensor in body.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = names[tensor.name]
    for sparse in body.sparse_initializer:
        graph.sparse_initializer.add().CopyFrom(sparse)
        graph.sparse_initializer[-1].values.name = names[sparse.values.name]
    declared = {v.name for v in graph.value_info} | {v.name for v in graph.output}
    for value in body.value_info:
        if names.get(value.name, value.name) not in declared:
            graph.value_info.add().CopyFrom(value)
            graph.value_info[-1].name = names.get(value.name, value.name)
    nodes = [renamed(inner_node, names) for inner_node in body.node]
    for source, output in copies:
        nodes.append(helper.make_node("Identity", [names.get(source, source)], [output], name=output))
    return nodes


def _fresh(name: str, taken: set[str]) -> str:
    new = fresh_name(name, taken)
    taken.add(new)
    return new
