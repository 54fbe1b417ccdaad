"""Where the time of a run goes, layer by layer and group by group, and what no cut can reach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied
from onnxprune.graph.group_types import Group
from onnxprune.latency.clock import Bench, session_of
from onnxprune.latency.predict import nodes_of
from onnxprune.latency.profile import Timed, blame, profile
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Facts
from onnxprune.report.table import show

__all__ = ["LayerTimes", "beyond", "layer_times"]

#: Lines of the table; JSON has all.
MOST = 25
#: Kinds of nodes that a sentence names.
NAMED = 3
#: A share of the time that isn't worth a word.
LITTLE = 0.005
#: What holds graphs of its own.
BODIES = ("If", "Loop", "Scan")


@dataclass(frozen=True, repr=False)
class LayerTimes(Facts):
    """Measured times.

    Attributes
    ----------
    seconds : float
        Of a run.
    layers : list of dict
        The longest first: ``name``, ``op``, ``seconds``, ``share`` (of all kernels), ``groups`` (whose cuts make it
        shorter).
    groups : list of dict
        ``name``, ``units``, ``seconds`` and ``share`` of the layers that it reaches; one layer may be reached by many.
    beyond : float
        The share that no cut reaches.
    rest : float
        The share of kernels that are no layer's, such as changes of layout.
    bench : dict
        ``provider``, ``threads``, ``shapes``.
    """

    seconds: float
    layers: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    beyond: float
    rest: float
    bench: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format": 1,
            "seconds": self.seconds,
            "beyond": self.beyond,
            "rest": self.rest,
            "bench": self.bench,
            "layers": self.layers,
            "groups": self.groups,
        }

    def brief(self) -> str:
        """Return how long a run takes, and the share that no cut reaches."""
        if not self.layers:
            return f"{1e3 * self.seconds:.4g} ms a run; {self.unreached()[:-1].lower()}"
        return f"{1e3 * self.seconds:.4g} ms a run, {self.beyond:.0%} of it in reach of no cut"

    def show(self, stream: TextIO | None = None) -> None:
        """Print tables: the longest layers, the groups that reach most, and what no cut reaches."""
        stream = printed_on(stream)
        stream.write(f"{1e3 * self.seconds:.4g} ms a run\n")
        if self.layers:
            self._show_tables(stream)
        stream.write(f"{self.unreached()}\n")

    def _show_tables(self, stream: TextIO) -> None:
        rows = [
            [line["name"], line["op"], *_time(line), str(len(line["groups"])) if line["groups"] else "no cut"]
            for line in self.layers[:MOST]
        ]
        show(["layer", "op", "ms", "of all", "groups"], rows, title="Layers", stream=stream, left=2)
        lines = [[line["name"], f"{line['units']:,}", *_time(line)] for line in self.groups[:MOST]]
        show(["group", "units", "ms", "of all"], lines, title="Reached by cuts of a group", stream=stream)

    def unreached(self) -> str:
        """Return what no cut reaches, as a sentence; where nothing was timed, why."""
        if not self.layers:
            return f"No layer was timed: {self._untimed()}."
        kinds: defaultdict[str, float] = defaultdict(float)
        for line in self.layers:
            if not line["groups"]:
                kinds[line["op"]] += line["share"]
        ranked = sorted(kinds.items(), key=lambda kind: -kind[1])[:NAMED]
        named = ", ".join(
            f"{op} {share:.0%}" + (" with the graphs inside" if op in BODIES else "")
            for op, share in ranked
            if share >= 0.01
        )
        if self.beyond < LITTLE:
            return "Cuts reach all layers, but not the time that each of them takes at any width."
        return f"No cut reaches {self.beyond:.0%} of the time" + (f" ({named})." if named else ".")

    def _untimed(self) -> str:
        if self.rest:
            return "all that onnxruntime runs of the model is its own, such as changes of layout"
        if not self.bench["shapes"]:
            return "the model has no inputs, so onnxruntime computes its outputs when it loads it"
        return "onnxruntime leaves nothing to run of the model, as its outputs are inputs or constants"


def _time(line: Mapping[str, Any]) -> list[str]:
    return [f"{1e3 * line['seconds']:.4g}", f"{line['share']:.1%}"]


def layer_times(analysis: Analysis, groups: Sequence[Group], bench: Bench) -> LayerTimes:
    """Measure a model's layers inside it.

    Parameters
    ----------
    analysis : Analysis
    groups : sequence of Group
        That may be cut.
    bench : Bench

    Raises
    ------
    UsageError
        If the model can't be run there.
    """
    session_of(analysis.model, bench)
    (timed,) = profile([analysis.model], blame(analysis.coupling), bench)
    return arranged(analysis, groups, timed, bench)


def arranged(analysis: Analysis, groups: Sequence[Group], timed: Timed, bench: Bench) -> LayerTimes:
    """Bring measured times to layers and groups."""
    nodes = nodes_of(analysis.coupling, set(analysis.tracer.weights))
    changed = {g.name: set(analysis.grouping.dead({g.name: np.arange(1)})) for g in groups}
    whole = max(sum(timed.nodes.values()) + timed.rest, 1e-12)
    layers: list[dict[str, Any]] = []
    reached = defaultdict[str, float](float)
    for number, seconds in sorted(timed.nodes.items(), key=lambda item: -item[1]):
        applied, dims = analysis.coupling.nodes[number], set(nodes[number].dims)
        names = [name for name, roots in changed.items() if roots & dims]
        for name in names:
            reached[name] += seconds
        line = {
            "name": _name(applied),
            "op": applied.node.op,
            "seconds": seconds,
            "share": seconds / whole,
        }
        layers.append(line | {"groups": names})
    lines = [
        {"name": g.name, "units": g.units, "seconds": reached[g.name], "share": reached[g.name] / whole}
        for g in groups
    ]
    return LayerTimes(
        seconds=timed.whole,
        layers=layers,
        groups=sorted(lines, key=lambda line: -line["seconds"]),
        beyond=sum(line["share"] for line in layers if not line["groups"]),
        rest=timed.rest / whole,
        bench={
            "provider": bench.provider,
            "threads": bench.threads,
            "shapes": {name: list(np.shape(array)) for name, array in bench.feeds.items()},
        },
    )


def beyond(analysis: Analysis, groups: Sequence[Group], bench: Bench) -> str:
    """Return what no cut reaches, as a sentence for who asked for too little latency."""
    return layer_times(analysis, groups, bench).unreached()


def _name(applied: Applied) -> str:
    return applied.node.name or next((name for name in applied.node.outputs if name), "?")
