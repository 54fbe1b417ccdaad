"""Several budgets that must all hold, by one surrogate budget: their weighted sum.

``sum_j w_j cost_j(x) / budget_j <= 1`` with weights that sum to 1 holds for each x that meets every budget, so the best
x of the surrogate that happens to meet all of them is the best of all. The weights move towards what is violated; if no
x of the surrogate meets everything, the surrogate itself is made tighter until one does.

References
----------
Surrogate duality: Glover, Operations Research 1975; weights by multiplicative updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocation.costs import Costs, mix
from onnxprune.allocation.levels import Level, choose, error_of
from onnxprune.graph.group_types import Group

__all__ = ["Constraint", "deepest", "meet", "worst"]

#: Rounds in which the weights move, and in which the surrogate is tightened.
ROUNDS, TIGHTER = 12, 6
SLACK = 1e-6


@dataclass(frozen=True)
class Constraint:
    """A cost that must not be above its budget, in the cost's unit."""

    costs: Costs
    budget: float
    text: str = ""


def worst(constraints: Sequence[Constraint], state: Mapping[str, int]) -> tuple[float, int]:
    """Return the largest cost as a share of its budget, and which it is."""
    return max((c.costs.total(state) / c.budget, n) for n, c in enumerate(constraints))


def deepest(levels: Mapping[str, Level]) -> dict[str, int]:
    """Return the most that each group may lose."""
    return {name: int(level.counts[-1]) for name, level in levels.items()}


def meet(
    groups: Sequence[Group], levels: Mapping[str, Level], constraints: Sequence[Constraint]
) -> dict[str, int] | None:
    """Choose how many units each group loses so that all budgets hold, with little loss.

    Returns
    -------
    dict or None
        Group -> count; None where even the deepest cut breaks a budget, or none was found.
    """
    if len(constraints) == 1:
        return choose(groups, levels, constraints[0].costs, constraints[0].budget)
    if worst(constraints, deepest(levels))[0] > 1 + SLACK:
        return None
    weights = {worst(constraints, {})[1]: 1.0}
    best: tuple[float, dict[str, int]] | None = None
    state: dict[str, int] | None = None
    for _ in range(ROUNDS):
        state = _solve(groups, levels, constraints, weights, 1.0, state)
        if state is None:
            break
        over, number = worst(constraints, state)
        if over <= 1 + SLACK:
            best = _better(best, state, levels)
            break
        weights = _moved(constraints, weights, state, number)
    if best is not None:
        return _given_back(best[1], levels, constraints)
    low, high = 0.0, 1.0  # low is too tight for the surrogate, or meets all; high violates
    for _ in range(TIGHTER):
        middle = (low + high) / 2
        state = _solve(groups, levels, constraints, weights, middle, state)
        if state is None:
            low = middle
        elif worst(constraints, state)[0] <= 1 + SLACK:
            best, low = _better(best, state, levels), middle
        else:
            high = middle
    return _given_back(deepest(levels) if best is None else best[1], levels, constraints)


def _given_back(
    state: Mapping[str, int], levels: Mapping[str, Level], constraints: Sequence[Constraint]
) -> dict[str, int]:
    """Give units back while all budgets hold, where it saves most error first."""
    index = {n: int(np.searchsorted(levels[n].counts, c)) for n, c in state.items() if n in levels}
    given_back = dict(state)
    open_ = {n for n, i in index.items() if i > 0}

    def saved(name: str) -> float:
        errors = levels[name].errors
        return float(errors[index[name]] - errors[index[name] - 1])

    while open_:
        name = max(sorted(open_), key=saved)
        trial = {**given_back, name: int(levels[name].counts[index[name] - 1])}
        if worst(constraints, trial)[0] > 1 + SLACK:
            open_.discard(name)
            continue
        given_back, index[name] = trial, index[name] - 1
        if not index[name]:
            open_.discard(name)
    return given_back


def _solve(
    groups: Sequence[Group],
    levels: Mapping[str, Level],
    constraints: Sequence[Constraint],
    weights: Mapping[int, float],
    budget: float,
    start: Mapping[str, int] | None,
) -> dict[str, int] | None:
    parts = [(constraints[n].costs, w / constraints[n].budget) for n, w in weights.items()]
    return choose(groups, levels, mix(parts), budget, start=start)


def _moved(
    constraints: Sequence[Constraint], weights: Mapping[int, float], state: Mapping[str, int], number: int
) -> dict[int, float]:
    """Give more weight to what is violated, less to what isn't; the most violated joins."""
    moved = dict(weights)
    moved.setdefault(number, 0.1)
    for n in moved:
        share = constraints[n].costs.total(state) / constraints[n].budget
        moved[n] *= min(max(share, 0.5), 2.0) ** 4
    whole = sum(moved.values())
    return {n: w / whole for n, w in moved.items() if w / whole > 1e-4}


def _better(
    best: tuple[float, dict[str, int]] | None, state: dict[str, int], levels: Mapping[str, Level]
) -> tuple[float, dict[str, int]]:
    candidate = (error_of(state, levels), state)
    return candidate if best is None or candidate[0] < best[0] else best
