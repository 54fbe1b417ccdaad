"""The exact least-squares refit of every output on its own support.

For each output ``o`` with the set ``S`` of weights that stay: ``(H_SS + lam I) w_S = G_So + lam w0_S``. Outputs are
solved in batches of nearly equal support. Where that would take too long, conjugate gradients on all outputs at once.

References
----------
ALPS (arXiv 2406.07831), section 3.2, for the refit on a fixed support and its conjugate gradients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.least_squares import Fit, Problem, ridge_of

__all__ = ["EXACT", "is_exact", "masked_refit", "work_of"]

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Above this many multiplications of the exact solution conjugate gradients are used, in a sixth of its time.
EXACT = 3e9
BATCH_BYTES = 1 << 26
STEPS, CLOSE = 60, 1e-5


def is_exact(keep: Mask) -> bool:
    """Whether the refit on these supports is solved exactly."""
    return _exact_work(keep) <= EXACT


def work_of(keep: Mask) -> float:
    """Return how many multiplications the refit on these supports, bool[d, O], takes at most."""
    inputs, outputs = keep.shape
    return _exact_work(keep) if is_exact(keep) else float(STEPS) * inputs**2 * outputs


def _exact_work(keep: Mask) -> float:
    return float((keep.sum(axis=0, dtype=np.float64) ** 3).sum())


def masked_refit(problem: Problem, keep: Mask, share: float, prior: Matrix) -> Fit:
    """Solve the ridge regression of each output on its own support.

    Parameters
    ----------
    problem : Problem
    keep : bool[d, O]
        Weights that stay.
    share : float
        Ridge, as a share of the mean variance of the regressors.
    prior : float64[d, O]
        Where the ridge pulls to.

    Returns
    -------
    Fit
        Zero where nothing stays; regressors without variance get zero.
    """
    lam = ridge_of(problem.h, share)
    dead = problem.h.diagonal() <= 0
    h = problem.h.copy()
    h[np.diag_indices_from(h)] += np.where(dead, 1.0, lam)
    right = np.where(keep & ~dead[:, None], problem.g + lam * prior, 0.0)
    w = _batches(h, keep, right) if is_exact(keep) else _gradients(h, keep, right, prior)
    return Fit(w, problem.my - problem.mx @ w)


def _batches(h: Matrix, keep: Mask, right: Matrix) -> Matrix:
    w = np.zeros(right.shape)
    counts = keep.sum(axis=0)
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    first = 0
    while first < len(order):
        widest = int(counts[order[min(first + 7, len(order) - 1)]])
        size = max(1, BATCH_BYTES // (8 * max(widest, 1) ** 2))
        outputs = order[first : first + size]
        first += size
        most = int(counts[outputs].max())
        index = np.argsort(~keep[:, outputs], axis=0, kind="stable")[:most].T  # those that stay come first
        filled = np.arange(most) < counts[outputs][:, None]
        system = h[index[:, :, None], index[:, None, :]]
        system *= filled[:, :, None] & filled[:, None, :]
        system[:, np.arange(most), np.arange(most)] += ~filled
        value = np.where(filled, right[index, outputs[:, None]], 0.0)
        solved = np.linalg.solve(system, value[:, :, None])[:, :, 0]
        outs = np.broadcast_to(outputs[:, None], index.shape)
        w[index[filled], outs[filled]] = solved[filled]
    return w


def _gradients(h: Matrix, keep: Mask, right: Matrix, prior: Matrix) -> Matrix:
    """Conjugate gradients, preconditioned by the diagonal, on all outputs at once."""
    h32, mask = h.astype(np.float32), keep.astype(np.float32)
    scale = (1 / h.diagonal()).astype(np.float32)[:, None]
    b, w = right.astype(np.float32), (prior * keep).astype(np.float32)
    rest = mask * (b - h32 @ w)
    target = CLOSE * np.maximum(np.linalg.norm(b, axis=0), 1e-30)
    z = scale * rest
    way, size = z.copy(), np.einsum("ij,ij->j", rest, z)
    for _ in range(STEPS):
        product = mask * (h32 @ way)
        step = size / np.maximum(np.einsum("ij,ij->j", way, product), 1e-30)
        w += step * way
        rest -= step * product
        if (np.linalg.norm(rest, axis=0) <= target).all():
            break
        z = scale * rest
        new = np.einsum("ij,ij->j", rest, z)
        way = z + (new / np.maximum(size, 1e-30)) * way
        size = new
    return w.astype(np.float64)
