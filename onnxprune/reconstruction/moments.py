"""Streamed second moments in float64: count, mean and centred Gram, never the samples themselves.

A row is ``(x, y)``: d regressors, and O targets (none where only ``x`` counts). What a regression needs of it are the
sums of ``x x^T`` (d, d), ``x y^T`` (d, O) and of the squares of ``y`` (O,), never of ``y y^T``: a vocabulary of 50,000
targets takes d x O and not O x O. Two sets of rows with counts n1, n2, means m1, m2 and sums about their means C1, C2
merge as

    n = n1 + n2,    s = m2 - m1,    m = m1 + (n2 / n) s,    C = C1 + C2 + (n1 n2 / n) s s^T,

of which those entries are kept that C has.

Rows arrive in chunks. A chunk is centred before its Gram is taken, so float32 products lose nothing to a large mean:
on the mean of those before it, the first one on its own. A column of ones beside the centred rows makes the product
hold their sums too: they say how far that mean was off, and mean and Gram are put right by it. The result depends on
the order of the chunks only: the same shards in the same order give the same bits.

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

__all__ = ["Moments", "Stack", "check_finite"]

Matrix = NDArray[np.float64]

#: Rows whose products are summed in float32 before they are added up in float64.
CHUNK = 8192
#: Entries of a Gram that are worked on at a time.
CACHED = 1 << 14


@dataclass
class Moments:
    """Count, means and centred second moments of rows of ``width`` regressors and some targets.

    Attributes
    ----------
    width : int
        Regressors.
    n : int
        Rows seen.
    mean : float64[width + targets]
    gram : float64[width, width + targets]
        Sum over rows of ``(x - mean_x) (row - mean)^T``: divide by ``n`` for covariances.
    square : float64[targets]
        Sum over rows of ``(y - mean_y)^2``.
    """

    width: int
    n: int
    mean: Matrix
    gram: Matrix
    square: Matrix

    @classmethod
    def empty(cls, width: int, targets: int = 0) -> Moments:
        """Return the moments of no rows."""
        return cls(width, 0, np.zeros(width + targets), np.zeros((width, width + targets)), np.zeros(targets))

    @property
    def cov(self) -> Matrix:
        """float64[width, width], the covariance of the regressors (divided by ``n``)."""
        return self.gram[:, : self.width] / max(self.n, 1)

    def add(self, *parts: NDArray[Any]) -> None:
        """Add rows.

        Parameters
        ----------
        *parts : array [k, columns]
            The columns of the rows, from left to right, the targets last. Of any type; if one is float64 all are
            multiplied in float64, else in float32.

        Raises
        ------
        CalibrationError
            If a value isn't finite.
        """
        d, kind = self.width, _kind(parts)
        for first in range(0, len(parts[0]), CHUNK):
            chunk = [part[first : first + CHUNK] for part in parts]
            rows = np.empty((len(chunk[0]), len(self.mean) + 1), kind)
            mean = np.concatenate([_mean(part, 0, rows.dtype) for part in chunk]) if not self.n else None
            rough = self.mean.astype(kind) if mean is None else mean
            at = 0
            for part in chunk:  # centred and put side by side in one go, behind a column of ones
                columns = slice(at, at := at + part.shape[1])
                into = rows[:, columns.start + 1 : columns.stop + 1]
                np.subtract(part, rough[columns], out=into, casting="same_kind")
            rows[:, 0] = 1
            x, y = rows[:, : d + 1], rows[:, d + 1 :]
            with np.errstate(over="ignore", invalid="ignore"):  # what isn't finite is refused
                square, product = np.square(y).sum(axis=0, dtype=np.float64), x.T @ x
                cross = x.T @ y
            self._merge_product(len(rows), rough, (product, cross, square))

    def merge(self, other: Moments) -> None:
        """Add the rows of another shard.

        Raises
        ------
        ValueError
            If the widths differ.
        """
        if other.gram.shape != self.gram.shape:
            raise ValueError(
                f"moments of width {len(other.mean)} can't be added to moments of width {len(self.mean)}"
            )
        if other.n:
            grams = other.gram[:, : self.width], other.gram[:, self.width :]
            self._merge(other.n, other.mean, grams, other.square)

    def _merge_product(
        self, n: int, mean: NDArray[Any], products: tuple[NDArray[Any], NDArray[Any], Matrix]
    ) -> None:
        """Add ``n`` rows: what was taken from them, and the products of what was left, a column of ones in them."""
        product, cross, square = products
        left = np.concatenate([product[0, 1:], cross[0]]).astype(np.float64) / n
        check_finite(left)
        _check_squares(product.diagonal(), square)
        self._merge(n, mean + left, (product[1:, 1:], cross[1:]), square, left)

    def _merge(
        self,
        n: int,
        mean: Matrix,
        grams: tuple[NDArray[Any], NDArray[Any]],
        square: Matrix,
        left: Matrix | None = None,
    ) -> None:
        """Add ``n`` rows: their mean, and their sums about a point that lies ``left`` below it, or about the mean."""
        total, d = self.n + n, self.width
        shift = mean - self.mean
        sides, factors = [shift], [self.n * n / total]
        if left is not None:
            sides, factors = [shift, left], [self.n * n / total, -n]
        side = np.stack(sides)
        scaled = side.T * np.array(factors)
        self.square += square
        self.square += (scaled[d:] * side.T[d:]).sum(axis=1)
        step = max(CACHED // max(len(self.mean), 1), 1)
        for first in range(0, d, step):  # a few rows at a time stay in the cache
            stripe = slice(first, first + step)
            target = self.gram[stripe]
            target[:, :d] += grams[0][stripe]
            target[:, d:] += grams[1][stripe]
            target += scaled[:d][stripe] @ side
        self.mean = self.mean + shift * (n / total)
        self.n = total

    def copy(self) -> Moments:
        """Return an independent copy."""
        return Moments(self.width, self.n, self.mean.copy(), self.gram.copy(), self.square.copy())


@dataclass
class Stack:
    """Moments of equally wide rows of several blocks, seen together: a depthwise convolution has hundreds.

    Attributes
    ----------
    n : int
        Rows seen, of each block.
    mean : float64[blocks, width + targets]
    gram : float64[blocks, width, width + targets]
    square : float64[blocks, targets]
    """

    n: int
    mean: Matrix
    gram: Matrix
    square: Matrix

    @classmethod
    def empty(cls, blocks: int, width: int, targets: int = 0) -> Stack:
        """Return the moments of no rows."""
        whole = width + targets
        return cls(
            0, np.zeros((blocks, whole)), np.zeros((blocks, width, whole)), np.zeros((blocks, targets))
        )

    @property
    def parts(self) -> list[Moments]:
        """The moments of each block; they share the memory of these."""
        width = self.gram.shape[1]
        blocks = zip(self.mean, self.gram, self.square, strict=True)
        return [Moments(width, self.n, m, g, s) for m, g, s in blocks]

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
        blocks, whole = self.mean.shape
        width = self.gram.shape[1]
        for first in range(0, parts[0].shape[1], CHUNK):
            chunks = [part[:, first : first + CHUNK].transpose(0, 2, 1) for part in parts]
            count = chunks[0].shape[-1]
            rows = np.empty((blocks, whole + 1, count), _kind(parts))
            np.concatenate(
                chunks, axis=1, out=rows[:, :-1], casting="same_kind"
            )  # a column in one piece: they are short
            mean = _mean(rows[:, :-1], -1, rows.dtype)
            rows[:, :-1] -= mean[:, :, None]
            rows[:, -1] = 1
            with np.errstate(over="ignore", invalid="ignore"):
                product = np.matmul(rows[:, :width], rows.transpose(0, 2, 1)).astype(np.float64)
                squares = np.square(rows[:, width:-1]).sum(axis=-1, dtype=np.float64)
            _check_squares(np.diagonal(product, axis1=1, axis2=2), squares)
            left = rows[:, :-1].sum(axis=-1, dtype=np.float64) / count
            gram = product[:, :, :-1] - count * left[:, :width, None] * left[:, None, :]
            square = squares - count * left[:, width:] ** 2
            self._merge(count, mean + left, gram, square)

    def merge(self, other: Stack) -> None:
        """Add the rows of another shard."""
        if other.n:
            self._merge(other.n, other.mean, other.gram, other.square)

    def _merge(self, n: int, mean: Matrix, gram: Matrix, square: Matrix) -> None:
        total, width = self.n + n, self.gram.shape[1]
        shift = mean - self.mean
        factor = self.n * n / total
        self.gram += gram
        self.gram += shift[:, :width, None] * (shift[:, None, :] * factor)
        self.square += square + shift[:, width:] ** 2 * factor
        self.mean += shift * (n / total)
        self.n = total

    def copy(self) -> Stack:
        """Return an independent copy."""
        return Stack(self.n, self.mean.copy(), self.gram.copy(), self.square.copy())


def _kind(parts: Sequence[NDArray[Any]]) -> type[np.floating[Any]]:
    return np.float64 if any(part.dtype == np.float64 for part in parts) else np.float32


def _mean(rows: NDArray[Any], axis: int, kind: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(invalid="ignore", over="ignore"):
        mean: NDArray[Any] = rows.mean(axis=axis, dtype=kind)
    check_finite(mean)
    return mean


def check_finite(values: NDArray[Any]) -> None:
    """Refuse values that aren't finite.

    Raises
    ------
    CalibrationError
    """
    if not np.isfinite(values).all():
        raise CalibrationError(
            "An activation holds NaN or infinity on the calibration samples; look for broken samples, "
            "or for preprocessing that the model doesn't expect."
        )


def _check_squares(*squares: NDArray[Any]) -> None:
    """Refuse values whose squares aren't finite, though they are.

    Raises
    ------
    CalibrationError
    """
    if not all(np.isfinite(each).all() for each in squares):
        raise CalibrationError(
            "An activation is so large on the calibration samples, above 1e18, that its square has no value in floats; "
            "look for broken weights or samples, or for preprocessing that the model doesn't expect."
        )
