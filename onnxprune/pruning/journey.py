"""The journey: load, analyse, decide = Plan, rewrite, verify, put back what fails, report, save.

Left of the Plan everything only reads; right of it everything needs only the model and the plan.
`onnxprune.api` is the front door to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from onnxprune import granularity
from onnxprune.calibration.given import feeds
from onnxprune.cut.cuts import copies_of, cuts_of
from onnxprune.cut.put_back import Carried, Failed, Removed, carry
from onnxprune.cut.rewrite import Rewritten
from onnxprune.errors import ModelError, UsageError, VerificationError
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.folding import Folded, restored
from onnxprune.graph.group_types import Group
from onnxprune.graph.inline import inline
from onnxprune.graph.memory import peak_bytes
from onnxprune.graph.size import Size, count_macs, count_parameters
from onnxprune.journey.output import refuse_overwrite, size_in_bytes, size_of_output
from onnxprune.journey.run import Progress, Run, Source
from onnxprune.journey.save import Outcome, save
from onnxprune.journey.staging import Staging, staging_of
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.options.target import family_of
from onnxprune.pruning.budgets import Budgets, decide_within, settled
from onnxprune.pruning.decision import Decision, decide, plan_of, resolve, step_of
from onnxprune.pruning.outline import group_line, layers_of
from onnxprune.pruning.plan import Plan
from onnxprune.pruning.report import Report, judged
from onnxprune.pruning.speed import Speed, is_asked, surely
from onnxprune.pruning.targets import parse_target
from onnxprune.runtime.binding import option
from onnxprune.runtime.inputs import Trial

if TYPE_CHECKING:
    from onnxprune.proof.verify import Verification

__all__ = [
    "Job",
    "Progress",
    "Result",
    "Source",
    "apply",
    "carry_out",
    "make_plan",
    "prune",
    "verify",
    "refuse_overwrite",
    "size_in_bytes",
    "size_of_output",
]


@dataclass
class Result(Outcome[Report]):
    """What `onnxprune.prune` and `onnxprune.apply` give back; what it shares with others is in `Outcome`.

    Attributes
    ----------
    plan : Plan
    """

    plan: Plan = field(kw_only=True)

    @property
    def pruned(self) -> Model:
        """The smaller model; its weights may still lie in the input's file."""
        return self.changed


@dataclass
class Job(Run[Options]):
    """A run of pruning."""

    report_with: dict[str, Any] = field(default_factory=dict)
    speed: Speed | None = None
    folded: Folded | None = None

    @classmethod
    def open(cls, source: Source, options: Options, progress: Progress | None = None) -> Self:
        """Load a model, see `Run.open`; units that no budget knows are refused before."""
        for target in family_of(options.target) if options.target else ():
            parse_target(target)
        return super().open(source, options, progress)

    def timed(self, analysis: Analysis) -> Speed | None:
        """Return what times results, None where nothing is to be timed."""
        if self.speed is None and is_asked(self.options):
            self.speed = Speed(self.model, analysis, self.options, self.say)
        return self.speed

    def analyse(self, fit: bool | None = None) -> Analysis:
        """Trace and group the model; computed weights are folded where that helps the cut, or a fit on samples."""
        fit = self.options.calib is not None if fit is None else fit
        with self.stage("analyse"):
            model = inline(self.model)
            found = analyse(
                model,
                input_shapes=self.options.input_shapes,
                allow_inexact=self.options.allow_inexact,
                keep_blocks=self.options.align != 1,
                runs=Trial(model) if self.options.verify or self.options.calib is not None else None,
                folds="weights" if fit else "needed",
            )
        self.notes += found.notes
        self.folded = found.folded
        return found


def prune(job: Job, output: Path | None) -> Result:
    """Do the whole journey.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`.
    """
    refuse_overwrite(job.model, output, job.options.in_place, job.options.external_data_threshold)
    if job.options.ratio == 0:
        if job.options.check_speed:
            raise UsageError("--ratio 0 copies the file, which can't be faster; leave --check-speed out.")
        return _copy(job, output)
    plan, analysis, decision = make_plan(job)
    return carry_out(job, analysis, plan, decision, output)


def make_plan(job: Job) -> tuple[Plan, Analysis, Decision]:
    """Do everything up to the decision."""
    analysis = job.analyse()
    with job.stage("decide"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if job.options.target:
            make = partial(budgets_of, job, analysis)
            decision = decide_within(analysis.model, analysis, job.options, make)
            job.notes.append(
                "without samples (--calib) what channels are worth is guessed from weights alone"
            )
        else:
            decision = surely(job.timed(analysis), job.options, partial(decide, analysis.model, analysis))
    job.notes += [str(warning.message) for warning in caught]
    return plan_of(job.sha256(), settled(job.options, decision), analysis, decision), analysis, decision


def budgets_of(job: Job, analysis: Analysis, groups: list[Group]) -> Budgets:
    """Return what meets budgets on the job's model."""
    return Budgets(analysis, groups, step_of(job.options), size_in_bytes(job.model), job.timed(analysis))


def apply(job: Job, plan: Plan, output: Path | None) -> Result:
    """Carry a plan out.

    Raises
    ------
    PlanError
        If the plan is another model's, or its closures aren't those of the model.
    """
    refuse_overwrite(job.model, output, job.options.in_place, job.options.external_data_threshold)
    analysis, decision = _resolve(job, plan)
    if not decision.removed:
        return _copy(job, output)
    return carry_out(job, analysis, plan, decision, output)


def verify(job: Job, pruned: Model, plan: Plan) -> dict[str, Any]:
    """Prove that a pruned model is what its plan says.

    Raises
    ------
    PlanError
        If the plan is another model's.
    VerificationError
        If the models differ.
    """
    analysis, decision = _resolve(job, plan)
    try:
        with job.stage("verify"):
            found = _prove(job, analysis, decision.removed, pruned)
    except Failed as failure:
        raise VerificationError(
            f"The pruned model isn't what the plan says: {str(failure).rstrip('.')}."
        ) from failure
    return found.law1() | {"checks": found.checks, "notes": found.notes}


def _resolve(job: Job, plan: Plan) -> tuple[Analysis, Decision]:
    plan.check_model(job.sha256(), job.model.file_sha256)
    analysis = job.analyse()
    names = {g.name for g in analysis.grouping.groups}
    if {g.name for g in plan.groups} - names:  # made with samples, perhaps: then more weights are folded
        analysis = job.analyse(fit=True)
    return analysis, resolve(plan, analysis)


def _prove(job: Job, analysis: Analysis, removed: Removed, pruned: Model | Path) -> Verification:
    """Verify; raise where something is wrong, or where nothing could be said."""
    from onnxprune.proof.verify import verify as check

    given = feeds(job.model.proto.graph, job.options.inputs)
    dead, masked = analysis.grouping.dead(removed), granularity.load().masked(analysis, removed)
    found = check(
        analysis, dead, pruned, masked=masked, inputs=given, seed=job.options.seed, rtol=job.options.rtol
    )
    if found.status == "failed":
        raise Failed("; ".join(found.failures))
    if not found.passed:
        why = "; ".join(found.notes) or "the outputs say nothing"
        shapes = option(analysis.inputs, job.model.proto.graph)
        sizes = f"sizes that it runs at with --input-shape, as in '{shapes}', " if shapes else ""
        raise VerificationError(
            f"Verification says nothing ({found.status}: {why}); give inputs that exercise the model with "
            f"--inputs, {sizes}or skip it with --no-verify."
        )
    return found


def carry_out(job: Job, analysis: Analysis, plan: Plan, decision: Decision, output: Path | None) -> Result:
    """Rewrite, verify, put back what fails, report and save.

    Parameters
    ----------
    job : Job
    analysis : Analysis
        Of the job's model, or of one of the same shape with other weights.
    plan : Plan
    decision : Decision
    output : Path or None
    """

    def cut(removed: Removed) -> Rewritten:
        with job.stage("rewrite"):
            found = granularity.load().cut(analysis, removed)
            if job.folded is None:
                return found
            return dataclasses.replace(found, model=restored(found.model, job.folded))

    def prove(rewritten: Rewritten, removed: Removed) -> Verification | None:
        if not job.options.verify:
            return None
        pruned: Model | Path = rewritten.model
        if staging is not None:
            with job.stage("save"):
                pruned = staging.write(rewritten.model)
        with job.stage("verify"):
            return _prove(job, analysis, removed, pruned)

    with contextlib.ExitStack() as stack:
        staging = staging_of(job.model, output, job.options)
        if staging is not None:
            stack.enter_context(staging)
        carried = carry(decision.removed, cut, prove)
        if carried.put_back:
            decision = Decision(decision.groups, carried.removed, decision.align)
            plan = plan_of(job.sha256(), settled(job.options, decision), analysis, decision)
        report = _report(job, analysis, decision, carried)
        if job.speed is not None:
            with job.stage("time"):
                report.latency = job.speed.last(carried.rewritten.model)
        budgets = budgets_of(job, analysis, decision.groups)  # while the input is still there
        result = _save(job, Result(carried.rewritten.model, report, output, plan=plan), staging)
    report.targets = judged(job.options, report, budgets, decision.removed)
    return result


def _report(
    job: Job, analysis: Analysis, decision: Decision, carried: Carried[Verification | None] | None
) -> Report:
    coupling, names = analysis.coupling, set(decision.removed)
    chosen = [g for g in analysis.grouping.groups if not g.alternative or g.name in names]
    before = Size(count_parameters(job.model), count_macs(coupling), memory=peak_bytes(analysis))
    report = Report(
        before,
        before,
        frozen=list(analysis.grouping.frozen),
        groups=[group_line(g, len(decision.removed.get(g.name, ()))) for g in chosen],
        align=decision.align,
        inexact=any(g.inexact for g in decision.groups if g.name in names),
        input_shapes={name: list(shape) for name, shape in analysis.inputs.items()},
    )
    report.layers = layers_of(coupling, chosen, {} if carried is None else carried.dead)
    if carried is not None:
        proof = carried.proof
        macs, memory = count_macs(coupling, carried.dead), peak_bytes(analysis, carried.dead)
        report.after = Size(count_parameters(carried.rewritten.model), macs, memory=memory)
        report.cuts, report.copies = cuts_of(coupling, carried.dead), copies_of(carried.rewritten.cuts)
        report.put_back = [{"group": name, "reason": why} for name, why in carried.put_back.items()]
        if proof is not None:
            report.law1, report.checks, report.notes = proof.law1(), list(proof.checks), list(proof.notes)
    report.notes = [*job.notes, *report.notes]
    report.calibration = job.report_with.get("calibration")
    return report


def _save(job: Job, result: Result, staging: Staging | None = None) -> Result:
    report, (before, after) = result.report, save(job, result, staging)
    report.before = dataclasses.replace(report.before, bytes=before)
    report.after = dataclasses.replace(report.after, bytes=after)
    report.seed = job.options.seed
    return result


def _copy(job: Job, output: Path | None) -> Result:
    """Give the input back, byte for byte, where nothing is to be cut."""
    parameters = count_parameters(job.model)
    try:
        analysis = job.analyse()
    except ModelError as error:  # nothing is to be cut, so this is no reason to fail
        job.notes.append(str(error))
        plan, size = plan_of(job.sha256(), job.options, None, Decision([], {})), Size(parameters, None)
        report = Report(size, size, notes=list(job.notes))
    else:
        decision = decide(analysis.model, analysis, dataclasses.replace(job.options, ratio=0))
        plan = plan_of(job.sha256(), job.options, analysis, decision)
        report = _report(job, analysis, decision, None)
    return _save(job, Result(job.model, report, output, plan=plan))
