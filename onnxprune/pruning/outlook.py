"""What a report says beside the cut: what others would leave, why groups were left whole, where the time went."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from onnxprune.cut.rewrite import Kept, Masks
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.graph.groups import Grouping
from onnxprune.graph.size import Size, count_macs
from onnxprune.latency.clock import Bench
from onnxprune.latency.profile import blame, profile
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.pruning.decision import Decision

__all__ = ["layer_seconds", "left_by", "outlook", "whole_reasons"]

#: Shares of the MACs that are looked out for, and halvings until the ratio that leaves them is found.
SHARES, HALVINGS = (0.7, 0.5, 0.3), 7


def left_by(analysis: Analysis, size: Size) -> dict[str, dict[str, float]]:
    """Return which shares of the parameters and MACs would be left.

    Returns
    -------
    dict
        ``floor``: if every group kept as few units as it may; ``half``: at ratio 0.5, without alignment.
    """
    groups = [g for g in analysis.grouping.groups if not g.alternative]
    half = {g.name: max(g.units - g.units // 2, g.least) for g in groups}
    kept = {"floor": {g.name: g.least for g in groups}, "half": half}
    return {name: _left(analysis, size, groups, number) for name, number in kept.items()}


def _left(
    analysis: Analysis, size: Size, groups: Sequence[Group], kept: Mapping[str, int]
) -> dict[str, float]:
    grouping: Grouping = analysis.grouping
    left = {g.name: max(kept[g.name], g.least) for g in groups}
    dead = grouping.dead({g.name: np.arange(left[g.name], g.units) for g in groups if left[g.name] < g.units})
    gone = _parameters_gone(analysis, dead)
    macs = count_macs(analysis.coupling, dead)
    return {
        "parameters": 1 - gone / size.parameters if size.parameters else 1.0,
        "macs": macs / size.macs if size.macs else 1.0,
    }


def _parameters_gone(analysis: Analysis, dead: Masks) -> int:
    """Parameters that a cut removes; a shared vector counts as gone only as far as its largest remaining
    use.
    """
    kept = Kept(analysis.coupling, dead)
    alone = {name for passage in kept.passages for name in passage.weights}
    left: dict[str, int] = {}

    def numbers(name: str, shape: Sequence[int]) -> int:
        return round(prod(shape) * analysis.numbers[name])

    for instance in analysis.coupling.instances:
        size = 0 if instance.tensor in alone else numbers(instance.tensor, kept.shape(instance.dims))
        left[instance.tensor] = max(left.get(instance.tensor, 0), size)
    return sum(
        numbers(name, weight.shape) - left[name]
        for name, weight in analysis.tracer.weights.items()
        if name in left
    )


def outlook(analysis: Analysis, size: Size) -> list[dict[str, float]]:
    """Return what the same ratio for all groups would leave, where it leaves 0.7, 0.5 and 0.3 of the MACs.

    Parameters
    ----------
    analysis : Analysis
    size : Size
        Of the model; without MACs its parameters count.

    Returns
    -------
    list of dict
        ``asked`` (the share), ``ratio``, and what is left at it as shares: ``macs`` and ``parameters``. A share that no
        ratio reaches isn't there.
    """
    groups = [g for g in analysis.grouping.groups if not g.alternative]
    what = "macs" if size.macs else "parameters"

    def at(ratio: float) -> dict[str, float]:
        kept = {g.name: max(g.units - int(ratio * g.units), g.least) for g in groups}
        return _left(analysis, size, groups, kept)

    lines = []
    for share in SHARES if groups else ():
        low, high = 0.0, 0.99
        if at(high)[what] > share:
            break
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if at(middle)[what] <= share else (middle, high)
        left = {name: round(value, 4) for name, value in at(high).items()}
        lines.append({"asked": share, "ratio": round(high, 3), **left})
    return lines


def whole_reasons(
    options: Options, groups: Sequence[Group], free: Collection[str], decision: Decision
) -> dict[str, str]:
    """Return why groups lose nothing, for those of which that can be said.

    Parameters
    ----------
    options : Options
    groups : sequence of Group
        Of the report.
    free : collection of str
        Groups that could be cut as asked.
    decision : Decision
    """
    gone = {name for name, units in decision.removed.items() if len(units)}
    return {g.name: _why_whole(options, g, free, decision.align) for g in groups if g.name not in gone}


def _why_whole(options: Options, group: Group, free: Collection[str], align: int) -> str:
    if group.name not in free:
        asked = (
            "--ignore or --only leaves it alone"
            if options.ignore or options.only
            else "it can't be cut as asked"
        )
        return asked
    on = "" if align <= 1 else f", on multiples of {align}"
    if options.by_ratio and options.scope == "local":
        if align <= 1 and not int((options.ratio or 0.0) * group.units):
            return f"{options.ratio:g} of its {group.units} units is less than one"
        return f"the width nearest to what the ratio asks is all of its {group.units} units{on}"
    return f"units of other groups cost less for what they save{on}"


def layer_seconds(analysis: Analysis, cut: Model, bench: Bench) -> list[dict[str, Any]]:
    """Time the layers of a model and of what was cut from it, inside both, in turns.

    Returns
    -------
    list of dict
        ``name``, ``op``, and the seconds ``before`` and ``after``, the longest first.
    """
    before, after = profile([analysis.model, cut], blame(analysis.coupling), bench)
    lines = []
    for number in {**before.nodes, **after.nodes}:
        node = analysis.coupling.nodes[number].node
        times = {"before": before.nodes.get(number, 0.0), "after": after.nodes.get(number, 0.0)}
        lines.append({"name": node.name or next(iter(node.outputs), ""), "op": node.op, **times})
    return sorted(lines, key=lambda line: (-line["before"], line["name"]))
