"""How a layer's weight lies in the file: floats as they are, or integers on a grid.

A quantised weight is read as ``w = (q - z) s u`` with integers ``q`` of its type, a zero point ``z`` and a scale
``s`` of the tensor, of each index of an axis, or of each block along it, and one number ``u``. A fit sees ``w``; what
it gives is written as the nearest ``q``, with the scale and the zero point that are there. In steps of the grid,

    w in {step * k},    step = s u,    k = low - z ... high - z,

so zero lies on the grid whenever the zero point is of the type: `Grid` holds the step and both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.model import Model
from onnxprune.ops.packed import pack, unpack

__all__ = ["INTEGERS", "Codec", "Floats", "Grid", "Packed", "Quantised", "Rounded", "spread"]

Array = NDArray[Any]
Matrix = NDArray[np.float64]

_T = TensorProto
#: Types of weights and biases that lie on a grid, with both ends.
INTEGERS: dict[int, tuple[int, int]] = {
    _T.INT4: (-8, 7),
    _T.UINT4: (0, 15),
    _T.INT8: (-128, 127),
    _T.UINT8: (0, 255),
    _T.INT16: (-(1 << 15), (1 << 15) - 1),
    _T.UINT16: (0, (1 << 16) - 1),
    _T.INT32: (-(1 << 31), (1 << 31) - 1),
}

#: The greatest values of small floats, whose least ones are as far from zero.
SMALL: dict[int, float] = {
    _T.FLOAT8E4M3FN: 448.0, _T.FLOAT8E4M3FNUZ: 240.0, _T.FLOAT8E5M2: 57344.0, _T.FLOAT8E5M2FNUZ: 57344.0,
    _T.FLOAT4E2M1: 6.0,
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The values that weights may have: multiples of a step between two of them, each of the weights' shape."""

    step: NDArray[np.floating[Any]]
    low: NDArray[np.floating[Any]]
    high: NDArray[np.floating[Any]]

    def through(self, change: Callable[[Array], Array]) -> Grid:
        """Return the grid of weights that are moved, and multiplied by numbers, as ``change`` does it."""
        step, one, two = (np.asarray(change(part), np.float64) for part in (self.step, self.low, self.high))
        if step.min(initial=0.0) >= 0:  # what is spread over rows needs no memory of its own
            return Grid(step, one, two)
        return Grid(np.abs(step), np.minimum(one, two), np.maximum(one, two))

    def rows(self, index: int | NDArray[np.int64]) -> Grid:
        """Return the grid of rows of the weights."""
        return Grid(self.step[index], self.low[index], self.high[index])

    def in_floats(self) -> Grid:
        """Return it in 32 bits, for weights of that type."""
        step, low, high = (np.ascontiguousarray(p, np.float32) for p in (self.step, self.low, self.high))
        return Grid(step, low, high)

    def each(self) -> list[Grid]:
        """Return the grid of each index of the first axis."""
        return [self.rows(n) for n in range(len(self.step))]

    def nearest(self, values: Array) -> Array:
        """Return the nearest values of the grid, in the type of both."""
        out = np.zeros(np.shape(values), np.result_type(values, self.step))
        steps = np.divide(values, self.step, out=out, where=self.step > 0)
        return np.asarray(np.clip(np.rint(steps) * self.step, self.low, self.high))


class Codec(Protocol):
    """A tensor as a layer reads it, and as it lies in the file."""

    @property
    def name(self) -> str:
        """The tensor that holds the values."""

    @property
    def exact(self) -> bool:
        """Whether any value can be written."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """What belongs to it: the values, and what they are scaled by."""

    def shape(self, model: Model) -> tuple[int, ...]:
        """Return the shape that is read; each of its first axes is one of the stored tensor."""

    def read(self, model: Model) -> Matrix:
        """Return the values, in float64."""

    def grid(self, model: Model) -> Grid | None:
        """Return the grid of the values; None where any can be written."""

    def write(self, model: Model, values: Array) -> None:
        """Put values into a model: the nearest ones that can be stored."""


@dataclass(frozen=True)
class Floats:
    """A tensor of floats."""

    name: str
    exact: bool = True

    @property
    def tensors(self) -> tuple[str, ...]:
        """Itself."""
        return (self.name,)

    def shape(self, model: Model) -> tuple[int, ...]:
        """Return its shape."""
        return model.info(self.name).dims

    def read(self, model: Model) -> Matrix:
        """Return its values, in float64."""
        return np.asarray(model.weight(self.name), np.float64)

    def grid(self, model: Model) -> None:
        """Return None: any value can be written."""

    def write(self, model: Model, values: Array) -> None:
        """Put values into a model, in the type that it has."""
        old = model.weight(self.name)
        model.put(self.name, np.ascontiguousarray(values).reshape(old.shape).astype(old.dtype))


@dataclass(frozen=True)
class Quantised:
    """Integers on a grid.

    Attributes
    ----------
    name, scale, zero : str
        Weights of the model; without a zero point it is 0.
    axis, block : int
        Of scale and zero point where they are no single numbers; a block of 0 is one index.
    unit : float
        What the values are multiplied with besides.
    """

    name: str
    scale: str
    zero: str = ""
    axis: int = 0
    block: int = 0
    unit: float = 1.0
    exact: bool = False

    @property
    def tensors(self) -> tuple[str, ...]:
        """Values, scale and zero point."""
        return (self.name, self.scale, *([self.zero] if self.zero else []))

    def shape(self, model: Model) -> tuple[int, ...]:
        """Return the shape of the values."""
        return model.info(self.name).dims

    def ends(self, model: Model) -> tuple[int, int]:
        """Return the least and the greatest integer."""
        return INTEGERS[model.info(self.name).elem_type]

    def integers(self, model: Model) -> Array:
        """Return the values as they are stored, one each."""
        wide = model.info(self.name).elem_type == TensorProto.INT32
        return np.asarray(model.weight(self.name)).astype(np.int64 if wide else np.int32)

    def put(self, model: Model, integers: Array) -> None:
        """Store integers."""
        model.put(self.name, np.ascontiguousarray(integers.astype(model.weight(self.name).dtype)))

    def beside(self, model: Model, name: str) -> Array:
        """Return a scale or a zero point as it is stored."""
        return np.asarray(model.weight(name))

    def read(self, model: Model) -> Matrix:
        """Return the values, in float64."""
        scale, zero = self._step(model)
        return (self.integers(model) - zero) * scale

    def grid(self, model: Model) -> Grid:
        """Return the grid of the values."""
        (scale, zero), (low, high), shape = self._step(model), self.ends(model), self.shape(model)
        parts = (scale, (low - zero) * scale, (high - zero) * scale)
        step, low_end, high_end = (np.broadcast_to(np.asarray(p, np.float64), shape) for p in parts)
        return Grid(step, low_end, high_end)

    def write(self, model: Model, values: Array) -> None:
        """Put the nearest values of the grid into a model."""
        scale, zero = self._step(model)
        values = np.asarray(values, np.float64).reshape(self.shape(model))
        steps = np.divide(
            values, scale, out=np.zeros(values.shape), where=np.broadcast_to(scale != 0, values.shape)
        )
        self.put(model, np.clip(np.rint(steps) + zero, *self.ends(model)))

    def reach(self, model: Model) -> tuple[int, int]:
        """Return how many steps below and above zero are in use; seven bits may be, where the type has eight."""
        steps = self.integers(model) - self._step(model)[1]
        return max(-int(steps.min(initial=0)), 0), max(int(steps.max(initial=0)), 0)

    def stretch(self, model: Model, values: Array) -> None:
        """Give a model scales with which values lie between the ends that are in use, see `reach`; neither may be 0."""
        below, above = self.reach(model)
        values = np.asarray(values, np.float64).reshape(self.shape(model))
        need = np.maximum(values / above, -values / below) / self.unit
        old = np.asarray(model.weight(self.scale))
        new = self._most(need, model).reshape(old.shape)
        model.put(self.scale, np.where(new > 0, new, old).astype(old.dtype))

    def _most(self, values: Matrix, model: Model) -> Matrix:
        """Return the largest of the values that share a scale."""
        size = int(np.prod(model.info(self.scale).dims))
        if size == 1:
            return np.asarray(values.max(initial=0.0))
        if self.block:
            return np.maximum.reduceat(values, range(0, values.shape[self.axis], self.block), axis=self.axis)
        return np.asarray(values.max(axis=tuple(n for n in range(values.ndim) if n != self.axis)))

    def _step(self, model: Model) -> tuple[Matrix, Array]:
        """Return the step of the grid and the zero point, broadcast against the values."""
        dims = self.shape(model)
        scale = spread(self.beside(model, self.scale).astype(np.float64), dims, self.axis, self.block)
        if not self.zero:
            return scale * self.unit, np.zeros(())
        zero = self.beside(model, self.zero).astype(np.float64)
        return scale * self.unit, spread(zero, dims, self.axis, self.block)


@dataclass(frozen=True)
class Rounded(Quantised):
    """Floats that a QuantizeLinear in the graph puts on the grid, as training with quantisation leaves them."""

    def ends(self, model: Model) -> tuple[int, int]:
        """Return the least and the greatest integer."""
        return INTEGERS[model.info(self.zero).elem_type if self.zero else TensorProto.UINT8]

    def integers(self, model: Model) -> Array:
        """Return the values that the graph makes of the floats."""
        scale, zero = self._step(model)
        steps = np.rint(np.asarray(model.weight(self.name), np.float64) / scale)
        return np.asarray(np.clip(steps + zero, *self.ends(model)), np.int64)

    def put(self, model: Model, integers: Array) -> None:
        """Store the floats of integers."""
        scale, zero = self._step(model)
        model.put(self.name, ((integers - zero) * scale).astype(model.weight(self.name).dtype))


@dataclass(frozen=True)
class Packed(Quantised):
    """The weight of MatMulNBits: rows, blocks along K, and two or more values in a byte of a block, the first lowest.

    Attributes
    ----------
    bits : int
    rows, blocks, size : int
        The shape that is read: N, blocks, and values of a block.
    """

    bits: int = 4
    rows: int = 0
    blocks: int = 0
    size: int = 0

    def shape(self, model: Model) -> tuple[int, ...]:
        """Return the shape of the values; blocks are those that are there now."""
        return (*model.info(self.name).dims[:2], self.size)

    def ends(self, model: Model) -> tuple[int, int]:
        """Return the least and the greatest integer."""
        return 0, (1 << self.bits) - 1

    def integers(self, model: Model) -> Array:
        """Return the values, one each."""
        return unpack(np.asarray(model.weight(self.name)), self.bits)[..., : self.size].astype(np.int32)

    def put(self, model: Model, integers: Array) -> None:
        """Store integers, several in a byte."""
        model.put(self.name, pack(integers.astype(np.uint8), self.bits))

    def beside(self, model: Model, name: str) -> Array:
        """Return scales or zero points [N, blocks, 1]; without zero points they are half of the range."""
        rows, blocks, _ = self.shape(model)
        value = np.asarray(model.weight(name))
        if name == self.zero and self.bits < 8:
            value = unpack(value.reshape(rows, -1), self.bits)[:, :blocks]
        return value.reshape(rows, blocks, 1)

    def _most(self, values: Matrix, model: Model) -> Matrix:
        return np.asarray(values.max(axis=2))

    def _step(self, model: Model) -> tuple[Matrix, Array]:
        scale = self.beside(model, self.scale).astype(np.float64)
        half = np.full((1, 1, 1), float(1 << (self.bits - 1)))
        return scale * self.unit, self.beside(model, self.zero).astype(np.float64) if self.zero else half


def spread(value: Array, dims: tuple[int, ...], axis: int, block: int) -> Array:
    """Return a scale or a zero point, broadcast against the weight that it belongs to.

    Parameters
    ----------
    value : array
        One number, one for each index of the axis, or one for each block along it.
    dims : tuple of int
        Of the weight.
    axis, block : int
        A block of 0: there are none.
    """
    if value.size == 1:
        return value.reshape(())
    if block:
        return np.take(np.repeat(value, block, axis=axis), range(dims[axis]), axis=axis)
    shape = [1] * len(dims)
    shape[axis] = dims[axis]
    return value.reshape(shape)
