"""What units are worth: rankings, from weights or from samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.group_types import Group
from onnxprune.pruning.weighing import SHARED

__all__ = ["FLOOR", "Ranking", "ranked_by_scores"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Share of the units of a group that always stay.
FLOOR = 0.1


@dataclass(frozen=True)
class Ranking:
    """How the units of a group go.

    Attributes
    ----------
    order : int64[units]
        The first to go first.
    error : float64[units + 1]
        Of each count that goes; infinite where a count isn't allowed.
    """

    order: Ints
    error: Floats


def ranked_by_scores(groups: Sequence[Group], scores: Mapping[str, Floats]) -> dict[str, Ranking]:
    """Return rankings from scores of weights alone.

    The error of losing some units is a ratio of noise to signal: the share ``s`` of the group's squared scores that
    goes, over the share that stays, ``s / (1 - s)``. It stands in for a loss that nobody measured, so what it says
    about one group against another is rough; with samples errors are measured.
    """
    found = {}
    for group in groups:
        mine = np.asarray(scores[group.name], np.float64)
        order = np.argsort(mine, kind="stable").astype(np.int64)
        energy = np.where(np.isfinite(mine), mine, 0.0)[order] ** 2
        share = np.concatenate([[0.0], np.cumsum(energy)]) / max(float(energy.sum()), 1e-30)
        error = share / np.maximum(1 - share, 1e-12)
        allowed = group.units - max(1, int(np.ceil(FLOOR * group.units)))
        fixed = np.flatnonzero(~np.isfinite(mine[order]) & (mine[order] > 0))
        error[min(allowed, int(fixed[0]) if fixed.size else allowed) + 1 :] = np.inf
        readers = {m.tensor for m in group.members if m.contracted}
        found[group.name] = Ranking(order, error * (SHARED if len(readers) > 1 else 1.0))
    return found
