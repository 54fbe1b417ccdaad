"""The journey of pruning: analyse, rank, decide, refit, carry out.

`prune` is the page to read first. Left of the plan everything only reads; right of it everything needs only the model
and the plan, so ``onnxprune plan`` and ``onnxprune apply`` meet at a file. `onnxprune.api` is the front door to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune import granularity
from onnxprune.calibration.inputs import feeds
from onnxprune.cut.cuts import copies_of, cuts_of
from onnxprune.cut.put_back import Carried, Failed, Removed, carry
from onnxprune.cut.rewrite import Rewritten
from onnxprune.errors import ModelError, UsageError, VerificationError
from onnxprune.files.commit import together
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.choices import opened as experts_opened
from onnxprune.graph.inline import inline, notes_of
from onnxprune.graph.memory import peak_bytes
from onnxprune.graph.select import passed_over, pick
from onnxprune.graph.size import Size, count_macs, count_parameters
from onnxprune.journey.genai import write_config
from onnxprune.journey.given_shapes import bound
from onnxprune.journey.output import refuse_overwrite
from onnxprune.journey.run import Progress, Run, Source
from onnxprune.journey.save import Outcome, save
from onnxprune.journey.staging import Staging, staging_of
from onnxprune.model import Model
from onnxprune.options.granularity import CHANNELS, EXPERTS
from onnxprune.options.pruning import Options
from onnxprune.options.target import family_of
from onnxprune.pruning.aimed import Judge, fitted, met
from onnxprune.pruning.decision import Decision, asked, is_asked, limit_of, plan_of, resolve, settled
from onnxprune.pruning.depth import Shallowed, dropped
from onnxprune.pruning.depth import planned_with as with_branches
from onnxprune.pruning.depth import tell as tell_depth
from onnxprune.pruning.depth_share import refitted, shallower, speed_of_source
from onnxprune.pruning.outline import group_line, layers_of
from onnxprune.pruning.outlook import layer_seconds, outlook, whole_reasons
from onnxprune.pruning.plan import Plan
from onnxprune.pruning.proving import proved
from onnxprune.pruning.report import Report
from onnxprune.pruning.saliency import Candidate, FromWeights, Saliency
from onnxprune.pruning.schedule import decide_in_steps
from onnxprune.pruning.search import Floors, within
from onnxprune.pruning.source import Reduced
from onnxprune.pruning.targets import parse_target
from onnxprune.pruning.vocabulary import (
    checked_size,
    finished,
    narrowed,
    planned_with,
    renumbered_run,
    tell,
    write_ids,
)
from onnxprune.report.signature import changed_interface
from onnxprune.rotation.centre import open_widths
from onnxprune.runtime.inputs import Trial

if TYPE_CHECKING:
    from onnxprune.proof.verify import Verification

__all__ = [
    "Result",
    "analysis_of",
    "apply",
    "carry_out",
    "make_plan",
    "open_run",
    "planned",
    "prune",
    "saliency_of",
    "verify",
]


@dataclass(repr=False)
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


def open_run(source: Source, options: Options, progress: Progress | None = None) -> Run[Options]:
    """Load a model, see `Run.open`; units that no budget knows are refused before."""
    for target in family_of(options.target) if options.target else ():
        parse_target(target)
    return Run.open(source, options, progress)


def prune(run: Run[Options], output: Path | None, chosen: Callable[[Candidate], object] = id) -> Result:
    """Do the whole journey, with samples or without; ``chosen`` is given what is carried out.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`.
    """
    refuse_overwrite(run.model, output, run.options.in_place, run.options.external_data_threshold)
    run = shallower(narrowed(run, output), analysis_of)
    if isinstance(run, Shallowed) and run.alone:
        return _fitted_alone(run, output)
    if run.options.ratio == 0:
        if run.options.check_speed:
            raise UsageError("--ratio 0 copies the file, which can't be faster; leave --check-speed out.")
        return _copy(run, output)
    analysis = analysis_of(run)
    if isinstance(run, Reduced) and (isinstance(run, Shallowed) or not run.options.timed):
        limit = limit_of(run, analysis, [])
        if limit.targets and limit.budgets.met(limit.targets):  # by the vocabulary, or by branches, alone
            if isinstance(run, Shallowed):
                return _fitted_alone(run, output)
            return _copy(run, output, partial(met, run.options, limit.budgets, {}))
    saliency = saliency_of(run, analysis)
    run.notes += passed_over(saliency.analysis.grouping, saliency.groups)
    limit = limit_of(run, saliency.analysis, saliency.groups)
    floors = Floors(run.options.min_agreement, run.options.max_drop)
    if floors:
        candidate = within(run, saliency, limit, floors)
    else:
        candidate = fitted(run, saliency, limit, decide_in_steps(run, saliency, limit))
    result = carry_out(run, candidate, planned(run, saliency.analysis, candidate.decision), output)
    chosen(candidate)
    return result


def make_plan(run: Run[Options]) -> Plan:
    """Do everything up to the decision."""
    run = shallower(narrowed(run), analysis_of)
    analysis = analysis_of(run)
    if run.options.ratio == 0 or (isinstance(run, Shallowed) and run.alone):
        return planned(run, analysis, _nothing(run, analysis))
    saliency = saliency_of(run, analysis)
    limit = limit_of(run, saliency.analysis, saliency.groups)
    return planned(run, saliency.analysis, decide_in_steps(run, saliency, limit))


def analysis_of(run: Run[Options], fit: bool | None = None, *, centred: bool = True) -> Analysis:
    """Trace and group the model; computed weights are folded where that helps the cut, or a fit on samples.

    LayerNorms whose width could be cut become RMS norms (`onnxprune.rotation.centre`), unless that is not asked for.
    """
    options = run.options
    fit = options.fitted if fit is None else fit
    with run.stage("analyse"):
        model = inline(run.model)
        analyse_at = partial(
            analyse,
            allow_inexact=options.allow_inexact,
            keep_blocks=options.align != 1,
            runs=Trial(model) if options.verify or options.fitted else None,
            folds="weights" if fit else "needed",
            open_io=options.open_io,
        )
        analysis = bound(run, lambda shapes: analyse_at(model, input_shapes=shapes))
        run.notes += analysis.notes
        run.notes += notes_of(run.model)
        if centred and options.center_norms and CHANNELS in options.kinds:
            widened = open_widths(
                analysis,
                partial(analyse_at, input_shapes=analysis.given),
                lambda found: pick(found.grouping, options.ignore, options.only),
                inputs=feeds(run.model.proto.graph, options.inputs) if options.verify else (),
                check=options.verify,
            )
            run.notes += widened.notes
            analysis = widened.analysis
        if EXPERTS in options.kinds:
            analysis = experts_opened(
                analysis, allow_inexact=options.allow_inexact, keep_blocks=options.align != 1
            )
    return analysis


def saliency_of(run: Run[Options], analysis: Analysis) -> Saliency:
    """Return what says how much units are worth: the samples where there are any, else the weights."""
    if not run.options.fitted:
        return FromWeights.open(run, analysis)
    if EXPERTS in run.options.kinds:
        from onnxprune.pruning.on_experts import FromChoices

        return FromChoices.open(run, analysis, analysis_of)
    from onnxprune.pruning.on_samples import FromSamples

    return FromSamples.open(run, analysis)


def apply(run: Run[Options], plan: Plan, output: Path | None) -> Result:
    """Carry a plan out.

    Raises
    ------
    PlanError
        If the plan is another model's, or its closures aren't those of the model.
    """
    refuse_overwrite(run.model, output, run.options.in_place, run.options.external_data_threshold)
    plan.check_model(run.sha256(), run.model.file_sha256)
    run = dropped(narrowed(run, output))
    analysis, decision = _resolve(run, plan)
    if not decision.removed:
        return _copy(run, output)
    return carry_out(run, Candidate(analysis, decision, analysis.restored), plan, output)


def verify(run: Run[Options], pruned: Model, plan: Plan) -> dict[str, Any]:
    """Prove that a pruned model is what its plan says.

    Raises
    ------
    PlanError
        If the plan is another model's.
    VerificationError
        If the models differ.
    """
    plan.check_model(run.sha256(), run.model.file_sha256)
    run = dropped(renumbered_run(narrowed(run)))
    analysis, decision = _resolve(run, plan)
    try:
        with run.stage("verify"):
            proof = _prove(run, analysis, decision.removed, pruned)
    except Failed as failure:
        raise VerificationError(
            f"The pruned model isn't what the plan says: {str(failure).rstrip('.')}."
        ) from failure
    return proof.law1() | {"checks": proof.checks, "notes": proof.notes}


def _resolve(run: Run[Options], plan: Plan) -> tuple[Analysis, Decision]:
    checked_size(run, plan)
    notes, planned = list(run.notes), {g.name for g in plan.groups}
    # made without RMS norms, or with them, or with samples, perhaps: then more weights are folded
    for fit, centred in ((None, False), (None, True), (True, False), (True, True)):
        run.notes = list(notes)
        analysis = analysis_of(run, fit, centred=centred)
        if planned <= {name for g in analysis.grouping.groups for name in (g.name, g.tensor)}:
            break
    return analysis, resolve(plan, analysis)


def _prove(run: Run[Options], analysis: Analysis, removed: Removed, pruned: Model | Path) -> Verification:
    dead, masked = analysis.grouping.dead(removed), granularity.load().masked(analysis, removed)
    return proved(run, analysis, dead, pruned, masked)


def carry_out(run: Run[Options], candidate: Candidate, plan: Plan, output: Path | None) -> Result:
    """Rewrite, verify, put back what fails, report and save.

    Parameters
    ----------
    run : Run
    candidate : Candidate
    plan : Plan
        What it says as a file.
    output : Path or None
    """
    analysis, decision = candidate.analysis, candidate.decision

    def cut(removed: Removed) -> Rewritten:
        with run.stage("rewrite"):
            rewritten = granularity.load().cut(analysis, removed)
            return dataclasses.replace(rewritten, model=candidate.restored(rewritten.model))

    def prove(rewritten: Rewritten, removed: Removed) -> Verification | None:
        if not run.options.verify:
            return None
        pruned: Model | Path = rewritten.model
        if staging is not None:
            with run.stage("save"):
                pruned = staging.write(rewritten.model)
        with run.stage("verify"):
            return _prove(run, analysis, removed, pruned)

    with contextlib.ExitStack() as stack:
        staging = staging_of(run.model, output, run.options)
        if staging is not None:
            stack.enter_context(staging)
        carried = carry(decision.removed, cut, prove)
        if carried.put_back:
            decision = dataclasses.replace(decision, removed=carried.removed)
            plan = planned(run, analysis, decision)
        report = _report(run, dataclasses.replace(candidate, decision=decision), carried)
        if decision.speed is not None:
            with run.stage("time"):
                report.latency = speed_of_source(run, decision.speed).last(carried.rewritten.model)
                report.latency["layers"] = layer_seconds(
                    analysis, carried.rewritten.model, decision.speed.bench
                )
        # while the input is still there
        budgets = limit_of(run, analysis, decision.groups, decision.speed).budgets
        result = Result(finished(run, carried.rewritten.model), report, output, plan=plan)
        return _save(run, result, partial(met, run.options, budgets, decision.removed), staging)


def planned(run: Run[Options], analysis: Analysis, decision: Decision) -> Plan:
    """Return a decision as the plan that the run's options ask for."""
    plan = plan_of(run.sha256(), settled(run.options, decision), analysis, decision)
    return with_branches(run, planned_with(run, plan))


def _fitted_alone(run: Shallowed, output: Path | None) -> Result:
    """Fit the layers of a model that loses nothing but branches, and carry that out."""
    analysis = analysis_of(run, centred=False)
    candidate = refitted(run, analysis)
    return carry_out(run, candidate, planned(run, analysis, candidate.decision), output)


def _report(run: Run[Options], candidate: Candidate, carried: Carried[Verification | None] | None) -> Report:
    analysis, decision = candidate.analysis, candidate.decision
    coupling, names = analysis.coupling, set(decision.removed)
    chosen = [
        g
        for g in analysis.grouping.groups
        if (not g.alternative or g.name in names) and is_asked(g, run.options)
    ]
    before = Size(count_parameters(run.model), count_macs(coupling), memory=peak_bytes(analysis))
    report = Report(
        before,
        before,
        frozen=analysis.frozen,
        groups=[group_line(g, len(decision.removed.get(g.name, ()))) for g in chosen],
        align=decision.align,
        inexact=any(g.inexact for g in decision.groups if g.name in names),
        input_shapes={name: list(shape) for name, shape in analysis.inputs.items()},
        samples=coupling.space.samples,
    )
    report.layers = layers_of(coupling, chosen, {} if carried is None else carried.dead)
    if carried is not None:
        report.outlook = outlook(analysis, before)
        free = {g.name for g in decision.groups}
        report.whole = whole_reasons(run.options, chosen, free, decision) | carried.put_back
        proof = carried.proof
        macs, memory = count_macs(coupling, carried.dead), peak_bytes(analysis, carried.dead)
        report.after = Size(count_parameters(carried.rewritten.model), macs, memory=memory)
        report.interface = changed_interface(run.model.proto.graph, carried.rewritten.model.proto.graph)
        report.cuts, report.copies = cuts_of(coupling, carried.dead), copies_of(carried.rewritten.cuts)
        report.put_back = [{"group": name, "reason": why} for name, why in carried.put_back.items()]
        if proof is not None:
            report.law1, report.checks, report.notes = proof.law1(), list(proof.checks), list(proof.notes)
    report.notes = [*run.notes, *decision.notes, *candidate.notes, *report.notes]
    report.calibration = None if candidate.fit is None else candidate.fit.to_json()
    return report


def _save(run: Run[Options], result: Result, judge: Judge, staging: Staging | None = None) -> Result:
    report = result.report
    tell(run, report, result.changed)
    tell_depth(run, report)
    with together():  # nothing is written where a target turns out to be missed
        write_ids(run, result.path)
        before, after = save(run, result, staging)
        report.before = dataclasses.replace(report.before, bytes=before)
        report.after = dataclasses.replace(report.after, bytes=after)
        report.targets = judge(report)
        report.seed = run.options.seed
        said = "" if result.path is None else write_config(run.source, result.changed, result.path)
    report.notes += [said] if said else []
    return result


def _copy(run: Run[Options], output: Path | None, judge: Judge = lambda report: []) -> Result:
    """Give the input back, byte for byte, where nothing is to be cut."""
    parameters = count_parameters(run.model)
    try:
        analysis = analysis_of(run, centred=False)  # the file is what is given back
    except ModelError as error:  # nothing is to be cut, so this is no reason to fail
        run.notes.append(str(error))
        plan, size = plan_of(run.sha256(), run.options, None, Decision([], {})), Size(parameters, None)
        report = Report(size, size, notes=list(run.notes))
    else:
        decision = _nothing(run, analysis)
        plan = plan_of(run.sha256(), run.options, analysis, decision)
        report = _report(run, Candidate(analysis, decision, analysis.restored), None)
    whole = with_branches(run, planned_with(run, plan))
    return _save(run, Result(finished(run, run.model), report, output, plan=whole), judge)


def _nothing(run: Run[Options], analysis: Analysis) -> Decision:
    """Return the decision to cut nothing."""
    return Decision(asked(analysis, run.options), {})
