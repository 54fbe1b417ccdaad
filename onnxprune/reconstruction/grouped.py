"""Refits of all blocks of a layer: a depthwise convolution has hundreds of small ones.

For each block b the equation of `onnxprune.reconstruction.least_squares.refit`,

    W_b = (H_b + lam_b I)^-1 (G_b + lam_b W0_b),

with H (blocks, k, k) and G, W0 (blocks, k, O) of equally many kept regressors k side by side, so that numpy solves them
in one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.least_squares import Fit, Problem, Regression, error_of, refit

__all__ = ["loss_of", "refits"]

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Regressors of blocks that are solved together: larger ones gain nothing.
SMALL = 64


def refits(
    problems: Sequence[Regression], kept: Sequence[Ints], share: float, priors: Sequence[Matrix]
) -> list[Fit]:
    """Do what `refit` does for each block of a layer; small blocks that keep equally many are solved together."""
    fits: dict[int, Fit] = {}
    alike: dict[int, list[int]] = {}
    for block, (problem, rows) in enumerate(zip(problems, kept, strict=True)):
        small = isinstance(problem, Problem) and len(rows) <= SMALL
        alike.setdefault(len(rows) if small else -1 - block, []).append(block)
    for blocks in alike.values():
        if len(blocks) == 1:
            (only,) = blocks
            fits[only] = refit(problems[only], kept[only], share, priors[only])
            continue
        own = {b: p for b in blocks if isinstance(p := problems[b], Problem)}
        h = np.stack([_rows_and_columns(own[b].h, kept[b]) for b in blocks])
        right = np.stack([own[b].g[kept[b]] for b in blocks])
        old = np.stack([priors[b][kept[b]] for b in blocks])
        diagonal = np.einsum("bii->bi", h)
        live = diagonal > 0
        alive = np.maximum(live.sum(axis=1), 1)
        lam = np.where(live.any(axis=1), share * (diagonal * live).sum(axis=1) / alive, 1.0)[:, None]
        diagonal += np.where(live, lam, 1.0)
        solved = np.linalg.solve(h, np.where(live[:, :, None], right + lam[:, :, None] * old, 0.0))
        for b, solution in zip(blocks, solved, strict=True):
            w = np.zeros(own[b].g.shape)
            w[kept[b]] = solution
            fits[b] = Fit(w, problems[b].my - problems[b].mx @ w)
    return [fits[b] for b in range(len(problems))]


def _rows_and_columns(h: Matrix, kept: Ints) -> Matrix:
    return h if len(kept) == len(h) else h[np.ix_(kept, kept)]


def loss_of(problems: Sequence[Regression], fits: Sequence[Fit]) -> float:
    """Return the mean squared errors of fits, summed over blocks and outputs; small blocks are looked at together."""
    loss = 0.0
    alike: dict[tuple[int, ...], list[tuple[Problem, Fit]]] = {}
    for problem, fit in zip(problems, fits, strict=True):
        if isinstance(problem, Problem) and len(problem.h) <= SMALL:
            alike.setdefault(problem.g.shape, []).append((problem, fit))
        else:
            loss += float(error_of(problem, fit).sum())
    for each in alike.values():
        h, g, v, mx, my = (
            np.stack([getattr(problem, name) for problem, _ in each]) for name in ("h", "g", "v", "mx", "my")
        )
        w = np.stack([fit.w for _, fit in each])
        off = my - np.einsum("bk,bko->bo", mx, w) - np.stack([fit.b for _, fit in each])
        spread = (w * (h @ w - 2 * g)).sum(axis=1)
        loss += float((np.maximum(v + spread, 0) + off**2).sum())
    return loss
