"""What is told of a search: the floor, the frontier, and which levers were of no use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from onnxprune.report import page
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Record
from onnxprune.report.table import amount, show

__all__ = ["TuneReport", "on_frontier"]

Entry = dict[str, Any]


@dataclass(kw_only=True, repr=False)
class TuneReport(Record):
    """What was found; what it has of its run in common with other reports is in `Record`.

    Attributes
    ----------
    aim : str
        What was made least.
    metric : dict
        ``name``, ``original``, ``most`` (that may be lost), ``lower_is_better``, ``items``.
    original : dict
        ``bytes`` of the input.
    members : list of dict
        ``name``, ``metric``, ``lost`` and its ``interval`` (None where the metric says nothing of items), ``holds``,
        ``frontier`` (no other is as good and as fast), ``speedup`` and its ``speed_interval``, ``bytes``, ``macs``,
        ``path``.
    best : str or None
        The name of the one that was written.
    refused : dict
        Lever, or member -> why it is of no use.
    complete : bool
        Whether all was tried that was to be.
    """

    aim: str
    metric: dict[str, Any]
    original: dict[str, Any]
    members: list[Entry] = field(default_factory=list)
    best: str | None = None
    refused: dict[str, str] = field(default_factory=dict)
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format": 1,
            "aim": self.aim,
            "best": self.best,
            "complete": self.complete,
            "metric": self.metric,
            "original": self.original,
            "frontier": [member for member in self.members if member["frontier"]],
            "others": [member for member in self.members if not member["frontier"]],
            "refused": [{"what": what, "reason": why} for what, why in self.refused.items()],
            "notes": self.notes,
            **self.run_facts(),
        }

    def page(self) -> str:
        """Return the report as a page to look at."""
        return page.render_frontier(self.to_json() | {"lines": self.lines()})

    def brief(self) -> str:
        """Return what was found, in a sentence."""
        return self.named(self.lines()[0])

    def chosen(self) -> Entry | None:
        """Return the member that was written."""
        return next((member for member in self.members if member["name"] == self.best), None)

    def lines(self) -> list[str]:
        """Return what was found, a sentence a line."""
        best, name = self.chosen(), self.metric["name"]
        if best is None:
            asked = self.options.get("target") or ()
            wanted = f"meets {'+'.join(asked)}" if asked else "is better"
            return [
                f"nothing was found that {wanted} and loses no more than {self.metric['most']:g} of {name}"
            ]
        low, high = best["speed_interval"]
        by = (
            ""
            if best["interval"] is None
            else f" (95 %: {-best['interval'][1]:+.3g} to {-best['interval'][0]:+.3g})"
        )
        change = best["metric"] - self.metric["original"]
        return [
            f"{best['name']}: {best['speedup']:.2f} times as fast as the input ({low:.2f} to {high:.2f}), "
            f"{best['bytes'] / max(self.original['bytes'], 1):.0%} of its bytes{self._of_aim(best)}",
            f"{name} {self.metric['original']:.5g} -> {best['metric']:.5g}: {change:+.3g}{by}; "
            f"{self.metric['most']:g} may be lost",
        ]

    def _of_aim(self, best: Mapping[str, Any]) -> str:
        """Say how much is left of what was made least, where no other figure says it."""
        whole = self.original.get(self.aim)
        if self.aim in ("latency", "bytes") or not whole or not best.get(self.aim):
            return ""
        what = {"macs": "MACs", "memory": "peak memory"}.get(self.aim, self.aim)
        return f", {best[self.aim] / whole:.0%} of its {what}"

    def show(self, stream: TextIO | None = None) -> None:
        """Print what was found, and the frontier as a table."""
        stream = printed_on(stream)
        stream.writelines(f"{line}\n" for line in self.lines())
        rows = [
            self._row(member) for member in self.members if member["frontier"] or member["name"] == self.best
        ]
        whole = [f"{self.metric['original']:.5g}", "0", "-", "1.00", "-", amount(self.original["bytes"])]
        rows.insert(0, ["(the input)", *whole, amount(self.original.get("macs")), "yes"])
        head = ["member", self.metric["name"], "lost", "95 %", "speed-up", "95 %", "bytes", "MACs", "holds"]
        if all(row[7] == "-" for row in rows):  # no width was made, which would tell
            head, rows = [*head[:7], head[8]], [[*row[:7], row[8]] for row in rows]
        show(head, rows, title="Frontier", stream=stream)
        stream.writelines(f"left out: {what}: {why}\n" for what, why in self.refused.items())
        stream.writelines(f"note: {note}\n" for note in self.notes)

    def _row(self, member: Entry) -> list[str]:
        low, high = member["speed_interval"]
        between = member["interval"]
        return [
            member["name"],
            f"{member['metric']:.5g}",
            f"{member['lost']:.3g}",
            "-" if between is None else f"{between[0]:.3g} to {between[1]:.3g}",
            f"{member['speedup']:.2f}",
            f"{low:.2f} to {high:.2f}",
            amount(member["bytes"]),
            amount(member.get("macs")),
            "yes" if member["holds"] else "no",
        ]


def on_frontier(members: Sequence[Entry], cost: str) -> list[bool]:
    """Return for each member whether no other loses as little and costs as little, one of them less.

    Parameters
    ----------
    members : sequence of dict
    cost : str
        ``speedup``, of which more is better, or an amount such as ``bytes``.
    """

    def figures(member: Entry) -> tuple[float, float]:
        price = member.get(cost)
        return member["lost"], (-price if cost == "speedup" else price) if price is not None else float("inf")

    pairs = [figures(member) for member in members]
    return [not any(o[0] <= p[0] and o[1] <= p[1] and o != p for o in pairs) for p in pairs]
