"""Columns go from left to right in blocks, and those to the right make up for what was lost.

With the upper triangular ``U`` of ``H^-1 = U^T U``, losing weight ``i`` of an output costs ``c_i`` when only those
after it are refitted, by the step ``dw``:

    c_i = w_i^2 / U_ii^2          dw_k = -(w_i / U_ii) U_ik   for k >= i

One factor serves all outputs, where `onnxprune.sparsity.methods.obs` has an inverse for each. Shapes: ``W`` (d, O),
so the paper's columns are rows here; ``H``, ``U`` (d, d).

References
----------
Frantar and Alistarh, "SparseGPT" (arXiv 2301.00774), algorithm 1.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.sparsity.masks import lowest
from onnxprune.sparsity.task import Curved, Ints, Mask, Matrix, Solver, Task, mask_of
from onnxprune.sparsity.triangular import factor_of_inverse

__all__ = ["READS", "WORK", "solve"]

#: What it looks at.
READS = "moments"
#: An output of d regressors takes about d to this power.
WORK = 2
#: Rows whose mask is chosen at once, and blocks that there are at least: rows at the end of a block look dearer, since
#: fewer rows are left to make up for them, so in one large block too many of the first would go.
BLOCK, LEAST = 128, 8


class _SparseGPT(Curved):
    @cached_property
    def order(self) -> Ints:
        """Regressors in the order in which they go: inputs of one tap side by side, what is in no group of M last."""
        task = self.task
        number = np.arange(task.channels * task.taps).reshape(task.channels, task.taps)
        whole = task.channels
        if task.pattern.fixed:
            whole = task.channels // task.pattern.of * task.pattern.of
        return np.concatenate([number[:whole].T.ravel(), number[whole:].T.ravel()])

    @cached_property
    def factor(self) -> Matrix:
        return factor_of_inverse(self.task.h[np.ix_(self.order, self.order)])

    def at(self, sparsity: float) -> tuple[Mask, Matrix]:
        task = self.task
        if not (task.pattern.fixed or task.pattern.kind == "unstructured"):
            return self._tiles(sparsity)
        start = task.best[self.order]
        dtype = np.float32 if start.size > 1 << 20 else np.float64
        w: Any = start.astype(dtype)
        u: Any = self.factor.astype(dtype)
        keep = np.ones(w.shape, bool)
        step = max(min(BLOCK, len(w) // LEAST), 1)
        step = -(-step // task.pattern.of) * task.pattern.of if task.pattern.fixed else step
        for first in range(0, len(w), step):
            last = min(first + step, len(w))
            errors = self._block(w[first:last], u[first:last, first:last], keep[first:last], sparsity, first)
            w[last:] -= u[first:last, last:].T @ errors
        back = np.argsort(self.order)
        return keep[back], np.where(keep, w, 0.0)[back].astype(np.float64)

    def _block(self, w: Matrix, u: Matrix, keep: Mask, sparsity: float, first: int) -> Matrix:
        """Choose a block's mask and push its errors down; return the errors of its rows."""
        pattern, diagonal = self.task.pattern, u.diagonal()[:, None]
        groups = self.task.channels // pattern.of * pattern.of * self.task.taps if pattern.fixed else 0
        if not pattern.fixed:
            keep[...] = lowest((w / diagonal) ** 2, round(sparsity * w.size))
        errors = np.empty_like(w)
        for i in range(len(w)):
            if pattern.fixed and i % pattern.of == 0 and first + i < groups:
                part = slice(i, i + pattern.of)
                ranks = np.argsort((w[part] / diagonal[part]) ** 2, axis=0, kind="stable")
                np.put_along_axis(keep[part], ranks[: pattern.of - pattern.keep], False, axis=0)
            errors[i] = np.where(keep[i], 0, w[i]) / u[i, i]
            w[i:] -= u[i, i:, None] * errors[i]
        return errors

    def _tiles(self, sparsity: float) -> tuple[Mask, Matrix]:
        """Whole tiles by the sum of what each weight alone would lose; the refit does the rest."""
        inverse = np.empty(len(self.order))
        inverse[self.order] = (self.factor**2).sum(axis=0)
        keep = mask_of(self.task, self.task.best**2 / inverse[:, None], sparsity)
        return keep, np.where(keep, self.task.best, 0.0)


def solve(task: Task) -> Solver:
    """Prepare the factor of the inverse; parameters and result as in `onnxprune.sparsity.task`."""
    return _SparseGPT(task)
