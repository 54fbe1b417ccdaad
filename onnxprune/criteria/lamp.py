"""Layer-adaptive magnitude: the share of a unit in the weight that would survive beside it.

    score(u) = w_u^2 / sum of w_v^2 over all v of the group with w_v >= w_u

Within a group the order is that of the L2 norm. The scores are made to compare between groups, so they aren't
divided by the group's mean: a group of many equals has low scores, the last of a group has 1.

References
----------
Lee, Park, Mo, Ahn, Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, arXiv 2010.07611, the
definition of the LAMP score in section 2, with a unit in place of a single weight; equal units have equal scores.
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria._norm import Floats, Weight, norm
from onnxprune.graph.group_types import Group

__all__ = ["READS", "score"]

READS = "weights"


def score(group: Group, weight: Weight, rng: np.random.Generator) -> Floats:
    """Return the LAMP score of each unit.

    Parameters
    ----------
    group : Group
    weight : callable
        Name -> values.
    rng : Generator
        Not used.

    Returns
    -------
    float64[units]
        In (0, 1], or 0 for a unit of zeros.
    """
    squares = norm(group, weight, 2) ** 2
    scores = np.full(group.units, np.inf)
    judged = np.flatnonzero(np.isfinite(squares))
    values, which, count = np.unique(squares[judged], return_inverse=True, return_counts=True)
    surviving = np.cumsum((values * count)[::-1])[::-1]
    share = np.divide(values, surviving, out=np.zeros_like(values), where=surviving > 0)
    scores[judged] = share[which.ravel()]
    return scores
