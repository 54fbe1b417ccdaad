"""Loss curves where rows tell too little: a regression on few rows explains them all, and nothing else.

With fewer rows than regressors the rest of a layer's inputs explain whatever goes, on these rows: a loss curve taken
from them says that half of a classifier's inputs cost nothing. It is the same where rows are many and nearly all alike,
as those of the silence behind a recording. So what a cut of half of the units costs is compared with what it costs on
the samples that are held out. Where rows are `ENOUGH` and that is less than `TRUSTED` times as much, the curve stays as
it is; else two things mend it. For moments H (d, d), G (d, O), v (O,) and the layer's weights W (d, O):

- The moments are *steadied*: a ridge that pulls to the old weights is added, as rows of its own would be,

      H' = H + lam I,    G' = G + lam W,    v' = v + lam sum_d W^2.

  All that follows is least squares on the sum (Tikhonov; ``W0`` of `onnxprune.reconstruction.least_squares`).
- The errors are scaled up so that the one at that cut is at least the error on the held-out samples:

      error' = error * max((e_held(half) - e_held(all)) / (e'(half) - e'(all)), 1).

Rows of texts are as different as they are many, and where the layer's own weights explain its targets there is no noise
to be learnt. There, from `TEXTS` rows on, the errors are scaled by what held-out samples say, and no ridge is added: in
a language model of 135 million weights it made errors 2 to 9 times as large as they are, in each layer otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.least_squares import Fit, Problem, error_of, refit, ridge_of

__all__ = ["ENOUGH", "steadied"]

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Rows for each regressor from which a curve on the fitted rows is near that on others, if they are as different as
#: they are many: in convolutional nets a cut then costs .9 to 1.17 times as much on others.
ENOUGH, TRUSTED = 20, 1.2
#: Rows of texts for each regressor from which the samples that are held out are believed.
TEXTS = 2
#: As shares of the regressors' mean variance: of the comparison, and those that are tried.
LEAST = 1e-4
#: Targets whose error is this share of their variance are what the layer's own weights give.
EXACT = 1e-9
RIDGES = (1e-2, 1e-1, 1.0, 10.0)


def steadied(
    sets: list[Problem], rows: Sequence[Ints], w: Matrix, *, texts: bool = False
) -> tuple[Problem, float]:
    """Return moments for a loss curve, and the factor of its errors.

    Parameters
    ----------
    sets : list of Problem
        The same layer on the samples for fitting, on those that are held out, and on all. They are taken over, and the
        list is emptied: of thousands of units each takes a tenth of the memory that there is.
    rows : sequence of int64
        Regressors of each unit.
    w : float64[d, O]
        The layer's weights.
    texts : bool
        Whether rows are positions of texts.

    Returns
    -------
    Problem
        ``h + lam I``, ``g + lam W``, ``v + lam sum W^2``. The more rows are lacking, the more counts the size of
        weights, and the less what the few rows happened to carry.
    float
        At least 1: few rows aren't believed when they promise less than the pull costs, since what they lack, such
        as rare classes, is in no figure.
    """
    train, held_out, whole = sets
    sets.clear()
    if not held_out.n:
        return whole, 1.0
    kept = _half(whole, rows, w)
    exact = _error(train, _own(train, w)) <= EXACT * train.variance  # no fit on all regressors is better
    believed = texts and exact and train.n >= TEXTS * len(w)
    if train.n >= ENOUGH * len(w) or believed:
        without, fit = _pulled_fit(train, kept, w, LEAST), _whole_fit(train, w, LEAST, exact)
        rise = _error(held_out, without) - _error(held_out, fit)
        if rise <= TRUSTED * (_error(train, without) - _error(train, fit)):
            return whole, 1.0
        if believed:
            return whole, max(rise / _error(whole, _pulled_fit(whole, kept, w, LEAST)), 1.0)
    errors = [_error(held_out, _pulled_fit(train, kept, w, share)) for share in RIDGES]
    share = RIDGES[int(np.argmin(errors))]
    rise = min(errors) - _error(held_out, _whole_fit(train, w, share, exact))
    del train, held_out
    pulled = _pulled(whole, share, w)
    left = _error(pulled, _own(pulled, w)) if exact else _left(pulled, np.arange(len(w)))
    predicted = _left(pulled, kept) - left
    return pulled, max(rise / predicted, 1.0) if predicted > 0 else 1.0


def _pulled_fit(train: Problem, kept: Ints, w: Matrix, share: float) -> Fit:
    """Return the fit on some regressors, pulled to the weights that they have."""
    prior = np.zeros_like(w)
    prior[kept] = w[kept]
    return refit(train, kept, share, prior)


def _own(problem: Problem, w: Matrix) -> Fit:
    """Return the weights that the layer has, with the bias that makes the means agree."""
    return Fit(w, problem.my - problem.mx @ w)


def _whole_fit(train: Problem, w: Matrix, share: float, exact: bool) -> Fit:
    """Return the fit on all regressors; exact: the layer's own weights explain all targets, so they are it."""
    return _own(train, w) if exact else _pulled_fit(train, np.arange(len(w)), w, share)


def _error(rows: Problem, fit: Fit) -> float:
    return float(error_of(rows, fit).sum())


def _half(problem: Problem, rows: Sequence[Ints], w: Matrix) -> Ints:
    """Return the regressors of the half of the units that carry most."""
    carried = problem.h.diagonal() * (w**2).sum(axis=1)
    order = np.argsort([-carried[regressors].sum() for regressors in rows], kind="stable")
    gone = [rows[u] for u in order[(len(rows) + 1) // 2 :]]
    return np.setdiff1d(np.arange(len(w)), np.concatenate(gone)) if gone else np.arange(len(w))


def _pulled(problem: Problem, share: float, w: Matrix) -> Problem:
    """Add a ridge that pulls to weights to moments, in their place."""
    lam = ridge_of(problem.h, share)
    problem.h[np.diag_indices_from(problem.h)] += lam
    pull = lam * w
    return Problem(
        problem.n, problem.h, problem.g + pull, problem.v + (pull * w).sum(axis=0), problem.mx, problem.my
    )


def _left(problem: Problem, kept: Ints) -> float:
    """The error of least squares on some regressors, on its own moments."""
    return _error(problem, refit(problem, kept, 0.0))
