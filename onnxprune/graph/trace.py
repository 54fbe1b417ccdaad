"""Concrete shapes and small values of every tensor, under one binding of the dynamic axes.

Analysis is done on concrete numbers: every dynamic axis of an input is bound to a size, shapes follow node by
node through ONNX's own inference, and small tensors that carry shapes are computed. No symbols, so no algebra
that could fail; axes that depend on a dynamic input axis end at a graph input or output and are never cut, so
the binding doesn't matter to the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from onnxprune.files.protowalk import describe, subgraphs
from onnxprune.graph.averages import Averages
from onnxprune.graph.plausible import element_size, implausible, out_of_reach, without_any
from onnxprune.graph.values import MAX_ELEMENTS, evaluate
from onnxprune.ops import Elem, Node, Refusal, Trait, lookup, traits_of
from onnxprune.ops.resolve import Misfit, out_shapes
from onnxprune.runtime.binding import Shape, Typed
from onnxprune.wall import board as wall

#: Known integer constants up to this size are shown to rules (indices of Gather); vectors of floats up to `MAX_FLOATS`.
MAX_CONSTANT = 1 << 20
MAX_FLOATS = 64
#: Of the memory that may be used, what one tensor may take.
LARGEST = 0.5

_FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
_ONNX_DOMAINS = ("", "ai.onnx")


class TraceError(ValueError):
    """Shapes contradict each other under this binding."""


class Unsound(TraceError):
    """A node can't be what it says, or a tensor would be too large; the text is a whole sentence."""


class TooLarge(Unsound):
    """A tensor would take more memory than a model may ask for."""


@dataclass
class Weight:
    """A tensor known at rest: an initializer, or the output of a Constant node."""

    elem: int
    shape: Shape
    value: NDArray[Any] | None = None


def attributes(proto: NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values: bytes as text, tensors as arrays, graphs as they are."""
    values: dict[str, Any] = {}
    for attr in proto.attribute:
        kind = attr.type
        if kind == AttributeProto.INT:
            values[attr.name] = attr.i
        elif kind == AttributeProto.INTS:
            values[attr.name] = list(attr.ints)
        elif kind == AttributeProto.FLOAT:
            values[attr.name] = attr.f
        elif kind == AttributeProto.STRING:
            values[attr.name] = attr.s.decode("utf-8", "replace")
        elif kind == AttributeProto.TENSOR:
            small = prod(attr.t.dims) <= MAX_FLOATS and attr.t.data_type != TensorProto.UNDEFINED
            values[attr.name] = numpy_helper.to_array(attr.t) if small else attr.t
        else:
            values[attr.name] = onnx.helper.get_attribute_value(attr)
    return values


def is_small(elem: int, shape: Shape) -> bool:
    """Whether rules may see the value of a constant of this type and shape."""
    integer = elem in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    return prod(shape) <= (MAX_CONSTANT if integer else MAX_FLOATS if len(shape) <= 1 else 1)


@dataclass
class Tracer:
    """Walks nodes in topological order, each once.

    Attributes
    ----------
    opsets : dict
        Domain -> version.
    weights : dict
        Name -> what is known of a weight.
    types : dict
        Tensor name -> (element type, shape), growing as nodes are visited.
    values : dict
        Tensor name -> value, for small tensors that are known before the model runs.
    hints : dict
        Shapes of tensors that inference can't give (from a run of the model).
    measured : bool
        The hints say everything: inference is wrong about this model, which runs.
    inferred : dict
        What inference gave, for traces of one model to share.
    averages : Averages
        Which averages it has seen; it must be told what they may be taken off.
    """

    opsets: Mapping[str, int]
    weights: Mapping[str, Weight]
    types: dict[str, Typed] = field(default_factory=dict)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    hints: Mapping[str, Typed] = field(default_factory=dict)
    measured: bool = False
    inferred: dict[Any, list[Typed]] = field(default_factory=dict, repr=False)
    averages: Averages = field(default_factory=Averages, repr=False)
    _schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            self.types[name] = (weight.elem, weight.shape)
            if weight.value is not None:
                self.values[name] = weight.value

    def visit(self, proto: NodeProto) -> Node:
        """Return what rules may see of a node, and record the types and values of its outputs.

        Raises
        ------
        TraceError
            If the node's input shapes contradict each other.
        """
        if proto.op_type == "Constant" and proto.domain in _ONNX_DOMAINS:
            return self._constant(proto)
        attrs = attributes(proto)
        self._check(proto, attrs)
        outputs = self._outputs(proto, attrs)
        for name, typed in zip(proto.output, outputs, strict=True):
            if name:
                self._check_size(proto, name, typed)
                self.types[name] = typed
        self._value(proto, attrs)
        self._follow_averages(proto, attrs)
        return self._node(proto, attrs, outputs)

    def _follow_averages(self, proto: NodeProto, attrs: Mapping[str, Any]) -> None:
        number = self.values.get(proto.input[1]) if len(proto.input) > 1 and proto.input[1] else None
        given = number.item() if number is not None and number.size == 1 else attrs.get("min")
        clipped = proto.op_type == "Clip" and given is not None and bool(given >= 0)
        squares = proto.op_type == "Pow" and given == 2
        made = self._shape(proto.output[0]) if proto.output else None
        whole = [n for n in proto.input if made is not None and self._shape(n) == made]
        self.averages.follow(proto, whole=whole, squares=squares, natural=clipped)

    def _shape(self, name: str) -> Shape | None:
        return self.types.get(name, (0, None))[1]

    def _check(self, proto: NodeProto, attrs: dict[str, Any]) -> None:
        """Refuse a node that crashes or exhausts those who compute with it."""
        own = proto.domain in _ONNX_DOMAINS
        if not own and proto.domain != "com.microsoft":
            return
        shapes = [self.types.get(n, (0, None))[1] if n else None for n in proto.input]
        values = [self.values.get(n) if n else None for n in proto.input]
        if own:
            reason = implausible(proto.op_type, attrs, shapes, len(proto.output), values)
        else:
            reason = without_any(proto.op_type, attrs)
        if reason:
            described = describe(proto)
            raise Unsound(
                f"{described[0].upper()}{described[1:]} can't be run: {reason}; repair it, or export the model again."
            )

        reason = out_of_reach(proto.op_type, attrs, shapes, values[1] if own and len(values) > 1 else None)
        if reason:
            raise TraceError(f"{describe(proto)}: {reason}")

    def _check_size(self, proto: NodeProto, name: str, typed: Typed) -> None:
        elem, shape = typed
        if shape is None:
            return
        # also the other axes of a tensor without values are long
        count = prod(shape) or prod(max(size, 1) for size in shape)
        most = wall.allowed() * LARGEST
        if count * element_size(elem) > most:
            size = count * element_size(elem) / 1e6
            raise TooLarge(
                f"The tensor {name!r} of {describe(proto)} would take {size:,.0f} MB, "
                f"more than the {most / 1e6:,.0f} MB that a model of this size may ask for; give smaller inputs with "
                "--input-shape, or allow more with --max-memory."
            )

    def _constant(self, proto: NodeProto) -> Node:
        name = proto.output[0]
        shape = self.types.get(name, (0, None))[1]
        return Node("Constant", "", 1, proto.name, {}, (), (shape,), (), (), (), (name,))

    def _node(self, proto: NodeProto, attrs: dict[str, Any], outputs: list[Typed]) -> Node:
        none: Typed = (0, None)
        names, made = tuple(proto.input), tuple(proto.output)
        domain = "" if proto.domain in _ONNX_DOMAINS else proto.domain
        typed = [self.types.get(n, none) if n else none for n in names]
        return Node(
            op=proto.op_type,
            domain=domain,
            opset=self.opsets.get(domain, 1),
            name=proto.name or (made[0] if made else ""),
            attrs=attrs,
            shapes=tuple([shape for _, shape in typed]),
            out_shapes=tuple([shape for _, shape in outputs]),
            values=tuple([self.values.get(n) if n else None for n in names]),
            constant=tuple([n in self.weights for n in names]),
            inputs=names,
            outputs=made,
            elems=tuple([elem for elem, _ in typed]),
            squares=tuple([self.averages.is_square(n) for n in names]),
            centred=tuple([self.averages.is_centred(n) for n in names]),
            natural=tuple([self.averages.is_natural(n) for n in names]),
        )

    def _outputs(self, proto: NodeProto, attrs: dict[str, Any]) -> list[Typed]:
        if self.measured:
            return [self.hints.get(n, (0, None)) for n in proto.output]
        names, op, domain = list(proto.input), proto.op_type, proto.domain
        small = {n: self.values[n] for n in names if n and n in self.values}
        small = {n: v for n, v in small.items() if v.size <= MAX_ELEMENTS}
        if small and Trait.ELEMENTWISE in traits_of(op, domain):
            small = {}  # of which no shape hangs on
        key = (
            op, domain, len(proto.output), tuple([bool(n) for n in names]),
            tuple([self.types.get(n, (0, None)) for n in names]),
            tuple([a.SerializeToString() for a in proto.attribute if a.type != AttributeProto.GRAPH]),
            tuple([small[n].tobytes() if n in small else None for n in names]) if small else (),
        )  # fmt: skip
        outs = None if proto.attribute and any(True for _ in subgraphs(proto)) else self.inferred.get(key)
        if outs is None:
            outs = self._infer(proto, attrs, small)
            self.inferred[key] = outs
        if any(shape is None for _, shape in outs):
            outs = [
                self.hints.get(n, t) if t[1] is None else t for n, t in zip(proto.output, outs, strict=True)
            ]
        return outs

    def _infer(
        self, proto: NodeProto, attrs: dict[str, Any], small: Mapping[str, NDArray[Any]]
    ) -> list[Typed]:
        outs: list[Typed] = [(0, None)] * len(proto.output)
        schema = self._schema(proto)
        if schema is not None:
            outs = self._by_schema(schema, proto, small)
        if any(shape is None for name, (_, shape) in zip(proto.output, outs, strict=True) if name):
            outs = self._by_row(proto, attrs, outs)
        return outs

    def _schema(self, proto: NodeProto) -> onnx.defs.OpSchema | None:
        key = (proto.domain, proto.op_type)
        if key not in self._schemas:
            fused = proto.domain == "com.microsoft" and proto.op_type in _FUSED
            name, domain = (_FUSED[proto.op_type], "") if fused else (proto.op_type, proto.domain)
            domain = "" if domain in _ONNX_DOMAINS else domain
            try:
                self._schemas[key] = onnx.defs.get_schema(name, self.opsets.get(domain, 1), domain)
            except onnx.defs.SchemaError:
                self._schemas[key] = None
        return self._schemas[key]

    def _by_schema(
        self, schema: onnx.defs.OpSchema, proto: NodeProto, small: Mapping[str, NDArray[Any]]
    ) -> list[Typed]:
        known = {n: self.types[n] for n in proto.input if n and n in self.types}
        kinds = {elem for elem, _ in known.values()}
        stand_in = TensorProto.BFLOAT16 in kinds and TensorProto.FLOAT16 not in kinds
        swap: dict[int, int] = (
            {TensorProto.BFLOAT16: TensorProto.FLOAT16} if stand_in else {}
        )  # old schemas don't know bf16
        types = {n: _type_proto(swap.get(elem, elem), shape) for n, (elem, shape) in known.items()}
        if proto.op_type == "Range":
            # its inference wants scalars, where runtimes take vectors of one number, too
            types = {
                n: _type_proto(elem, () if shape == (1,) else shape) for n, (elem, shape) in known.items()
            }
            small = {n: v.reshape(()) if v.shape == (1,) else v for n, v in small.items()}
        data = {n: numpy_helper.from_array(np.asarray(v, order="C")) for n, v in small.items()}
        if (
            proto.op_type != schema.name
        ):  # a fused op: its own attributes and inputs have no part in the shape
            inputs = list(proto.input)[: schema.max_input]
            proto, fused = onnx.helper.make_node(schema.name, inputs, proto.output, proto.name), proto
            proto.attribute.extend(a for a in fused.attribute if a.name in schema.attributes)
        try:
            with wall.stage(f"ONNX's shape inference of {describe(proto)}"):
                inferred = onnx.shape_inference.infer_node_outputs(schema, proto, types, data)
        except onnx.shape_inference.InferenceError as error:
            if all(self.types.get(n, (0, None))[1] is not None for n in proto.input if n):
                text = str(error).splitlines()[-1]
                raise TraceError(f"{proto.op_type} '{proto.name or proto.output[0]}': {text}") from error
            return [(0, None)] * len(proto.output)
        except MemoryError as error:  # what the library tried to allocate, not what is used
            raise Unsound(
                f"ONNX's shape inference of {describe(proto)} asks for more memory than there is; repair the node, or "
                "export the model again."
            ) from error
        except (RuntimeError, ValueError, TypeError, KeyError, onnx.checker.ValidationError):
            return [(0, None)] * len(proto.output)
        outs = [_typed(inferred.get(n)) for n in proto.output]
        back = {new: old for old, new in swap.items()}
        return [(back.get(elem, elem), shape) for elem, shape in outs]

    def _by_row(self, proto: NodeProto, attrs: dict[str, Any], outs: list[Typed]) -> list[Typed]:
        """Take missing output shapes from the op's row, where its letters give them."""
        node = self._node(proto, attrs, outs)
        row = lookup(node)
        if isinstance(row, Refusal):
            return outs
        try:
            shapes = out_shapes(row, node)
        except Misfit:
            return outs
        elems = [self._elem(row.elems.get(slot, 0), proto) for slot in range(len(outs))]
        return [
            t if t[1] is not None else (t[0] or elem, s)
            for t, s, elem in zip(outs, shapes, elems, strict=True)
        ]

    def _elem(self, source: int | Elem, proto: NodeProto) -> int:
        """Element type of an output: a given one, or that of an input."""
        if isinstance(source, Elem):
            return int(source)
        return self.types.get(proto.input[source], (0, None))[0] if source < len(proto.input) else 0

    def _value(self, proto: NodeProto, attrs: dict[str, Any]) -> None:
        if len(proto.output) != 1 or proto.domain not in _ONNX_DOMAINS:
            if proto.op_type == "Split" and proto.domain in _ONNX_DOMAINS:
                self._split_value(proto, attrs)
            return
        name = proto.output[0]
        if proto.op_type in ("Shape", "Size"):
            shape = self.types.get(proto.input[0], (0, None))[1]
            if shape is not None:
                part = shape[slice(attrs.get("start", 0), attrs.get("end"))]
                whole = np.asarray(prod(shape), np.int64)
                self.values[name] = np.asarray(part, np.int64) if proto.op_type == "Shape" else whole
            return
        if not any(n in self.values for n in proto.input):
            return
        inputs = [self.values.get(n) for n in proto.input]
        value = evaluate(proto.op_type, attrs, inputs, [bool(n) for n in proto.input])
        if value is not None and is_small(1, value.shape if value.dtype.kind == "f" else ()):
            self.values[name] = value

    def _split_value(self, proto: NodeProto, attrs: dict[str, Any]) -> None:
        value = self.values.get(proto.input[0])
        shapes = [self.types[n][1] for n in proto.output if n]
        if value is None or None in shapes or len(shapes) != len(proto.output):
            return
        axis = int(attrs.get("axis", 0))
        ends = np.cumsum([s[axis] for s in shapes if s is not None])[:-1]
        for name, part in zip(proto.output, np.split(value, ends, axis), strict=True):
            self.values[name] = part


def _type_proto(elem: int, shape: Shape | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = elem
    if shape is not None:
        proto.tensor_type.shape.SetInParent()
        for size in shape:
            proto.tensor_type.shape.dim.add().dim_value = size
    return proto


def _typed(proto: onnx.TypeProto | None) -> Typed:
    """Element type and shape of a tensor type; the shape is None unless every size is known."""
    if proto is None or not proto.HasField("tensor_type"):
        return (0, None)
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return (tensor.elem_type, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return (tensor.elem_type, None if any(d < 0 for d in dims) else dims)
