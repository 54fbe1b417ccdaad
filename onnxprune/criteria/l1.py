"""Sum of absolute values: units of small L1 norm go first.

References
----------
Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv 1608.08710, section
3.1; over all weights of a group as in Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023,
arXiv 2301.12900.
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria._norm import Floats, Weight, norm
from onnxprune.graph.group_types import Group

__all__ = ["READS", "score"]

READS = "weights"


def score(group: Group, weight: Weight, rng: np.random.Generator) -> Floats:
    """Return the L1 norm of each unit over the weights of the group.

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
    return norm(group, weight, 1)
