"""Does each node have the inputs, outputs and attributes that ONNX's own schemas ask for? Libraries crash, if not.

Only what is wrong for every runtime is refused: too few or too many inputs or outputs, a required input that is
left out, an attribute of another type, a required attribute that isn't there, a tensor that was never set. Ops
without a schema, and those that a function of the model stands for, are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from onnxprune.errors import ModelError
from onnxprune.files.protowalk import describe, subgraphs

__all__ = ["HIGHEST", "check_schemas"]

#: The highest version of an operator set that a file may name.
HIGHEST = 2**31 - 1

_ONNX = ("", "ai.onnx")
_SINGLE, _VARIADIC = (
    onnx.defs.OpSchema.FormalParameterOption.Single,
    onnx.defs.OpSchema.FormalParameterOption.Variadic,
)


class _Shape:
    """What a schema says, in a form that is quick to compare with."""

    def __init__(self, schema: onnx.defs.OpSchema) -> None:
        # a file may name an older version than the one that it was written for, and most tools don't mind
        both = [schema, onnx.defs.get_schema(schema.name, schema.domain)]
        self.inputs = (min(s.min_input for s in both), max(s.max_input for s in both))
        self.outputs = (min(s.min_output for s in both), max(s.max_output for s in both))
        options = [p.option for p in schema.inputs]
        self.required = [n for n, option in enumerate(options) if option == _SINGLE]
        self.variadic = len(options) - 1 if options and options[-1] == _VARIADIC else None
        self.types = {name: _number(attr.type) for name, attr in schema.attributes.items()}
        self.needed = [name for name, attr in schema.attributes.items() if attr.required]


def _number(kind: Any) -> int:
    return int(kind.value)


_SCHEMAS: dict[tuple[str, str, int], _Shape | None] = {}


def check_schemas(proto: onnx.ModelProto) -> None:
    """Check the nodes of a model, those of its subgraphs and functions too.

    Raises
    ------
    ModelError
        If one isn't what its op allows.
    """
    functions = {(f.domain, f.name) for f in proto.functions}
    for opset in proto.opset_import:
        if not 1 <= opset.version <= HIGHEST:
            raise ModelError(
                f"The model asks for version {opset.version} of the operator set {opset.domain or 'ai.onnx'!r}, which "
                "can't exist; the file is damaged or was edited by hand."
            )
    opsets = {o.domain: o.version for o in proto.opset_import}
    for node in _nodes(proto.graph.node):
        _check(node, opsets, functions)
    for function in proto.functions:
        own = {**opsets, **{o.domain: o.version for o in function.opset_import}}
        for node in _nodes(function.node):
            _check(node, own, functions)


def _nodes(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    stack = [nodes]
    while stack:
        for node in stack.pop():
            yield node
            if node.attribute:
                stack += [graph.node for graph in subgraphs(node)]


def _shape_of(op: str, domain: str, version: int) -> _Shape | None:
    key = (op, domain, version)
    if key not in _SCHEMAS:
        try:
            _SCHEMAS[key] = _Shape(onnx.defs.get_schema(op, max(1, min(version, HIGHEST)), domain))
        except onnx.defs.SchemaError:
            _SCHEMAS[key] = None
    return _SCHEMAS[key]


def _check(node: NodeProto, opsets: dict[str, int], functions: set[tuple[str, str]]) -> None:
    domain = "" if node.domain in _ONNX else node.domain
    if (node.domain, node.op_type) in functions:
        return
    version = opsets.get(domain, opsets.get("ai.onnx", 1) if not domain else 1)
    shape = _shape_of(node.op_type, domain, version)
    if shape is None:
        return
    names = node.input[:]
    for what, count, (least, most) in (
        ("inputs", len(names), shape.inputs),
        ("outputs", len(node.output), shape.outputs),
    ):
        if not least <= count <= most:
            wanted = (
                f"{least}" if least == most else f"{least} to {most}" if most < 2**20 else f"at least {least}"
            )
            _refuse(node, f"has {count} {what}, but its op has {wanted}")
    for slot in shape.required:
        if slot < min(len(names), shape.inputs[0]) and not names[slot]:
            _refuse(node, f"leaves out its input {slot}, which its op needs")
    if shape.variadic is not None and not all(names[shape.variadic :]):
        _refuse(node, "leaves out one of the inputs that its op takes any number of")
    if node.attribute or shape.needed:
        _check_attributes(node, shape)


def _check_attributes(node: NodeProto, shape: _Shape) -> None:
    seen = set()
    for attribute in node.attribute:
        name = attribute.name
        seen.add(name)
        wanted, kind = shape.types.get(name), attribute.type
        if attribute.ref_attr_name or wanted is None or not kind:
            continue
        if kind != wanted:
            _refuse(
                node, f"has an attribute {name!r} of type {_name(kind)}, but its op wants {_name(wanted)}"
            )
        if kind == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.UNDEFINED:
            _refuse(node, f"has an attribute {name!r} whose tensor was never set")
    for name in shape.needed:
        if name not in seen:
            _refuse(node, f"has no attribute {name!r}, which its op needs")


def _name(kind: int) -> str:
    names: Callable[[int], str] = AttributeProto.AttributeType.Name
    try:
        return names(kind)
    except ValueError:
        return str(kind)


def _refuse(node: NodeProto, what: str) -> None:
    described = describe(node)
    raise ModelError(
        f"{described[0].upper()}{described[1:]} {what}; the file is damaged or was edited by hand, so export the model "
        "again."
    )
