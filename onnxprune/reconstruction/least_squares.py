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

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.moments import Moments

__all__ = [
    "Consumer",
    "Curve",
    "Fit",
    "Problem",
    "bias_only",
    "error_of",
    "ranked",
    "refit",
    "ridge_of",
]

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    def of(cls, moments: Moments, d: int) -> Problem:
        """Split moments of ``(x, y)`` rows after their first ``d`` entries."""
        cov = moments.cov
        return cls(
            moments.n, cov[:d, :d], cov[:d, d:], cov.diagonal()[d:].copy(), moments.mean[:d], moments.mean[d:]
        )

    @property
    def variance(self) -> float:
        """Sum of the targets' variances."""
        return float(self.v.sum())


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


def refit(problem: Problem, rows: Ints, share: float, prior: Matrix | None = None) -> Fit:
    """Solve the ridge regression on the kept rows.

    Parameters
    ----------
    problem : Problem
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
    h = problem.h[np.ix_(rows, rows)].copy()
    lam = ridge_of(h, share)
    dead = h.diagonal() <= 0
    right = problem.g[rows] if prior is None else problem.g[rows] + lam * prior[rows]
    h[np.diag_indices_from(h)] += np.where(dead, 1.0, lam)
    solved = np.linalg.solve(h, np.where(dead[:, None], 0.0, right))
    w = np.zeros(problem.g.shape)
    w[rows] = solved
    return Fit(w, problem.my - problem.mx @ w)


def bias_only(problem: Problem, rows: Ints, prior: Matrix) -> Fit:
    """Keep the old weights on the kept rows, and set the bias so that the means agree."""
    w = np.zeros_like(prior)
    w[rows] = prior[rows]
    return Fit(w, problem.my - problem.mx @ w)


def error_of(problem: Problem, fit: Fit) -> Matrix:
    """Return the mean squared error of each target, float64[O], of a fit on these moments."""
    hw = problem.h @ fit.w
    spread = problem.v - 2 * (fit.w * problem.g).sum(axis=0) + (fit.w * hw).sum(axis=0)
    off = problem.my - problem.mx @ fit.w - fit.b
    return np.asarray(np.maximum(spread, 0) + off**2)


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
