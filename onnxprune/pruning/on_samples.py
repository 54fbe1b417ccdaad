"""Saliency from samples: loss curves, layers that are refitted, and how far the result is from the original."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from onnxprune.allocation.alignment import FLOOR
from onnxprune.allocation.ranking import Ranking
from onnxprune.calibration.agreement import Outputs
from onnxprune.calibration.samples import Samples
from onnxprune.errors import NothingToPrune, UsageError, many
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import EXPERTS, Group
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.pruning.compared import agreement, given_by
from onnxprune.pruning.curves import measured, without_samples
from onnxprune.pruning.decision import Decision, Limit, groups_of
from onnxprune.pruning.harm import farther, set_back, told_of
from onnxprune.pruning.outline import thinned
from onnxprune.pruning.report import FitReport
from onnxprune.pruning.saliency import Candidate, FromWeights, ranked_by_curve
from onnxprune.pruning.source import Reduced, extra_of, read_of
from onnxprune.pruning.speed import finer_steps
from onnxprune.pruning.weighing import weights_of
from onnxprune.reconstruction.distill import distill, pace_of
from onnxprune.reconstruction.finetune import finetune
from onnxprune.reconstruction.least_squares import Curve
from onnxprune.reconstruction.moment_file import MomentFile
from onnxprune.reconstruction.plausible import read_samples
from onnxprune.reconstruction.reconstruct import SegmentReport, reconstruct
from onnxprune.reconstruction.sequential import Calibration, Fitted, refit_analysis
from onnxprune.report.sentences import by_norm_lines
from onnxprune.rotation.basis import Rotated
from onnxprune.runtime.inputs import Trial

__all__ = ["FromSamples", "admitted"]

#: How far a model is from the original, and the squared errors of samples; None where none are set aside.
State = tuple[dict[str, Any], list[NDArray[Any]]] | None

#: Positions used of a layer, for each regressor, in a fit of a step on the way.
STEP_ROWS = 60


@dataclass
class FromSamples:
    """One model and its samples: what any number of limits share.

    Attributes
    ----------
    run : Run
    analysis : Analysis
        Of the original in its new basis.
    groups : list of Group
    fit_on : Samples
        That fits may see.
    aside : Samples or None
        That no fit sees.
    calibration : Calibration
    measured : dict
        Group -> loss curve of the original; steps replace those of the calibration.
    rotated : Rotated
    restored : callable
        See `Candidate`.
    weights : dict or None
        Group -> what its errors weigh at the model's end, once that was asked; see `weights_of`.
    dense : list of Outputs
        The original's, on the samples set aside, once they were needed.
    extra : Samples or None
        That layers are fitted together on beside ``fit_on``, and that neither choose nor judge.
    more : dict
        Rankings of groups of another kind, which share a budget with these.
    """

    run: Run[Options]
    analysis: Analysis
    groups: list[Group]
    fit_on: Samples
    aside: Samples | None
    calibration: Calibration
    measured: dict[str, Curve]
    rotated: Rotated
    restored: Callable[[Model], Model]
    weights: dict[str, float] | None = None
    dense: list[Outputs] = field(default_factory=list)
    extra: Samples | None = None
    more: dict[str, Ranking] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Run[Options], analysis: Analysis) -> FromSamples:
        """Read the samples, and take the loss curves (or those that were kept).

        Raises
        ------
        NothingToPrune
            If no group may be cut.
        CalibrationError
            If the samples don't fit the model.
        """
        options, groups = run.options, groups_of(analysis, run.options)
        if any(g.kind == EXPERTS for g in groups):
            raise UsageError("Experts go by 'prune' and 'plan' alone; leave --granularity experts out.")
        moments = None if options.moments is None else MomentFile.open(options.moments)
        if moments is not None:
            moments.check_whole(run.sha256())
            run.notes += without_samples(options)
        with run.stage("samples"):
            if options.calib is None:
                assert moments is not None
                fit_on, aside = Samples([], [moments.header.samples], source=str(options.moments)), None
            else:
                fit_on, aside = read_samples(read_of(run, analysis), options, run.progress).set_aside()
            extra = extra_of(run, analysis)
        dense = []
        if aside is not None and aside.labels is not None:  # wrong ones are refused before the work
            with run.stage("compare"):
                dense.append(given_by(run, analysis, aside))
        made, rotated = measured(run, analysis, groups, fit_on, moments)
        if isinstance(run, Reduced) and rotated.analysis is analysis and analysis.undo is None:
            made.aim = run.aim  # else tensors inside aren't those of the original
        return cls(
            run, made.analysis, made.groups, fit_on, aside, made, made.curves, rotated, analysis.restored,
            dense=dense, extra=extra,
        )  # fmt: skip

    @classmethod
    def of_layers(cls, run: Run[Options], analysis: Analysis) -> FromSamples:
        """Read the samples, to fit the layers of a model that loses no units.

        Raises
        ------
        CalibrationError
            If the samples don't fit the model.
        """
        options = run.options
        with run.stage("samples"):
            fit_on, aside = read_samples(read_of(run, analysis), options, run.progress).set_aside()
            extra = extra_of(run, analysis)
        made = Calibration(
            analysis, fit_on, [], recover=options.recover, seed=options.seed, say=run.progress,
            aim=run.aim if isinstance(run, Reduced) else None,
        )  # fmt: skip
        return cls(
            run, analysis, [], fit_on, aside, made, {}, Rotated(analysis), analysis.restored, extra=extra
        )

    def again(self, run: Run[Options]) -> FromSamples:
        """Return the same for another limit: samples, curves of the original and weights of errors are shared."""
        other = dataclasses.replace(self, run=run, calibration=copy.copy(self.calibration))
        other.restart()
        return other

    @property
    def judges(self) -> int:
        """Samples that no fit sees."""
        return 0 if self.aside is None else self.aside.count

    def rankings(self, limit: Limit) -> dict[str, Ranking]:
        """Rank units by the loss curves; under targets errors are weighed first, once.

        Raises
        ------
        UsageError
            If there are targets, and the criterion reads weights.
        """
        curves = self.calibration.curves
        if not curves:
            if limit.targets:
                name = self.run.options.criterion
                raise UsageError(
                    f"--target with --calib needs a criterion with samples, such as obs; got {name}."
                )
            return FromWeights(self.run, self.analysis, self.groups).rankings(limit)
        if not limit.targets:
            return {name: ranked_by_curve(curve) for name, curve in curves.items()}
        if self.weights is None and not self.fit_on.batches:  # looks run over samples
            return {name: ranked_by_curve(curve) for name, curve in curves.items()}
        if self.weights is None:
            self.weights = weights_of(
                self.run, self.calibration, self.fit_on, lambda weights: self._removed(limit, weights)
            )
        return self._weighed(self.weights)

    def _removed(self, limit: Limit, weights: Mapping[str, float]) -> dict[str, NDArray[Any]]:
        """Return what goes if errors weigh so much."""
        rankings = self._weighed(weights) | self.more
        budgets = dataclasses.replace(limit.budgets, rough=True, _finer={})
        if limit.timed:
            removed = budgets.choose(rankings, limit.targets)
        else:
            steps = finer_steps(self.run.options.align, FLOOR)
            removed = budgets.on_steps(rankings, limit.targets, steps)[1]
        return {name: units for name, units in removed.items() if name not in self.more}

    def _weighed(self, weights: Mapping[str, float]) -> dict[str, Ranking]:
        dearest = max(weights.values(), default=1.0)  # of groups whose loss nobody could measure
        return {n: ranked_by_curve(c, weights.get(n, dearest)) for n, c in self.calibration.curves.items()}

    def remeasure(self, decision: Decision) -> None:
        """Take the loss curves again, from a rough fit without the units that go."""
        rough = self.calibration.on(self.fit_on, STEP_ROWS)
        self.calibration.curves = rough.fit(admitted(decision).removed, measure=True).curves

    def restart(self) -> None:
        """Return to the loss curves of the original."""
        self.calibration.curves = self.measured

    def refit(self, decision: Decision) -> Candidate:
        """Fit the layers, and compare the result with the original on the samples set aside."""
        with self.run.stage("fit"):
            fitted = self.calibration.fit(admitted(decision).removed)
        return self.candidate(decision, fitted)

    def candidate(self, decision: Decision, fitted: Fitted) -> Candidate:
        """Fit a fitted model's layers together, and compare it with the original on the samples set aside.

        There each fit of layers together is held against the state that it began with, which is kept where it is nearer
        beyond chance: descent judges one segment by what it gives, and layers behind it were fitted to what it gave
        before. A fit toward labels leaves the original on purpose, and isn't.
        """
        run, analysis, recovery = self.run, self._analysis_of(fitted), self.calibration.settings.recovery
        more: dict[str, Any] = {"seed": run.options.seed, "say": run.progress}
        state, notes = self._compared(fitted, analysis), list[str]()
        if recovery.together:
            before = fitted.model.fork()
            with run.stage("reconstruct"):
                dead = analysis.grouping.dead(fitted.removed)
                fitted.segments = reconstruct(analysis, self._original, dead, self.fit_on, **more)
            made = fitted.segments
            analysis, state = self._nearer(fitted, before, state, made, "blocks of layers", notes)
        if recovery.whole:
            before = fitted.model.fork()
            with run.stage("distill"):
                dead = analysis.grouping.dead(fitted.removed)
                seen = self.fit_on if self.extra is None else self.fit_on.beside(self.extra)
                more["pace"] = pace_of(seen.count, run.options.epochs, run.options.lr)
                fit = finetune if recovery.labelled else distill
                fitted.whole = fit(analysis, self._original, dead, seen, **more)
            start, made = None if recovery.labelled else state, [fitted.whole]
            analysis, state = self._nearer(fitted, before, start, made, "all layers", notes)
        original = state and state[0]
        removed = {name: units for name, units in fitted.removed.items() if len(units)}
        decision = dataclasses.replace(decision, removed=removed)
        report = self._report(fitted, decision, original)
        bare = self._bare(fitted, original)
        notes = self._notes(fitted, decision) + notes + told_of(original, bare, recovery, fitted.segments)
        return Candidate(analysis, decision, self.restored, report, notes)

    def _nearer(
        self, fitted: Fitted, before: Model, start: State, made: Sequence[SegmentReport], what: str, notes: list[str],
    ) -> tuple[Analysis, State]:  # fmt: skip
        """Return what a fit of layers together gave, and how far it is; or what it began with, where that is nearer.

        What is told of a fit (``made``) is set back with it, and a note says so. ``before`` has the weights that it
        began with, ``start`` how far these are from the original; None where nobody is to ask.
        """
        analysis = self._analysis_of(fitted)
        if start is not None and all(report.after >= report.before for report in made):
            return analysis, start
        end = self._compared(fitted, analysis)
        if start is None or end is None or not farther(end[1], start[1]):
            return analysis, end
        for report in made:
            report.after = report.before
        notes.append(set_back(what, start[0], end[0]))
        fitted.model = before
        return self._analysis_of(fitted), start

    @property
    def _original(self) -> Analysis:
        """What layers are fitted to."""
        return self.analysis if self.calibration.aim is None else self.calibration.aim.analysis

    def _analysis_of(self, fitted: Fitted) -> Analysis:
        options = self.run.options
        with self.run.stage("fit"):
            return refit_analysis(
                fitted,
                self.analysis,
                fitted.removed,
                input_shapes=options.input_shapes,
                allow_inexact=options.allow_inexact,
                keep_blocks=options.align != 1,
                runs=Trial(fitted.model),
                open_io=options.open_io,
            )

    def _compared(self, fitted: Fitted, analysis: Analysis) -> State:
        each: list[NDArray[Any]] = []
        found = agreement(self.run, analysis, fitted.removed, self.aside, self.dense, each)
        return None if found is None else (found, each)

    def _bare(self, fitted: Fitted, original: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return how far the model is from the original without any fit; None where nothing was fitted."""
        if original is None or not any(line.variant != "kept" for line in fitted.layers):
            return None
        return agreement(self.run, self.analysis, fitted.removed, self.aside, self.dense)

    def _report(self, fitted: Fitted, decision: Decision, original: dict[str, Any] | None) -> FitReport:
        return FitReport(
            source=self.fit_on.source,
            samples=self.fit_on.count,
            gram_bytes=self.calibration.gram_bytes,
            criterion=self.run.options.criterion,
            recover=self.run.options.recover,
            target=decision.target,
            layers=fitted.layers,
            segments=fitted.segments,
            whole=fitted.whole,
            original=original,
            rotated=[m.name for m in self.rotated.mixed],
            refused=self.rotated.refused,
            by_norm=self.calibration.by_norm,
            curves={name: thinned(curve.error) for name, curve in self.calibration.curves.items()},
        )

    def _notes(self, fitted: Fitted, decision: Decision) -> list[str]:
        notes = []
        few = [line.layer for line in fitted.layers if line.too_few]
        if few:
            notes.append(
                f"{many(len(few), 'layer')} had too few samples for a regression ({few[0]} first) and kept nearly the "
                "old weights; give more."
            )
        removed, made = decision.removed, self.calibration
        rough = {*removed} - {*made.places} | {*removed}.intersection(made.by_norm)
        return [*notes, *self.rotated.notes(), *by_norm_lines([n for n in removed if n in rough])]


def admitted(decision: Decision) -> Decision:
    """Refuse a decision that takes nothing, before a model is fitted for it.

    Raises
    ------
    NothingToPrune
    """
    if not decision.removed:
        raise NothingToPrune("No group can lose a unit under this budget and alignment; ask for more.")
    return decision
