"""Vectors that a graph makes of weights, given to each reader apart: gains of norms behind one DequantizeLinear.

Quantisers merge equal weights, and then layers that have nothing to do with each other read one tensor. Each use of a
weight that is a vector has its own dims (`onnxprune.graph.coupling`); a vector that is computed gets a node for each
use, unless it is folded, so that it is a weight. What is still the same in the end is put together again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

import onnx
from onnx import NodeProto

from onnxprune.files.bodies import DOMAIN, body_of, fresh_name
from onnxprune.files.protowalk import captured, subgraphs
from onnxprune.graph.computed import Finder
from onnxprune.graph.known import opsets_of, weights_of
from onnxprune.graph.trace import TraceError, Tracer
from onnxprune.model import Model
from onnxprune.ops import FLOATS, Trait, traits_of

__all__ = ["apart", "together"]


def apart(model: Model) -> tuple[Model, dict[str, str]]:
    """Return a model in which each use of a vector that follows from weights alone, and isn't folded, has its own node.

    Parameters
    ----------
    model : Model

    Returns
    -------
    Model
        The same one where nothing is shared so.
    dict
        What each new node gives -> the tensor that it is.
    """
    graph = model.proto.graph
    follow = _following(model)
    uses = Counter(name for node in graph.node for name in node.input)
    outer = {value.name for value in graph.output}
    outer |= {name for node in graph.node if node.attribute for name in captured(node)}
    shared = {name for name in follow if uses[name] > 1 and name not in outer}
    vectors = _vectors(model, follow) - outer if shared else set()
    if shared.isdisjoint(vectors):
        return model, {}
    fork = model.fork()
    graph = fork.proto.graph
    readers, made = defaultdict[str, list[tuple[NodeProto, int]]](list), dict[str, NodeProto]()
    for node in graph.node:
        made |= dict.fromkeys(node.output, node)
        for slot, name in enumerate(node.input):
            readers[name].append((node, slot))
    names, titles = {*readers, *made, *model.names()}, {node.name for node in graph.node}
    copies, beside = dict[str, str](), defaultdict[str, list[NodeProto]](list)
    for name in [n for n in follow if n in vectors][::-1]:  # a copy reads, too, what it follows from
        for reader, slot in readers[name][1:]:
            own = NodeProto.FromString(follow[name].SerializeToString())
            own.output[0] = fresh_name(name, names)
            own.name = own.name and fresh_name(own.name, titles)
            titles.add(own.name)
            names.add(own.output[0])
            copies[own.output[0]] = name
            beside[name].append(own)
            reader.input[slot] = own.output[0]
            for at, read in enumerate(own.input):
                readers[read].append((own, at))
    _put(graph, [n for node in graph.node for n in (node, *beside[next(iter(node.output), "")])])
    return fork, copies


def _following(model: Model) -> dict[str, NodeProto]:
    """Return the tensors of the main graph that follow from weights alone, the same each time, with their nodes."""
    known = set(model.names()) - {value.name for value in model.proto.graph.input}
    found: dict[str, NodeProto] = {}
    for node in (model.proto.graph.node[number] for number in model.order):
        if node.domain == DOMAIN or body_of(node) or len(node.output) != 1 or not any(node.input):
            continue
        random = Trait.RANDOM in traits_of(node.op_type, node.domain)
        if not random and all(n in known or n in found for n in node.input if n) and not any(subgraphs(node)):
            found[node.output[0]] = node
    return found


def _vectors(model: Model, follow: Mapping[str, NodeProto]) -> set[str]:
    """Return which of these are vectors of floats that can't be folded."""
    tracer = Tracer(opsets_of(model), weights_of(model))
    computed = Finder(model, tracer).maker
    vectors = set[str]()
    for name, node in follow.items():
        try:
            tracer.visit(node)
        except TraceError:
            continue
        elem, shape = tracer.types[name]
        if name not in computed and elem in FLOATS and sum(size > 1 for size in shape or ()) == 1:
            vectors.add(name)
    return vectors


def together(result: Model, copies: Mapping[str, str]) -> Model:
    """Return a model in which those nodes are one again that still compute the same.

    Parameters
    ----------
    result : Model
        Made from what `apart` gave.
    copies : mapping
        From there.
    """
    fork = result.fork() if copies else result
    first: dict[tuple[str, bytes], str] = {}
    now: dict[str, str] = {}
    gone = set[int]()
    of = dict.fromkeys(copies.values(), "") | dict(copies)
    for number in result.order if copies else ():
        node = fork.proto.graph.node[number]
        for slot, name in enumerate(node.input):
            node.input[slot] = now.get(name, name)
        if len(node.output) == 1 and node.output[0] in of:
            bare = NodeProto.FromString(node.SerializeToString())
            bare.ClearField("output")
            bare.ClearField("name")
            name = node.output[0]
            kept = first.setdefault((of[name] or name, bare.SerializeToString(deterministic=True)), name)
            if kept != name:
                now[name] = kept
                gone.add(number)
    if not gone:
        return result
    _put(fork.proto.graph, [n for number, n in enumerate(fork.proto.graph.node) if number not in gone])
    return fork


def _put(graph: onnx.GraphProto, nodes: Collection[NodeProto]) -> None:
    own = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(own)
