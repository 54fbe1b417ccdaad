"""Least squares on moments: ridge refits on a kept set, and their error on other samples.

A layer is ``y = W^T x + b`` with ``W`` of shape (d, O). With the moments of its rows (x, y) centred, ``H = cov(x, x)``
(d, d), ``G = cov(x, y)`` (d, O) and ``v = var(y)`` (O,), the refit on the regressors S that stay is

    W_S = (H_SS + lam I)^-1 (G_S + lam W0_S),    b = m_y - W^T m_x,

with ``W0`` the weights that the ridge pulls to, and the mean squared error of any fit on any moments is

    e = v - 2 diag(W^T G) + diag(W^T H W) + (m_y - W^T m_x - b)^2    (O,).

References
----------
He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.moments import Moments

__all__ = [
    "Consumer",
    "Curve",
    "Fit",
    "Problem",
    "Regression",
    "bias_only",
    "error_of",
    "ranked",
    "refit",
    "ridge_of",
]

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]


class Regression(Protocol):
    """What a fit asks of one regression, about its means."""

    @property
    def n(self) -> int:
        """Rows behind it."""

    @property
    def mx(self) -> Matrix:
        """float64[d], the means of the regressors."""

    @property
    def my(self) -> Matrix:
        """float64[O], the means of the targets."""

    @property
    def v(self) -> Matrix:
        """float64[O], the variance of each target."""

    @property
    def variance(self) -> float:
        """Sum of the targets' variances."""

    def through(self, w: Matrix) -> Regression:
        """Return the same with the targets that weights float64[d, O] give, whose bias is zero."""

    def solve(self, kept: Ints, share: float, prior: Matrix | None) -> Matrix:
        """Return float64[d, O], the ridge regression on the kept regressors, see `refit`."""

    def squares(self, w: Matrix) -> Matrix:
        """Return float64[O], the mean squared error of weights whose bias makes the means agree."""

    def spread(self, w: Matrix) -> Matrix:
        """Return float64[O], the variance of what weights give."""


@dataclass(frozen=True)
class Problem:
    """Centred moments of one regression.

    Attributes
    ----------
    n : int
        Rows behind it.
    h : float64[d, d]
        Covariance of the regressors.
    g : float64[d, O]
        Covariance of regressors and targets.
    v : float64[O]
        Variance of each target.
    mx, my : float64[d], float64[O]
        Means.
    """

    n: int
    h: Matrix
    g: Matrix
    v: Matrix
    mx: Matrix
    my: Matrix

    @classmethod
    def of(cls, moments: Moments) -> Problem:
        """Return the problem of moments of rows ``(x, y)``."""
        d, n = moments.width, max(moments.n, 1)
        gram, mean = moments.gram, moments.mean
        return cls(moments.n, gram[:, :d] / n, gram[:, d:] / n, moments.square / n, mean[:d], mean[d:])

    def about_zero(self) -> Problem:
        """Return the same about zero rather than about the means: where no bias can be given."""
        h, g = self.h + np.outer(self.mx, self.mx), self.g + np.outer(self.mx, self.my)
        return Problem(self.n, h, g, self.v + self.my**2, np.zeros_like(self.mx), np.zeros_like(self.my))

    def through(self, w: Matrix) -> Problem:
        """Return the same with the targets that weights float64[d, O] give, whose bias is zero: ``G = H W``."""
        g = self.h @ w
        v = np.maximum((w * g).sum(axis=0), 0)
        return Problem(self.n, self.h, g, np.asarray(v), self.mx, self.mx @ w)

    @property
    def variance(self) -> float:
        """Sum of the targets' variances."""
        return float(self.v.sum())

    def solve(self, kept: Ints, share: float, prior: Matrix | None) -> Matrix:
        """See `Regression`."""
        every = len(kept) == len(self.h) and bool((kept[1:] > kept[:-1]).all())
        h = self.h if every else self.h[np.ix_(kept, kept)]
        lam, diagonal = ridge_of(h, share), h.diagonal().copy()
        dead = diagonal <= 0
        right = self.g[kept] if prior is None else self.g[kept] + lam * prior[kept]
        w = np.zeros(self.g.shape)
        at = np.diag_indices_from(h)
        h[at] += np.where(dead, 1.0, lam)  # in its place where nothing goes: a copy less
        try:
            w[kept] = np.linalg.solve(h, np.where(dead[:, None], 0.0, right))
        finally:
            h[at] = diagonal
        return w

    def squares(self, w: Matrix) -> Matrix:
        """See `Regression`."""
        return np.asarray(np.maximum(self.v - 2 * (w * self.g).sum(axis=0) + self.spread(w), 0))

    def spread(self, w: Matrix) -> Matrix:
        """See `Regression`."""
        return np.asarray((w * (self.h @ w)).sum(axis=0))


@dataclass(frozen=True)
class Fit:
    """A weight of shape (d, O), zero outside the kept rows, and its bias."""

    w: Matrix
    b: Matrix


def ridge_of(h: Matrix, share: float) -> float:
    """Return the ridge that is this share of the mean of the nonzero diagonal."""
    diagonal = h.diagonal()
    live = diagonal[diagonal > 0]
    return share * float(live.mean()) if live.size else 1.0


def refit(problem: Regression, rows: Ints, share: float, prior: Matrix | None = None) -> Fit:
    """Solve the ridge regression on the kept rows.

    Parameters
    ----------
    problem : Regression
    rows : int64[k]
        Regressors that stay.
    share : float
        Ridge, as a share of the mean variance of the regressors.
    prior : float64[d, O], optional
        Where the ridge pulls to; zero otherwise.

    Returns
    -------
    Fit
        ``W_S = (H_SS + lam I)^-1 (G_S + lam W0_S)``, ``b = m_y - m_x,S^T W_S``. Regressors without variance get zero.
    """
    w = problem.solve(rows, share, prior)
    return Fit(w, problem.my - problem.mx @ w)


def bias_only(problem: Regression, rows: Ints, prior: Matrix) -> Fit:
    """Keep the old weights on the kept rows, and set the bias so that the means agree."""
    w = np.zeros_like(prior)
    w[rows] = prior[rows]
    return Fit(w, problem.my - problem.mx @ w)


def error_of(problem: Regression, fit: Fit) -> Matrix:
    """Return the mean squared error of each target, float64[O], of a fit on these moments."""
    off = problem.my - problem.mx @ fit.w - fit.b
    return np.asarray(problem.squares(fit.w) + off**2)


@dataclass(frozen=True)
class Curve:
    """What structured OBS found.

    Attributes
    ----------
    order : int64[units]
        Units in the order in which they go; the last ``least`` never do.
    error : float64[units + 1]
        ``error[r]``: the rise of the error when the first ``r`` of them are gone and the rest is refitted, as a share
        of the targets' variance, summed over consumers; infinite where not reached.
    """

    order: Ints
    error: Matrix


@dataclass(frozen=True)
class Consumer:
    """One layer (or one block of it) that reads a group, as a criterion sees it.

    Attributes
    ----------
    problem : Problem
    rows : sequence of int64
        Regressors of each unit.
    w : float64[d, O]
        The weights that the layer has.
    unit : float
        Errors are divided by this: the variance of what the layer's output becomes part of.
    """

    problem: Problem
    rows: Sequence[Ints]
    w: Matrix
    unit: float


def ranked(consumers: Sequence[Consumer], scores: Sequence[Matrix], least: int) -> Curve:
    """Return the curve of a criterion that scores regressors.

    Parameters
    ----------
    consumers : sequence of Consumer
    scores : sequence of float64[d]
        One for each consumer: what is lost, in the unit of its squared error, when the regressor goes.
    least : int
        Units that stay.
    """
    total = np.zeros(len(consumers[0].rows))
    for consumer, score in zip(consumers, scores, strict=True):
        total += np.array([score[rows].sum() for rows in consumer.rows]) / consumer.unit
    order = np.argsort(total, kind="stable")
    error = np.concatenate([[0.0], np.cumsum(total[order])])
    error[max(total.size - max(least, 0), 0) + 1 :] = np.inf
    return Curve(order, error)
