"""Euclidean norm: units of small L2 norm go first.

The norm of a unit is the root of the sum of its squared norms in all weights of its group, each relative to that
weight's mean.

References
----------
He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
arXiv 1808.06866, equation 2 with p = 2; over all weights of a group as in Fang, Ma, Song, Mi, Wang, "DepGraph: Towards
Any Structural Pruning", CVPR 2023, arXiv 2301.12900.
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria._norm import Floats, Weight, norm
from onnxprune.graph.group_types import Group

__all__ = ["READS", "score"]

READS = "weights"


def score(group: Group, weight: Weight, rng: np.random.Generator) -> Floats:
    """Return the L2 norm of each unit over the weights of the group.

    Which weights count and how they are made comparable: `onnxprune.criteria._norm`.

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
        Of mean 1, so that groups compare.
    """
    return norm(group, weight, 2)
