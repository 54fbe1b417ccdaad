"""Why an axis is cut together with others, or not at all: paths through the coupling graph, node by node.

The graph that is searched has a node for each site (one axis of one tensor, as one use sees it) and one for each
letter of each op's row; a site is joined to the letters that its axis is made of. Paths are sought only among axes that
share channels with the group, or that are frozen for the same reason, so that each step is a step of the coupling.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied, Dims
from onnxprune.graph.groups import Family
from onnxprune.graph.select import near_names
from onnxprune.ops import Refusal, lookup
from onnxprune.ops.notation import letters_of
from onnxprune.ops.resolve import Misfit, fit
from onnxprune.report.page.words import middle
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Facts
from onnxprune.runtime.binding import declared, real_inputs

__all__ = ["Explanation", "explain"]

Site = tuple[
    str, str, int, int
]  # "site", tensor, axis, the node that reads it (vectors that several read) or -1
Hub = tuple[str, int, str]  # "letter", number of the node, letter
Key = Site | Hub


@dataclass
class AxisLine:
    """What is known of one axis.

    Attributes
    ----------
    axis, size : int
        The size is that which stands in for the length of a dynamic axis.
    dynamic : str or None
        Of a dynamic axis its name; empty where it has none, as it follows from others.
    groups : list of dict
        The groups that own channels of it: ``name``, ``kind``, ``units``, ``params``, ``macs``, ``channels`` (of this
        axis), ``alternative`` and ``coupled``: for each other axis of a weight ``tensor``, ``axis``, ``read`` (summed
        over there) and ``path``.
    frozen : list of dict
        ``reason``, ``channels`` and ``path`` to what freezes it (empty where the reason names no node).
    """

    axis: int
    size: int
    dynamic: str | None = None
    groups: list[dict[str, Any]] = field(default_factory=list)
    frozen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def length(self) -> str:
        """How long it is, in words."""
        if self.dynamic is None:
            return f"length {self.size}"
        named = f" {self.dynamic!r}" if self.dynamic else ""
        return f"dynamic length{named} ({self.size} stands in for it)"


@dataclass(repr=False)
class Explanation(Facts):
    """What `onnxprune explain` shows."""

    tensor: str
    axes: list[AxisLine]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; a path is a list of ``tensor:axis`` and nodes in turn."""
        return {"format": 1, "tensor": self.tensor, "axes": [vars(a) for a in self.axes], "notes": self.notes}

    def brief(self) -> str:
        """Return the tensor, and on how many of its axes anything can go."""
        free = sum(bool(line.groups) for line in self.axes)
        return f"{middle(self.tensor, 60)}: channels of {free} of {len(self.axes)} axes can be cut"

    def _repr_html_(self) -> str:
        from onnxprune.report.page.notebook import of_lines

        texts = [_lines(self.tensor, line) for line in self.axes]
        parts = [(text[0], text[1:]) for text in texts]
        return of_lines(self.brief(), parts + ([("notes", self.notes)] if self.notes else []))

    def show(self, stream: TextIO | None = None) -> None:
        """Print it for people."""
        stream = printed_on(stream)
        for line in self.axes:
            for text in _lines(self.tensor, line):
                stream.write(text + "\n")
        for note in self.notes:
            stream.write(f"note: {note}\n")


def _lines(tensor: str, line: AxisLine) -> list[str]:
    from onnxprune.report.table import amount

    lines = [f"{tensor}, axis {line.axis} of {line.length}"]
    for group in line.groups:
        which = "all" if group["channels"] == line.size else f"{group['channels']} of them"
        other = ", an alternative: cut only if --only picks it" if group["alternative"] else ""
        lines.append(
            f"  {which} in group {group['name']!r}: {group['units']} {group['kind']}, "
            f"{amount(group['params'])} parameters, {amount(group['macs'])} MACs{other}"
        )
        for other_axis in group["coupled"]:
            verb = "summed over where it is read" if other_axis["read"] else "made"
            lines.append(f"    with {other_axis['tensor']}:{other_axis['axis']} ({verb})")
            lines.append(f"      {_arrow(other_axis['path'])}")
    for why in line.frozen:
        which = "all" if why["channels"] == line.size else f"{why['channels']} of them"
        lines.append(f"  {which} frozen: {why['reason']}")
        if why["path"]:
            lines.append(f"      {_arrow(why['path'])}")
    return lines


def _arrow(path: Sequence[str], most: int = 9) -> str:
    """Return a path in a line; of a long one the ends."""
    if len(path) > most:
        path = [*path[: most // 2], f"... {len(path) - 2 * (most // 2)} more ...", *path[-(most // 2) :]]
    return " > ".join(path)


def explain(analysis: Analysis, tensor: str, axis: int | None = None) -> Explanation:
    """Say what is cut together with an axis, or what freezes it.

    Parameters
    ----------
    analysis : Analysis
    tensor : str
        A tensor of the main graph; or ``tensor:axis``, as groups are named; or a node, for its first output.
    axis : int, optional
        All axes of more than one element otherwise; negative from the end.

    Raises
    ------
    UsageError
        If there is no such tensor or axis; the sentence has near names.
    """
    return _Search(analysis).of(tensor, axis)


class _Search:
    def __init__(self, analysis: Analysis) -> None:
        import networkx as nx  # nothing else needs it, and it takes a while to load

        self.analysis, self.coupling, self.origins = analysis, analysis.coupling, analysis.origins
        self.space = self.coupling.space
        self.dims: dict[Site, int] = {}
        self.net = nx.Graph()
        self.roots: dict[Key, int] = {}
        self.vectors = {i.tensor for i in self.coupling.instances if i.tensor not in self.coupling.dims}
        for name, dims in self.coupling.dims.items():
            self._operand(name, dims, -1)
        for number, applied in enumerate(self.coupling.nodes):
            self._node(number, applied)

    def _operand(self, name: str, dims: Dims | None, number: int) -> list[Site]:
        """Add the sites of an operand."""
        use = number if name in self.vectors else -1
        sites: list[Site] = [("site", name, axis, use) for axis in range(len(dims or ()))]
        for site, dim in zip(sites, dims or (), strict=True):
            self.roots[site] = self.space.find(dim)
            self.net.add_node(site)
        return sites

    def _node(self, number: int, applied: Applied) -> None:
        node = applied.node
        ins = [
            self._operand(name, dims, number) for name, dims in zip(node.inputs, applied.ins, strict=False)
        ]
        outs = [self._operand(name, dims, -1) for name, dims in zip(node.outputs, applied.outs, strict=False)]
        if applied.row is None:
            return
        for letter, dim in applied.letters.items():
            self.roots["letter", number, letter] = self.space.find(dim)
        row = lookup(node)
        try:
            fitted = None if isinstance(row, Refusal) else fit(row, node)
        except Misfit:
            fitted = None
        if fitted is None or isinstance(row, Refusal):
            return
        for sites, axes in zip((*ins, *outs), self._axes(fitted, len(ins), len(outs)), strict=True):
            for site, axis in zip(sites, axes or (), strict=False):
                for leaf in letters_of(axis):
                    self._join(site, ("letter", number, leaf.name))
        for letter, mapped in row.maps.items():
            self._join(("letter", number, letter), ("letter", number, mapped.source))

    @staticmethod
    def _axes(fitted: Any, ins: int, outs: int) -> list[Any]:
        before, after = list(fitted.ins), list(fitted.outs)
        return (before + [None] * ins)[:ins] + (after + [None] * outs)[:outs]

    def _join(self, a: Key, b: Key) -> None:
        if a in self.roots and b in self.roots:
            self.net.add_edge(a, b)

    def of(self, tensor: str, axis: int | None) -> Explanation:
        tensor, axis = self._named(tensor, axis)
        sites = sorted({(s[2], s) for s in self.net if s[0] == "site" and s[1] == tensor})
        rank = 1 + max(n for n, _ in sites) if sites else 0
        if axis is not None and not -rank <= axis < rank:
            raise UsageError(f"{tensor!r} has {rank} axes, so there is no axis {axis}; give 0 to {rank - 1}.")
        wanted = range(rank) if axis is None else [axis % rank]
        lines = []
        for n in wanted:
            on_axis = [site for at, site in sites if at == n]
            size = self.space.sizes[self.roots[on_axis[0]]]
            if size > 1 or axis is not None:
                lines.append(self._axis(AxisLine(n, size, self._dynamic(tensor, n)), on_axis))
        return Explanation(tensor, lines, list(self.analysis.notes))

    def _named(self, tensor: str, axis: int | None) -> tuple[str, int | None]:
        """Find what is meant: a tensor, a tensor with an axis, or a node."""
        known = {s[1] for s in self.net if s[0] == "site"} - {""}
        if tensor in known:
            return tensor, axis
        start, _, end = tensor.rpartition(":")
        if start in known and axis is None and re.fullmatch(r"\d+", end):
            return start, int(end)
        for applied in self.coupling.nodes:
            outputs = [n for n in applied.node.outputs if n in known]
            if applied.node.name == tensor and outputs:
                return outputs[0], axis
        for weight, parts in self.coupling.aliases.items():  # folded away: what it went into
            if tensor in parts and weight in known:
                return weight, axis
        names = [*known, *(a.node.name for a in self.coupling.nodes if a.node.name)]
        near = ", ".join(repr(n) for n in near_names(tensor, sorted(names)))
        raise UsageError(
            f"The main graph has no tensor or node {tensor!r} whose shape is known; near names are {near}."
        )

    def _dynamic(self, tensor: str, axis: int) -> str | None:
        """Return the name of a dynamic axis; empty where no input's is as long, None where the length is fixed."""
        sizes = self.analysis.sizes
        lengths = sizes.lengths.get(tensor)
        if (
            lengths is None
            or lengths == sizes.shape(tensor)
            or lengths[axis] == (sizes.shape(tensor) or ())[axis]
        ):
            return None
        for value in real_inputs(self.analysis.model.proto.graph):
            for number, name in zip(sizes.lengths.get(value.name, ()), declared(value) or (), strict=False):
                if number == lengths[axis] and isinstance(name, str):
                    return name
        return ""

    def _axis(self, line: AxisLine, sites: Sequence[Site]) -> AxisLine:
        size = line.size
        seen: set[str] = set()
        free = np.zeros(size, bool)
        for family in self.analysis.grouping.families:
            for site in sites:
                root = self.roots[site]
                units = family.solution.units_of(root, size)
                free |= (units >= 0) & ~np.isin(units, list(family.solution.entire))
                for group in family.groups:
                    in_group = np.isin(units, family.numbers[group.name])
                    if in_group.any() and group.name not in seen:
                        seen.add(group.name)
                        line.groups.append(self._group(family, group.name, sites, int(in_group.sum())))
        self._frozen(line, sites, free)
        return line

    def _group(self, family: Family, name: str, sites: Sequence[Site], channels: int) -> dict[str, Any]:
        group = next(g for g in self.analysis.grouping.groups if g.name == name)
        numbers = family.numbers[name]

        def shares(root: int) -> bool:
            return bool(np.isin(family.solution.units_of(root, self.space.sizes[root]), numbers).any())

        paths = self._paths(sites, shares)
        coupled = []
        own = {(s[1], s[2]) for s in sites}
        for member in {(m.tensor, m.axis): m for m in group.members}.values():
            ends = [s for s in paths if s[0] == "site" and (s[1], s[2]) == (member.tensor, member.axis)]
            new = member.tensor in self.origins.new
            if (member.tensor, member.axis) not in own and ends and not new:
                path = min((paths[s] for s in ends), key=len)
                coupled.append((len(path), member, self._path(path)))
        coupled.sort(key=lambda c: (c[0], c[1].tensor, c[1].axis))
        return {
            "name": name,
            "kind": group.kind,
            "units": group.units,
            "params": group.all_params,
            "macs": group.all_macs,
            "channels": channels,
            "alternative": group.alternative,
            "coupled": [
                {"tensor": m.tensor, "axis": m.axis, "read": m.contracted, "path": path}
                for _, m, path in coupled
            ],
        }

    def _frozen(self, line: AxisLine, sites: Sequence[Site], free: np.ndarray[Any, Any]) -> None:
        solution = self.analysis.grouping.families[0].solution
        reasons: dict[str, int] = {}
        for index in np.flatnonzero(~free).tolist():
            why = solution.why(self.roots[sites[0]], index)
            reasons[why] = reasons.get(why, 0) + 1
        for why, count in reasons.items():

            def same(root: int, why: str = why) -> bool:
                size = self.space.sizes[root] if root in solution.start else 1
                if root not in solution.start:
                    return solution.why(root) == why
                first = solution.start[root]
                numbers = set(solution.reason[first : first + size].tolist())
                units = set(solution.units_of(root, size).tolist())
                return any(n < len(solution.reasons) and solution.reasons[n] == why for n in numbers) or any(
                    solution.entire.get(unit) == why for unit in units
                )

            paths = self._paths(sites, same)
            ends = [(len(paths[s]), *end) for end in self._culprits(why) if (s := end[0]) in paths]
            path: list[str] = []
            if ends:
                _, site, title = min(ends, key=lambda e: (e[0], str(e)))
                path, title = self._path(paths[site]), self.origins.told(title)
                if title and title not in path[-2:]:
                    path.append(title)
            line.frozen.append({"reason": self.origins.told(why), "channels": count, "path": path})

    def _culprits(self, why: str) -> Iterable[tuple[Site, str]]:
        """Yield the sites of what a reason names, with the node's title."""
        quoted = set(re.findall(r"'([^']*)'", why))
        for site in self.net:
            if site[0] == "site" and why.startswith("axis of the graph") and site[1] in quoted:
                yield site, ""
        for number, applied in enumerate(self.coupling.nodes):
            title = f"{applied.node.op} '{applied.node.name}'"
            if title in why:
                for name, dims in zip(
                    (*applied.node.inputs, *applied.node.outputs),
                    (*applied.ins, *applied.outs),
                    strict=False,
                ):
                    for site in self._operand(name, dims, number if name in self.vectors else -1):
                        yield site, title

    def _paths(self, sites: Sequence[Site], allowed: Callable[[int], bool]) -> dict[Key, list[Key]]:
        """Shortest paths from any of the sites, through axes that are allowed."""
        import networkx as nx

        verdict = {root: allowed(root) for root in set(self.roots.values())}
        part = self.net.subgraph([k for k in self.net if verdict[self.roots[k]]])
        paths: dict[Key, list[Key]] = {}
        for site in sites:
            if site in part:
                for end, path in nx.single_source_shortest_path(part, site).items():
                    if end not in paths or len(path) < len(paths[end]):
                        paths[end] = path
        return paths

    def _path(self, keys: Sequence[Key]) -> list[str]:
        texts: list[str] = []
        for key in keys:
            if key[0] == "letter":
                node = self.coupling.nodes[int(key[1])].node
                text = self.origins.told(f"{node.op} '{node.name}'")
            else:
                text = "" if key[1] in self.origins.new else f"{key[1]}:{key[2]}"
            if text and (not texts or texts[-1] != text):
                texts.append(text)
        return texts
