"""Is every name of a model text? Protobuf hands on bytes that are none, and fails later, at each place differently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from onnxprune.errors import ModelError

__all__ = ["check_texts"]


def check_texts(proto: onnx.ModelProto) -> None:
    """Refuse a model in which a name, or the name of an op or an attribute, is no UTF-8.

    Raises
    ------
    ModelError
        If one isn't.
    """
    _check((o.domain for o in proto.opset_import), "The domain of an operator set")
    _graph(proto.graph)
    for f in proto.functions:
        names = (
            name
            for names in ([f.name, f.domain, f.overload], f.input, f.output, f.attribute)
            for name in names
        )
        _check(names, "A name of a function")
        _check((o.domain for o in f.opset_import), "The domain of an operator set")
        _nodes(f.node)


def _check(names: Iterable[object], what: str) -> None:
    try:
        bad = any(type(name) is bytes for name in names)
    except UnicodeDecodeError:
        bad = True
    if bad:
        raise ModelError(f"{what} isn't text in UTF-8; the file is damaged, so export the model again.")


def _graph(graph: onnx.GraphProto) -> None:
    _check((graph.name for _ in range(1)), "The name of a graph")
    for values in (graph.input, graph.output, graph.value_info):
        _check((v.name for v in values), "The name of an input, an output or a value")
        axes = (d.dim_param for v in values for d in v.type.tensor_type.shape.dim)
        _check(axes, "The name of an axis")
    _check((t.name for t in graph.initializer), "The name of an initializer")
    _check((t.values.name for t in graph.sparse_initializer), "The name of a sparse initializer")
    _nodes(graph.node)


def _nodes(nodes: Sequence[onnx.NodeProto]) -> None:
    for index, node in enumerate(nodes):
        attributes = node.attribute if node.attribute else ()
        try:
            names = node.input[:] + node.output[:]
            names += [node.name, node.op_type, node.domain, node.overload]
            for attribute in attributes:
                names += [attribute.name, attribute.ref_attr_name]
        except UnicodeDecodeError:
            names = [b""]
        _check(names, f"A name in node {index}")
        for attribute in attributes:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _graph(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    _graph(graph)
