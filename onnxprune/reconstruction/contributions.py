"""Loss curves of what units give, where the moments of all that units are read by would be too large.

Of a layer ``y = W^T x`` (``W`` (d, O)) a unit u with the regressors I_u gives ``p_u = W_u^T x_u`` (O,). The loss curve
is that of the regression of y on these contributions, each scaled as a whole, with one regressor for each unit (and one
for what no unit owns):

    h_uv = sum over outputs of cov(p_u, p_v) = sum over i in I_u, j in I_v of (W W^T)_ij cov(x_i, x_j),
    g_u  = sum over outputs of cov(p_u, y),    v = sum over outputs of var(y).

Where y is what the layer itself gives, ``y = sum_u p_u``, so ``g_u = sum_v h_uv`` and ``v = sum_uv h_uv``. Of several
layers that read the group these sums are added up, each over the variance of what the layer feeds: a residual stream
with 61 readers needs one matrix of units x units, and not 61 of moments. It promises less than refits would give,
since it scales units, by the same factor wherever they are read.

References
----------
He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, equation 2 (scaled
contributions of channels).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.dual import DualProblem
from onnxprune.reconstruction.least_squares import Problem

__all__ = ["Outgoing", "Summed", "of_moments", "of_products"]

Array = NDArray[Any]
Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]

#: Regressors whose products with all others are worked on at a time.
STRIPE = 512


@dataclass(frozen=True)
class Outgoing:
    """What a layer does with its regressors.

    Attributes
    ----------
    gram : callable
        Regressors int64[k] -> their rows of ``W W^T``, float array [k, d].
    rows : callable
        Regressors int64[k] -> their rows of ``W``, float array [k, O]; asked for only where targets aren't what the
        layer itself gives.
    """

    gram: Callable[[Ints], Array]
    rows: Callable[[Ints], Array]

    @classmethod
    def of(cls, w: Array) -> Outgoing:
        """Return what a weight float array [d, O] does, in its type."""
        return cls(lambda some: w[some] @ w.T, lambda some: w[some])


class _Units:
    """Regressors put together by units: each one's behind those of the one before, those that nobody owns last."""

    def __init__(self, units: Sequence[Ints], width: int) -> None:
        owned = np.concatenate([*units, np.zeros(0, np.int64)])
        self.order = np.concatenate([owned, np.setdiff1d(np.arange(width), owned)])
        sizes = [*(len(own) for own in units), width - len(owned)]
        self.ends = np.cumsum([0, *sizes])
        self.count = len(sizes)

    def stripes(self) -> list[tuple[int, int]]:
        """Return runs of units with about `STRIPE` regressors."""
        cuts = [0]
        for unit in range(1, self.count + 1):
            if unit == self.count or self.ends[unit + 1] - self.ends[cuts[-1]] > STRIPE:
                cuts.append(unit)
        return list(itertools.pairwise(cuts))

    def summed(self, block: Array, first: int, end: int) -> Matrix:
        """Return float64[end - first, units] of the rows of a run of units, and columns in order."""
        across = _sums(block, self.ends, 1)
        return _sums(across, self.ends[first : end + 1] - self.ends[first], 0)


def _sums(array: Array, ends: Ints, axis: int) -> Matrix:
    """Sum runs along an axis; a run may be empty."""
    sizes = np.diff(ends)
    if (sizes == 1).all():
        return np.asarray(array, np.float64)
    shape = list(array.shape)
    shape[axis] = len(sizes)
    result, some = np.zeros(shape), np.flatnonzero(sizes)
    at: list[Any] = [slice(None)] * 2
    at[axis] = some
    if some.size:
        result[tuple(at)] = np.add.reduceat(array, ends[some], axis=axis, dtype=np.float64)
    return result


def of_moments(problem: Problem, units: Sequence[Ints], outgoing: Outgoing) -> Problem:
    """Return the regression on what units give, from the moments of one layer.

    Parameters
    ----------
    problem : Problem
        Without targets where they are what the layer itself gives.
    units : sequence of int64
        Regressors of each unit.
    outgoing : Outgoing
    """
    own = _Units(units, len(problem.h))
    h, g = np.zeros((own.count, own.count)), np.zeros(own.count)
    for first, end in own.stripes():
        some = own.order[own.ends[first] : own.ends[end]]
        h[first:end] = own.summed((outgoing.gram(some) * problem.h[some])[:, own.order], first, end)
        if problem.g.shape[1]:
            given = (outgoing.rows(some) * problem.g[some]).sum(axis=1)
            g[first:end] = _sums(given[:, None], own.ends[first : end + 1] - own.ends[first], 0)[:, 0]
    return _problem(problem.n, h, g if problem.g.shape[1] else None, problem.variance)


def of_products(problems: Sequence[DualProblem], units: Sequence[Ints], outgoing: Outgoing) -> list[Problem]:
    """Return the regressions on what units give of several sets of one table's rows, from products of regressors.

    Parameters
    ----------
    problems : sequence of DualProblem
        The last one is of the rows of all others.
    units : sequence of int64
    outgoing : Outgoing
    """
    whole = problems[-1]
    own = _Units(units, whole.table.width)
    rows = [p.about(own.order, whole.mx) for p in problems[:-1]]
    shifts = [(p.mx - whole.mx)[own.order] for p in problems]
    targets = [(p.y - p.my).astype(r.dtype) for p, r in zip(problems, rows, strict=False)]
    known = whole.y.shape[1] > 0
    hs = [np.zeros((own.count, own.count)) for _ in problems]
    gs = [np.zeros(own.count) for _ in problems]
    for first, end in own.stripes():
        at = slice(own.ends[first], own.ends[end])
        gram = outgoing.gram(own.order[at])[:, own.order]
        sums = [np.asarray(x[:, at].T @ x, np.float64) for x in rows]
        sums.append(np.sum(sums, axis=0))
        for h, total, p, shift in zip(hs, sums, problems, shifts, strict=True):
            total /= max(p.n, 1)
            total -= shift[at, None] * shift
            total *= gram
            h[first:end] = own.summed(total, first, end)
        if known:
            w = outgoing.rows(own.order[at])
            ends = own.ends[first : end + 1] - own.ends[first]
            for g, x, y, p in zip(gs, rows, targets, problems, strict=False):
                g[first:end] = _sums(((x[:, at].T @ y) * w).sum(axis=1)[:, None], ends, 0)[:, 0] / max(p.n, 1)
            g = gs[-1]
            for n, p in enumerate(problems[:-1]):
                moved = (w @ (p.my - whole.my)) * (p.mx - whole.mx)[own.order[at]]
                part = gs[n][first:end] + _sums(moved[:, None], ends, 0)[:, 0]
                g[first:end] += part * p.n / max(whole.n, 1)
    return [
        _problem(p.n, h, g if known else None, p.variance) for p, h, g in zip(problems, hs, gs, strict=True)
    ]


def _problem(n: int, h: Matrix, g: Matrix | None, variance: float) -> Problem:
    zeros = np.zeros(len(h)), np.zeros(1)
    if g is None:
        return Problem(n, h, h.sum(axis=1)[:, None], np.array([max(float(h.sum()), 0.0)]), *zeros)
    return Problem(n, h, g[:, None], np.array([variance]), *zeros)


class Summed:
    """Regressions on what units give, added up over the layers that read them.

    Parameters
    ----------
    units : int
    sets : int
        Of rows, such as those for fitting, those that are held out, and all.
    """

    n: list[int]
    h: list[Matrix]
    g: list[Matrix]
    v: list[NDArray[np.float64]]

    def __init__(self, units: int, sets: int) -> None:
        size = units + 1
        self.n = [0] * sets
        self.h = [np.zeros((size, size)) for _ in range(sets)]
        self.g, self.v = [np.zeros((size, 1)) for _ in range(sets)], [np.zeros(1) for _ in range(sets)]

    def add(self, problems: Sequence[Problem], unit: float) -> None:
        """Add what one layer tells; its errors are divided by this."""
        for n, p in enumerate(problems):
            self.n[n] = min(self.n[n], p.n) if self.n[n] else p.n
            self.h[n] += p.h / unit
            self.g[n] += p.g / unit
            self.v[n] += p.v / unit

    def problems(self) -> list[Problem]:
        """Return the sums; nothing is left here."""
        parts = list(zip(self.n, self.h, self.g, self.v, strict=True))
        self.h = []
        return [Problem(n, h, g, v, np.zeros(len(h)), np.zeros(1)) for n, h, g, v in parts]
