"""Walk every graph, node and tensor of a ModelProto, nested ones included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import NodeProto

__all__ = [
    "captured",
    "outer_names",
    "Place",
    "all_names",
    "body_weights",
    "describe",
    "is_constant",
    "sparse_value",
    "sparse_weights",
    "subgraphs",
    "tensors",
]

_TENSOR, _GRAPH = onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH
_TENSORS, _GRAPHS = onnx.AttributeProto.TENSORS, onnx.AttributeProto.GRAPHS
_SPARSE, _SPARSES = onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS
_NESTED = frozenset((_TENSOR, _GRAPH, _TENSORS, _GRAPHS, _SPARSE, _SPARSES))


@dataclass(frozen=True)
class Place:
    """Where a tensor was found, for a message: ``what`` it is, in what graph or function.

    The values of a sparse tensor also have the dimensions that it has when made dense.
    """

    what: str
    where: str
    dense: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} in {self.where}" if self.where else self.what


def describe(node: onnx.NodeProto, index: int | None = None) -> str:
    """Name a node in a message: ``node 'conv1' (Conv)``, or by its number or output where it has no name."""
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    if index is not None:
        return f"node {index} ({node.op_type})"
    output = next((name for name in node.output if name), "")
    return f"the {node.op_type} node that gives {output!r}"


def is_constant(node: onnx.NodeProto) -> bool:
    """Whether a node is ONNX's own Constant."""
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds in its attributes (the branches of an If, the body of a Loop)."""
    for attribute in node.attribute:
        if attribute.type == _GRAPH:
            yield attribute.g
        elif attribute.type == _GRAPHS:
            yield from attribute.graphs


def _sparse_tensors(
    sparse: onnx.SparseTensorProto, what: str, where: str
) -> Iterator[tuple[Place, onnx.TensorProto]]:
    yield Place(f"the values of {what}", where, tuple(sparse.dims)), sparse.values
    yield Place(f"the indices of {what}", where), sparse.indices


def _node_tensors(node: onnx.NodeProto, where: str) -> Iterator[tuple[Place, onnx.TensorProto]]:
    for attribute in node.attribute:
        kind = attribute.type
        if kind not in _NESTED:
            continue
        what = f"attribute {attribute.name!r} of {describe(node)}"
        if kind == _TENSOR:
            yield Place(what, where), attribute.t
        elif kind == _TENSORS:
            yield from ((Place(what, where), tensor) for tensor in attribute.tensors)
        elif kind in (_SPARSE, _SPARSES):
            for sparse in attribute.sparse_tensors if kind == _SPARSES else [attribute.sparse_tensor]:
                yield from _sparse_tensors(sparse, what, where)
        else:
            for graph in attribute.graphs if kind == _GRAPHS else [attribute.g]:
                yield from _graph_tensors(graph, f"a subgraph of {describe(node)}")


def _graph_tensors(graph: onnx.GraphProto, where: str) -> Iterator[tuple[Place, onnx.TensorProto]]:
    for tensor in graph.initializer:
        yield Place(f"initializer {tensor.name!r}", where), tensor
    for sparse in graph.sparse_initializer:
        yield from _sparse_tensors(sparse, f"sparse initializer {sparse.values.name!r}", where)
    for node in graph.node:
        if node.attribute:
            yield from _node_tensors(node, where)


def tensors(proto: onnx.ModelProto) -> Iterator[tuple[Place, onnx.TensorProto]]:
    """Every TensorProto of a model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(proto.graph, "")
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node, f"function {function.name!r}")
    for training in proto.training_info:
        for graph in (training.initialization, training.algorithm):
            yield from _graph_tensors(graph, "training_info")


def sparse_value(node: NodeProto) -> onnx.SparseTensorProto | None:
    """Return what a Constant gives, where it is stored sparse."""
    one = node.attribute[0] if is_constant(node) and len(node.attribute) == 1 else None
    return one.sparse_tensor if one is not None and one.type == _SPARSE else None


def sparse_weights(graph: onnx.GraphProto) -> Iterator[onnx.SparseTensorProto]:
    """Every weight that a graph itself stores sparse: initializers, and values of Constant nodes."""
    yield from graph.sparse_initializer
    yield from (found for node in graph.node if (found := sparse_value(node)) is not None)


def body_weights(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every initializer of the bodies (If, Loop, Scan) of a model's main graph, and every tensor of their Constants."""
    stack = [body for node in proto.graph.node if node.attribute for body in subgraphs(node)]
    while stack:
        body = stack.pop()
        yield from body.initializer
        for node in body.node:
            if is_constant(node):
                yield from (attribute.t for attribute in node.attribute if attribute.type == _TENSOR)
            stack += subgraphs(node)


def all_names(proto: onnx.ModelProto) -> Iterator[str]:
    """Every name of a value in the main graph and the graphs nested in it."""
    stack = [proto.graph]
    while stack:
        graph = stack.pop()
        yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info))
        yield from (tensor.name for tensor in graph.initializer)
        yield from (sparse.values.name for sparse in graph.sparse_initializer)
        for node in graph.node:
            yield from node.input
            yield from node.output
            if node.attribute:
                stack += subgraphs(node)


def captured(proto: NodeProto) -> set[str]:
    """Return the outer names that a node's bodies read."""
    return set[str]().union(*map(outer_names, subgraphs(proto)))


def outer_names(body: onnx.GraphProto) -> set[str]:
    """Return the names that a body reads from outside."""
    names: set[str] = set()
    own = {v.name for v in body.input} | {t.name for t in body.initializer}
    own |= {t.values.name for t in body.sparse_initializer}
    for node in body.node:
        names |= (set(node.input) | captured(node)) - own
        own |= set(node.output)
    names |= {v.name for v in body.output} - own
    return names - {""}
