"""Streamed second moments in float64: count, mean and centred Gram, never the samples themselves.

Two sets of rows of length d, with counts n1, n2, means m1, m2 (d,) and Grams about their means C1, C2 (d, d), merge as

    n = n1 + n2,    s = m2 - m1,    m = m1 + (n2 / n) s,    C = C1 + C2 + (n1 n2 / n) s s^T.

Rows arrive in chunks. A chunk is centred on its own mean before its Gram is taken, so float32 products lose nothing to
a large mean. That mean is a rough one, summed in the type of the rows. A column of ones beside the centred rows makes
the product hold their sums too: they say how far the mean was off, and mean and Gram are put right by that. The result
depends on the order of the chunks only: the same shards in the same order give the same bits.

References
----------
Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 37 (1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError

__all__ = ["Moments", "Stack"]

Matrix = NDArray[np.float64]

#: Rows whose products are summed in float32 before they are added up in float64.
CHUNK = 8192
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
        for first in range(0, len(parts[0]), CHUNK):
            chunk = [part[first : first + CHUNK] for part in parts]
            rows = np.empty((len(chunk[0]), self.width + 1), _kind(parts))
            mean = np.empty(self.width, rows.dtype)
            at = 0
            for part in chunk:  # centred and put side by side in one go
                columns = slice(at, at := at + part.shape[1])
                mean[columns] = _mean(part, 0, rows.dtype)
                np.subtract(part, mean[columns], out=rows[:, columns], casting="same_kind")
            rows[:, -1] = 1
            self._merge_product(len(rows), mean, rows.T @ rows)

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

    def _merge_product(self, n: int, mean: NDArray[Any], product: NDArray[Any]) -> None:
        """Add ``n`` rows: what was taken from them, and the product of what was left, a column of ones behind it."""
        left = product[-1, :-1].astype(np.float64) / n
        self._merge(n, mean + left, product[:-1, :-1], left)

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
            stripe = slice(first, first + step)
            target = self.gram[stripe]
            target += gram[stripe]
            target += scaled[stripe] @ side
        self.mean = self.mean + shift * (n / total)
        self.n = total

    def copy(self) -> Moments:
        """Return an independent copy."""
        return Moments(self.width, self.n, self.mean.copy(), self.gram.copy())


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
        blocks, width = self.mean.shape
        for first in range(0, parts[0].shape[1], CHUNK):
            chunks = [part[:, first : first + CHUNK].transpose(0, 2, 1) for part in parts]
            count = chunks[0].shape[-1]
            rows = np.empty((blocks, width + 1, count), _kind(parts))
            np.concatenate(
                chunks, axis=1, out=rows[:, :-1], casting="same_kind"
            )  # a column in one piece: they are short
            mean = _mean(rows[:, :-1], -1, rows.dtype)
            rows[:, :-1] -= mean[:, :, None]
            rows[:, -1] = 1
            product = np.matmul(rows, rows.transpose(0, 2, 1)).astype(np.float64)
            left = product[:, -1, :-1] / count
            gram = product[:, :-1, :-1] - count * left[:, :, None] * left[:, None, :]
            self._merge(count, mean + left, gram)

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


def _mean(rows: NDArray[Any], axis: int, kind: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(invalid="ignore", over="ignore"):
        mean: NDArray[Any] = rows.mean(axis=axis, dtype=kind)
    if not np.isfinite(mean).all():
        raise CalibrationError(
            "An activation holds NaN or infinity on the calibration samples; look for broken samples, "
            "or for preprocessing that the model doesn't expect."
        )
    return mean
