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

from onnxprune.reconstruction.least_squares import Fit, Problem, Regression, refit, ridge_of

__all__ = ["refits"]

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
        h = np.stack([own[b].h[np.ix_(kept[b], kept[b])] for b in blocks])
        right = np.stack([own[b].g[kept[b]] for b in blocks])
        old = np.stack([priors[b][kept[b]] for b in blocks])
        lam = np.array([ridge_of(one, share) for one in h])[:, None]
        dead = np.einsum("bii->bi", h) <= 0
        np.einsum("bii->bi", h)[:] += np.where(dead, 1.0, lam)
        solved = np.linalg.solve(h, np.where(dead[:, :, None], 0.0, right + lam[:, :, None] * old))
        for b, solution in zip(blocks, solved, strict=True):
            w = np.zeros(own[b].g.shape)
            w[kept[b]] = solution
            fits[b] = Fit(w, problems[b].my - problems[b].mx @ w)
    return [fits[b] for b in range(len(problems))]
