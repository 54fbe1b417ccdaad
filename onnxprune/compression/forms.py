"""How weights on a grid lie in a model that stock onnxruntime loads: integers, and the nodes that scale them.

A weight ``s k`` (`onnxprune.compression.rounding`) becomes

    k as int8 -> Cast -> Mul by s                               a value in each byte
    bytes -> Cast -> Div, Floor, Mul, Sub, Add -> Mul by s      two to five values in each, where L^m <= 256

of which all is constant, so that onnxruntime computes the floats once, when it opens the model, and runs as fast as
before. (DequantizeLinear is kept for run time there: a ResNet-44 takes 1.7 times as long with it.) Both forms need
nothing newer than opset 7, so a model keeps its opset; from 21 on int4 is a type of its own. Several values in a byte
are digits of a number whose base is the number of levels ``L``: an entropy coder that spends a bit on each byte at
least comes near the entropy then, also where most weights are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.files.protowalk import all_names
from onnxprune.graph.known import opsets_of
from onnxprune.model import Model

__all__ = ["DIGITS", "HALF", "Stored", "dequantised", "digits", "has_int4", "step_of", "stored_step"]

Array = NDArray[Any]

#: How many values may share a byte, and the largest weight whose ways to share it are tried, in values.
DIGITS, MOST_TRIED = (5, 4, 3, 2, 1), 1 << 18
#: Bytes of the nodes that take bytes apart, coded.
APART = 90
#: What half a byte holds.
HALF = (-8, 7)
#: From this opset on Cast knows int4.
_INT4 = 21


def dequantised(k: Array, step: Array, dtype: np.dtype[Any]) -> Array:
    """Return the floats that the model computes."""
    return np.asarray(k.astype(dtype) * step.astype(dtype), dtype)


def stored_step(step: Array, dtype: np.dtype[Any]) -> Array:
    """Return steps in a weight's type, none of them zero."""
    made = step.astype(dtype)
    return np.where(made == 0, np.finfo(dtype).tiny, made).astype(dtype)


def steps_in(values: Array, step: Array) -> Array:
    """Return the whole numbers of steps, int8, that make up the floats of a weight."""
    k = np.empty(values.shape, np.int8)
    for at in range(len(values)):
        size = step[at] if len(step) > 1 else step[0]
        k[at] = np.rint(values[at].astype(np.float32) / size.astype(np.float32))
    return k


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


def digits(k: Array, each: int, low: int, high: int) -> Array:
    """Return whole numbers as bytes, uint8[n, 1], so many in each: digits of a number, the first the lowest."""
    rows, packed = k.reshape(-1, each), np.zeros(k.size // each, np.uint8)
    for j in reversed(range(each)):
        packed = packed * np.uint8(high - low + 1) + (rows[:, j].astype(np.int16) - low).astype(np.uint8)
    return packed[:, None]


class Stored:
    """Puts weights on a grid into a model, in place.

    Attributes
    ----------
    model : Model
    data : dict
        Weight -> the initializer that holds its numbers of steps.
    coded : callable or None
        Bytes -> how many an entropy coder makes of them, where one follows.
    """

    int4: bool
    coded: Callable[[bytes], int] | None

    def __init__(self, model: Model, coded: Callable[[bytes], int] | None = None) -> None:
        self.model = model
        self.int4, self.coded = has_int4(model), coded
        self.data: dict[str, str] = {}
        self._constants: dict[tuple[tuple[float, ...], str], str] = {}
        self._at = 0
        self._taken = set(all_names(model.proto))

    def put(self, name: str, k: Array | None, step: Array) -> float:
        """Let nodes compute a weight; return the bits that each of its values takes.

        Parameters
        ----------
        name : str
        k : int8 array or None
            Of the weight's shape; None where the weight lies on the grid already.
        step : float array
            Broadcast against it.
        """
        model, dtype = self.model, np.asarray(self.model.weight(name)).dtype
        if k is None:
            k = steps_in(np.asarray(model.weight(name)), step)
        low, high = int(k.min(initial=0)), int(k.max(initial=0))
        each = self._per_byte(k, low, high)
        model.drop(name)
        self._forget(name)
        scale = self._add(f"{name}_scale", step.astype(dtype))
        nodes = self._nodes(name)
        if each > 1 and not (each == 2 and self.int4 and HALF[0] <= low and high <= HALF[1]):
            floats = self._unpacked(nodes, name, k, each, low, high, dtype)
        else:
            self.data[name] = self._add(f"{name}_steps", k.astype(ml_dtypes.int4) if each > 1 else k)
            floats = nodes("Cast", [self.data[name]], to=helper.np_dtype_to_tensor_dtype(dtype))
        nodes("Mul", [floats, scale], output=name)
        return 8 / each

    def together(self) -> None:
        """Let the numbers of steps lie behind each other, where nothing is between their codes."""
        tensors = self.model.proto.graph.initializer
        last = set(self.data.values())
        ordered = sorted(tensors, key=lambda tensor: tensor.name in last)
        copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in ordered]
        del tensors[:]
        tensors.extend(copies)
        self.model.refresh()

    def _per_byte(self, k: Array, low: int, high: int) -> int:
        """Return how many values share a byte: the most, or where the file is coded, what it codes best."""
        able = [m for m in DIGITS if (high - low + 1) ** m <= 256 and k.size % m == 0]
        if self.coded is None or len(able) == 1 or k.size > MOST_TRIED:
            return able[0]
        coded = self.coded
        return min(able, key=lambda m: coded(digits(k, m, low, high).tobytes()) + APART * (m > 1))

    def _unpacked(
        self,
        nodes: Callable[..., str],
        name: str,
        k: Array,
        each: int,
        low: int,
        high: int,
        dtype: np.dtype[Any],
    ) -> str:
        """Add nodes that take bytes apart: ``k_j = floor(byte / L^j) - L floor(byte / L^(j+1)) + low``."""
        levels = high - low + 1
        powers = [float(levels**j) for j in range(each + 1)]
        self.data[name] = self._add(f"{name}_steps", digits(k, each, low, high))
        whole = nodes("Cast", [self.data[name]], to=helper.np_dtype_to_tensor_dtype(dtype))
        shifted, next_ = (
            nodes("Floor", [nodes("Div", [whole, self._constant(part, dtype)])])
            for part in (powers[:-1], powers[1:])
        )
        above = nodes("Mul", [next_, self._constant([float(levels)], dtype)])
        apart = nodes("Sub", [shifted, above])
        dims = self._add(f"{name}_dims", np.array(k.shape, np.int64))
        shaped = nodes("Reshape", [apart, dims])
        return nodes("Add", [shaped, self._constant([float(low)], dtype)])

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

    def _constant(self, values: Sequence[float], dtype: np.dtype[Any]) -> str:
        key = tuple(values), dtype.str
        if key not in self._constants:
            self._constants[key] = self._add("steps_constant", np.array(values, dtype))
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
