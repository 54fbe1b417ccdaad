"""Random scores: the baseline that every other criterion has to beat.

References
----------
Mittal, Bhardwaj, Khapra, Ravindran, "Recovering from Random Pruning: On the Plasticity of Deep Convolutional
Neural Networks", WACV 2018, arXiv 1801.10447.
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria._norm import Floats, Weight
from onnxprune.graph.group_types import Group

__all__ = ["READS", "score"]

READS = "weights"


def score(group: Group, weight: Weight, rng: np.random.Generator) -> Floats:
    """Return random scores that depend on the seed and on the group's name, not on other groups.

    Parameters
    ----------
    group : Group
    weight : callable
        Not read.
    rng : Generator
        Seeded by the user's seed.

    Returns
    -------
    float64[units]
    """
    seed = int(rng.integers(1 << 62))
    return np.random.default_rng([seed, *group.name.encode()]).random(group.units)
