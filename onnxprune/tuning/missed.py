"""Why a search wrote no model, and what to do: nothing was better than the input, or met what was asked for."""

from __future__ import annotations

from onnxprune.errors import NotFaster
from onnxprune.tuning.members import Members, levers
from onnxprune.tuning.report import TuneReport

__all__ = ["Missed", "nothing", "unmet"]


class Missed(NotFaster):
    """Nothing that was tried is what was asked for.

    Parameters
    ----------
    text : str
    report : TuneReport
        What was tried, which tells how near one can come.
    """

    def __init__(self, text: str, report: TuneReport) -> None:
        super().__init__(text)
        self.report = report


def unmet(report: TuneReport, members: Members) -> Missed:
    """Return the error where something was to be reached."""
    held = [entry for entry in members.entries.values() if members.holds(entry)]
    asked = "+".join(target.text for target in members.demand.targets)
    if held:
        nearest = min(held, key=members.demand.excess)
        where = members.state.model(nearest["name"])
        near = f"{nearest['name']} comes nearest, with {members.demand.told(nearest)}; it is {where}"
    else:
        near = "nothing that was tried holds it"
    return _missed(report, members, f"meets {asked}", near, "ask for less, or allow a larger --max-drop")


def nothing(report: TuneReport, members: Members) -> Missed:
    """Return the error where anything better would have done."""
    tried = "; ".join(
        f"{m['name']} loses {m['lost']:.3g} at {m['speedup']:.2f}x" for m in report.members if m["frontier"]
    )
    begun = "nothing could be made" if report.complete else "no other model was done in the time"
    better = "is faster than the input" if report.aim == "latency" else "is smaller than the input"
    return _missed(report, members, better, tried or begun, "allow a larger --max-drop")


def _missed(report: TuneReport, members: Members, what: str, tried: str, advice: str) -> Missed:
    if not report.complete:
        left = [lever.name for lever in levers(report.aim) if lever.name not in members.entries]
        rest = f", with {', '.join(left)} not tried yet" if left else ""
        tried += f"; --minutes {members.deadline.minutes:g} were over before all was tried{rest}"
        advice = "the same command goes on, or give more --minutes"
    return Missed(
        f"Nothing that loses at most {report.metric['most']:g} of {report.metric['name']} {what} "
        f"({tried}{_refused(report)}), so no model was written; {advice}.",
        report,
    )


def _refused(report: TuneReport) -> str:
    """Return what was of no use and why, each reason once, as the end of a list."""
    told: dict[str, list[str]] = {}
    for name, text in report.refused.items():
        told.setdefault(text.rstrip("."), []).append(name)
    return "".join(f"; {', '.join(names)}: {text}" for text, names in told.items())
