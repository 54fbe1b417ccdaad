"""The same share of every group, or of the whole model: the budget behind ``--ratio``.

Within a group units go in the order of its ranking. A unit with an infinite score stays. No group loses all
of its units, and no axis all of its positions.

scope "local"
    Every group loses the asked share. Shares of units don't exist, so groups that are coupled (`Group.component`)
    share the rounding error by Webster's method: unit k (k = 0, 1, ...) of a group of n goes when its turn comes in
    the order of (k + 1/2) / n, and as many turns are given as the share of all units of the component, rounded down.
    So the component never loses more than asked, each of its groups hardly a unit more, and a greater ratio never
    gives a unit back.
scope "global"
    The units with the lowest scores of the whole model go, up to the asked share of all units; of one group at most
    the share ``cap``. Criteria score so that groups compare (their mean is 1).
align
    See `onnxprune.allocation.alignment`. With it the counts are moved to the nearest step, upward or downward.

The work is linear in the number of groups, units and extents, but for sorting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.alignment import Axis, aligned_count
from onnxprune.allocation.ranking import Ranking
from onnxprune.errors import UsageError
from onnxprune.graph.group_types import Group, Indices

__all__ = ["choose"]

Scores = NDArray[np.float64]


def choose(
    groups: Sequence[Group],
    rankings: Mapping[str, Ranking],
    *,
    ratio: float,
    align: int | None = None,
    scope: str = "local",
    cap: float = 0.9,
) -> dict[str, Indices]:
    """Choose the units that go.

    Parameters
    ----------
    groups : sequence of Group
        In any order; the result doesn't depend on it.
    rankings : mapping
        Group -> ranking; groups that aren't there stay whole.
    ratio : float
        Share of the units to remove, ``0 <= ratio < 1``.
    align : int, optional
        Step of the widths that are left, in channels; None or 1 for none.
    scope : {"local", "global"}
    cap : float
        With "global" the largest share of one group that may go, ``0 < cap <= 1``.

    Returns
    -------
    dict
        Group -> sorted int64 indices of the units that go; groups that lose none are left out.

    Raises
    ------
    UsageError
        If an argument is out of range.
    """
    _check(ratio, align, scope, cap)
    groups = sorted((g for g in groups if g.name in rankings), key=lambda g: g.name)
    if ratio == 0 or not groups:
        return {}
    ranked = [rankings[g.name] for g in groups]
    guarded = _guarded(groups, [r.scores for r in ranked])
    orders = [
        _order(r, guarded.get(at), g.least) for at, (g, r) in enumerate(zip(groups, ranked, strict=True))
    ]
    if scope == "global":
        orders = [o[: int(cap * g.units + 1e-9)] for o, g in zip(orders, groups, strict=True)]
        counts = _global_counts(groups, [r.scores for r in ranked], orders, ratio)
        asked = counts.astype(np.float64)
    else:
        counts = _local_counts(groups, ratio)
        asked = np.array([ratio * g.units for g in groups])
    counts = np.minimum(counts, [o.size for o in orders])
    if align is not None and align > 1:
        counts = _aligned(groups, orders, counts, asked, align)
    return {
        g.name: np.sort(o[:count])
        for g, o, count in zip(groups, orders, counts.tolist(), strict=True)
        if count > 0
    }


def _check(ratio: float, align: int | None, scope: str, cap: float) -> None:
    if not 0 <= ratio < 1:
        raise UsageError(
            f"The ratio must be at least 0 and below 1, since no group loses all of it; got {ratio}."
        )
    if align is not None and align < 1:
        raise UsageError(f"The alignment must be at least 1 channel; got {align}.")
    if scope not in ("local", "global"):
        raise UsageError(f"The scope must be 'local' or 'global'; got {scope!r}.")
    if not 0 < cap <= 1:
        raise UsageError(f"The cap must be above 0 and at most 1; got {cap}.")


def _order(ranking: Ranking, guarded: set[int] | None, least: int) -> Indices:
    """Return the units that may go, the first to go first; as many as must stay aren't among them."""
    order, scores = ranking.order, ranking.scores
    order = order[np.isfinite(scores[order]) | (scores[order] < 0)]
    if guarded:
        order = order[~np.isin(order, list(guarded))]
    return order[: max(scores.size - least, 0)].astype(np.int64, copy=False)


def _guarded(groups: Sequence[Group], scores: Sequence[Scores]) -> dict[int, set[int]]:
    """Return group number -> units that must stay, so that no axis loses all of its positions.

    A group keeps at least one unit, so an axis on which every unit of some group has a position is safe, as is one
    with frozen positions. Of any other the unit with the highest score stays.
    """
    owned: dict[int, int] = {}
    safe: set[int] = set()
    for group in groups:
        for extent in group.extents:
            owned[extent.axis_id] = owned.get(extent.axis_id, 0) + int(extent.per_unit.sum())
            if (extent.per_unit > 0).all():
                safe.add(extent.axis_id)
    best: dict[int, tuple[float, int, int]] = {}
    for at, group in enumerate(groups):
        for extent in group.extents:
            if extent.axis_id in safe or owned[extent.axis_id] < extent.size:
                continue
            owners = np.flatnonzero(extent.per_unit > 0)
            if owners.size:
                unit = int(owners[np.argmax(scores[at][owners])])
                candidate = (float(scores[at][unit]), -at, unit)
                best[extent.axis_id] = max(best.get(extent.axis_id, candidate), candidate)
    stay: dict[int, set[int]] = {}
    for _, negated, unit in best.values():
        stay.setdefault(-negated, set()).add(unit)
    return stay


def _local_counts(groups: Sequence[Group], ratio: float) -> Indices:
    """Return how many units of each group go, by Webster's method within each component."""
    units: Indices = np.array([g.units for g in groups], np.int64)
    _, component = np.unique([g.component for g in groups], return_inverse=True)
    counts: Indices = np.floor(ratio * units + 1e-9).astype(np.int64)
    shared = np.flatnonzero(np.bincount(component)[component] > 1)
    if not shared.size:
        return counts
    owner = np.repeat(shared, units[shared])
    rank = np.arange(owner.size) - np.repeat(np.cumsum(units[shared]) - units[shared], units[shared])
    turn = (rank + 0.5) / units[owner]
    order = np.lexsort((owner, turn, component[owner]))
    whole = np.bincount(component[owner])
    first = np.cumsum(whole) - whole
    place = np.arange(owner.size) - first[component[owner[order]]]
    taken = place < np.floor(ratio * whole + 1e-9)[component[owner[order]]]
    turns: Indices = np.bincount(owner[order][taken], minlength=units.size)
    counts[shared] = turns[shared]
    return counts


def _global_counts(
    groups: Sequence[Group], scores: Sequence[Scores], orders: Sequence[Indices], ratio: float
) -> Indices:
    """Return how many units of each group are among the lowest of the whole model."""
    total = int(ratio * sum(g.units for g in groups) + 1e-9)
    values = np.concatenate([s[o] for s, o in zip(scores, orders, strict=True)])
    owner = np.repeat(np.arange(len(groups)), [o.size for o in orders])
    lowest = np.argsort(values, kind="stable")[:total]  # owners ascend by name, and units within by score
    counts: Indices = np.bincount(owner[lowest], minlength=len(groups))
    return counts


def _aligned(
    groups: Sequence[Group], orders: Sequence[Indices], counts: Indices, asked: Scores, align: int
) -> Indices:
    parties: dict[int, int] = {}
    for group in groups:
        for axis_id in {extent.axis_id for extent in group.extents}:
            parties[axis_id] = parties.get(axis_id, 0) + 1
    aligned = counts.copy()
    for at, group in enumerate(groups):
        if asked[at] > 0 and group.stepped:
            axes = _axes(group, parties)
            aligned[at] = aligned_count(axes, orders[at], float(asked[at]), align, int(counts[at]))
    return aligned


def _axes(group: Group, parties: Mapping[int, int]) -> list[Axis]:
    """Return the group's axes, equal ones once: a residual stream has dozens that are all alike."""
    axes: dict[tuple[int, bytes], Axis] = {}
    for extent in group.extents:
        alone = parties[extent.axis_id] == 1
        width = extent.size if alone else int(extent.per_unit.sum())
        key = (width, extent.per_unit.tobytes())
        weight = axes[key].weight + 1 if key in axes else 1
        axes[key] = Axis(width, extent.per_unit, weight)
    return list(axes.values())
