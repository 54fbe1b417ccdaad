"""Budgets for the whole model: rankings and costs in, units that go out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import registry
from onnxprune.allocation.costs import Costs, Losses, Setting
from onnxprune.allocation.levels import Level, level_of
from onnxprune.allocation.ranking import Ranking
from onnxprune.allocation.several import Constraint, deepest, meet, worst
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.options.target import Target
from onnxprune.pruning.speed import Speed

__all__ = ["Budgets"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Allocations until exact counts of what goes meet the budget that mean counts were to meet.
EXACT = 4
#: Finer steps of widths are slower a MAC, so their error must be this much smaller.
CLEAR = 0.9


@dataclass
class Budgets:
    """Budgets on one model.

    Attributes
    ----------
    analysis : Analysis
    groups : list of Group
        That may be cut.
    align : int
        Step of the widths that are left, in channels.
    bytes : int
        Of the input's files.
    fine : bool
        Whether kernels are taken to work on that step, too, though they were measured on a coarser one.
    speed : Speed or None
        What times results, and predicts latencies, where that is asked for.
    """

    analysis: Analysis
    groups: list[Group]
    align: int
    bytes: int
    speed: Speed | None = None
    fine: bool = False
    _costs: dict[str, list[Costs]] = field(default_factory=dict)
    _finer: dict[int, Budgets] = field(default_factory=dict)
    _losses: Losses | None = None

    def costs(self, kind: str) -> list[Costs]:
        """Return the costs that a kind of budget limits, each of them."""
        if kind not in self._costs:
            if self._losses is None:
                self._losses = Losses(self.analysis.grouping)
            setting = Setting(self.analysis, self._losses, self.bytes, self._predictor)
            self._costs[kind] = registry.load("onnxprune.budgets", kind).costs(setting)
        return self._costs[kind]

    def _predictor(self) -> Any:
        assert self.speed is not None, "a latency target brings a speed"
        predictor = self.speed.predictor(self.groups)
        return replace(predictor, step=min(predictor.step, max(self.align, 1))) if self.fine else predictor

    def dense(self, kind: str) -> float:
        """Return what the original costs."""
        return max(c.total({}) for c in self.costs(kind))

    def exact(self, kind: str, removed: Mapping[str, Ints]) -> float:
        """Return what is left of a cost when these units are gone."""
        dead = self.analysis.grouping.dead(removed)
        return max(c.exact(dead) for c in self.costs(kind))

    def amount(self, target: Target) -> float:
        """Return a budget in its unit."""
        return target.value * self.dense(target.kind) if target.relative else target.value

    def met(self, targets: Sequence[Target]) -> bool:
        """Whether all targets hold as it is."""
        return all(self.amount(target) >= self.dense(target.kind) for target in targets)

    def at(self, align: int) -> Budgets:
        """Return the same budgets on another step of widths, on which kernels are taken to work where it is finer."""
        if align >= self.align:
            return replace(self, align=align)
        if align not in self._finer:
            costs = {kind: known for kind, known in self._costs.items() if kind != "latency"}
            self._finer[align] = replace(self, align=align, fine=True, _costs=costs, _finer={})
        return self._finer[align]

    def shares(self, targets: Sequence[Target]) -> tuple[Target, ...]:
        """Return targets as shares of the original, at most 1."""
        shares = [min(self.amount(t) / self.dense(t.kind), 1.0) for t in targets]
        both = zip(targets, shares, strict=True)
        return tuple(replace(t, value=share, relative=True) for t, share in both)

    def choose(
        self,
        rankings: Mapping[str, Ranking],
        targets: Sequence[Target],
        tighter: Mapping[str, float] | None = None,
    ) -> dict[str, Ints]:
        """Return which units go so that all targets hold.

        Parameters
        ----------
        rankings : mapping
            Group -> ranking; groups that aren't there stay whole.
        targets : sequence of Target
        tighter : mapping, optional
            Kind -> factor on its budget, where what was measured differs from what was predicted.

        Raises
        ------
        NothingToPrune
            If the targets can't be met; the sentence says how far it would go.
        """
        if not rankings:
            raise UsageError("--target finds no group that could be ranked; see 'onnxprune inspect'.")
        levels = {
            g.name: level_of(g, rankings[g.name], self.align) for g in self.groups if g.name in rankings
        }
        factors = {t.kind: (tighter or {}).get(t.kind, 1.0) for t in targets}
        removed: dict[str, Ints] = {}
        for _ in range(EXACT):
            counts = self._meet(levels, targets, factors)
            removed = {n: np.sort(rankings[n].order[:count]) for n, count in counts.items() if count}
            removed = self.analysis.grouping.spare(removed, {n: _places(r) for n, r in rankings.items()})
            over = {
                t.kind: self.exact(t.kind, removed) / (self.amount(t) * (tighter or {}).get(t.kind, 1.0))
                for t in targets
            }
            if all(share <= 1 + 1e-6 for share in over.values()):
                return removed
            factors = {k: f / max(over[k], 1.0) * (1 - 1e-4 * (over[k] > 1)) for k, f in factors.items()}
        raise NothingToPrune(self._unmet(targets, levels))

    def on_steps(
        self, rankings: Mapping[str, Ranking], targets: Sequence[Target], steps: Sequence[int]
    ) -> tuple[int, dict[str, Ints], float]:
        """Return which units go so that all targets hold, on the widest steps of widths that don't lose too much.

        Parameters
        ----------
        rankings : mapping
            Group -> ranking by measured errors.
        targets : sequence of Target
        steps : sequence of int
            The coarsest first; a finer one is taken where it leaves less than `CLEAR` of the error.

        Returns
        -------
        int
            The step.
        dict
            Group -> units that go.
        float
            The error on the coarsest step over that on this one; infinite where the coarsest can't meet the targets.

        Raises
        ------
        NothingToPrune
            If the targets can't be met on any step; the sentence is that of the finest.
        """
        best: tuple[int, dict[str, Ints]] | None = None
        first = least = np.inf
        for step in steps:
            try:
                removed = self.at(step).choose(rankings, targets)
            except NothingToPrune:
                if best is None and step == steps[-1]:
                    raise
                continue
            error = sum(float(rankings[name].error[len(units)]) for name, units in removed.items())
            first = error if step == steps[0] else first
            if best is None or error < CLEAR * least:
                best, least = (step, removed), error
        assert best is not None
        return *best, first / max(least, 1e-30)

    def _meet(
        self, levels: Mapping[str, Level], targets: Sequence[Target], factors: Mapping[str, float]
    ) -> dict[str, int]:
        constraints = [
            Constraint(costs, self.amount(t) * factors[t.kind], t.text)
            for t in targets
            for costs in self.costs(t.kind)
        ]
        chosen = meet(self.groups, levels, constraints)
        if chosen is None:
            raise NothingToPrune(self._unmet(targets, levels))
        return chosen

    def _unmet(self, targets: Sequence[Target], levels: Mapping[str, Level]) -> str:
        state = deepest(levels)
        share = {
            t: worst([Constraint(c, self.amount(t)) for c in self.costs(t.kind)], state)[0] for t in targets
        }
        tight = max(share, key=lambda t: share[t])
        left = share[tight] * self.amount(tight) / self.dense(tight.kind)
        steps, other = (
            (f", on multiples of {self.align}", ", or --align none") if self.align > 1 else ("", "")
        )
        return (
            f"--target {'+'.join(t.text for t in targets)} can't be met: with a tenth of every group that can be "
            f"ranked{steps}, {left:.0%} of the {tight.kind} would be left; ask for less{other}."
        )


def _places(ranking: Ranking) -> Floats:
    """Return when each unit goes: the last to go matters most."""
    places = np.empty(len(ranking.order))
    places[ranking.order] = np.arange(len(ranking.order))
    return places
