"""What goes is small in magnitude times the size of its input: the score of a weight is ``w_ij^2 * E x_i^2``.

It is what the error of the layer would rise by if inputs were independent and nothing made up for the weight.
Shapes: ``W`` (d, O) and ``E x_i^2`` (d), see `onnxprune.sparsity.task`.

References
----------
Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695), equation 1. Weights
are compared over the whole layer, and not within each output, as the paper recommends for image models.
"""

from __future__ import annotations

import numpy as np

from onnxprune.sparsity.task import Curved, Mask, Matrix, Solver, Task, mask_of

__all__ = ["READS", "WORK", "solve"]

#: What it looks at.
READS = "moments"
#: An output of d regressors takes about d to this power.
WORK = 1


class _Wanda(Curved):
    def at(self, sparsity: float) -> tuple[Mask, Matrix]:
        task = self.task
        second = task.problem.h.diagonal() + task.problem.mx**2
        keep = mask_of(task, task.prior**2 * second[:, None], sparsity)
        return keep, np.where(keep, task.prior, 0.0)


def solve(task: Task) -> Solver:
    """Rank weights by ``|w| * ||x||``; parameters and result as in `onnxprune.sparsity.task`."""
    return _Wanda(task)
