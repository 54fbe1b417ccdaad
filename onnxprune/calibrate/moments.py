"""Streamed second moments in float64: count, mean and centred Gram, never the samples themselves.

Rows arrive in blocks. A block is centred on its own mean before its Gram is taken, so float32 products lose nothing to
a large mean, and blocks are merged by the pairwise formula of Chan, Golub and LeVeque (The American Statistician 1983).
The result depends on the order of the blocks only: the same shards in the same order give the same bits.
"""

from __future__ import annotations

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

    def add(self, rows: NDArray[Any]) -> None:
        """Add rows.

        Parameters
        ----------
        rows : array [k, width]
            Any float type; float64 rows are multiplied in float64.

        Raises
        ------
        CalibrationError
            If a value isn't finite.
        """
        for first in range(0, len(rows), BLOCK):
            block = rows[first : first + BLOCK]
            if block.dtype not in (np.float32, np.float64):
                block = block.astype(np.float32)
            mean = _mean(block)
            centred = block - mean.astype(block.dtype)
            # what rounding of the mean to float32 left over is put back exactly below
            left = centred.mean(axis=0, dtype=np.float64)
            self._merge(len(block), mean, centred.T @ centred, left)

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
        """Add ``n`` rows: their mean, their Gram about it, and how far it lay beside the mean of the centred rows."""
        total = self.n + n
        shift = mean - self.mean
        step = max(CACHED // max(self.width, 1), 1)
        for first in range(0, self.width, step):  # a few rows at a time stay in the cache
            some = slice(first, first + step)
            part = gram[some].astype(np.float64)
            if left is not None:
                part -= n * np.multiply.outer(left[some], left)
            mine = self.gram[some]
            mine += part
            mine += np.multiply.outer(shift[some], shift * (self.n * n / total))
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

    def add(self, rows: NDArray[Any]) -> None:
        """Add rows.

        Parameters
        ----------
        rows : array [blocks, k, width]

        Raises
        ------
        CalibrationError
            If a value isn't finite.
        """
        if len(rows) == 1:  # one product of matrices, which knows that it is symmetric
            (only,) = self.parts
            only.add(rows[0])
            self.n, self.mean[0] = only.n, only.mean
            return
        for first in range(0, rows.shape[1], BLOCK):
            block = np.ascontiguousarray(rows[:, first : first + BLOCK].transpose(0, 2, 1))
            if block.dtype not in (np.float32, np.float64):
                block = block.astype(np.float32)
            mean = _mean(block, -1)
            block -= mean[:, :, None].astype(block.dtype)
            left, count = block.mean(axis=-1, dtype=np.float64), block.shape[-1]
            gram = np.matmul(block, block.transpose(0, 2, 1)).astype(np.float64)
            self._merge(count, mean, gram - count * left[:, :, None] * left[:, None, :])

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


def _mean(block: NDArray[Any], axis: int = 0) -> Matrix:
    mean: Matrix = block.mean(axis=axis, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise CalibrationError(
            "An activation holds NaN or infinity on the calibration samples; look for broken samples, "
            "or for preprocessing that the model doesn't expect."
        )
    return mean
