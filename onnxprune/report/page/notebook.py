"""Parts of the page as a notebook shows them: small, without a script, in the notebook's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from onnxprune.graph.reasons import plain_reason, worth_telling
from onnxprune.report.page.summary import cards, ceiling, lead, proof
from onnxprune.report.page.words import count, middle
from onnxprune.report.printing import clean

__all__ = ["MOST", "as_text", "of_cuts", "of_groups", "of_lines"]

Values = Mapping[str, Any]
#: Bytes of a cell's output; what is longer is left out, and the page or JSON has it.
MOST = 50_000
#: Groups in a table, reasons, and characters of a name.
ROWS, REASONS, NAME = 20, 6, 60
#: What leads to a part of the page that a cell doesn't have.
_WHY = ': <a href="#run">why</a>'
#: Characters of text that are shown as it is.
TEXT = 20_000


def of_groups(values: Values) -> str:
    """Return what a report or an inspection says: the result in a sentence, figures, proof, the largest groups.

    Parameters
    ----------
    values : mapping
        As `onnxprune.pruning.report.Report.to_json` or `onnxprune.pruning.inspection.Inspection.to_json` give it.
    """
    done = "options" in values
    groups = [(g, int(g.get("removed", 0)), g["macs"]) for g in values["groups"] if not g.get("alternative")]
    reasons: dict[str, int] = {}
    for line in values["frozen"]:
        reason = plain_reason(line["reason"])
        reasons[reason] = reasons.get(reason, 0) + 1
    often = sorted(reasons.items(), key=lambda item: (*worth_telling(*item), item[0]))[:REASONS]
    frozen = "".join(f"<li>{number:,} × {escape(reason)}</li>" for reason, number in often)
    return _fragment(
        [
            f"<p><b>{lead(values)}</b></p>",
            cards(values),
            proof(values).replace(_WHY, "") if done else ceiling(values),
            _table(groups, done),
            f"<details><summary>Frozen: {len(values['frozen']):,} axes</summary><ul>{frozen}</ul></details>",
        ]
    )


def of_cuts(text: str, groups: Iterable[tuple[str, int, int]]) -> str:
    """Return what a plan says: a sentence, and how many units of each group are to go.

    Parameters
    ----------
    text : str
    groups : iterable of (name, removed, units)
    """
    lines = [({"name": n, "units": units}, removed, removed) for n, removed, units in groups]
    return _fragment([f"<p><b>{escape(text)}</b></p>", _table(lines, True)])


def of_lines(text: str, parts: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a sentence and, below it, lines that open under a heading each."""
    opened = "".join(
        f"<details open><summary>{escape(clean(_short(name)))}</summary><pre>{_escaped(lines)}</pre></details>"
        for name, lines in parts
    )
    return _fragment([f"<p><b>{escape(text)}</b></p>", opened])


def as_text(text: str) -> str:
    """Return what is printed, as it is."""
    more = "" if len(text) <= TEXT else "\n…"
    return _fragment([f"<pre>{escape(clean(text[:TEXT]))}{more}</pre>"])


def _escaped(lines: Sequence[str]) -> str:
    return escape("\n".join(clean(line) for line in lines))


def _short(name: str) -> str:
    return middle(name, NAME)


def _table(groups: Sequence[tuple[Values, int, float]], done: bool) -> str:
    """Return the groups that have most, with what is kept of each."""
    most = max((size for _, _, size in groups), default=0) or 1
    largest = sorted(groups, key=lambda line: -line[2])[:ROWS]
    rows = "".join(_row(group, removed, done, size / most) for group, removed, size in largest)
    columns = ("group", "", "units kept" if done else "units", "parameters", "MACs")
    wide = columns if any("macs" in group for group, _, _ in groups) else columns[:3]
    heads = "".join(f'<th scope="col"{_align(n)}>{name}</th>' for n, name in enumerate(wide))
    more = f'<p class="soft">and {len(groups) - ROWS:,} more groups</p>' if len(groups) > ROWS else ""
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{more}" if groups else ""


def _align(column: int) -> str:
    return ' class="n"' if column > 1 else ""


def _row(group: Values, removed: int, done: bool, share: float) -> str:
    units = group["units"]
    kept = 1 - removed / max(units, 1)
    cells = [
        f"<code>{escape(clean(_short(group['name'])))}</code>",
        f'<span class="bar{"" if done else " of"}"><i style="width:{100 * (kept if done else share):.0f}%"></i></span>',
        f"{units - removed:,} of {units:,}" if done else f"{units:,}",
    ]
    cells += [count(group["params"]), count(group["macs"])] if "macs" in group else []
    return "<tr>" + "".join(f"<td{_align(n)}>{cell}</td>" for n, cell in enumerate(cells)) + "</tr>"


def _fragment(parts: Iterable[str]) -> str:
    """Return the parts in one element, as many of them as a cell may have."""
    style = (resources.files("onnxprune.report.page") / "notebook.css").read_text(encoding="utf-8")
    text = f'<div class="onnxprune"><style>{style}</style>'
    left = MOST - len(text) - 200
    for part in parts:
        size = len(part.encode("utf-8", "replace"))
        if size > left:
            text += '<p class="soft">The rest is too long for a cell.</p>'
            break
        left, text = left - size, text + part
    return text + "</div>"
