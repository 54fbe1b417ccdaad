"""Rounding to a grid, aware of the moments: what one weight loses by it, others of the same output make up for.

For each output with fitted weights ``w`` (d,), among the values ``q`` of its grid,

    minimise  (q - w)^T H (q - w),    H = cov(x, x) + lam I    (d, d).

First by error feedback: with ``U`` (d, d) upper triangular, ``U^T U = H^-1``, weights are put on the grid one after the
other, and what is left follows,

    q_i = nearest(w_i),    w_j <- w_j - (w_i - q_i) U_ij / U_ii    for j > i.

Then by coordinate descent, which lowers the error or leaves it: with ``r = H (w - q)`` (d,),

    q_i <- nearest(q_i + r_i / H_ii).

All outputs (d, O) go side by side, regressors in pieces: what lies outside of a piece follows once for all of it.
Weights of zero stay zero.

References
----------
Frantar et al., "GPTQ", ICLR 2023, section 3.3. Behdin et al., "QuantEase: Optimization-based Quantization for Language
Models", arXiv 2309.01885, algorithm 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.least_squares import Fit, Problem, Regression, ridge_of
from onnxprune.reconstruction.stored import Grid

__all__ = ["rounded"]

Matrix = NDArray[np.float64]

DAMPING = 1e-2
SWEEPS, PIECE = 2, 128
#: What is nearer to the grid than so many steps lies on it.
CLOSE = 1e-6


def rounded(problem: Regression, fit: Fit, grid: Grid, *, careful: bool = True) -> Fit:
    """Return a fit whose weights lie on a grid, with the same mean output.

    Parameters
    ----------
    problem : Regression
        Of a wide layer, whose moments there aren't, each weight goes to the nearest value.
    fit : Fit
        Of weights (d, O).
    grid : Grid
        Of the same shape.
    careful : bool
        Heed the moments; else each weight goes to the nearest value.
    """
    q = grid.nearest(fit.w)
    if (np.abs(q - fit.w) <= CLOSE * grid.step).all():
        return fit
    if not careful or not isinstance(problem, Problem):
        return Fit(q, fit.b + problem.mx @ (fit.w - q))
    live = np.flatnonzero((fit.w != 0).any(axis=1))
    h = problem.h[np.ix_(live, live)]
    h[np.diag_indices_from(h)] += ridge_of(h, DAMPING)
    w, part = fit.w[live], grid.rows(live)
    q = np.zeros_like(fit.w)
    q[live] = _descended(h, w, _fed_back(h, w, part), part)
    return Fit(q, fit.b + problem.mx @ (fit.w - q))


def _pieces(size: int) -> list[slice]:
    return [slice(first, min(first + PIECE, size)) for first in range(0, size, PIECE)]


def _fed_back(h: Matrix, w: Matrix, grid: Grid) -> Matrix:
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    u /= u.diagonal()[:, None]
    free, w, q = w != 0, w.copy(), np.zeros_like(w)
    for piece in _pieces(len(w)):
        gap = np.zeros_like(w[piece])
        for n, i in enumerate(range(piece.start, piece.stop)):
            q[i] = grid.rows(i).nearest(w[i])
            gap[n] = w[i] - q[i]
            left = slice(i + 1, piece.stop)
            w[left] -= free[left] * np.multiply.outer(u[i, left], gap[n])
        left = slice(piece.stop, None)
        w[left] -= free[left] * (u[piece, left].T @ gap)
    return q


def _descended(h: Matrix, w: Matrix, q: Matrix, grid: Grid) -> Matrix:
    free, rest = w != 0, h @ (w - q)
    for _ in range(SWEEPS):
        moved = False
        for piece in _pieces(len(w)):
            inner, own, steps = h[piece, piece], rest[piece].copy(), np.zeros_like(w[piece])
            for n, i in enumerate(range(piece.start, piece.stop)):
                wanted = grid.rows(i).nearest(q[i] + own[n] / inner[n, n])
                steps[n] = np.where(free[i], wanted - q[i], 0.0)
                own -= np.multiply.outer(inner[:, n], steps[n])
            rest -= h[:, piece] @ steps
            q[piece] += steps
            moved |= bool(steps.any())
        if not moved:
            break
    return q
