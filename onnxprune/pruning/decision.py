"""Left of the plan: pick groups, score their units, choose which go; and the way from a Plan back to that
choice.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune import granularity
from onnxprune.allocation import ratio
from onnxprune.cut.cuts import TensorCut, cuts_of
from onnxprune.errors import NothingToPrune, PlanError, UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.graph.groups import Frozen
from onnxprune.graph.reasons import reasons
from onnxprune.graph.select import pick
from onnxprune.model import Model
from onnxprune.options.pruning import OptionFields, Options
from onnxprune.options.widths import align_step
from onnxprune.pruning.plan import Plan, PlannedGroup
from onnxprune.pruning.saliency import ranked_by_weights

__all__ = [
    "Decision",
    "Removed",
    "decide",
    "groups_of",
    "options_of",
    "plan_of",
    "resolve",
    "step_of",
]

Removed = Mapping[str, NDArray[np.int64]]


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
    """

    groups: list[Group]
    removed: dict[str, NDArray[np.int64]]
    align: int = 1


def decide(model: Model, analysis: Analysis, options: Options) -> Decision:
    """Pick the groups, score their units, and choose which go.

    Raises
    ------
    UsageError
        If a criterion or a pattern is unknown.
    NothingToPrune
        If no unit of any group may go; the sentence counts the main reasons.
    """
    if options.ratio == 0:
        return Decision(pick(analysis.grouping, options.ignore, options.only), {})
    groups = groups_of(analysis, options)
    if options.ratio is None:
        raise UsageError("--ratio must say how much shall go.")
    align = step_of(options)
    removed = ratio.choose(
        groups,
        ranked_by_weights(model, groups, options),
        ratio=options.ratio,
        align=align,
        scope=options.scope,
        cap=options.cap,
    )
    if not removed:
        raise NothingToPrune(
            f"No group can lose a unit at --ratio {options.ratio:g} on multiples of {align}: the largest of "
            f"{len(groups)} has {max(g.units for g in groups)} units; ask for more, or give --align none."
        )
    return Decision(groups, removed, align)


def groups_of(analysis: Analysis, options: Options) -> list[Group]:
    """Return the groups that may be cut.

    Raises
    ------
    NothingToPrune
        If there are none; the sentence counts the main reasons.
    """
    groups = pick(analysis.grouping, options.ignore, options.only)
    if not groups:
        raise NothingToPrune(_nothing(analysis, options))
    return groups


def step_of(options: Options) -> int:
    """Return the step of widths that is asked for, in channels."""
    return align_step() if options.align == "auto" else int(options.align or 1)


def _nothing(analysis: Analysis, options: Options) -> str:
    if analysis.grouping.groups and (options.ignore or options.only):
        return (
            "Nothing in the model can be pruned: --ignore and --only leave none of the "
            f"{len(analysis.grouping.groups)} groups; 'onnxprune inspect' lists them."
        )
    found = reasons(analysis.grouping.frozen)
    text = "; ".join(f"{count} x {reason}" for reason, count in found[:4])
    if not text:
        return (
            "Nothing in the model can be pruned: outside of subgraphs (If, Loop, Scan) it has no weight with more than "
            "one channel."
        )
    soft = any(word in text for word in ("averag", "a maximum is", "a minimum is"))
    more = " --allow-inexact opens the axes that only an average or a maximum is taken over." if soft else ""
    return f"Nothing in the model can be pruned; its axes are frozen ({text}).{more}"


def options_of(plan: Plan, fields: OptionFields) -> Options:
    """Return the options that a plan was made with, and others for what comes after it."""
    decided: OptionFields = {
        "ratio": plan.ratio,
        "criterion": plan.criterion,
        "align": plan.align,
        "scope": plan.scope,
        "seed": plan.seed,
        "allow_inexact": plan.inexact,
        "input_shapes": {n: tuple(s) for n, s in plan.input_shapes.items()},
    }
    return dataclasses.replace(Options(**decided), **fields)


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
        frozen = tuple(analysis.grouping.frozen)
    return Plan(
        model_sha256=sha256,
        criterion=options.criterion,
        ratio=options.ratio or 0.0,
        align=decision.align,
        seed=options.seed,
        scope=options.scope,
        inexact=options.allow_inexact,
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
    removed: dict[str, NDArray[np.int64]] = {}
    for planned in plan.groups:
        group = groups.get(planned.name)
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
            removed[planned.name] = np.asarray(planned.removed_units, np.int64)
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
    return Decision([groups[p.name] for p in plan.groups], removed, plan.align)


def _as_set(cuts: Sequence[TensorCut]) -> set[tuple[str, int, tuple[int, ...]]]:
    return {(c.tensor, c.axis, tuple(c.removed)) for c in cuts}
