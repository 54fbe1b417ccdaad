"""A budget for the whole model, met with the least loss.

Groups whose costs don't touch (no product of sizes holds axes of two of them) are allocated exactly by dynamic
programming. What couples them (channels of a residual stream, which every block reads) is set first, by a search that
calls the dynamic program inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.alignment import Axis, steps
from onnxprune.allocation.costs import Costs
from onnxprune.allocation.knapsack import allocate
from onnxprune.allocation.ranking import Ranking
from onnxprune.graph.group_types import Group

__all__ = ["Level", "choose", "error_of", "level_of"]

Floats = NDArray[np.float64]

#: Buckets of the dynamic program: in a search, and for the last word.
COARSE, FINE = 800, 4000
#: The first steps of a search are this part of the levels long.
NEAR = 8


@dataclass(frozen=True)
class Level:
    """What a group may lose: counts of units, and the error of each count."""

    counts: NDArray[np.int64]
    errors: Floats


def choose(
    groups: Sequence[Group],
    levels: Mapping[str, Level],
    costs: Costs,
    budget: float,
    *,
    start: Mapping[str, int] | None = None,
    buckets: int = FINE,
) -> dict[str, int] | None:
    """Choose how many units each group loses.

    Parameters
    ----------
    groups : sequence of Group
    levels : mapping
        Group -> what it may lose; groups that aren't there lose nothing.
    costs : Costs
    budget : float
        In the unit of the costs.
    start : mapping, optional
        Group -> count where the search begins, such as the answer to a budget nearby.
    buckets : int
        Of the dynamic program that has the last word; the search uses fewer.

    Returns
    -------
    dict or None
        Group -> count; None where even the deepest levels cost more.
    """
    levelled = [g for g in groups if g.name in levels]
    apart, shared = costs.independent(levelled)

    def solve(index: Mapping[str, int], buckets: int = COARSE) -> tuple[float, dict[str, int]]:
        return _try(apart, shared, levels, costs, index, budget, buckets)

    if not shared:
        solution = solve({}, buckets)
        return solution[1] if np.isfinite(solution[0]) else None
    index = {g.name: _nearest(levels[g.name], (start or {}).get(g.name, 0)) for g in shared}
    best = solve(index)
    for share in np.linspace(0.05, 1, 20):  # go down together until the budget can be met
        if np.isfinite(best[0]):
            break
        index = {g.name: max(index[g.name], round(share * (len(levels[g.name].counts) - 1))) for g in shared}
        best = solve(index)
    if not np.isfinite(best[0]):
        best = solve(index, buckets)  # the coarse program rounds costs up by more
        return best[1] if np.isfinite(best[0]) else None
    seen = {tuple(index.values())}
    longest = max(len(levels[g.name].counts) for g in shared) // NEAR
    for step in (1 << n for n in range(max(longest.bit_length() - 1, 2), -1, -1)):
        improved = True
        while improved:
            improved = False
            for g in shared:
                for move in (step, -step):
                    trial = {**index, g.name: index[g.name] + move}
                    if not 0 <= trial[g.name] < len(levels[g.name].counts) or tuple(trial.values()) in seen:
                        continue
                    seen.add(tuple(trial.values()))
                    result = solve(trial)
                    if result[0] < best[0] * (1 - 1e-6):
                        best, index, improved = result, trial, True
    last = solve(index, buckets)
    return last[1] if last[0] < best[0] else best[1]


def _nearest(level: Level, count: int) -> int:
    """Return the index of the last count that isn't above this one."""
    return max(int(np.searchsorted(level.counts, count, side="right")) - 1, 0)


def _try(
    apart: Sequence[Group],
    shared: Sequence[Group],
    levels: Mapping[str, Level],
    costs: Costs,
    index: Mapping[str, int],
    budget: float,
    buckets: int,
) -> tuple[float, dict[str, int]]:
    state = {g.name: 0 for g in apart}
    state |= {g.name: int(levels[g.name].counts[index[g.name]]) for g in shared}
    solution = _inner(apart, levels, costs, state, budget, buckets)
    if solution is None:
        return np.inf, state
    extra = sum(float(levels[g.name].errors[index[g.name]]) for g in shared)
    return solution[0] + extra, solution[1]


def _inner(
    apart: Sequence[Group],
    levels: Mapping[str, Level],
    costs: Costs,
    state: Mapping[str, int],
    budget: float,
    buckets: int,
) -> tuple[float, dict[str, int]] | None:
    """Allocate the groups that don't touch, the others being as they are."""
    tables = [costs.curve(g, levels[g.name].counts, state) for g in apart]
    fixed = costs.total(state) - sum(float(costs.curve(g, np.zeros(1, np.int64), state)[0]) for g in apart)
    picked = allocate(tables, [levels[g.name].errors for g in apart], budget - fixed, buckets=buckets)
    if picked is None:
        return None
    result = dict(state)
    error = 0.0
    for g, level in zip(apart, picked, strict=True):
        result[g.name] = int(levels[g.name].counts[level])
        error += float(levels[g.name].errors[level])
    return error, result


def error_of(state: Mapping[str, int], levels: Mapping[str, Level]) -> float:
    """Return the error of a choice."""
    return sum(
        float(levels[name].errors[int(np.searchsorted(levels[name].counts, count))])
        for name, count in state.items()
        if name in levels
    )


def level_of(group: Group, ranking: Ranking, align: int) -> Level:
    """Return what a group may lose so that its widths stay on steps.

    Parameters
    ----------
    group : Group
    ranking : Ranking
    align : int
        In channels.
    """
    order, errors = ranking.order, ranking.error
    allowed = np.isfinite(errors)
    allowed[group.units - group.least + 1 :] = False
    for extent in group.extents if align > 1 and group.stepped else ():
        axis = Axis(int(extent.per_unit.sum()), extent.per_unit)
        ladder = steps(axis.width, align)
        if ladder:
            left = axis.width - np.concatenate([[0], np.cumsum(extent.per_unit[order])])
            allowed &= (left % ladder[0] == 0) | (left == axis.width)
    allowed[0] = True
    counts = np.flatnonzero(allowed)
    return Level(counts, errors[counts])
