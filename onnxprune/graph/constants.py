"""Which channels of which tensors are constant, whatever the input: found from the weights alone.

A channel is constant if its value is one number for every input and at every position. That begins where a
filter is all zero and goes on through what follows. What an op makes of constants that isn't listed here is
unknown, which is always safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied, Dims
from onnxprune.model import Model
from onnxprune.ops import FLOATS, Trait

__all__ = ["Constants", "padded"]

Array: TypeAlias = NDArray[Any]
Values: TypeAlias = NDArray[np.float64]  # one number a channel, NaN where it isn't constant

_BINARY = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


def padded(applied: Applied) -> bool:
    """Whether a convolution reads zeros beyond the border."""
    attrs = applied.node.attrs
    return any(attrs.get("pads", ())) or attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


class Constants:
    """The constant channels of an analysed model."""

    model: Model
    dims: dict[str, Dims]
    find: Callable[[int], int]
    sizes: list[int]
    factors: dict[int, list[int]]
    changing: set[str]
    made: dict[str, Applied]

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.model, self.dims = analysis.model, analysis.coupling.dims
        space = analysis.coupling.space
        self.find = space.find
        self.sizes = space.sizes
        self.factors = {space.find(p.whole): [space.find(f) for f in p.factors] for p in space.products}
        self.changing = {v.name for v in self.model.proto.graph.input}
        self.made = {o: a for a in analysis.coupling.nodes for o in a.node.outputs if o}
        self.known: dict[str, dict[int, Values]] = {}
        for applied in analysis.coupling.nodes:
            self._visit(applied)

    def of(self, name: str, axis: int) -> Values | None:
        """Return the constants along an axis of a tensor; None where there are none."""
        return self.known.get(name, {}).get(axis)

    def weight(self, name: str) -> Array | None:
        """Return a float weight, also one that is transposed or cast on the way; None for anything else."""
        if name in self.changing or self.analysis.tracer.types.get(name, (0, None))[0] not in FLOATS:
            return None
        if name in self.model:
            return self.model.weight(name)
        applied = self.made.get(name)
        if applied is None or applied.node.op not in ("Transpose", "Identity"):
            return None
        array = self.weight(applied.node.inputs[0])
        if array is None or applied.node.op == "Identity":
            return array
        return array.transpose(applied.node.attrs.get("perm"))

    def vector(self, name: str, size: int) -> Values | None:
        """Return a weight of one value a channel as float64[size]; None for anything else."""
        array = self.weight(name)
        if array is None or array.size not in (1, size) or sum(n > 1 for n in array.shape) > 1:
            return None
        if array.size > 1 and array.shape[-1] == 1:
            return None
        return np.broadcast_to(np.asarray(array, np.float64).ravel(), (size,))

    def _visit(self, applied: Applied) -> None:
        node = applied.node
        if applied.row is None or not node.outputs or node.domain not in ("", "com.microsoft"):
            return
        name, op = node.outputs[0], node.op
        dims = self.dims.get(name)
        if dims is None or self.analysis.tracer.types[name][0] not in FLOATS:
            return
        by_axis: dict[int, Values] = {}
        if op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"):
            values = getattr(self, f"_{op.lower()}")(applied)
            if values is not None:
                by_axis[1 if op != "MatMul" else len(dims) - 1] = values
        elif op in _BINARY:
            by_axis = self._binary(applied, len(dims))
        elif op == "Concat":
            by_axis = self._concat(applied)
        elif self.known.get(node.inputs[0]):
            by_axis = self._follow(applied)
        by_axis = {a: v for a, v in by_axis.items() if not np.isnan(v).all()}
        if by_axis:
            self.known[name] = by_axis

    def read(self, name: str, axis: int, size: int) -> Values:
        """Return the constants along an axis, NaN where unknown."""
        values = self.of(name, axis)
        return np.full(size, np.nan) if values is None else values

    def _bias(self, applied: Applied, size: int) -> Values | None:
        if not applied.node.has(2):
            return np.zeros(size)
        return self.vector(applied.node.inputs[2], size)

    def _conv(self, applied: Applied) -> Values | None:
        node = applied.node
        weight = self.weight(node.inputs[1])
        bias = None if weight is None else self._bias(applied, weight.shape[0])
        if weight is None or bias is None:
            return None
        groups = node.attrs.get("group", 1)
        blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        x = self.read(node.inputs[0], 1, groups * blocks.shape[2]).reshape(groups, 1, -1)
        if padded(applied):
            x = np.where(x == 0, x, np.nan)
        varies = ((blocks != 0).any(3) & np.isnan(x)).any(2)
        total = _sum(blocks, x)
        return np.where(varies, np.nan, total).ravel() + bias

    def _convtranspose(self, applied: Applied) -> Values | None:
        node = applied.node
        weight = self.weight(node.inputs[1])
        if weight is None:
            return None
        groups = node.attrs.get("group", 1)
        bias = self._bias(applied, groups * weight.shape[1])
        if bias is None:
            return None
        blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        x = self.read(node.inputs[0], 1, weight.shape[0]).reshape(groups, -1, 1)
        varies = ((blocks != 0).any(3) & (x != 0)).any(1)
        return np.where(varies, np.nan, 0).ravel() + bias

    def _gemm(self, applied: Applied) -> Values | None:
        node = applied.node
        weight = self.weight(node.inputs[1])
        if weight is None or weight.ndim != 2 or node.attrs.get("transA", 0):
            return None
        weight = weight if node.attrs.get("transB", 0) else weight.T
        bias = self._bias(applied, weight.shape[0])
        if bias is None:
            return None
        alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
        return np.asarray(alpha * self._product(node.inputs[0], 1, weight) + beta * bias, np.float64)

    def _matmul(self, applied: Applied) -> Values | None:
        node = applied.node
        weight, shape = self.weight(node.inputs[1]), node.shapes[0]
        if weight is None or weight.ndim != 2 or not shape or len(shape) < 2:
            return None
        return self._product(node.inputs[0], len(shape) - 1, weight.T)

    def _product(self, name: str, axis: int, weight: Array) -> Values:
        x = self.read(name, axis, weight.shape[1])
        varies = (weight[:, np.isnan(x)] != 0).any(1)
        return np.where(varies, np.nan, _sum(weight[None, :, :, None], x[None, None])[0])

    def _batchnormalization(self, applied: Applied) -> Values | None:
        node, shape = applied.node, applied.node.shapes[0]
        if node.attrs.get("training_mode", 0) or not shape:
            return None
        parts = [self.vector(n, shape[1]) for n in node.inputs[1:5]]
        if any(p is None for p in parts):
            return None
        scale, bias, mean, var = (np.asarray(p) for p in parts)
        x = self.read(node.inputs[0], 1, shape[1])
        y = scale * (x - mean) / np.sqrt(var + node.attrs.get("epsilon", 1e-5)) + bias
        return np.where(scale == 0, bias, y)

    def _binary(self, applied: Applied, rank: int) -> dict[int, Values]:
        node = applied.node
        by_axis: dict[int, Values] = {}
        axes = {
            a + rank - len(s)
            for n, s in zip(node.inputs, node.shapes, strict=True)
            if s
            for a in self.known.get(n, {})
        }
        for axis in axes:
            size = (node.out_shapes[0] or ())[axis]
            one, other = (self._operand(applied, slot, axis - rank, size) for slot in (0, 1))
            with np.errstate(all="ignore"):
                values = _BINARY[node.op](one, other)
            if node.op == "Mul":
                values = np.where((one == 0) | (other == 0), 0.0, values)
            by_axis[axis] = np.where(np.isfinite(values), values, np.nan)
        return by_axis

    def _operand(self, applied: Applied, slot: int, back: int, size: int) -> Values:
        """Return an operand along an axis counted from the end."""
        name, shape = applied.node.inputs[slot], applied.node.shapes[slot]
        unknown = np.full(size, np.nan)
        if shape is None:
            return unknown
        array = self.weight(name)
        if array is not None:
            wide = [a - len(shape) for a, n in enumerate(shape) if n > 1]
            if wide not in ([], [back]):
                return unknown
            return np.broadcast_to(np.asarray(array, np.float64).ravel(), (size,))
        values = self.of(name, back + len(shape)) if back + len(shape) >= 0 else None
        return unknown if values is None else np.broadcast_to(values, (size,))

    def _concat(self, applied: Applied) -> dict[int, Values]:
        node = applied.node
        shape = node.out_shapes[0]
        if shape is None or any(s is None for s in node.shapes):
            return {}
        axis = node.attrs["axis"] % len(shape)
        parts = [self.read(n, axis, (s or ())[axis]) for n, s in zip(node.inputs, node.shapes, strict=True)]
        return {axis: np.concatenate(parts)}

    def _follow(self, applied: Applied) -> dict[int, Values]:
        node, traits = applied.node, applied.node.traits
        known = self.known[node.inputs[0]]
        if node.op == "Dropout" and node.has(2):  # in training
            return {}
        if traits & (Trait.MOVEMENT | Trait.MEAN | Trait.VIEW) or node.op == "Cast":
            return self._carry(applied, known)
        if Trait.ELEMENTWISE in traits and len(node.shapes[0] or ()) == len(node.out_shapes[0] or ()):
            return {a: _evaluate(self.analysis, applied, v) for a, v in known.items()}
        if Trait.ZEROS in traits and self._fills_zeros(applied):
            return self._carry(applied, {a: np.where(v == 0, v, np.nan) for a, v in known.items()})
        return {}

    def _fills_zeros(self, applied: Applied) -> bool:
        """Whether a pooling, padding or resizing op puts nothing but zeros beyond the border."""
        node = applied.node
        if node.op == "Pad" and node.has(2):
            fill = self.vector(node.inputs[2], 1)
            return fill is not None and not fill.any()
        return not node.attrs.get("value", 0.0) and not node.attrs.get("extrapolation_value", 0.0)

    def _carry(self, applied: Applied, known: dict[int, Values]) -> dict[int, Values]:
        """Take constants to the axes of the output that are the same axis, or a product with it."""
        ins = [self.find(d) for d in applied.ins[0] or ()]
        outs = [self.find(d) for d in (applied.outs[0] if applied.outs else None) or ()]
        by_axis: dict[int, Values] = {}
        for axis, values in known.items():
            root = ins[axis]
            if ins.count(root) != 1:
                continue
            for at, out in enumerate(outs):
                factors = self.factors.get(out, [])
                if out == root and outs.count(out) == 1:
                    by_axis[at] = values
                elif factors.count(root) == 1:
                    sizes = [self.sizes[f] for f in factors]
                    shape = [-1 if f == root else 1 for f in factors]
                    by_axis[at] = np.broadcast_to(values.reshape(shape), sizes).ravel()
        return by_axis


def _sum(blocks: Array, x: Array) -> Array:
    """Sum ``(g, o, i, k)`` weights times ``(g, 1, i)`` constants over i and k; unknown constants count as zero."""
    x = np.nan_to_num(x, nan=0.0)
    nonzero = np.flatnonzero(x.any((0, 1)))
    if not nonzero.size:
        return np.zeros(blocks.shape[:2])
    return np.asarray((blocks[:, :, nonzero].astype(np.float64).sum(3) * x[:, :, nonzero]).sum(2))


def _evaluate(analysis: Analysis, applied: Applied, values: Values) -> Values:
    """Run an op that acts on each element by itself on constants, in onnxruntime."""
    from onnxprune.model import Model
    from onnxprune.runtime.session import RunError, open_session

    tracer, proto = analysis.tracer, onnx.NodeProto.FromString(applied.proto.SerializeToString())
    elem = tracer.types.get(applied.node.inputs[0], (0, None))[0]
    unknown = np.full(values.shape, np.nan)
    others = [(n, v) for n, v in zip(applied.node.inputs[1:], applied.node.values[1:], strict=True) if n]
    if elem not in FLOATS or any(v is None or v.size != 1 for _, v in others):
        return unknown
    proto.input[0], proto.output[0] = "x", "y"
    weights = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in others]
    ends = [helper.make_tensor_value_info(n, elem, [None]) for n in "xy"]
    graph = helper.make_graph([proto], "element", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=analysis.model.proto.opset_import, ir_version=8)
    finite = np.flatnonzero(np.isfinite(values))
    feed = values[finite].astype(helper.tensor_dtype_to_np_dtype(elem))
    try:
        unknown[finite] = np.asarray(open_session(Model.load(model)).run({"x": feed})["y"], np.float64)
    except RunError:
        return np.full(values.shape, np.nan)
    return np.where(np.isfinite(unknown), unknown, np.nan)
