"""What can be cut in a model, what is frozen and why, and how small it could get."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, TextIO

from onnxprune.files.bodies import DOMAIN, ENTRY, is_entry
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Coupling
from onnxprune.graph.depth import Depth
from onnxprune.graph.group_types import Group
from onnxprune.graph.groups import Frozen
from onnxprune.graph.memory import peak_bytes
from onnxprune.graph.reasons import plain_reason, worth_telling
from onnxprune.graph.size import Size, count_macs, count_parameters
from onnxprune.ops import TABLE, Refusal, Row
from onnxprune.pruning.outline import layers_of, tensors_of
from onnxprune.pruning.outlook import left_by, outlook
from onnxprune.report import page
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Facts
from onnxprune.report.sentences import size_lines

__all__ = ["Inspection", "OpLine", "inspect_analysis", "op_table"]


@dataclass(frozen=True)
class OpLine:
    """One op type of a model: how many nodes, and what the op table says about them."""

    op: str
    nodes: int
    rows: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(repr=False)
class Inspection(Facts):
    """What `onnxprune inspect` shows.

    Attributes
    ----------
    size : Size
    groups : list of Group
        Alternatives included.
    ops : list of OpLine
    without_row : list of (node, op, reason)
    frozen : list of Frozen
    left : dict
        What would be left, as shares: ``floor`` if every group kept one unit, ``half`` at ratio 0.5.
    input_shapes : dict
    samples : int
        Of a run at them, where it may have any number: MACs and memory are of one.
    layers : list of dict
        See `onnxprune.pruning.outline.layers_of`.
    notes : list of str
        What is to be said of the sizes: those that were given may be none that the model runs at.
    source : str
        The model's file, where it has one.
    branches : list of Group
        Residual branches that can go, see `onnxprune.granularity.depth`.
    kept : dict
        Those that can't -> why.
    outlook : list of dict
        See `onnxprune.pruning.outlook.outlook`.
    """

    size: Size
    groups: list[Group]
    ops: list[OpLine]
    without_row: list[tuple[str, str, str]]
    frozen: list[Frozen]
    left: dict[str, dict[str, float]]
    input_shapes: dict[str, list[int]] = field(default_factory=dict)
    samples: int = 1
    layers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: str = ""
    branches: list[Group] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    outlook: list[dict[str, float]] = field(default_factory=list)

    def frozen_by_reason(self) -> list[tuple[str, int, list[str]]]:
        """Return (reason, how many axes, examples), what is worth telling first."""
        axes: defaultdict[str, list[str]] = defaultdict(list)
        for line in self.frozen:
            axes[plain_reason(line.reason)].append(f"{line.tensor}:{line.axis}")
        lines = [(r, len(a), a[:3]) for r, a in axes.items()]
        return sorted(lines, key=lambda line: (*worth_telling(line[0], line[1]), line[0]))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format": 1,
            "parameters": self.size.parameters,
            "macs": self.size.macs,
            "bytes": self.size.bytes,
            "memory": self.size.memory,
            "input_shapes": self.input_shapes,
            "samples": self.samples,
            "left": self.left,
            "outlook": self.outlook,
            "groups": [_group_line(g) for g in self.groups],
            "ops": [
                {"op": o.op, "nodes": o.nodes, "rows": list(o.rows), "refused": list(o.refused)}
                for o in self.ops
            ],
            "without_row": [{"node": n, "op": o, "reason": r} for n, o, r in self.without_row],
            "frozen": [{"tensor": f.tensor, "axis": f.axis, "reason": f.reason} for f in self.frozen],
            "layers": self.layers,
            "notes": self.notes,
            "depth": {
                "branches": [
                    {"name": g.name, "params": g.all_params, "macs": g.all_macs} for g in self.branches
                ],
                "refused": self.kept,
            },
        }

    def brief(self) -> str:
        """Return how much can be cut, and what would be left, in a few words."""
        groups, half = [g for g in self.groups if not g.alternative], self.left["half"]
        if not groups:
            return "nothing can be cut"
        return (
            f"{len(groups):,} group{'s' * (len(groups) > 1)} can be cut; half of their units gone leaves "
            f"{half['parameters']:.0%} of the parameters and {half['macs']:.0%} of the MACs"
        )

    def _repr_html_(self) -> str:
        from onnxprune.report.page.notebook import of_groups

        return of_groups(self.to_json())

    def page(self, name: str = "") -> str:
        """Return it as a page to look at; ``name`` is that of the model."""
        return page.render({**self.to_json(), "files": {"input": name} if name else {}})

    def show(self, stream: TextIO | None = None) -> None:
        """Print how much could go and by which command, then tables: groups, what is frozen, ops."""
        from onnxprune.report.table import amount, share, show

        stream = printed_on(stream)
        self._show_ceiling(stream)

        def costs(g: Group) -> list[str]:
            params, macs = float(g.all_params), float(g.all_macs)
            return [amount(params), amount(macs), share(macs, self.size.macs)]

        rows = [
            [
                g.name,
                g.kind + ("*" if g.alternative else "") + ("~" if g.inexact else ""),
                f"{g.units:,}",
                *costs(g),
            ]
            for g in self.groups
        ]
        if rows:
            head = ["group", "kind", "units", "parameters", "MACs", "of all"]
            show(head, rows, title="Groups: what can be cut together", stream=stream, left=2)
        if any(g.alternative for g in self.groups):
            stream.write("* an alternative: cut only if --only picks it\n")
        if any(g.inexact for g in self.groups):
            stream.write("~ inexact: a cut changes an average or a maximum (--allow-inexact)\n")
        if self.branches:
            stream.write("\n")
            head = ["branch", "parameters", "MACs", "of all"]
            rows = [[g.name, *costs(g)] for g in self.branches]
            show(head, rows, title="Residual branches (--granularity depth, --drop)", stream=stream)
        if self.frozen:
            stream.write("\n")
            lines = [[r, f"{n:,}", ", ".join(e)] for r, n, e in self.frozen_by_reason()]
            show(["reason", "axes", "such as"], lines, title="Frozen", stream=stream, left=3)
        lines = [
            [o.op, f"{o.nodes:,}", " | ".join(o.rows) or f"none: {'; '.join(o.refused)}"] for o in self.ops
        ]
        stream.write("\n")
        show(["op", "nodes", "row"], lines, title="Ops", stream=stream, left=3)
        for note in self.notes:
            stream.write(f"note: {note}\n")

    def _show_ceiling(self, stream: TextIO) -> None:
        """Print what would be left, at which sizes, and the next command."""
        from onnxprune.report.table import amount, show

        half, floor = self.left["half"], self.left["floor"]
        stream.write(f"{self.brief()}\n")
        pairs = (("parameters", self.size.parameters), ("MACs", self.size.macs))
        rows = [
            [name, amount(number), f"{half[name.lower()]:.1%}", f"{floor[name.lower()]:.1%}"]
            for name, number in pairs
        ]
        head = ["", "now", "left at ratio 0.5", "left with one unit a group"]
        show(head, rows, title="Ceiling (without alignment)", stream=stream)
        stream.writelines(
            f"{line}\n" for line in (*size_lines(self.input_shapes, self.samples), *self.next_lines())
        )
        stream.write("\n")

    def next_lines(self) -> list[str]:
        """Return the commands to go on with."""
        if not any(not group.alternative for group in self.groups):
            return [
                "next: nothing can be cut; 'onnxprune explain IN TENSOR' follows a tensor to what freezes it"
            ]
        source = shlex.quote(self.source or "IN")
        return [
            f"next: onnxprune prune {source} small.onnx --ratio 0.5",
            f"or:   onnxprune prune {source} small.onnx --target macs=0.5 --calib samples.npz",
        ]


def _group_line(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "units": group.units,
        "params": group.all_params,
        "macs": group.all_macs,
        "component": group.component,
        "inexact": group.inexact,
        "alternative": group.alternative,
        "tensors": tensors_of(group),
    }


def inspect_analysis(analysis: Analysis, size_in_bytes: int | None = None) -> Inspection:
    """Collect what is known of a model before any decision.

    Parameters
    ----------
    analysis : Analysis
    size_in_bytes : int, optional
        Of the model's files.
    """
    coupling, grouping = analysis.coupling, analysis.grouping
    size = Size(
        count_parameters(analysis.model), count_macs(coupling), size_in_bytes, memory=peak_bytes(analysis)
    )
    refused = [(a.node.name, _op(a.node.domain, a.node.op), a.reason) for a in coupling.nodes if a.reason]
    depth = Depth.of(analysis)
    return Inspection(
        size,
        list(grouping.groups),
        _op_lines(coupling),
        refused,
        analysis.frozen,
        left_by(analysis, size),
        {name: list(shape) for name, shape in analysis.inputs.items()},
        coupling.space.samples,
        layers_of(coupling, [g for g in grouping.groups if not g.alternative]),
        list(analysis.notes),
        str(analysis.model.path or ""),
        depth.groups,
        depth.refused,
        outlook(analysis, size),
    )


def _op(domain: str, op: str) -> str:
    if domain == DOMAIN:  # where the bodies of a node that is no more in the graph meet what is around them
        return op.removesuffix(ENTRY)
    return f"{domain}::{op}" if domain else op


def _op_lines(coupling: Coupling) -> list[OpLine]:
    count: Counter[str] = Counter()
    rows: defaultdict[str, dict[str, None]] = defaultdict(dict)
    refused: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for applied in coupling.nodes:
        name = _op(applied.node.domain, applied.node.op)
        if name == "Constant" or is_entry(applied.proto):
            continue
        count[name] += 1
        if applied.row is not None:
            rows[name]["its bodies" if applied.node.domain == DOMAIN else applied.row.text] = None
        else:
            refused[name][plain_reason(applied.reason)] = None
    return [
        OpLine(name, number, tuple(rows[name]), tuple(refused[name]))
        for name, number in sorted(count.items())
    ]


class _Probe:
    """Stands for a node of which nothing may be asked: what a rule returns for it doesn't depend on the
    node.
    """

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


def op_table() -> list[tuple[str, str, str]]:
    """Return every op type that ONNX or the table knows.

    Returns
    -------
    list of (op, kind, text)
        ``row``: the row is always ``text``; ``dynamic``: it depends on the node, ``text`` says how; ``none``:
        no row, so every axis that such a node touches is frozen.
    """
    import onnx

    entries: dict[tuple[str, str], tuple[str, str]] = {}
    for schema in onnx.defs.get_all_schemas():
        if not schema.deprecated and schema.domain in ("", "ai.onnx.ml"):
            entries[schema.domain, schema.name] = ("none", "")
    for key, rule in TABLE.items():
        try:
            row: Row | Refusal | None = rule(_Probe())  # type: ignore[arg-type]
        except Exception:
            row = None
        if isinstance(row, Row):
            entries[key] = ("row", row.text)
        elif isinstance(row, Refusal):
            entries[key] = ("refused", row.reason)
        else:
            text = " ".join((rule.__doc__ or "").split("\n\n")[0].split())
            entries[("", _op(*key)) if key[0] == DOMAIN else key] = ("dynamic", text)
    return [(_op(domain, op), *entries[domain, op]) for domain, op in sorted(entries)]
