"""One allocation for all groups under a budget, by dynamic programming over their loss curves.

References
----------
SPDY: Frantar and Alistarh, ICML 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["allocate"]

BUCKETS = 10_000


def allocate(
    costs: Sequence[NDArray[np.float64]],
    errors: Sequence[NDArray[np.float64]],
    budget: float,
    *,
    buckets: int = BUCKETS,
) -> list[int] | None:
    """Choose one level for each group, with the least total error within the budget.

    Parameters
    ----------
    costs, errors : sequence of float64[levels]
        Cost and error of each level of each group.
    budget : float
        The most that the costs may add up to, in their unit.
    buckets : int
        Costs are rounded up to this many steps, so the budget holds and is missed by less than one step for each group.

    Returns
    -------
    list of int or None
        The level of each group; None where even the cheapest levels cost more than the budget.
    """
    least = [float(c.min()) for c in costs]
    room = budget - sum(least)
    slack = 1e-9 * max(abs(budget), 1.0)
    if room < -slack:
        return None
    unit = max(room, 0.0) / buckets
    best = np.zeros(buckets + 1)
    choices: list[NDArray[np.int32]] = []
    for cost, error, low in zip(costs, errors, least, strict=True):
        over = cost - low
        steps = np.ceil(over / unit - 1e-9) if unit > 0 else np.where(over <= slack, 0.0, np.inf)
        new = np.full(buckets + 1, np.inf)
        choice = np.full(buckets + 1, -1, np.int32)
        for level in _worth_trying(steps, error, buckets):
            step = int(steps[level])
            trial = best[: buckets + 1 - step] + error[level]
            better = trial < new[step:]
            np.copyto(new[step:], trial, where=better)
            np.copyto(choice[step:], level, where=better)
        best = new
        choices.append(choice)
    if not np.isfinite(best[buckets]):
        return None
    chosen_levels: list[int] = []
    at = buckets
    for n in range(len(costs) - 1, -1, -1):
        chosen = int(choices[n][at])
        chosen_levels.append(chosen)
        extra = float(costs[n][chosen]) - least[n]
        at -= int(np.ceil(extra / unit - 1e-9)) if unit > 0 else 0
    return chosen_levels[::-1]


def _worth_trying(steps: NDArray[np.float64], error: NDArray[np.float64], buckets: int) -> list[int]:
    """Return the levels within the budget; of those that cost the same number of steps the one of least error."""
    levels = np.flatnonzero((steps <= buckets) & np.isfinite(error))
    order = levels[np.lexsort((error[levels], steps[levels]))]
    first = np.unique(steps[order], return_index=True)[1]
    return sorted(order[first].tolist())
