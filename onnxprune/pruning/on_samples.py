"""The journey with samples: curves, allocation, refits, the exact cut, and how far the result is from the original."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation import ratio
from onnxprune.calibration.agreement import compare, distance, outputs
from onnxprune.calibration.samples import Samples, samples_for
from onnxprune.cut.rewrite import rewrite
from onnxprune.errors import CalibrationError, NothingToPrune, UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.graph.select import pick
from onnxprune.journey import output as places
from onnxprune.options.pruning import Options
from onnxprune.options.target import Target
from onnxprune.pruning import journey as pipeline
from onnxprune.pruning import search
from onnxprune.pruning import weighing as tilt
from onnxprune.pruning.budgets import Budgets
from onnxprune.pruning.curves import measured
from onnxprune.pruning.decision import Decision, decide, plan_of, step_of
from onnxprune.pruning.journey import Job, Result
from onnxprune.pruning.outline import thinned
from onnxprune.pruning.saliency import Ranking, ranked_by_curve
from onnxprune.pruning.search import Floors
from onnxprune.pruning.speed import surely
from onnxprune.pruning.targets import parse_target
from onnxprune.pruning.weighing import Weighing
from onnxprune.reconstruction.least_squares import Curve
from onnxprune.reconstruction.plausible import plausible
from onnxprune.reconstruction.reconstruct import reconstruct
from onnxprune.reconstruction.sequential import Calibration, Fitted, refit_analysis
from onnxprune.report.sentences import by_norm_lines
from onnxprune.rotation.basis import Rotated
from onnxprune.runtime.inputs import Trial

__all__ = ["Work", "prune"]

Ints = NDArray[np.int64]

#: Samples of a trial fit, and as many again to judge it; and positions used of a layer, for each regressor.
TRIAL_SAMPLES, TRIAL_ROWS = 256, 16
#: The same, of a step on the way.
STEP_ROWS = 60


def prune(job: Job, output: Path | None) -> Result:
    """Do the whole journey with samples.

    Raises
    ------
    CalibrationError
        If the samples don't fit the model, or no cut holds what was asked.
    OnnxPruneError
        See `onnxprune.errors`.
    """
    places.refuse_overwrite(job.model, output, job.options.in_place, job.options.external_data_threshold)
    work = Work.open(job)
    options = job.options
    targets = parse_target("+".join(options.target)) if options.target else ()
    floors = Floors(options.min_agreement, options.max_drop)
    if not floors:
        return work.run(targets, output)
    return work.finish(work.held(targets, floors), output)


@dataclass
class _Trial:
    fitted: Fitted
    analysis: Analysis
    original: dict[str, Any] | None
    asked: str


@dataclass
class Work:
    """One model and its samples: what any number of budgets share."""

    job: Job
    analysis: Analysis
    groups: list[Group]
    fit_on: Samples
    aside: Samples | None
    calibration: Calibration
    align: int
    budgets: Budgets
    measured: dict[str, Curve]  # loss curves of the original; steps replace those of the calibration
    rotated: Rotated
    weighing: Weighing | None = None
    dense: dict[str, NDArray[Any]] = field(default_factory=dict)  # outputs of the original

    @classmethod
    def open(cls, job: Job) -> Work:
        """Analyse the model, read the samples, and take the loss curves (or those that were kept)."""
        options = job.options
        analysis = job.analyse()
        groups = pick(analysis.grouping, options.ignore, options.only)
        if not groups:
            raise NothingToPrune(
                "Nothing may be cut: no group is left; 'onnxprune inspect' lists them with reasons."
            )
        with job.stage("samples"):
            samples = samples_for(analysis.interface(), options, analysis.inputs)
            if options.calib == "synthetic":
                samples = plausible(analysis, samples, options.seed, job.progress)
        fit_on, aside = samples.set_aside()
        calibration, rotated = measured(job, analysis, groups, fit_on)
        analysis, groups = calibration.analysis, calibration.groups
        budgets = pipeline.budgets_of(job, analysis, groups)
        step = step_of(options)
        curves = calibration.curves
        return cls(job, analysis, groups, fit_on, aside, calibration, step, budgets, curves, rotated)

    def again(self, job: Job) -> Work:
        """Return the same work under other options of the budget: samples, curves and weights are shared."""
        found = dataclasses.replace(
            self, job=job, budgets=pipeline.budgets_of(job, self.analysis, self.groups)
        )
        found.align = step_of(job.options)
        found.calibration = copy.copy(self.calibration)
        found.calibration.curves = self.measured
        return found

    def run(self, targets: Sequence[Target], output: Path | None) -> Result:
        """Decide, fit, cut and save."""
        return self.finish(self.fit(self.decide(targets)), output)

    def decide(self, targets: Sequence[Target]) -> dict[str, Ints]:
        """Return which units go in the end, after the steps on the way."""
        self.approach(targets)
        return self.choose(self.job.options.ratio, targets)

    def choose(
        self, ratio: float | None, targets: Sequence[Target], *, rough: bool = False
    ) -> dict[str, Ints]:
        """Return which units go, under a ratio or a budget; rough: without timing anything."""
        options = self.job.options
        self._weigh(targets)
        with self.job.stage("decide"):
            if targets:
                removed = self._within(targets, rough)
            else:
                options = dataclasses.replace(options, ratio=ratio, align=self.align)
                decided = surely(None if rough else self.budgets.speed, options, self._by_ratio)
                removed, self.align = decided.removed, decided.align
        if not removed:
            raise NothingToPrune("No group can lose a unit under this budget and alignment; ask for more.")
        return removed

    def approach(self, targets: Sequence[Target]) -> None:
        """Cut and fit in steps, each time taking the loss curves again from what is left.

        Parameters
        ----------
        targets : sequence of Target
            What holds in the end; without, the ratio of the options.
        """
        options, steps = self.job.options, self.job.options.steps
        self._weigh(targets)  # by what holds in the end, not by the first step
        shares = self._shares(targets)
        for step in range(1, steps):
            far = step / steps
            now = [dataclasses.replace(t, value=t.value**far) for t in shares]
            ratio = 1 - (1 - (options.ratio or 0.0)) ** far
            with contextlib.suppress(NothingToPrune), self.job.stage(f"step {step}"):
                rough = self.calibration.on(self.fit_on, STEP_ROWS)
                self.calibration.curves = rough.fit(self.choose(ratio, now, rough=True), measure=True).curves

    def _by_ratio(self, options: Options) -> Decision:
        if not self.calibration.curves:
            return decide(self.analysis.model, self.analysis, options)
        removed = ratio.choose(
            self.groups,
            {name: ranked_by_curve(curve) for name, curve in self.calibration.curves.items()},
            ratio=options.ratio or 0.0,
            align=step_of(options),
            scope=options.scope,
            cap=options.cap,
        )
        if not removed:
            raise NothingToPrune("No group can lose a unit under this ratio and alignment; ask for more.")
        return Decision(self.groups, removed, step_of(options))

    def _within(self, targets: Sequence[Target], rough: bool) -> dict[str, Ints]:
        curves = self.calibration.curves
        if not curves:
            raise UsageError(
                f"--target with --calib needs a criterion with samples, such as obs; got {self.job.options.criterion}."
            )
        rankings = self._rankings(self.weighing or Weighing())
        if rough:
            return self.budgets.choose(rankings, targets)
        found = self.budgets.settle(rankings, targets)
        self.align = self.budgets.align
        return found

    def _rankings(self, weighing: Weighing) -> dict[str, Ranking]:
        weight = tilt.weights(self.calibration.places, [s.number for s in self.calibration.sites], weighing)
        return {n: ranked_by_curve(c, weight.get(n, 1.0)) for n, c in self.calibration.curves.items()}

    def _weigh(self, targets: Sequence[Target]) -> None:
        """Find how errors of different groups weigh, once, by trial fits on few samples."""
        if not targets or self.weighing is not None:
            return
        trials, few = self.job.options.trials, _few(self.fit_on)
        if trials == 0 or few is None or len(self.calibration.curves) < 2:
            self.weighing = Weighing()
            return
        quick, judge = few
        calibration = self.calibration.on(quick, TRIAL_ROWS)
        many = any(len(mine) > 1 for mine in calibration.places.values())
        most = 2 * trials - 1 if many else trials
        with self.job.stage("weigh"):
            dense, numbers = outputs(self.job.model, judge), count(1)

            def tried(weighing: Weighing) -> float:
                if self.job.progress:
                    self.job.progress(f"weigh {next(numbers)}/{most}: trial fit")
                try:
                    fitted = calibration.fit(self.budgets.choose(self._rankings(weighing), targets))
                except NothingToPrune:
                    return np.inf
                return distance(dense, outputs(fitted.model, judge))

            self.weighing = found = tilt.search(tried, trials, many=many)
        shared = f", those of groups that many layers read {found.shared:g} times others" if many else ""
        self.job.notes.append(
            f"Errors of the deepest layer weigh {np.exp(found.tilt):.3g} times those of the first{shared}."
        )

    def fit(self, removed: Mapping[str, Ints], asked: str = "") -> _Trial:
        """Fit the layers, and compare the result with the original on the samples set aside."""
        with self.job.stage("fit"):
            fitted = self.calibration.fit(removed)
        return self.judge(fitted, asked)

    def judge(self, fitted: Fitted, asked: str = "") -> _Trial:
        """Reconstruct a fitted model's segments, and compare it with the original on the samples set aside."""
        analysis = self._refit_analysis(fitted)
        if self.calibration.settings.recovery.together:
            with self.job.stage("reconstruct"):
                dead = analysis.grouping.dead(fitted.removed)
                fitted.segments = reconstruct(
                    analysis,
                    self.analysis,
                    dead,
                    self.fit_on,
                    seed=self.job.options.seed,
                    say=self.job.progress,
                )
            analysis = self._refit_analysis(fitted)
        original = None
        if self.aside is not None:
            with self.job.stage("compare"):
                dead = analysis.grouping.dead(fitted.removed)
                cut = rewrite(fitted.model, analysis.coupling, analysis.tracer, dead, analysis.other_values())
                if "aside" not in self.dense:
                    self.dense["aside"] = outputs(self.job.model, self.aside)
                original = compare(self.dense["aside"], outputs(cut.model, self.aside), self.aside.labels)
        return _Trial(fitted, analysis, original, asked)

    def _refit_analysis(self, fitted: Fitted) -> Analysis:
        options = self.job.options
        with self.job.stage("fit"):
            return refit_analysis(
                fitted,
                self.analysis,
                fitted.removed,
                input_shapes=options.input_shapes,
                allow_inexact=options.allow_inexact,
                keep_blocks=options.align != 1,
                runs=Trial(fitted.model),
            )

    def held(self, targets: Sequence[Target], floors: Floors) -> _Trial:
        """Return a cut that holds floors and meets its targets; the largest that holds where there are none.

        Raises
        ------
        CalibrationError
            If there are no samples to judge it by, or no such cut.
        """
        if self.aside is None:
            raise CalibrationError(
                f"{floors.text} is judged on samples that no fit sees; give more samples (at least 20)."
            )

        def fit(asked: tuple[Target, ...]) -> _Trial:
            return self.fit(self.choose(None, asked), "+".join(t.text for t in asked))

        if not targets:
            return search.largest(fit, floors, self.job.progress)
        first = self.fit(self.decide(targets), "+".join(t.text for t in targets))
        self.calibration.curves = self.measured  # steps on the way to the target are none to less
        return search.held(first, fit, floors, self._shares(targets), self.job.progress)

    def _shares(self, targets: Sequence[Target]) -> list[Target]:
        """Return targets as shares of the original, at most 1."""
        shares = [min(self.budgets.amount(t) / self.budgets.dense(t.kind), 1.0) for t in targets]
        both = zip(targets, shares, strict=True)
        return [dataclasses.replace(t, value=share, relative=True) for t, share in both]

    def finish(self, trial: _Trial, output: Path | None) -> Result:
        """Cut, verify, report and save."""
        job, options = self.job, self.job.options
        removed = {name: units for name, units in trial.fitted.removed.items() if len(units)}
        units = sum(g.units for g in self.groups)
        decision = Decision(self.groups, removed, self.align)
        share = round(sum(len(u) for u in removed.values()) / max(units, 1), 6)
        plan = plan_of(job.sha256(), options.decided(share), self.analysis, decision)
        job.report_with = {
            "calibration": {
                "source": self.fit_on.source,
                "samples": self.fit_on.count,
                "gram_bytes": self.calibration.gram_bytes,
                "criterion": options.criterion,
                "recover": options.recover,
                "target": trial.asked or "+".join(options.target) or None,
                "layers": [dataclasses.asdict(line) for line in trial.fitted.layers],
                "segments": [dataclasses.asdict(line) for line in trial.fitted.segments],
                "original": trial.original,
                "rotated": {"groups": [m.name for m in self.rotated.mixed], "refused": self.rotated.refused},
                "by_norm": self.calibration.by_norm,
                "curves": {name: thinned(curve.error) for name, curve in self.calibration.curves.items()},
            }
        }
        few = [line.layer for line in trial.fitted.layers if line.too_few]
        if few:
            job.notes.append(
                f"{len(few)} layers had too few samples for a regression ({few[0]} first) and stay near their old "
                "weights; give more."
            )
        job.notes += self.rotated.notes()
        rough = {*removed} - {*self.calibration.places} | {*removed}.intersection(self.calibration.by_norm)
        job.notes += by_norm_lines([n for n in removed if n in rough])
        return pipeline.carry_out(job, trial.analysis, plan, decision, output)


def _few(samples: Samples) -> tuple[Samples, Samples] | None:
    """Return few samples for trial fits and as many to judge them by; None where there aren't enough."""
    wanted = min(2 * TRIAL_SAMPLES, max(samples.count // 2, 32))
    if samples.count < wanted:
        return None
    few = samples.split(1 - wanted / samples.count)[0]
    quick, judge = few.split(0.5)
    return None if judge is None else (quick, judge)
