"""Whole numbers of fewer than 8 bits that lie several in a byte, the first in the lowest bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["holds", "pack", "packed_bits", "repack", "unpack"]

Array = NDArray[Any]
#: Attributes of a node -> input slot -> bits of each number that lies in the bytes there.
Bits: TypeAlias = Callable[[Mapping[str, Any]], Mapping[int, int]]
_BITS: dict[tuple[str, str], Bits] = {}


def holds(name: str, domain: str = "") -> Callable[[Bits], Bits]:
    """Register which inputs of an op hold several numbers a byte, where their type is one of whole bytes."""

    def register(bits: Bits) -> Bits:
        _BITS[domain, name] = bits
        return bits

    return register


def packed_bits(name: str, domain: str) -> Bits | None:
    """Return what says how many bits the numbers in the bytes of an op's inputs have; None: they are bytes."""
    return _BITS.get((domain, name))


def unpack(data: Array, bits: int) -> Array:
    """Return the numbers of the bytes along the last axis, one each.

    Examples
    --------
    >>> unpack(np.asarray([0x21, 0x03], np.uint8), 4).tolist()
    [1, 2, 3, 0]
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((data[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(*data.shape[:-1], -1)


def pack(values: Array, bits: int) -> Array:
    """Return numbers, several in a byte; where the last byte isn't full, its rest is zero.

    Examples
    --------
    >>> pack(np.asarray([1, 2, 3], np.uint8), 4).tolist()
    [33, 3]
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    short = -values.shape[-1] % len(shifts)
    if short:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], short), values.dtype)], axis=-1)
    parts = values.reshape(*values.shape[:-1], -1, len(shifts)) << shifts
    return np.asarray(np.bitwise_or.reduce(parts, axis=-1), np.uint8)


def repack(data: Array, bits: int, count: int, index: NDArray[np.int64]) -> Array:
    """Return rows of packed numbers with only some numbers of each; a flat array of rows stays flat.

    Parameters
    ----------
    data : uint8 array
        Rows of whole bytes.
    bits : int
    count : int
        How many numbers a row has.
    index : int64 array
        Which of them stay, in the order that they shall have.

    Examples
    --------
    >>> repack(np.asarray([0x21, 0x03, 0x54, 0x06], np.uint8), 4, 3, np.asarray([0, 2])).tolist()
    [49, 100]
    """
    rows = data.reshape(-1, -(-count * bits // 8))
    new = pack(unpack(rows, bits)[:, index], bits)
    return new.reshape(-1) if data.ndim == 1 else new.reshape(*data.shape[:-1], -1)
