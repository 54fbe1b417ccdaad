"""The report of a change that keeps what the model computes: another order of channels, another basis."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TextIO

from onnxprune.report import page
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Record

__all__ = ["LosslessReport"]


@dataclass(kw_only=True, repr=False)
class LosslessReport(Record):
    """What was changed, what wasn't and why; what it has of its run in common with other reports is in `Record`.

    Attributes
    ----------
    change : str
        What happens to a group, such as ``"reordered"``.
    groups : list of dict
        The groups that were changed: ``group``, and figures of the change.
    refused : dict
        Group -> why it stays as it was.
    error : float or None
        Greatest relative difference of an output; None where nothing was changed, or it was only held to a bound.
    summary : list of str
        What was won, in sentences.
    what : str
        What a group is.
    """

    change: str
    groups: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    error: float | None = None
    summary: list[str] = field(default_factory=list)
    what: str = "group of channels"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format": 1,
            "change": self.change,
            "groups": self.groups,
            "refused": [{"group": name, "reason": reason} for name, reason in self.refused.items()],
            "error": self.error,
            "summary": self.lines(),
            "notes": self.notes,
            **self.run_facts(),
        }

    def page(self) -> str:
        """Return the report as a page to look at."""
        return page.render_lossless(self.to_json())

    def show(self, stream: TextIO | None = None) -> None:
        """Print what was changed, and the main reasons why the rest wasn't."""
        stream = printed_on(stream)
        reasons = Counter(self.refused.values()).most_common(4)
        stream.writelines(f"{line}\n" for line in self.lines())
        stream.writelines(f"not {self.change}: {count} x {reason}\n" for reason, count in reasons)
        stream.writelines(f"note: {note}\n" for note in self.notes)

    def brief(self) -> str:
        """Return what was done, in a sentence."""
        return self.named(self.lines()[0])

    def lines(self) -> list[str]:
        """Return what was done, a sentence a line."""
        count = len({group["group"] for group in self.groups})
        first, _, rest = self.what.partition(" ")
        named = " ".join(filter(None, (str(count), f"{first}{'s' if count != 1 else ''}", rest, self.change)))
        return [named if count else f"no {self.what} could be {self.change}", *self.summary]
