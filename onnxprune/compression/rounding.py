"""Weights to whole steps of a grid, where what is lost and the bits that it takes are weighed against each other.

For blocks of weights ``w`` (B, d, O), moments ``H`` (B, d, d) with a ridge, a step ``s`` and a price ``p`` of a bit,
look for whole numbers ``k`` (B, d, O) with a small

    sum over outputs of (s k - w)^T H (s k - w)  +  p * sum of l(k),    l(k) = -log2(share of k among all),

so what is cheap to code, zero above all, is taken where it costs little: zeros need no pattern of their own. ``l`` is
what the last round gave. First by error feedback, one weight of each output after the other, with ``U`` upper
triangular and ``U^T U = H^-1``:

    k_i = argmin_k (s k - w_i)^2 / U_ii^2 + p l(k),    w_j <- w_j - (w_i - s k_i) U_ij / U_ii    for j > i,

the weights of the strongest inputs first, so that all others may make up for them; then by coordinate descent with
``r = H (w - s k)``:

    k_i <- argmin_k H_ii (s k - s k_i - r_i / H_ii)^2 + p l(k).

References
----------
Frantar et al., "GPTQ", ICLR 2023, section 3.3, and "Optimal Brain Compression", arXiv 2208.11580: the feedback. Chou,
Effros and Gray, "Entropy-constrained vector quantization", IEEE Trans. ASSP 37 (1989): the price of a bit. Wiedemann et
al., "DeepCABAC", arXiv 1907.11900: the same for networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.sparsity.triangular import factor_of_inverse

__all__ = ["MOST", "Alone", "Ends", "Rounder", "bits_of", "counts", "pieces"]

Matrix = NDArray[np.float64]
Weights = NDArray[np.floating]
Whole = NDArray[np.int8]
Ends = tuple[int, int]

#: Steps on either side of zero that a byte holds.
MOST = 127
ROUNDS, SWEEPS, PIECE = 2, 1, 64
#: Entries that are rounded at a time where no weight heeds another.
_AT_ONCE = 1 << 20


def counts(k: NDArray[Any]) -> NDArray[np.int64]:
    """Return how often each whole number from -MOST-1 to MOST comes, int64[2 MOST + 2]."""
    flat, total = k.reshape(-1), np.zeros(2 * MOST + 2, np.int64)
    for first in range(0, flat.size, _AT_ONCE):
        piece = flat[first : first + _AT_ONCE].astype(np.int64) + MOST + 1
        total += np.bincount(piece, minlength=total.size)
    return total


def bits_of(count: NDArray[np.int64]) -> float:
    """Return the bits that whole numbers take by an ideal coder which knows how often each of them comes."""
    count = count[count > 0]
    return float(-(count * np.log2(count / max(count.sum(), 1))).sum())


def _lengths(k: NDArray[Any]) -> Matrix:
    """Return the bits of each number from -MOST-1 to MOST."""
    count = counts(k) + 0.1
    return np.asarray(-np.log2(count / count.sum()))


def _choose(a: Matrix, weight: Matrix | float, cost: Matrix, ends: Ends) -> Matrix:
    """Return whole numbers with the least ``weight (k - a)^2 + cost(k)``: the nearest, the next to zero, or zero."""
    low, high = ends
    near = np.clip(np.rint(a), low, high)
    best = near
    least = weight * np.square(a - near) + cost[near.astype(np.int64) + MOST + 1]
    for k in (near - np.sign(near), np.zeros_like(near)):
        price = weight * np.square(a - k) + cost[k.astype(np.int64) + MOST + 1]
        better = price < least
        best, least = np.where(better, k, best), np.where(better, price, least)
    return best


@dataclass(frozen=True)
class Rounder:
    """Rounds weights of one layer.

    Attributes
    ----------
    h : float64[B, d, d]
        Moments of its inputs, with a ridge.
    judge : float64[B, d, d] or None
        Moments of other samples, which losses are taken from; None for the same.
    """

    h: Matrix
    judge: Matrix | None = None

    @property
    def diagonal(self) -> Matrix:
        """float64[B, d], the strength of each input."""
        return np.diagonal(self.h, axis1=1, axis2=2)

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """int64[B, d], the strongest input first."""
        return np.argsort(-self.diagonal, axis=1, kind="stable")

    @cached_property
    def _ordered(self) -> Matrix:
        """The moments in that order."""
        at = self._order
        rows = np.take_along_axis(self.h, at[:, :, None], axis=1)
        return np.take_along_axis(rows, at[:, None, :], axis=2)

    @cached_property
    def _factor(self) -> tuple[Matrix, Matrix]:
        """The factor with rows divided by their diagonal, and ``1 / U_ii^2``."""
        u = np.stack([factor_of_inverse(h) for h in self._ordered])
        diagonal = np.diagonal(u, axis1=1, axis2=2).copy()
        u /= diagonal[:, :, None]
        return u, 1 / np.square(diagonal)

    def loss(self, gap: Weights) -> float:
        """Return ``sum of gap^T H gap`` of a gap [B, d, O]."""
        return float(np.einsum("bij,bij->", gap, (self.h if self.judge is None else self.judge) @ gap))

    def steps(self, w: Weights, step: Matrix, price: float, ends: Ends) -> Whole:
        """Return whole numbers ``k``, int8[B, d, O], for weights ``w``.

        Parameters
        ----------
        w : float64[B, d, O]
        step : float64
            Broadcast against ``w``, but the same for all weights of an output.
        price : float
            Of a bit, in the unit of `loss`.
        ends : pair of int
            The least and the greatest ``k``.
        """
        a = np.take_along_axis(w / step, self._order[:, :, None], axis=1)
        k = np.clip(np.rint(a), *ends)
        unit = np.broadcast_to(np.square(step), (len(w), 1, w.shape[2]))[:, 0]
        for _ in range(ROUNDS if price else 1):
            k = self._fed_back(a, unit, price * _lengths(k), ends)
        for _ in range(SWEEPS):
            k = self._descended(a, k, unit, price * _lengths(k), ends)
        whole = np.empty(k.shape, np.int8)
        np.put_along_axis(whole, self._order[:, :, None], k.astype(np.int8), axis=1)
        return whole

    def _fed_back(self, a: Matrix, unit: Matrix, cost: Matrix, ends: Ends) -> Matrix:
        u, weight = self._factor
        a, k = a.copy(), np.zeros_like(a)
        for first in range(0, a.shape[1], PIECE):
            piece = slice(first, min(first + PIECE, a.shape[1]))
            gap = np.zeros_like(a[:, piece])
            for i in range(piece.start, piece.stop):
                k[:, i] = _choose(a[:, i], unit * weight[:, i, None], cost, ends)
                gap[:, i - first] = a[:, i] - k[:, i]
                rest = slice(i + 1, piece.stop)
                a[:, rest] -= u[:, i, rest, None] * gap[:, i - first, None]
            left = slice(piece.stop, None)
            a[:, left] -= u[:, piece, left].transpose(0, 2, 1) @ gap
        return k

    def _descended(self, a: Matrix, k: Matrix, unit: Matrix, cost: Matrix, ends: Ends) -> Matrix:
        h, k = self._ordered, k.copy()
        diagonal = np.diagonal(h, axis1=1, axis2=2)
        rest = h @ (a - k)
        for first in range(0, a.shape[1], PIECE):
            piece = slice(first, min(first + PIECE, a.shape[1]))
            inner, own, moved = h[:, piece, piece], rest[:, piece].copy(), np.zeros_like(a[:, piece])
            for n, i in enumerate(range(piece.start, piece.stop)):
                wanted = k[:, i] + own[:, n] / diagonal[:, i, None]
                moved[:, n] = _choose(wanted, unit * diagonal[:, i, None], cost, ends) - k[:, i]
                own -= inner[:, :, n, None] * moved[:, n, None]
            rest -= h[:, :, piece] @ moved
            k[:, piece] += moved
        return k


class Alone:
    """Rounds weights of which none makes up for another: as `Rounder` with ``H = I``, and in pieces."""

    diagonal: Matrix | None = None

    def loss(self, gap: Weights) -> float:
        """Return the sum of squares."""
        return float(np.vdot(gap, gap))

    def steps(self, w: Weights, step: Matrix, price: float, ends: Ends) -> Whole:
        """Return whole numbers for weights, array[n, m]; the step is one number, or float64[n, 1] or [1, m]."""
        k = np.empty(w.shape, np.int8)
        cost = np.zeros(2 * MOST + 2)
        for _ in range(2 if price else 1):
            for rows in pieces(w.shape):
                size = step[rows] if step.ndim and len(step) > 1 else step
                part = np.asarray(w[rows], np.float64)
                k[rows] = _choose(part / size, np.square(size), cost, ends)
            cost = price * _lengths(k)
        return k


def pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield rows of a matrix, so many at a time that they don't take much."""
    rows = max(_AT_ONCE // max(shape[1], 1), 1)
    for first in range(0, shape[0], rows):
        yield slice(first, min(first + rows, shape[0]))
