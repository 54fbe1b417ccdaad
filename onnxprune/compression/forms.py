"""How weights on a grid lie in a model that stock onnxruntime loads: integers, and the nodes that scale them.

A weight ``s k`` (`onnxprune.compression.rounding`) becomes

    k as int8 -> Cast -> Mul by s                                   in a byte each
    two k + 8 in a byte -> Cast -> Mul, Floor, Sub ... -> Mul by s   where all k are from -8 to 7

of which all is constant, so that onnxruntime computes the floats once, when it opens the model, and runs as fast as
before. (DequantizeLinear is kept for run time there: a ResNet-44 takes 1.7 times as long with it.) Both forms need
nothing newer than opset 7, so a model keeps its opset; from 21 on int4 is a type of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.files.protowalk import all_names
from onnxprune.graph.known import opsets_of
from onnxprune.model import Model

__all__ = ["HALF", "Stored", "dequantised", "has_int4", "step_of"]

Array = NDArray[Any]

#: What half a byte holds.
HALF = (-8, 7)
#: From this opset on Cast knows int4.
_INT4 = 21


def dequantised(k: Array, step: Array, dtype: np.dtype[Any]) -> Array:
    """Return the floats that the model computes."""
    return np.asarray(k.astype(dtype) * step.astype(dtype), dtype)


def step_of(each: Array) -> Array:
    """Return steps, one for each weight, with axes of length 1 where all are equal.

    Examples
    --------
    >>> step_of(np.array([[1.0, 1.0], [2.0, 2.0]])).tolist()
    [[1.0], [2.0]]
    """
    for axis in range(each.ndim):
        first = np.take(each, [0], axis)
        if np.array_equal(np.broadcast_to(first, each.shape), each):
            each = first
    return np.ascontiguousarray(each)


def has_int4(model: Model) -> bool:
    """Whether int4 is a type that a model's nodes take."""
    return opsets_of(model).get("", 1) >= _INT4


class Stored:
    """Puts weights on a grid into a model, in place.

    Parameters
    ----------
    model : Model
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.int4 = has_int4(model)
        self._constants: dict[tuple[float, str], str] = {}
        self._at = 0
        self._taken = set(all_names(model.proto))

    def put(self, name: str, k: Array, step: Array) -> int:
        """Let nodes compute a weight; return the bits that each of its values takes.

        Parameters
        ----------
        name : str
        k : int8 array
            Of the weight's shape.
        step : float array
            Broadcast against it.
        """
        model, dtype = self.model, np.asarray(self.model.weight(name)).dtype
        elem = helper.np_dtype_to_tensor_dtype(dtype)
        half = bool(k.size) and HALF[0] <= int(k.min()) and int(k.max()) <= HALF[1] and k.size % 2 == 0
        model.drop(name)
        self._forget(name)
        scale = self._add(f"{name}_scale", step.astype(dtype))
        nodes = self._nodes(name)
        if not half or self.int4:
            values = k.astype(ml_dtypes.int4) if half else k
            floats = nodes("Cast", [self._add(f"{name}_steps", values)], to=elem)
        else:
            floats = self._unpacked(nodes, name, k, dtype)
        nodes("Mul", [floats, scale], output=name)
        return 4 if half else 8

    def _unpacked(self, nodes: Callable[..., str], name: str, k: Array, dtype: np.dtype[Any]) -> str:
        pairs = (k.ravel().astype(np.int16) - HALF[0]).reshape(-1, 2)
        packed = self._add(f"{name}_steps", (16 * pairs[:, :1] + pairs[:, 1:]).astype(np.uint8))
        both = nodes("Cast", [packed], to=helper.np_dtype_to_tensor_dtype(dtype))
        shifted = nodes("Mul", [both, self._constant(1 / 16, dtype)])
        high = nodes("Floor", [shifted])
        above = nodes("Mul", [high, self._constant(16.0, dtype)])
        low = nodes("Sub", [both, above])
        joined = nodes("Concat", [high, low], axis=1)
        dims = self._add(f"{name}_dims", np.array(k.shape, np.int64))
        shaped = nodes("Reshape", [joined, dims])
        return nodes("Sub", [shaped, self._constant(float(-HALF[0]), dtype)])

    def _nodes(self, name: str) -> Callable[..., str]:
        """Return what adds a node at the beginning of the graph, and gives its output."""
        count = 0

        def add(op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
            nonlocal count
            count += 1
            made = output or self._free(f"{name}.{count}")
            node: NodeProto = helper.make_node(op, inputs, [made], **attributes)
            self.model.proto.graph.node.insert(self._at, node)
            self._at += 1
            return made

        return add

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _constant(self, value: float, dtype: np.dtype[Any]) -> str:
        key = value, dtype.str
        if key not in self._constants:
            self._constants[key] = self._add("steps_constant", np.array([value], dtype))
        return self._constants[key]

    def _add(self, name: str, array: Array) -> str:
        made = self.model.add(name, array)
        proto = self.model.proto
        if proto.ir_version < 4:  # there every initializer is a graph input as well
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            proto.graph.input.append(helper.make_tensor_value_info(made, kind, array.shape))
        return made

    def _forget(self, name: str) -> None:
        """Let a weight be no input of the graph any more, as all were before IR 4."""
        inputs = self.model.proto.graph.input
        for at in reversed([n for n, value in enumerate(inputs) if value.name == name]):
            del inputs[at]
