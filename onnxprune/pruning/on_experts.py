"""Saliency of experts from samples; that of channels beside it, where both may go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.ranking import Ranking
from onnxprune.calibration.agreement import Outputs
from onnxprune.calibration.samples import Samples
from onnxprune.errors import NothingToPrune
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.choices import opened
from onnxprune.graph.group_types import EXPERTS, Group
from onnxprune.journey.run import Run
from onnxprune.options.pruning import Options
from onnxprune.pruning.compared import agreement
from onnxprune.pruning.decision import Decision, Limit, groups_of
from onnxprune.pruning.on_samples import FromSamples, admitted
from onnxprune.pruning.outline import thinned
from onnxprune.pruning.reap import ranked_experts
from onnxprune.pruning.report import FitReport
from onnxprune.pruning.saliency import Candidate, ranked_by_weights
from onnxprune.pruning.source import read_of
from onnxprune.reconstruction.plausible import read_samples

__all__ = ["FromChoices"]

Removed = dict[str, NDArray[np.int64]]


@dataclass
class FromChoices:
    """Saliency of experts by their parts in what their layers give.

    Attributes
    ----------
    run : Run
    analysis : Analysis
        In which experts are units.
    groups : list of Group
    ranks : dict
        Group of experts -> ranking.
    fit_on : Samples
        That they were ranked on.
    aside : Samples or None
        That nothing was ranked on.
    channels : FromSamples or None
        Where channels may go, too: of the model in which experts aren't units.
    notes : list of str
    dense : list of Outputs
        The original's, on the samples set aside, once they were needed.
    """

    run: Run[Options]
    analysis: Analysis
    groups: list[Group]
    ranks: dict[str, Ranking]
    fit_on: Samples
    aside: Samples | None
    channels: FromSamples | None = None
    notes: list[str] = field(default_factory=list)
    dense: list[Outputs] = field(default_factory=list)

    @classmethod
    def open(
        cls, run: Run[Options], analysis: Analysis, closed: Callable[[Run[Options]], Analysis]
    ) -> FromChoices:
        """Read the samples, and rank the experts on them.

        Parameters
        ----------
        run : Run
        analysis : Analysis
            In which experts are units.
        closed : callable
            Run -> the analysis of its model.

        Raises
        ------
        NothingToPrune
            If no group may be cut.
        CalibrationError
            If the samples don't fit the model.
        """
        groups = groups_of(analysis, run.options)
        with run.stage("samples"):
            fit_on, aside = read_samples(read_of(run, analysis), run.options, run.progress).set_aside()
        with run.stage("measure"):
            ranks, notes = ranked_experts(analysis, groups, fit_on)
        rest = [g for g in groups if g.kind == EXPERTS and g.name not in ranks]
        ranks |= ranked_by_weights(analysis.model, rest, dataclasses.replace(run.options, criterion="l2"))
        notes += [f"experts of {g.name!r} are ranked by norms of weights" for g in rest]
        made = cls(run, analysis, groups, ranks, fit_on, aside, notes=notes)
        others = [kind for kind in run.options.others if kind != EXPERTS]
        if not others:
            return made
        options = dataclasses.replace(run.options, granularity=",".join(others))
        beside = dataclasses.replace(run, options=options, notes=[])
        try:
            channels = FromSamples.open(beside, closed(beside))
        except NothingToPrune:
            return made
        channels.more = ranks
        run.notes += [note for note in beside.notes if note not in run.notes]
        both = _opened(channels.analysis, run.options)
        return dataclasses.replace(
            made, analysis=both, groups=groups_of(both, run.options), channels=channels
        )

    @property
    def judges(self) -> int:
        """Samples that no fit sees."""
        return 0 if self.aside is None else self.aside.count

    def rankings(self, limit: Limit) -> dict[str, Ranking]:
        """Rank the units of each group."""
        known = {g.name for g in self.groups}
        ranks = self.ranks if self.channels is None else self.channels.rankings(limit) | self.ranks
        return {name: ranking for name, ranking in ranks.items() if name in known}

    def remeasure(self, decision: Decision) -> None:
        """Rank channels that are left anew; experts keep their ranks."""
        rest = self._channels(decision)
        if self.channels is not None and rest.removed:
            self.channels.remeasure(rest)

    def restart(self) -> None:
        """Rank the original again."""
        if self.channels is not None:
            self.channels.restart()

    def refit(self, decision: Decision) -> Candidate:
        """Return a model whose layers no longer need the channels that go; no layer makes up for experts."""
        rest = self._channels(admitted(decision))
        if self.channels is None or not rest.removed:
            report = self._report(decision, self._compared(self.analysis, decision.removed))
            return Candidate(self.analysis, decision, self.analysis.restored, report, self.notes)
        own = {name: units for name, units in decision.removed.items() if name not in rest.removed}
        fitted = self.channels.refit(rest)
        analysis = _opened(fitted.analysis, self.run.options)
        whole = dataclasses.replace(decision, removed={**fitted.decision.removed, **own})
        fit = fitted.fit
        if fit is not None and own:
            fit = dataclasses.replace(fit, original=self._compared(analysis, whole.removed))
        return Candidate(analysis, whole, fitted.restored, fit, [*fitted.notes, *self.notes])

    def _channels(self, decision: Decision) -> Decision:
        """Return a decision without experts."""
        left = {name: units for name, units in decision.removed.items() if name not in self.ranks}
        return dataclasses.replace(decision, removed=left)

    def _compared(self, analysis: Analysis, removed: Removed) -> dict[str, Any] | None:
        return agreement(self.run, analysis, removed, self.aside, self.dense)

    def _report(self, decision: Decision, original: dict[str, Any] | None) -> FitReport:
        return FitReport(
            source=self.fit_on.source,
            samples=self.fit_on.count,
            gram_bytes=0,
            criterion="reap",
            recover="none",
            target=decision.target,
            layers=[],
            segments=[],
            whole=None,
            original=original,
            rotated=[],
            refused={},
            by_norm=[],
            curves={name: thinned(ranking.error) for name, ranking in self.ranks.items()},
        )


def _opened(analysis: Analysis, options: Options) -> Analysis:
    return opened(analysis, allow_inexact=options.allow_inexact, keep_blocks=options.align != 1)
