"""The data of one tensor, wherever it lies: in a mapped file, in bytes, or in an array.

Element types are ONNX's numbers (``onnx.TensorProto.FLOAT`` ...). Types of less than a byte are stored
packed.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import numpy_helper

from onnxprune.files.wire import RAW_DATA

__all__ = [
    "Array",
    "Payload",
    "bits",
    "decode",
    "encode",
    "from_array",
    "known_type",
    "nbytes",
    "positions",
    "take",
]

Array = NDArray[Any]

_T = onnx.TensorProto
_SUB_BYTE: dict[int, int] = {
    _T.UINT2: 2,
    _T.INT2: 2,
    _T.UINT4: 4,
    _T.INT4: 4,
    _T.FLOAT4E2M1: 4,
    _T.FLOAT6E2M3: 6,
    _T.FLOAT6E3M2: 6,
}


_KNOWN = frozenset(_T.DataType.values()) - {_T.UNDEFINED, _T.STRING}


def known_type(elem_type: int) -> bool:
    """Whether the installed onnx knows an element type, and it has a size (strings have none)."""
    return elem_type in _KNOWN


def bits(elem_type: int) -> int:
    """Bits that one element takes in storage."""
    if elem_type in _SUB_BYTE:
        return _SUB_BYTE[elem_type]
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize


def nbytes(dims: Iterable[int], elem_type: int) -> int:
    """Bytes that a tensor takes in storage, its last byte filled up."""
    return (math.prod(dims) * bits(elem_type) + 7) // 8


def decode(data: Array, dims: tuple[int, ...], elem_type: int) -> Array:
    """View stored bytes as an array; unpacks types of less than a byte.

    Parameters
    ----------
    data : uint8[n]
    dims : tuple of int
    elem_type : int

    Returns
    -------
    numpy.ndarray
        Of shape `dims`; a view where the type allows one.
    """
    if elem_type in _SUB_BYTE:
        return numpy_helper.to_array(_T(dims=dims, data_type=elem_type, raw_data=data.tobytes()))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    array = np.frombuffer(data, dtype=dtype).reshape(dims)
    return array.byteswap() if sys.byteorder == "big" else array


def encode(array: Array, elem_type: int) -> NDArray[np.uint8]:
    """The stored bytes of an array: contiguous, little-endian, packed; the inverse of `decode`."""
    if elem_type in _SUB_BYTE:
        return np.frombuffer(numpy_helper.from_array(array).raw_data, np.uint8)
    plain = np.ascontiguousarray(array)
    if sys.byteorder == "big":
        plain = plain.byteswap()
    return plain.reshape(-1).view(np.uint8)


def take(array: Array, cuts: Mapping[int, NDArray[np.int64]]) -> Array:
    """Keep some positions of some axes.

    Parameters
    ----------
    array : numpy.ndarray
    cuts : mapping
        Axis -> the positions to keep, in their order.
    """
    for axis, keep in sorted(cuts.items(), key=lambda cut: len(cut[1]) / max(array.shape[cut[0]], 1)):
        array = np.take(array, keep, axis=axis)
    return array


@dataclass(frozen=True, eq=False)
class Payload:
    """The data of a tensor, uncut, and what is to be kept of it.

    Attributes
    ----------
    data : uint8[n]
        The stored bytes; a view into a mapped file, mostly.
    dims : tuple of int
        Of the uncut tensor.
    elem_type : int
    slot : int
        The field of TensorProto that holds the data in a file.
    cuts : mapping
        Axis -> positions to keep.
    """

    data: NDArray[np.uint8]
    dims: tuple[int, ...]
    elem_type: int
    slot: int = RAW_DATA
    cuts: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)
    _aligned: list[weakref.ref[Array]] = field(default_factory=list, repr=False)

    @property
    def kept_dims(self) -> tuple[int, ...]:
        """Dimensions after the cuts."""
        return tuple(len(self.cuts[a]) if a in self.cuts else d for a, d in enumerate(self.dims))

    @property
    def nbytes(self) -> int:
        """Bytes in storage, after the cuts."""
        return nbytes(self.kept_dims, self.elem_type) if self.cuts else len(self.data)

    def _whole(self) -> Array:
        if self._aligned and (known := self._aligned[0]()) is not None:
            return known
        array = decode(self.data, self.dims, self.elem_type)
        if array.flags.aligned:
            return array
        # Weights inside of a model file lie anywhere, and numpy would copy them at every operation.
        # Copied once, they're shared for as long as somebody holds them.
        array = array.copy()
        self._aligned[:] = [weakref.ref(array)]
        return array

    def array(self) -> Array:
        """The tensor after the cuts, read-only."""
        array = take(self._whole(), self.cuts)
        view = array.view()
        view.flags.writeable = False
        return view

    def stored(self) -> NDArray[np.uint8]:
        """The bytes to store, after the cuts."""
        return encode(self.array(), self.elem_type) if self.cuts else self.data

    def cut(self, cuts: Mapping[int, NDArray[np.int64]]) -> Payload:
        """The same data with more cuts; positions count after the cuts already made."""
        merged = dict(self.cuts)
        for axis, keep in cuts.items():
            merged[axis] = self.cuts[axis][keep] if axis in self.cuts else keep
        return Payload(self.data, self.dims, self.elem_type, RAW_DATA, merged, self._aligned)


def from_array(array: Array, elem_type: int) -> Payload:
    """Hold an array."""
    return Payload(encode(array, elem_type), array.shape, elem_type)


def positions(axis: int, kept: ArrayLike, dims: tuple[int, ...], name: str) -> tuple[int, NDArray[np.int64]]:
    """Return an axis of a weight, counted from the front, and the positions to keep as int64.

    Raises
    ------
    ValueError
        If there is no such axis, or a position is out of range.
    """
    keep = np.asarray(kept, dtype=np.int64)
    if not -len(dims) <= axis < len(dims):
        raise ValueError(f"weight {name!r} has dimensions {dims}, so no axis {axis}")
    if keep.ndim != 1 or (len(keep) and not 0 <= keep.min() <= keep.max() < dims[axis]):
        raise ValueError(
            f"positions to keep on axis {axis} of weight {name!r} must be a list of numbers in "
            f"0 .. {dims[axis] - 1}"
        )
    return axis % len(dims), keep
