"""Streamed second moments in float64: count, mean and centred Gram, never the samples themselves.

Rows arrive in blocks. A block is centred on its own mean before its Gram is taken, so float32 products lose nothing to
a large mean. The mean is a rough one, summed in the rows' own type: the sum of the centred rows, which are small, then
says how far it was off, and mean and Gram are put right by that. Blocks are merged by the pairwise formula of Chan,
Golub and LeVeque (The American Statistician 1983). The result depends on the order of the blocks only: the same shards
in the same order give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError

__all__ = ["Moments", "Stack"]

Matrix = NDArray[np.float64]

#: Rows whose products are summed in float32 before they are added up in float64.
BLOCK = 8192
#: Entries of a Gram that are worked on at a time.
CACHED = 1 << 14


@dataclass
class Moments:
    """Count, mean and centred Gram of rows of length ``width``.

    Attributes
    ----------
    width : int
    n : int
        Rows seen.
    mean : float64[width]
    gram : float64[width, width]
        Sum over rows of ``(row - mean) (row - mean)^T``: divide by ``n`` for a covariance.
    """

    width: int
    n: int
    mean: Matrix
    gram: Matrix

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Return the moments of no rows."""
        return cls(width, 0, np.zeros(width), np.zeros((width, width)))

    @property
    def cov(self) -> Matrix:
        """float64[width, width], the covariance (divided by ``n``)."""
        return self.gram / max(self.n, 1)

    def add(self, *parts: NDArray[Any]) -> None:
        """Add rows.

        Parameters
        ----------
        *parts : array [k, columns]
            The columns of the rows, from left to right, ``width`` in all. Of any type; if one is float64 all are
            multiplied in float64, else in float32.

        Raises
        ------
        CalibrationError
            If a value isn't finite.
        """
        kind = _kind(parts)
        for first in range(0, len(parts[0]), BLOCK):
            block = [part[first : first + BLOCK].astype(kind, copy=False) for part in parts]
            means = [_checked(_sum(part) / len(part)) for part in block]
            rows = np.empty((len(block[0]), self.width), kind)
            at = 0
            for part, mean in zip(block, means, strict=True):  # centred and put side by side in one go
                np.subtract(part, mean, out=rows[:, at : at + len(mean)])
                at += len(mean)
            left = _sum(rows).astype(np.float64) / len(rows)
            self._merge(len(rows), np.concatenate(means) + left, rows.T @ rows, left)

    def merge(self, other: Moments) -> None:
        """Add the rows of another shard.

        Raises
        ------
        ValueError
            If the widths differ.
        """
        if other.width != self.width:
            raise ValueError(
                f"moments of width {other.width} can't be added to moments of width {self.width}"
            )
        if other.n:
            self._merge(other.n, other.mean, other.gram)

    def _merge(self, n: int, mean: Matrix, gram: NDArray[Any], left: Matrix | None = None) -> None:
        """Add ``n`` rows: their mean, and their Gram about a point that lies ``left`` below it, or about the mean."""
        total = self.n + n
        shift = mean - self.mean
        sides, factors = [shift], [self.n * n / total]
        if left is not None:
            sides, factors = [shift, left], [self.n * n / total, -n]
        side = np.stack(sides)
        scaled = side.T * np.array(factors)
        step = max(CACHED // max(self.width, 1), 1)
        for first in range(0, self.width, step):  # a few rows at a time stay in the cache
            some = slice(first, first + step)
            mine = self.gram[some]
            mine += gram[some]
            mine += scaled[some] @ side
        self.mean = self.mean + shift * (n / total)
        self.n = total

    def copy(self) -> Moments:
        """Return an independent copy."""
        return Moments(self.width, self.n, self.mean.copy(), self.gram.copy())

    def save(self, path: str | Path) -> None:
        """Write to an .npz file."""
        np.savez(path, n=np.int64(self.n), mean=self.mean, gram=self.gram)

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what `save` wrote.

        Raises
        ------
        CalibrationError
            If the file holds no moments.
        """
        try:
            with np.load(path) as found:
                n, mean, gram = int(found["n"]), found["mean"], found["gram"]
        except (OSError, ValueError, KeyError) as error:
            raise CalibrationError(f"{str(path)!r} holds no saved moments ({error}).") from error
        if mean.ndim != 1 or gram.shape != (mean.size, mean.size) or n < 0:
            raise CalibrationError(f"{str(path)!r} holds no saved moments: their sizes don't agree.")
        return cls(mean.size, n, mean, gram)


@dataclass
class Stack:
    """Moments of equally wide rows of several blocks, seen together: a depthwise convolution has hundreds.

    Attributes
    ----------
    n : int
        Rows seen, of each block.
    mean : float64[blocks, width]
    gram : float64[blocks, width, width]
    """

    n: int
    mean: Matrix
    gram: Matrix

    @classmethod
    def empty(cls, blocks: int, width: int) -> Stack:
        """Return the moments of no rows."""
        return cls(0, np.zeros((blocks, width)), np.zeros((blocks, width, width)))

    @property
    def parts(self) -> list[Moments]:
        """The moments of each block; they share the memory of these."""
        width = self.mean.shape[1]
        return [Moments(width, self.n, m, g) for m, g in zip(self.mean, self.gram, strict=True)]

    def add(self, *parts: NDArray[Any]) -> None:
        """Add rows.

        Parameters
        ----------
        *parts : array [blocks, k, columns]
            As for `Moments.add`.

        Raises
        ------
        CalibrationError
            If a value isn't finite.
        """
        if len(self.mean) == 1:  # one product of matrices, which knows that it is symmetric
            (only,) = self.parts
            only.add(*(part[0] for part in parts))
            self.n, self.mean[0] = only.n, only.mean
            return
        kind = _kind(parts)
        for first in range(0, parts[0].shape[1], BLOCK):
            some = [part[:, first : first + BLOCK].transpose(0, 2, 1) for part in parts]
            rows = np.concatenate(some, axis=1, dtype=kind)  # each column in one piece: they are short
            count = rows.shape[-1]
            mean = _checked(_sum(rows.transpose(2, 0, 1)) / count)
            rows -= mean[:, :, None]
            left = _sum(rows.transpose(2, 0, 1)).astype(np.float64) / count
            gram = np.matmul(rows, rows.transpose(0, 2, 1)).astype(np.float64)
            self._merge(count, mean + left, gram - count * left[:, :, None] * left[:, None, :])

    def merge(self, other: Stack) -> None:
        """Add the rows of another shard."""
        if other.n:
            self._merge(other.n, other.mean, other.gram)

    def _merge(self, n: int, mean: Matrix, gram: Matrix) -> None:
        total = self.n + n
        shift = mean - self.mean
        self.gram += gram
        self.gram += shift[:, :, None] * (shift[:, None, :] * (self.n * n / total))
        self.mean += shift * (n / total)
        self.n = total

    def copy(self) -> Stack:
        """Return an independent copy."""
        return Stack(self.n, self.mean.copy(), self.gram.copy())


def _kind(parts: Sequence[NDArray[Any]]) -> type[np.floating[Any]]:
    return np.float64 if any(part.dtype == np.float64 for part in parts) else np.float32


def _sum(rows: NDArray[Any]) -> NDArray[Any]:
    """Sum over the first axis: as a product several times faster than numpy's sum of columns."""
    with np.errstate(invalid="ignore", over="ignore"):  # what isn't finite is refused afterwards
        return np.tensordot(np.ones(len(rows), rows.dtype), rows, 1)


def _checked(mean: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(mean).all():
        raise CalibrationError(
            "An activation holds NaN or infinity on the calibration samples; look for broken samples, "
            "or for preprocessing that the model doesn't expect."
        )
    return mean
