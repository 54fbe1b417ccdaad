"""What was cut, what was left alone and why, and the proof that nothing else changed.

`Report.to_json` is the file that ``--report`` writes; its keys are explained at `Report`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from onnxprune import registry
from onnxprune.cut.cuts import TensorCut
from onnxprune.graph.groups import Frozen
from onnxprune.graph.reasons import reasons
from onnxprune.graph.size import Size
from onnxprune.options.pruning import Options
from onnxprune.pruning.budgets import HOLDS, Budgets
from onnxprune.pruning.targets import parse_target
from onnxprune.report import page
from onnxprune.report.known import known, say
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Record
from onnxprune.report.sentences import (
    at_sizes,
    calibration_lines,
    depth_lines,
    size_lines,
    speed_lines,
    vocabulary_lines,
)
from onnxprune.report.signature import interface_lines

if TYPE_CHECKING:
    from onnxprune.reconstruction.layer import LayerReport
    from onnxprune.reconstruction.reconstruct import SegmentReport

__all__ = [
    "FitReport",
    "Report",
    "judged",
]


@dataclass(frozen=True)
class FitReport:
    """How layers were fitted on samples: what `Report.calibration` holds.

    Attributes
    ----------
    source : str
        Where the samples are from.
    samples : int
        How many of them fits have seen.
    gram_bytes : int
        Of the moments of the largest layer.
    criterion, recover : str
    target : str
        The budgets, as text; empty where a ratio decided.
    layers : list of LayerReport
    segments : list of SegmentReport
    whole : SegmentReport or None
        Of all layers together, where they were fitted so.
    original : dict or None
        Agreement with the original on samples that no fit has seen.
    rotated : list of str
        Groups whose basis was turned.
    refused : dict
        Those that couldn't be turned -> why.
    by_norm : list of str
        Groups whose loss nobody could measure.
    curves : dict
        Group -> points of its loss curve.
    """

    source: str
    samples: int
    gram_bytes: int
    criterion: str
    recover: str
    target: str
    layers: list[LayerReport]
    segments: list[SegmentReport]
    whole: SegmentReport | None
    original: dict[str, Any] | None
    rotated: list[str]
    refused: dict[str, str]
    by_norm: list[str]
    curves: dict[str, list[Any]]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "source": self.source,
            "samples": self.samples,
            "gram_bytes": self.gram_bytes,
            "criterion": self.criterion,
            "recover": self.recover,
            "target": self.target or None,
            "layers": [dataclasses.asdict(line) for line in self.layers],
            "segments": [dataclasses.asdict(line) for line in self.segments],
            **({} if self.whole is None else {"whole": dataclasses.asdict(self.whole)}),
            "original": self.original,
            "rotated": {"groups": self.rotated, "refused": self.refused},
            "by_norm": self.by_norm,
            "curves": self.curves,
        }


@dataclass(repr=False)
class Report(Record):
    """What a run did; what it has of its run in common with other reports is in `Record`.

    Attributes
    ----------
    samples : int
        Of a run at ``input_shapes``, where it may have any number: MACs and memory are of one.
    cuts : list of TensorCut
        For every weight that was sliced: what is gone for all of its uses.
    copies : list of dict
        Shared vectors whose uses differ: ``tensor``, the ``copy`` that some ``nodes`` read now, ``axis``,
        ``removed``.
    frozen : list of Frozen
        Axes of weights that can't be cut, with the reason.
    groups : list of dict
        ``name``, ``kind``, ``units``, ``removed`` (a count), ``params`` and ``macs`` of all units,
        ``inexact``, ``component`` (groups with the same number are coupled), ``tensors`` (``tensor:axis``).
    before, after : Size
    law1 : dict or None
        ``max_relative_error``, ``inputs`` (how many were tried), ``sizes`` (of the dynamic axes, for each random input)
        and ``refused`` (``sizes`` that the original can't be run at, and the ``reason``); None where verification was
        skipped.
    checks : list of str
        What else was verified, or could not be, and why.
    put_back : list of dict
        ``group`` and ``reason``: cuts that were decided, failed verification and were undone.
    calibration : dict or None
        With samples: ``samples``, ``criterion``, ``recover``, ``target``, ``layers`` (for each refitted layer its error
        on held-out samples before and after, relative to its target's variance) and ``original`` (agreement with the
        original on samples set aside), ``curves`` (for each group the relative error after so many units are gone).
    targets : list of dict
        For each budget: ``target`` as it was given, ``asked`` and ``got`` in its unit, ``holds``.
    layers : list of dict
        The layers in order, with their sizes and MACs before and after: `onnxprune.pruning.outline.layers_of`.
    interface : list of dict
        Inputs and outputs that shrank, as --open-io allowed: ``name``, ``kind``, and the shape ``before`` and
        ``after``.
    vocabulary : dict or None
        Where it was cut: ``size`` and ``kept`` (ids before and after), ``weights`` (with a row for each id),
        ``outputs`` (those that have an element for each id that stays), ``remap``, ``unk`` and ``law1`` of this cut.
    depth : dict or None
        Where residual branches went: how many ``branches`` there were, those that are ``gone`` (``name``, ``params``,
        ``macs``, and where they were ranked how far the output moved without each ``alone``, and ``after`` those before
        it), those ``refused`` and why, and ``law1`` of this cut.
    latency : dict or None
        Where it was measured: ``before`` and ``after`` with ``p50_ms`` and ``p95_ms``, ``ratio`` and its ``interval``,
        and ``layers`` with the seconds of each before and after.
    outlook : list of dict
        What the same ratio for all groups would leave: see `onnxprune.pruning.outlook.outlook`.
    whole : dict
        Group that lost nothing -> why.
    """

    before: Size
    after: Size
    cuts: list[TensorCut] = field(default_factory=list)
    copies: list[dict[str, Any]] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    law1: dict[str, Any] | None = None
    checks: list[str] = field(default_factory=list)
    input_shapes: dict[str, list[int]] = field(default_factory=dict)
    samples: int = 1
    align: int = 1
    seed: int = 0
    inexact: bool = False
    put_back: list[dict[str, str]] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    targets: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    latency: dict[str, Any] | None = None
    interface: list[dict[str, Any]] = field(default_factory=list)
    vocabulary: dict[str, Any] | None = None
    outlook: list[dict[str, float]] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)
    depth: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        both = {
            name: {"before": getattr(self.before, name), "after": getattr(self.after, name)}
            for name in ("parameters", "macs", "bytes", "memory")
        }
        return {
            "format": 1,
            "cuts": [{"tensor": c.tensor, "axis": c.axis, "removed": list(c.removed)} for c in self.cuts],
            "copies": self.copies,
            "frozen": [{"tensor": f.tensor, "axis": f.axis, "reason": f.reason} for f in self.frozen],
            "groups": self.groups,
            **both,
            "targets": self.targets,
            "law1": self.law1,
            "checks": self.checks,
            "inexact": self.inexact,
            "put_back": self.put_back,
            "notes": self.notes,
            **({} if self.calibration is None else {"calibration": self.calibration}),
            **({} if self.latency is None else {"latency": self.latency}),
            **({} if not self.interface else {"interface": self.interface}),
            **({} if self.vocabulary is None else {"vocabulary": self.vocabulary}),
            **({} if self.depth is None else {"depth": self.depth}),
            "layers": self.layers,
            "outlook": self.outlook,
            "whole": self.whole,
            "align": self.align,
            "seed": self.seed,
            "input_shapes": self.input_shapes,
            "samples": self.samples,
            **self.run_facts(),
        }

    def page(self) -> str:
        """Return the report as a page to look at."""
        return page.render(self.to_json())

    def show(self, stream: TextIO | None = None) -> None:
        """Print the before/after table and what matters beside it."""
        from onnxprune.report.table import amount, share, show

        stream = printed_on(stream)
        rows = [
            [label, amount(old), amount(new), share(new, old)]
            for label, old, new in (
                ("parameters", self.before.parameters, self.after.parameters),
                ("MACs", self.before.macs, self.after.macs),
                ("bytes", self.before.bytes, self.after.bytes),
                ("peak memory", self.before.memory, self.after.memory),
            )
        ]
        if self.latency is not None:
            old, new = (self.latency[at]["p50_ms"] for at in ("before", "after"))
            left = share(1.0, self.latency["ratio"])  # of runs in turns, as the speed-up is
            rows.append(["latency (p50)", f"{old:.3g} ms", f"{new:.3g} ms", left])
        show(["", "before", "after", "left"], rows, stream=stream)
        if any(g["removed"] for g in self.groups):
            say(known(self.calibration, "prune"), stream)
        stream.writelines(f"{line}\n" for line in self.lines())

    def brief(self) -> str:
        """Return what went and what is left, in a few words."""
        gone, units = sum(g["removed"] for g in self.groups), sum(g["units"] for g in self.groups)
        pairs = (("MACs", self.before.macs, self.after.macs),
                 ("parameters", self.before.parameters, self.after.parameters))  # fmt: skip
        left = ", ".join(f"{100 * new / old:.0f} % of the {n} left" for n, old, new in pairs if old and new)
        return self.named(f"{gone:,} of {units:,} units cut" + (f", {left}" if left else ""))

    def _repr_html_(self) -> str:
        from onnxprune.report.page.notebook import of_groups

        return of_groups(self.to_json())

    def lines(self) -> list[str]:
        """Return what the table doesn't say, a sentence a line."""
        cut = [g for g in self.groups if g["removed"]]
        removed, units = sum(g["removed"] for g in cut), sum(g["units"] for g in self.groups)
        lines = [
            f"cut {removed:,} of {units:,} units, in {len(cut)} of {len(self.groups)} groups"
            + (f", on multiples of {self.align}" if self.align > 1 else "")
        ]
        lines += size_lines(self.input_shapes, self.samples)
        lines += vocabulary_lines(self.vocabulary)
        lines += depth_lines(self.depth)
        lines += interface_lines(self.interface)
        lines += speed_lines(self.latency, self.targets)
        lines += [f"frozen: {count} x {reason}" for reason, count in reasons(self.frozen)[:4]]
        if self.inexact:
            lines.append(
                "inexact: a cut changes an average or a maximum, as --allow-inexact asked; this isn't the masked graph"
            )
        if self.law1 is not None:
            lines.append(
                f"law 1: pruned = masked original within {self.law1['max_relative_error']:.1e} (relative) "
                f"on {self.law1['inputs']} input{'s' if self.law1['inputs'] != 1 else ''}{at_sizes(self.law1)}"
            )
        if self.calibration is not None:
            lines += calibration_lines(self.calibration)
        lines += [f"put back: {entry['group']}: {entry['reason']}" for entry in self.put_back]
        return lines + [f"note: {note}" for note in self.notes]


Ints = NDArray[np.int64]


def judged(
    options: Options, report: Report, budgets: Budgets, removed: Mapping[str, Ints]
) -> list[dict[str, Any]]:
    """Say of each target what was asked and what is: what its budget reads in the report, or else its costs.

    Parameters
    ----------
    options : Options
    report : Report
    budgets : Budgets
        On the model before.
    removed : mapping
        Group -> units that went.
    """
    verdicts = []
    for target in parse_target("+".join(options.target)) if options.target else ():
        leaf = registry.load("onnxprune.budgets", target.kind)
        if hasattr(leaf, "measured"):
            before, after = leaf.measured(report)
        else:
            before, after = budgets.dense(target.kind), budgets.exact(target.kind, removed)
        if before and after is not None:
            asked = target.value * before if target.relative else target.value
            near = leaf.near(report) if hasattr(leaf, "near") else HOLDS
            holds = after <= asked * near
            label = {"target": target.text, "unit": getattr(leaf, "UNIT", "")}
            verdicts.append({**label, "asked": asked, "got": after, "holds": holds})
    return verdicts
