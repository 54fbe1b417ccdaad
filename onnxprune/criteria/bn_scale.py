"""Scale of the normalisation: channels whose BatchNormalization factor is small go first (network slimming).

The paper ranks bare factors over all layers, after training with a penalty on them. Without that training their
level differs between layers for no reason, so they are divided by the group's mean here, as other criteria are.

References
----------
Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017,
arXiv 1708.06519, section 3.
"""

from __future__ import annotations

import warnings

import numpy as np

from onnxprune.criteria._norm import Floats, ScoreWarning, Weight, by_mean, keep_strange, norm, sums_of
from onnxprune.graph.group_types import Group

__all__ = ["READS", "score"]

READS = "weights"


def score(group: Group, weight: Weight, rng: np.random.Generator) -> Floats:
    """Return the summed absolute scale of each unit, or the L2 norm where some unit has no scale.

    Where exporters folded BatchNormalization into the convolutions there is no scale left; a warning says so.

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
    total, count = np.zeros(group.units), np.zeros(group.units, np.int64)
    seen = set()
    for member in group.members:
        key = (member.tensor, member.axis, member.index.tobytes(), member.unit.tobytes())
        if member.role == "scale" and member.index.size and key not in seen:
            seen.add(key)
            total += sums_of(member, weight(member.tensor), group.units, 1)
            count += np.bincount(member.unit, minlength=group.units)
    if count.all():
        return by_mean(keep_strange(group, total))
    text = f"The units of {group.name!r} have no normalisation scale (it may be folded); bn_scale ranks them by l2."
    warnings.warn(text, ScoreWarning, stacklevel=2)
    return norm(group, weight, 2)
