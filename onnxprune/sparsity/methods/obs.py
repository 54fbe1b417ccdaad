"""Weights go one by one, each time the one whose loss costs least after all others of its output are refitted.

With ``P = H^-1`` over the weights that an output still has, losing weight ``j`` costs ``c_j`` at least, reached by the
step ``dw``, after which ``P`` loses a rank-1 term:

    c_j = w_j^2 / P_jj          dw = -(w_j / P_jj) P_j          P <- P - P_j P_j^T / P_jj

Shapes: ``w`` (d) of one output, ``P`` (d, d), its column ``P_j`` (d); ``H`` as in `onnxprune.sparsity.task`.

Each output has an inverse Hessian of its own, from which a rank-1 term is taken for every weight that goes. The terms
are collected and subtracted in one product after ``LAZY`` of them, so that most of the work is matrix products.

References
----------
Frantar and Alistarh, "Optimal Brain Compression" (arXiv 2208.11580), algorithm 1 (ExactOBS); the global step over the
rows of a layer is its algorithm 2. For tiles: `onnxprune.reconstruction.obs` (vectors), else the sum of what each
weight alone would lose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxprune.reconstruction.obs import obs as structured
from onnxprune.sparsity.refit import masked_refit
from onnxprune.sparsity.task import Curved, Ints, Mask, Matrix, Solver, Task, mask_of

__all__ = ["LARGEST", "READS", "WORK", "solve"]

#: What it looks at.
READS = "moments"
#: An output of d regressors takes about d to this power.
WORK = 3
#: More regressors take too long: another method does those layers.
LARGEST = 1200
LAZY = 32
BATCH_BYTES = 1 << 26


@dataclass
class _Rows:
    """The state of some outputs: inverses [b, d, d], collected terms, weights [b, d], and what may still go."""

    inverse: Matrix
    w: Matrix
    room: Mask
    terms: list[Matrix] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.diagonal = np.einsum("bii->bi", self.inverse).copy()
        self.at = np.arange(len(self.w))

    def drop(self) -> tuple[Matrix, Matrix]:
        """Drop the cheapest weight of each output; return which, and what it cost."""
        scores = np.where(self.room, self.w**2 / np.maximum(self.diagonal, 1e-300), np.inf)
        gone = scores.argmin(axis=1)
        cost = scores[self.at, gone]
        column = self.inverse[self.at, gone]
        if self.terms:
            terms = np.stack(self.terms, axis=1)
            column = column - (terms[self.at, :, gone][:, None] @ terms)[:, 0]
        pivot = np.maximum(column[self.at, gone], 1e-300)
        self.w -= column * (self.w[self.at, gone] / pivot)[:, None]
        term = column / np.sqrt(pivot)[:, None]
        self.diagonal -= term**2
        self.w[self.at, gone] = 0.0
        self.room[self.at, gone] = False
        self.terms.append(term)
        if len(self.terms) == LAZY:
            terms = np.stack(self.terms, axis=1)
            self.inverse -= terms.transpose(0, 2, 1) @ terms
            self.terms.clear()
        return gone, cost


class _Obs(Curved):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        inverse: Matrix = np.asarray(np.linalg.inv(task.h), np.float64)
        d, outputs = task.best.shape
        self.order = np.zeros((outputs, d), np.int64)
        self.costs = np.full((outputs, d), np.inf)
        size = max(1, BATCH_BYTES // (8 * d * d))
        for first in range(0, outputs, size):
            self._trace(inverse, slice(first, min(first + size, outputs)))

    def _trace(self, inverse: Matrix, part: slice) -> None:
        task, pattern = self.task, self.task.pattern
        w = np.ascontiguousarray(task.best.T[part])
        room = np.ones(w.shape, bool)
        steps, group, quota = w.shape[1], np.zeros(0, np.int64), np.zeros((len(w), 0), np.int64)
        if pattern.fixed:
            channel, tap = np.divmod(np.arange(w.shape[1]), task.taps)
            group = channel // pattern.of * task.taps + tap
            room[:, channel >= task.channels // pattern.of * pattern.of] = False
            steps = task.channels // pattern.of * task.taps * (pattern.of - pattern.keep)
            quota = np.full((len(w), int(group.max()) + 1), pattern.of - pattern.keep)
        rows = _Rows(np.repeat(inverse[None], len(w), axis=0), w, room)
        for step in range(steps):
            gone, self.costs[part, step] = rows.drop()
            self.order[part, step] = gone
            if pattern.fixed:
                groups = group[gone]
                quota[rows.at, groups] -= 1
                full = quota[rows.at, groups] == 0
                rows.room[full] &= group != groups[full, None]

    def _counts(self, sparsity: float) -> Ints:
        """How many weights of each output go, so that the costs of those that go are the least of the layer."""
        if self.task.pattern.fixed:
            return np.asarray(np.isfinite(self.costs).sum(axis=1))
        rising = np.maximum.accumulate(self.costs, axis=1)
        count = round(sparsity * rising.size)
        chosen = np.argsort(rising, axis=None, kind="stable")[:count]
        return np.asarray(np.bincount(chosen // rising.shape[1], minlength=len(rising)))

    def at(self, sparsity: float) -> tuple[Mask, Matrix]:
        task = self.task
        keep = np.ones(task.best.shape, bool)
        for output, count in enumerate(self._counts(sparsity).tolist()):
            keep[self.order[output, :count], output] = False
        return keep, masked_refit(task.problem, keep, task.share, task.prior).w

    def curve(self, levels: Matrix) -> Matrix:
        order = np.argsort(np.maximum.accumulate(self.costs, axis=1), axis=None, kind="stable")
        total = np.concatenate([[0.0], np.cumsum(self.costs.ravel()[order])])
        return np.asarray(total[np.round(levels * order.size).astype(np.int64)])


class _Tiles(Curved):
    @cached_property
    def _order(self) -> Ints:
        """The regressors, the first to go first."""
        rows = list(np.arange(len(self.task.prior))[:, None])
        return structured([(self.task.problem, rows)], [1.0], share=self.task.share).order

    def at(self, sparsity: float) -> tuple[Mask, Matrix]:
        task = self.task
        if task.pattern.kind == "vector":
            d = len(task.prior)
            keep = np.ones(task.prior.shape, bool)
            keep[self._order[: round(sparsity * d)]] = False
        else:
            keep = mask_of(task, task.best**2 / np.linalg.inv(task.h).diagonal()[:, None], sparsity)
        return keep, np.where(keep, task.best, 0.0)


def solve(task: Task) -> Solver | None:
    """Trace the weights in the order in which they go, see `onnxprune.sparsity.task.Method`.

    None where there are more than `LARGEST` regressors.
    """
    if not (task.pattern.fixed or task.pattern.kind == "unstructured"):
        return _Tiles(task)
    if len(task.prior) > LARGEST:
        return None
    return _Obs(task)
