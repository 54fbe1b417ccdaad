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
    tables: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]] = []
    for cost, error, low in zip(costs, errors, least, strict=True):
        over = cost - low
        steps = np.ceil(over / unit - 1e-9) if unit > 0 else np.where(over <= slack, 0.0, np.inf)
        levels = _worth_trying(steps, error, buckets)
        taken = steps[levels].astype(np.int64)
        tables.append((best, levels, taken))
        best = _with(best, taken, error[levels])
    if not np.isfinite(best[buckets]):
        return None
    chosen_levels: list[int] = []
    at = buckets
    for (before, levels, taken), error in zip(tables[::-1], errors[::-1], strict=True):
        within = taken <= at  # which level gave the least is asked along one path, not kept for every bucket
        totals = before[at - taken[within]] + error[levels[within]]
        chosen = int(np.argmin(totals))
        chosen_levels.append(int(levels[within][chosen]))
        at -= int(taken[within][chosen])
    return chosen_levels[::-1]


def _with(
    best: NDArray[np.float64], taken: NDArray[np.int64], losses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the least error within each number of buckets, with one group more: its levels take so many, and lose."""
    new, trial = np.full(len(best), np.inf), np.empty(len(best))
    for step, loss in zip(taken.tolist(), losses.tolist(), strict=True):
        into = new[step:]
        np.minimum(into, np.add(best[: len(into)], loss, out=trial[: len(into)]), out=into)
    return new


def _worth_trying(steps: NDArray[np.float64], error: NDArray[np.float64], buckets: int) -> NDArray[np.int64]:
    """Return the levels within the budget; of those that cost the same number of steps the one of least error."""
    levels = np.flatnonzero((steps <= buckets) & np.isfinite(error))
    order = levels[np.lexsort((error[levels], steps[levels]))]
    first = np.unique(steps[order], return_index=True)[1]
    return np.sort(order[first])
