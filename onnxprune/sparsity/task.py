"""One layer (or one block of a grouped one) as a method sees it: moments, weights, and the pattern of its zeros.

A method looks for a mask ``M`` in the pattern and weights ``W`` that are zero outside it, with a small squared error

    L(W) = E |y - W^T x|^2 = L(W*) + sum over outputs of (w - w*)^T H (w - w*),   W* = (H + lam)^-1 (G + lam W0)

Shapes: inputs ``x`` (d) and targets ``y`` (O) of one position, both about their means; ``H = E x x^T`` (d, d) and
``G = E x y^T`` (d, O), the moments; ``W``, ``W0``, ``W*``, ``M`` (d, O): any weights, those the layer has, the dense
optimum, the mask. Row ``c * taps + t`` is input ``c`` at tap ``t``; ``lam`` is a ridge.

References
----------
LeCun, Denker and Solla, "Optimal Brain Damage", NeurIPS 1989: the second-order model of the loss. Hassibi and Stork,
"Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", NeurIPS 1992. For one linear layer it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.options.pattern import Pattern
from onnxprune.reconstruction.least_squares import Problem, ridge_of
from onnxprune.sparsity.masks import best_of, expand, lowest, tile_scores

__all__ = ["Curved", "Method", "Solver", "Task", "mask_of"]

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass
class Task:
    """What is to be solved.

    Attributes
    ----------
    problem : Problem
        Moments of the layer's present inputs and of its targets.
    prior : float64[d, O]
        The weights that the layer has.
    channels, taps : int
        ``d = channels * taps``.
    pattern : Pattern
    share : float
        Ridge, as a share of the mean variance of the regressors.
    """

    problem: Problem
    prior: Matrix
    channels: int
    taps: int
    pattern: Pattern
    share: float = 1e-2

    @cached_property
    def h(self) -> Matrix:
        """float64[d, d], the covariance of the regressors with the ridge; dead ones have variance 1."""
        h = self.problem.h.copy()
        dead = h.diagonal() <= 0
        h[np.diag_indices_from(h)] += np.where(dead, 1.0, ridge_of(h, self.share))
        return h

    @cached_property
    def best(self) -> Matrix:
        """float64[d, O], the dense optimum: ``(H + lam)^-1 (G + lam W0)``; no regressor without variance counts."""
        lam = ridge_of(self.problem.h, self.share)
        dead = self.problem.h.diagonal() <= 0
        right = np.where(dead[:, None], 0.0, self.problem.g + lam * self.prior)
        return np.asarray(np.linalg.solve(self.h, right))

    def rise(self, w: Matrix) -> float:
        """Return how much larger the squared error of a weight is than that of the best one."""
        step = w - self.best
        return float(np.einsum("ij,ij->", step, self.h @ step))


class Solver(Protocol):
    """What a method makes of a task; it serves any number of levels."""

    def at(self, sparsity: float) -> tuple[Mask, Matrix]:
        """Return which weights stay, bool[d, O], and the weights; N:M doesn't look at the sparsity."""
        ...

    def curve(self, levels: Matrix) -> Matrix:
        """Return the rise of the squared error at each sparsity."""
        ...


class Method(Protocol):
    """A file of ``methods/`` that needs layers' moments.

    Attributes
    ----------
    READS : str
        What it looks at.
    WORK : int
        What it does with a layer of d regressors and O outputs, weight by weight, grows as O d^WORK.
    """

    READS: str
    WORK: int

    def solve(self, task: Task) -> Solver | None:
        """Return what solves a task; None where the layer is too large for this method, which is no error."""


class Curved:
    """A solver whose curve is read off what it gives at each level."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def at(self, sparsity: float) -> tuple[Mask, Matrix]:
        """See `Solver`."""
        raise NotImplementedError

    def curve(self, levels: Matrix) -> Matrix:
        """See `Solver`; between knots the logarithm of the error is interpolated."""
        knots = levels if levels.size <= 10 else levels[np.linspace(0, levels.size - 1, 10).astype(int)]
        rise = np.array([self.task.rise(self.at(float(s))[1]) for s in knots])
        rise = np.maximum.accumulate(np.maximum(rise, 1e-30))
        return np.asarray(np.exp(np.interp(levels, knots, np.log(rise))))


def mask_of(task: Task, scores: NDArray[np.floating], sparsity: float) -> Mask:
    """Return which weights stay when the lowest scores go in the pattern of the task.

    Parameters
    ----------
    task : Task
    scores : array [d, O]
        What is lost with each weight, in the unit of the squared error.
    sparsity : float
        Share of the tiles that go.
    """
    shape = (1, scores.shape[1], task.channels, task.taps)
    canonical = scores.T.reshape(shape)
    if task.pattern.fixed:
        keep = best_of(canonical, task.pattern.keep, task.pattern.of)
    else:
        tiles = tile_scores(task.pattern, canonical)
        keep = expand(task.pattern, lowest(tiles, round(sparsity * tiles.size)), shape)
    return np.ascontiguousarray(keep.reshape(scores.shape[1], -1).T)
