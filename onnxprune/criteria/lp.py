"""Lp norm, by default with p = 1/2: how many weights of a unit matter, rather than how large the largest are.

References
----------
He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
arXiv 1808.06866, equation 2.
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria._norm import Floats, Weight, norm
from onnxprune.graph.group_types import Group

__all__ = ["READS", "score"]

READS = "weights"


def score(group: Group, weight: Weight, rng: np.random.Generator, p: float = 0.5) -> Floats:
    """Return the Lp norm ``(sum |w| ** p) ** (1 / p)`` of each unit over the weights of the group.

    Which weights count and how they are made comparable: `onnxprune.criteria._norm`.

    Parameters
    ----------
    group : Group
    weight : callable
        Name -> values.
    rng : Generator
        Not used.
    p : float
        Above 0; with 1 and 2 these are ``l1`` and ``l2``.

    Returns
    -------
    float64[units]
        Of mean 1, so that groups compare.
    """
    return norm(group, weight, p)
