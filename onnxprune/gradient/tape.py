"""What a rule writes on: nodes of the backward pass, in the model's own opset, and what is known of shapes.

A size that follows those of dynamic axes is None, and a rule then asks for it in the graph (`Tape.shape`). That is
derived (`onnxprune.graph.sizes`), not seen at two sizes: the lesser of a length and ten is ten at both 12 and 14. Rules
know no opset: the tape does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import NodeProto, helper

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.sizes import Sizes
from onnxprune.model import Model
from onnxprune.ops.base import Node
from onnxprune.runtime import binding

__all__ = ["BLOCKED", "RULES", "Dims", "NoGradient", "Rule", "Tape", "vjp"]

Array: TypeAlias = NDArray[Any]
#: Sizes of a tensor; None for one that depends on a dynamic axis.
Dims: TypeAlias = tuple[int | None, ...]
Grads: TypeAlias = Mapping[int, str]


class NoGradient(ValueError):
    """A gradient can't be had; the text says of which op, and why."""


#: (tape, node, gradients of the outputs, slots that want one) -> slot -> gradient of that input.
Rule: TypeAlias = Callable[["Tape", Node, Sequence[str], frozenset[int]], Grads]

RULES: dict[tuple[str, str], Rule] = {}

#: Ops whose outputs don't follow small changes of their inputs: shapes, indices, comparisons, steps.
BLOCKED = frozenset({
    "Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And",
    "Or", "Xor", "Floor", "Ceil", "Round", "Sign", "NonZero", "ConstantOfShape", "Range", "IsNaN", "IsInf", "OneHot",
    "EyeLike", "RandomNormalLike", "RandomUniformLike", "NonMaxSuppression",
})  # fmt: skip


def vjp(*names: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register the rule of an op: from the gradients of its outputs to those of its inputs."""

    def register(rule: Rule) -> Rule:
        for name in names:
            if (domain, name) in RULES:
                raise ValueError(f"{domain}::{name} has two gradient rules")
            RULES[domain, name] = rule
        return rule

    return register


class Tape:
    """The backward pass while it is written.

    Parameters
    ----------
    analysis : Analysis
        Of the model; shapes come from its traces.
    model : Model
        Takes the constants.
    dtype : numpy dtype
        Of the gradients.

    Attributes
    ----------
    nodes : list of NodeProto
        Written so far, in order.
    opset : int
    """

    model: Model
    opset: int
    dtype: np.dtype[Any]

    def __init__(self, analysis: Analysis, model: Model, opset: int, dtype: np.dtype[Any]) -> None:
        self.model, self.opset, self.dtype = model, opset, dtype
        self.nodes: list[NodeProto] = []
        self._known, self._sizes = analysis.tracer, _sizes_of(analysis)
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    # What is known

    def dims(self, name: str) -> Dims:
        """Return the sizes of a forward tensor.

        Raises
        ------
        NoGradient
            If not even its rank is known.
        """
        shape, lengths = self._sizes.shape(name), self._sizes.length(name)
        if shape is None or lengths is None:
            raise NoGradient(f"the shape of {name!r} is unknown")
        return tuple(s if s == n else None for s, n in zip(shape, lengths, strict=True))

    def elem(self, name: str) -> int:
        """Return the element type of a forward tensor; 0 if unknown."""
        return self._known.types.get(name, (0, None))[0]

    def value(self, node: Node, slot: int) -> Array:
        """Return the value of an input that is known before the run and depends on no dynamic axis.

        Raises
        ------
        NoGradient
            If it isn't.
        """
        name = node.inputs[slot]
        if name in self.model:
            return np.asarray(self.model.weight(name))
        if not self._sizes.fixed(name):
            raise NoGradient(f"input {slot} is computed at run time")
        return self._known.values[name]

    def ints(self, node: Node, name: str, slot: int) -> list[int] | None:
        """Return a list that is an attribute in old opsets and an input in new ones; None: absent."""
        if name in node.attrs:
            return [int(i) for i in node.attrs[name]]
        return [int(i) for i in self.value(node, slot).reshape(-1)] if node.has(slot) else None

    # What is written

    def op(self, kind: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        """Write a node of one output and return the output's name."""
        return self.several(kind, 1, *inputs, domain=domain, **attrs)[0]

    def several(self, kind: str, count: int, *inputs: str, domain: str = "", **attrs: Any) -> list[str]:
        """Write a node of several outputs and return their names."""
        names = self.fresh(count)
        given = {k: v for k, v in attrs.items() if v is not None}
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], domain=domain, **given))
        return names

    def fresh(self, count: int) -> list[str]:
        """Return names that nothing has yet."""
        first = self._count + 1
        self._count += count
        return [f"onnxprune/gradient/{n}" for n in range(first, first + count)]

    def const(self, value: ArrayLike, dtype: Any = None) -> str:
        """Return the name of a constant, of the gradients' type unless another is given."""
        array = np.ascontiguousarray(np.asarray(value, dtype or self.dtype)).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.model.add("onnxprune/gradient/constant", array)
        return self._constants[key]

    def ints_const(self, value: ArrayLike) -> str:
        """Return the name of an int64 constant."""
        return self.const(value, np.int64)

    def mul(self, a: str, b: str) -> str:
        """Write a product."""
        return self.op("Mul", a, b)

    def scaled(self, a: str, factor: float) -> str:
        """Write a product with a number."""
        return a if factor == 1 else self.op("Mul", a, self.const(factor))

    def mask(self, condition: str) -> str:
        """Turn booleans into ones and zeros."""
        return self.op("Cast", condition, to=helper.np_dtype_to_tensor_dtype(self.dtype))

    def shape(self, name: str) -> str:
        """Return a tensor's shape: a constant where it is known."""
        try:
            dims = self.dims(name)
        except NoGradient:
            dims = (None,)
        known = [d for d in dims if d is not None]
        return self.ints_const(known) if len(known) == len(dims) else self.op("Shape", name)

    def reshape(self, value: str, shape: str | Sequence[int]) -> str:
        """Write a Reshape to a tensor of sizes, or to numbers (0 copies, -1 is what is left)."""
        return self.op("Reshape", value, shape if isinstance(shape, str) else self.ints_const(shape))

    def like(self, value: str, name: str) -> str:
        """Give a value the shape of a forward tensor of as many elements."""
        return self.reshape(value, self.shape(name))

    def transpose(self, value: str, perm: Sequence[int]) -> str:
        """Write a Transpose, unless it changes nothing."""
        same = list(perm) == list(range(len(perm)))
        return value if same else self.op("Transpose", value, perm=[int(p) for p in perm])

    def reduce(self, kind: str, value: str, axes: Sequence[int], keep: bool = True) -> str:
        """Write a ReduceSum, ReduceMean or the like over axes counted from the front."""
        since = 13 if kind == "ReduceSum" else 18
        axes = [int(a) for a in axes]
        if self.opset < since:
            return self.op(kind, value, axes=axes, keepdims=int(keep))
        return self.op(kind, value, self.ints_const(axes), keepdims=int(keep))

    def unsqueeze(self, value: str, axes: Sequence[int]) -> str:
        """Write an Unsqueeze."""
        axes = sorted(int(a) for a in axes)
        if not axes:
            return value
        if self.opset < 13:
            return self.op("Unsqueeze", value, axes=axes)
        return self.op("Unsqueeze", value, self.ints_const(axes))

    def slice(self, value: str, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> str:
        """Write a Slice of steps of one."""
        if self.opset < 10:
            return self.op("Slice", value, axes=list(axes), starts=list(starts), ends=list(ends))
        return self.op("Slice", value, *(self.ints_const(list(v)) for v in (starts, ends, axes)))

    def pad(self, value: str, before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> str:
        """Write a Pad with a constant, one entry for each axis."""
        pads = [int(p) for p in (*before, *after)]
        if not any(pads):
            return value
        if self.opset < 11:
            return self.op("Pad", value, pads=pads, value=fill)
        return self.op("Pad", value, self.ints_const(pads), self.const(fill))

    def matmul(self, a: str, b: str) -> str:
        """Write a MatMul."""
        return self.op("MatMul", a, b)

    def no_bias(self) -> list[str]:
        """Return what a Gemm without a bias takes as its third input: one zero in old opsets, else nothing."""
        return [self.const(np.zeros(1))] if self.opset < 11 else []

    def expand(self, value: str, name: str) -> str:
        """Broadcast a value to the shape of a forward tensor."""
        return self.op("Expand", value, self.shape(name))

    def unbroadcast(self, value: str, name: str, out: str) -> str:
        """Sum a gradient of the shape of ``out`` over the axes along which ``name`` was broadcast."""
        want, have = self.dims(name), self.dims(out)
        lead = len(have) - len(want)
        if lead > 0:
            value = self.reduce("ReduceSum", value, range(lead), keep=False)
        axes = [
            i for i, (w, h) in enumerate(zip(want, have[max(lead, 0) :], strict=True)) if w == 1 and h != 1
        ]
        return self.reduce("ReduceSum", value, axes) if axes else value

    def static(self, name: str, axes: Sequence[int]) -> list[int]:
        """Return sizes of a forward tensor that must not be dynamic.

        Raises
        ------
        NoGradient
            If one is.
        """
        dims = self.dims(name)
        sizes = [size for a in axes if (size := dims[a]) is not None]
        if len(sizes) != len(axes):
            raise NoGradient(f"a size of {name!r} is dynamic")
        return sizes


def _sizes_of(analysis: Analysis) -> Sizes:
    """Derive what follows the axes that vary: those whose sizes differ between the two bindings of an analysis.

    An axis that is dynamic by name alone (the model is baked at its size, or is only used at one) doesn't.
    """
    other, sizes = analysis.other_trace(), Sizes(analysis.tracer)
    declared: dict[str, list[int | str]] = {}
    for value in binding.real_inputs(analysis.model.proto.graph):
        here = sizes.shape(value.name) or ()
        there = here if other is None else other.types.get(value.name, (0, None))[1] or here
        axes = binding.declared(value) or [f"{value.name}.{axis}" for axis in range(len(here))]
        declared[value.name] = [
            one if one == two else a for a, one, two in zip(axes, here, there, strict=True)
        ]
    sizes.declare(declared)
    for applied in analysis.coupling.nodes:
        sizes.visit(applied.node, applied.row)
    return sizes


def float_type(elem: int) -> bool:
    """Whether gradients can be had in this type: 32 or 64 bits."""
    return elem in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
