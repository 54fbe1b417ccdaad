"""The decision: groups, rankings and a limit in, units that go out; and the way to a plan's file and back."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune import granularity
from onnxprune.allocation import ratio
from onnxprune.allocation.alignment import FLOOR
from onnxprune.allocation.ranking import Ranking
from onnxprune.cut.cuts import TensorCut, cuts_of
from onnxprune.errors import NothingToPrune, PlanError, UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.graph.groups import Frozen
from onnxprune.graph.reasons import reasons
from onnxprune.graph.select import pick
from onnxprune.journey.output import size_in_bytes
from onnxprune.journey.run import Run
from onnxprune.options.granularity import CHANNELS, EXPERTS, HEADS
from onnxprune.options.kinds import texts_of
from onnxprune.options.pruning import Options
from onnxprune.options.target import Target
from onnxprune.options.widths import step_of
from onnxprune.pruning.approach import chosen, until_met
from onnxprune.pruning.budgets import Budgets
from onnxprune.pruning.layer_times import beyond
from onnxprune.pruning.plan import Plan, PlannedGroup
from onnxprune.pruning.source import of_source
from onnxprune.pruning.speed import Speed, finer_steps, first_faster, speed_of
from onnxprune.pruning.targets import parse_target

__all__ = [
    "Decision",
    "Limit",
    "asked",
    "decide",
    "groups_of",
    "is_asked",
    "limit_of",
    "plan_of",
    "resolve",
    "settled",
]

_log = logging.getLogger("onnxprune.pruning")


@dataclass
class Decision:
    """What shall be cut, before the rewriting.

    Attributes
    ----------
    groups : list of Group
        That might be cut.
    removed : dict
        Group -> the units that go; groups that lose none are left out.
    align : int
        The step of widths that was used.
    target : str
        The budgets that decided it, as text; empty where a ratio did.
    speed : Speed or None
        What the result is to be faster than; None where nothing is to be timed.
    notes : list of str
        Sentences for the report of what becomes of it.
    """

    groups: list[Group]
    removed: dict[str, NDArray[np.int64]]
    align: int = 1
    target: str = ""
    speed: Speed | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Limit:
    """How much shall go.

    Attributes
    ----------
    budgets : Budgets
        On the model: what units cost, and the clock where results are timed.
    ratio : float or None
        Share of the units that go, where there are no targets.
    targets : tuple of Target
        What shall be left.
    timed : bool
        Whether what is decided must be faster than the input.
    """

    budgets: Budgets
    ratio: float | None = None
    targets: tuple[Target, ...] = ()
    timed: bool = False


def limit_of(run: Run[Options], analysis: Analysis, groups: list[Group], speed: Speed | None = None) -> Limit:
    """Return the limit that a run's options ask for.

    Parameters
    ----------
    run : Run
    analysis : Analysis
        Of the model that is cut.
    groups : list of Group
        That may be cut.
    speed : Speed, optional
        A clock that knows what was measured of the same model.
    """
    options = run.options
    if speed is None:
        speed = speed_of(run, analysis)
    targets = parse_target("+".join(options.target)) if options.target else ()
    budgets = Budgets(analysis, groups, step_of(options.align), size_in_bytes(run.model), speed)
    return Limit(budgets, options.ratio, of_source(run, targets, budgets), timed=speed is not None)


def decide(run: Run[Options], groups: list[Group], rankings: Mapping[str, Ranking], limit: Limit) -> Decision:
    """Choose which units go: a share of them, or so many that targets are met; timed where that is asked for.

    Parameters
    ----------
    run : Run
    groups : list of Group
        That may be cut.
    rankings : mapping
        Group -> ranking; groups that aren't there stay whole.
    limit : Limit

    Raises
    ------
    NothingToPrune
        If no unit may go at a ratio, or the targets can't be met.
    NotFaster
        If the limit is timed, and no cut is faster than the input.
    """
    options, targets, notes = run.options, limit.targets, list[str]()
    speed = limit.budgets.speed if limit.timed else None
    latency = next((t for t in targets if t.kind == "latency"), None)

    def choose(step: int, tighter: float = 1.0) -> dict[str, NDArray[np.int64]]:
        if targets:
            return chosen(limit.budgets.at(step), rankings, targets, tighter)
        return _by_ratio(groups, rankings, dataclasses.replace(options, ratio=limit.ratio), step)

    with run.stage("decide"):
        step = step_of(options.align) if any(g.stepped for g in groups) else 1
        if speed is None and targets and options.fitted:
            step, removed, times = limit.budgets.on_steps(
                rankings, targets, finer_steps(options.align, FLOOR)
            )
            notes = _finer(step, options, times)
        elif speed is None:
            removed = choose(step)
        elif latency is None:
            step, removed = first_faster(speed, options, choose)
        else:
            steps = finer_steps(options.align)
            try:
                step, removed = until_met(
                    speed, latency, choose, steps, partial(limit.budgets.most, rankings)
                )
            except NothingToPrune as error:
                raise NothingToPrune(f"{error} {beyond(speed.analysis, groups, speed.bench)}") from error
            if step != steps[0]:
                notes.append(
                    f"widths are on multiples of {step}: on {steps[0]} no cut came within 5 % of {latency.text}"
                )
    _log.info("%d of %d units go", sum(map(len, removed.values())), sum(g.units for g in groups))
    return Decision(groups, removed, step, "+".join(t.text for t in targets), speed, notes)


def _finer(step: int, options: Options, times: float) -> list[str]:
    """Say why widths aren't on the machine's step."""
    wide = step_of(options.align)
    if step == wide:
        return []
    why = f"loses {times:.2g} times as much by the samples" if np.isfinite(times) else "can't meet it"
    return [f"Widths are on multiples of {step}: a cut on {wide} {why}, but may be faster (--align {wide})."]


def _by_ratio(
    groups: list[Group], rankings: Mapping[str, Ranking], options: Options, step: int
) -> dict[str, NDArray[np.int64]]:
    if options.ratio is None:
        raise UsageError("--ratio must say how much shall go.")
    for g in groups:
        left = g.units - int(options.ratio * g.units + 1e-9)
        if left < g.least and g.kind == EXPERTS:
            raise UsageError(
                f"--ratio {options.ratio:g} would leave {left} of the {g.units} experts of {g.name!r}, whose router "
                f"chooses {g.least}; ask for at most {1 - g.least / g.units:.6g}."
            )
    removed = ratio.choose(
        groups, rankings, ratio=options.ratio, align=step, scope=options.scope, cap=options.cap
    )
    if not removed:
        raise NothingToPrune(
            f"No group can lose a unit at --ratio {options.ratio:g} on multiples of {step}: the largest of "
            f"{len(groups)} has {max(g.units for g in groups)} units; ask for more, or give --align none."
        )
    return removed


def groups_of(analysis: Analysis, options: Options) -> list[Group]:
    """Return the groups that may be cut.

    Raises
    ------
    NothingToPrune
        If there are none; the sentence counts the main reasons.
    """
    groups = asked(analysis, options)
    if not groups:
        raise NothingToPrune(_nothing(analysis, options))
    return groups


def asked(analysis: Analysis, options: Options) -> list[Group]:
    """Return the groups of the kinds that are asked for which ``--ignore`` and ``--only`` leave."""
    groups = pick(analysis.grouping, options.ignore, options.only)
    return [g for g in groups if is_asked(g, options)]


def is_asked(group: Group, options: Options) -> bool:
    """Whether a group is of a kind that may go."""
    own = EXPERTS if group.kind == EXPERTS else HEADS if "head" in group.kind else CHANNELS
    return own in options.kinds or (own == HEADS and CHANNELS in options.kinds)


def _nothing(analysis: Analysis, options: Options) -> str:
    if options.others == (EXPERTS,) and not any(g.kind == EXPERTS for g in analysis.grouping.groups):
        for root in analysis.coupling.least:
            why = analysis.grouping.families[0].solution.why(root)
            return f"None of the model's experts can go: {why}."
        return (
            "The model has no experts: nothing in it chooses among weights by scores; leave --granularity "
            f"{EXPERTS} out."
        )
    if analysis.grouping.groups and (options.ignore or options.only):
        return (
            "Nothing in the model can be pruned: --ignore and --only leave none of the "
            f"{len(analysis.grouping.groups)} groups; 'onnxprune inspect' lists them."
        )
    if analysis.grouping.groups and CHANNELS not in options.kinds:
        return f"Nothing in the model can be pruned: it has no units of --granularity {options.granularity}."
    counted = reasons(analysis.frozen)
    text = "; ".join(f"{count} x {reason}" for reason, count in counted[:4])
    if not text:
        return (
            "Nothing in the model can be pruned: outside of subgraphs (If, Loop, Scan) it has no weight with more than "
            "one channel."
        )
    soft = any(word in text for word in ("averag", "a maximum is", "a minimum is"))
    more = " --allow-inexact opens the axes that only an average or a maximum is taken over." if soft else ""
    return f"Nothing in the model can be pruned; its axes are frozen ({text}).{more}"


def settled(options: Options, decision: Decision) -> Options:
    """Return the options of a plan: the share of the units that went, where a budget or samples decided it."""
    if not options.target and not options.fitted:
        return options
    units = sum(g.units for g in decision.groups)
    return options.decided(round(sum(len(u) for u in decision.removed.values()) / max(units, 1), 6))


def plan_of(sha256: str, options: Options, analysis: Analysis | None, decision: Decision) -> Plan:
    """Return a decision as a plan.

    Parameters
    ----------
    sha256 : str
        Of the model.
    options : Options
    analysis : Analysis or None
        None where nothing is cut and the model couldn't be analysed.
    decision : Decision
    """
    groups = [
        PlannedGroup(g.name, tuple(int(u) for u in decision.removed.get(g.name, ())), g.units)
        for g in decision.groups
    ]
    cuts: tuple[TensorCut, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    if analysis is not None:
        cuts = tuple(cuts_of(analysis.coupling, analysis.grouping.dead(decision.removed)))
        frozen = tuple(analysis.frozen)
    return Plan(
        model_sha256=sha256,
        criterion=options.criterion,
        ratio=options.ratio or 0.0,
        align=decision.align,
        seed=options.seed,
        scope=options.scope,
        inexact=options.allow_inexact,
        open_io=texts_of(options.open_io),
        granularity=() if options.others == (CHANNELS,) else options.others,
        groups=tuple(groups),
        cuts=cuts,
        frozen=frozen,
        input_shapes=dict(options.input_shapes),
    )


def resolve(plan: Plan, analysis: Analysis) -> Decision:
    """Return the decision that a plan holds, for the model as it was analysed now.

    The units removed of each group are the decision. The plan's ``cuts`` follow from them: they may be left
    out, and where they are given they must be what follows.

    Raises
    ------
    PlanError
        If a group or a unit isn't the model's, a group would lose all of its units, or the cuts disagree.
    """
    groups = {g.name: g for g in granularity.load().groups(analysis)}
    older = {g.tensor: g for g in groups.values()}
    removed: dict[str, NDArray[np.int64]] = {}
    for planned in plan.groups:
        group = groups.get(planned.name) or older.get(planned.name)
        if group is None:
            near = difflib.get_close_matches(planned.name, groups, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise PlanError(f"The plan names a group {planned.name!r} that the model doesn't have.{hint}")
        if group.units != planned.units:
            raise PlanError(
                f"The plan says that the group {planned.name!r} has {planned.units} units, "
                f"but it has {group.units}."
            )
        if planned.removed_units:
            removed[group.name] = np.asarray(planned.removed_units, np.int64)
    try:
        dead = analysis.grouping.dead(removed)
    except ValueError as error:
        raise PlanError(f"The plan asks for a cut that isn't consistent: {error}.") from error
    cuts = tuple(cuts_of(analysis.coupling, dead))
    if plan.cuts and _as_set(plan.cuts) != _as_set(cuts):
        raise PlanError(
            'The plan\'s "cuts" aren\'t those that follow from the removed units of its "groups": after an '
            'edit of "removed_units" delete the list "cuts", it\'s worked out anew.'
        )
    return Decision([groups.get(p.name) or older[p.name] for p in plan.groups], removed, plan.align)


def _as_set(cuts: Sequence[TensorCut]) -> set[tuple[str, int, tuple[int, ...]]]:
    return {(c.tensor, c.axis, tuple(c.removed)) for c in cuts}
