"""Budgets for the whole model: rankings and costs in, units that go out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import granularity, registry
from onnxprune.allocation.costs import Costs, Losses, Setting
from onnxprune.allocation.levels import Level, level_of
from onnxprune.allocation.ranking import Ranking
from onnxprune.allocation.several import Constraint, deepest, meet, worst
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.model import Model
from onnxprune.options.target import Target
from onnxprune.pruning.speed import Speed

__all__ = ["HOLDS", "Budgets"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Allocations until exact counts of what goes meet the budget that mean counts were to meet.
EXACT = 4
#: Allocations until a cut model, counted, is as large as asked; so much smaller than need be it is large enough.
COUNTED, SLACK = 5, 0.002
#: A result's share of its budget that passes for it, where nothing is timed.
HOLDS = 1.001
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
    rough : bool
        Whether costs are taken for what a cut model has, and none is made to count that.
    beyond : dict
        Kind -> what a model that was cut had beyond its costs: nodes and constants that are new, or gone.
    added : dict
        Kind -> what a fit has added to that.
    """

    analysis: Analysis
    groups: list[Group]
    align: int
    bytes: int
    speed: Speed | None = None
    fine: bool = False
    rough: bool = False
    beyond: dict[str, float] = field(default_factory=dict)
    added: dict[str, float] = field(default_factory=dict)
    _costs: dict[str, list[Costs]] = field(default_factory=dict)
    _finer: dict[int, Budgets] = field(default_factory=dict)
    _losses: Losses | None = None

    def costs(self, kind: str) -> list[Costs]:
        """Return the costs that a kind of budget limits, each of them."""
        if kind not in self._costs:
            if self._losses is None:
                self._losses = Losses(self.analysis.grouping)
            setting = Setting(self.analysis, self._losses, self.bytes, self._predictor)
            self._costs[kind] = _leaf(kind).costs(setting)
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
        levels = self._levels(rankings)
        counted = [] if self.rough else [t for t in targets if hasattr(_leaf(t.kind), "counted")]
        held: dict[str, Ints] | None = None
        for _ in range(COUNTED):
            before = dict(self.beyond)
            try:
                removed = self._by_costs(levels, rankings, targets, tighter or {})
            except NothingToPrune:
                if held is not None:
                    return held
                self.over(counted, self._spared(deepest(levels), rankings))
                if not self._less(before, counted, 0.0):
                    raise NothingToPrune(self._unmet(targets, levels, rankings)) from None
                continue
            if not self.over(counted, removed):
                held = removed
                if not self._less(before, counted, SLACK):
                    return held
        if held is None:
            raise NothingToPrune(self._unmet(targets, levels, rankings))
        return held

    def over(self, targets: Sequence[Target], removed: Mapping[str, Ints]) -> bool:
        """Count what the cut model has, remember what is beyond its costs, and say whether it is too much."""
        more, counts = False, self._counts(targets, removed)
        for target in targets:
            if target.kind in counts:
                had = counts[target.kind] + self.added.get(target.kind, 0.0)
                self.beyond[target.kind] = had - self.exact(target.kind, removed)
                more |= had > self.amount(target)
        return more

    def fitted_over(
        self, targets: Sequence[Target], removed: Mapping[str, Ints], model: Callable[[], Model]
    ) -> bool:
        """Remember what a fit has added to the cut model, and say whether that is more than was asked.

        Parameters
        ----------
        targets : sequence of Target
        removed : mapping
            Group -> units that went.
        model : callable
            Returns the fitted model without them.
        """
        counts = self._counts(targets, removed)
        whole = model() if counts else None
        more = False
        for target in targets:
            if target.kind in counts:
                had = float(_leaf(target.kind).counted(whole))
                self.added[target.kind] = had - counts[target.kind]
                more |= had > self.amount(target) * HOLDS
        return more

    def most(self, rankings: Mapping[str, Ranking], align: int) -> dict[str, Ints]:
        """Return the most that may go on a step of widths."""
        return self._spared(deepest(self.at(align)._levels(rankings)), rankings)

    def _counts(self, targets: Sequence[Target], removed: Mapping[str, Ints]) -> dict[str, float]:
        """Return what the cut model has of each kind of budget that can be counted."""
        leaves = {t.kind: leaf for t in targets if hasattr(leaf := _leaf(t.kind), "counted")}
        if not leaves:
            return {}
        try:
            cut = granularity.load().cut(self.analysis, removed)
        except ValueError:  # is put back when it is carried out, and told then
            return {}
        model = self.analysis.restored(cut.model)
        return {kind: float(leaf.counted(model)) for kind, leaf in leaves.items()}

    def _levels(self, rankings: Mapping[str, Ranking]) -> dict[str, Level]:
        return {g.name: level_of(g, rankings[g.name], self.align) for g in self.groups if g.name in rankings}

    def _less(self, before: Mapping[str, float], targets: Sequence[Target], slack: float) -> bool:
        """Whether a cut model turned out to have less than was taken for granted."""
        return any(
            before.get(t.kind, 0.0) - self.beyond.get(t.kind, 0.0) > slack * self.amount(t) for t in targets
        )

    def _by_costs(
        self,
        levels: Mapping[str, Level],
        rankings: Mapping[str, Ranking],
        targets: Sequence[Target],
        tighter: Mapping[str, float],
    ) -> dict[str, Ints]:
        """Choose so that all targets hold if a cut model has beyond its costs what the last one had."""
        aims = {t.kind: self._aim(t) * tighter.get(t.kind, 1.0) for t in targets}
        factors = {t.kind: tighter.get(t.kind, 1.0) for t in targets}
        for _ in range(EXACT):
            removed = self._spared(self._meet(levels, targets, factors, rankings), rankings)
            over = {kind: self.exact(kind, removed) / aim for kind, aim in aims.items()}
            if all(share <= 1 + 1e-6 for share in over.values()):
                return removed
            factors = {k: f / max(over[k], 1.0) * (1 - 1e-4 * (over[k] > 1)) for k, f in factors.items()}
        raise NothingToPrune(self._unmet(targets, levels, rankings))

    def _aim(self, target: Target) -> float:
        """Return what costs may come to."""
        return max(self.amount(target) - self.beyond.get(target.kind, 0.0), 1e-9)

    def _spared(self, counts: Mapping[str, int], rankings: Mapping[str, Ranking]) -> dict[str, Ints]:
        removed = {n: np.sort(rankings[n].order[:count]) for n, count in counts.items() if count}
        return self.analysis.grouping.spare(removed, {n: _places(r) for n, r in rankings.items()})

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
        self,
        levels: Mapping[str, Level],
        targets: Sequence[Target],
        factors: Mapping[str, float],
        rankings: Mapping[str, Ranking],
    ) -> dict[str, int]:
        constraints = [
            Constraint(costs, self._aim(t) * factors[t.kind], t.text)
            for t in targets
            for costs in self.costs(t.kind)
        ]
        chosen = meet(self.groups, levels, constraints)
        if chosen is None:
            raise NothingToPrune(self._unmet(targets, levels, rankings))
        return chosen

    def _unmet(
        self, targets: Sequence[Target], levels: Mapping[str, Level], rankings: Mapping[str, Ranking]
    ) -> str:
        state = deepest(levels)
        share = {
            t: worst([Constraint(c, self._aim(t)) for c in self.costs(t.kind)], state)[0] for t in targets
        }
        tight = max(share, key=lambda t: share[t])
        left = self.exact(tight.kind, self._spared(state, rankings)) + self.beyond.get(tight.kind, 0.0)
        floor = np.ceil(1000 * left / self.dense(tight.kind)) / 1000  # rounded so that it can be met
        steps, other = (
            (f", on multiples of {self.align}", ", or --align none") if self.align > 1 else ("", "")
        )
        return (
            f"--target {'+'.join(t.text for t in targets)} can't be met: with a tenth of every group that can be "
            f"ranked{steps}, {floor:.1%} of the {tight.kind} would be left; ask for less{other}."
        )


def _leaf(kind: str) -> Any:
    return registry.load("onnxprune.budgets", kind)


def _places(ranking: Ranking) -> Floats:
    """Return when each unit goes: the last to go matters most."""
    places = np.empty(len(ranking.order))
    places[ranking.order] = np.arange(len(ranking.order))
    return places
