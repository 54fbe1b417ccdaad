"""The sections of a page on a search: the curve of what is lost against the speed-up and the bytes, and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import floor, log10
from typing import Any

from onnxprune.report.page.sections import FOOTER, run, why
from onnxprune.report.page.summary import head
from onnxprune.report.table import amount

__all__ = ["all_of"]

Values = Mapping[str, Any]
#: Size of a plot, and what is left of it and below it for its scales.
WIDTH, HEIGHT, LEFT, BELOW = 520, 320, 64, 44


def all_of(values: Values) -> Iterator[str]:
    """Yield the sections of `onnxprune.tuning.report.TuneReport.to_json`."""
    names = [("curve", "Curve"), ("members", "Members"), ("left", "Left out"), ("run", "Run")]
    yield head(values, names, "report", escape("; ".join(values["lines"]).replace("->", "→")) + ".")
    yield '<main id="main">'
    yield _curves(values)
    yield _table(values)
    left = [(line["what"], f"{line['what']}: {line['reason']}") for line in values["refused"]]
    yield why("left", "Left out, and why", left, "levers or members were of no use")
    yield run(values)
    yield "</main>"
    yield FOOTER


def _members(values: Values) -> list[Values]:
    """Return all members, those that lose least first."""
    return sorted([*values["frontier"], *values["others"]], key=lambda member: float(member["lost"]))


def _curves(values: Values) -> str:
    metric, members = values["metric"], _members(values)
    fast = [(m["speedup"], m) for m in members]
    small = [(100 * m["bytes"] / max(values["original"]["bytes"], 1), m) for m in members]
    plots = _plot(fast, "speed-up", values) + _plot(small, "bytes left, %", values)
    return (
        '<section id="curve" aria-labelledby="curve-h"><h2 id="curve-h">Curve</h2>'
        f'<p class="hint">Each point is a model that was made, timed and judged; bars are 95 % intervals over the same '
        f"items. The line is what may be lost of {escape(metric['name'])}.</p>"
        f'<div style="display:flex;flex-wrap:wrap;gap:16px">{plots}</div></section>'
    )


def _plot(points: Sequence[tuple[float, Values]], what: str, values: Values) -> str:
    """Return a plot of what is lost (upwards) over a figure, as SVG."""
    metric = values["metric"]
    ends = [end for _, m in points for end in (m["lost"], *(m["interval"] or ()))] + [0.0, 2 * metric["most"]]
    top = min(max(ends), max(8 * metric["most"], 1e-9) if metric["most"] else max(ends)) or 1.0
    bottom = max(min(ends), -top)
    right = max([x for x, _ in points] + [1.0]) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        y = min(max(y, bottom), top)
        return LEFT + x / right * (WIDTH - LEFT - 8), (top - y) / (top - bottom) * (HEIGHT - BELOW - 8) + 8

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" style="max-width:100%" role="img" aria-label="{what}">'
    ]
    for y, colour in ((0.0, "var(--line)"), (metric["most"], "var(--warn)")):
        _, at = place(0, y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="{colour}"/>')
        parts.append(_text(LEFT - 6, at + 4, f"{y:.3g}", "end"))
    for x in _ticks(right):
        parts.append(_text(place(x, 0)[0], HEIGHT - BELOW + 18, f"{x:.3g}", "middle"))
    parts.append(_text((WIDTH + LEFT) / 2, HEIGHT - 6, what, "middle"))
    parts.append(_text(4, 12, f"lost of {metric['name']}", "start"))
    for x, member in points:
        at, y = place(x, member["lost"])
        if member["interval"]:
            (_, low), (_, high) = (place(x, end) for end in member["interval"])
            parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="var(--soft)"/>'
            )
        colour = "var(--good)" if member["holds"] else "var(--cut)"
        size = 7 if member["name"] == values["best"] else 4
        said = escape(f"{member['name']}: lost {member['lost']:.3g}, {what} {x:.3g}")
        parts.append(
            f'<circle cx="{at:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"><title>{said}</title></circle>'
        )
    return "".join([*parts, "</svg>"])


def _ticks(end: float) -> list[float]:
    """Return round numbers up to what is a little before the end of a scale, four to eight of them."""
    tenth = 10.0 ** floor(log10(end / 4))
    step = max(size for size in (tenth, 2 * tenth, 5 * tenth) if size <= end / 4)
    return [step * n for n in range(1, int(0.97 * end / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="12" fill="var(--soft)">{escape(text)}</text>'


def _table(values: Values) -> str:
    columns = ["member", values["metric"]["name"], "lost", "95 %", "speed-up", "95 %", "bytes", "holds"]
    first = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _row(member, values)) + "</tr>"
        for member in _members(values)
    )
    return (
        '<section id="members" aria-labelledby="members-h"><h2 id="members-h">Members</h2><div class="scroll"><table>'
        f"<thead><tr>{first}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _row(member: Values, values: Values) -> list[str]:
    low, high = member["speed_interval"]
    between = member["interval"]
    mark = (
        " (written)"
        if member["name"] == values["best"]
        else ""
        if member["frontier"]
        else " (not on the curve)"
    )
    return [
        member["name"] + mark,
        f"{member['metric']:.5g}",
        f"{member['lost']:.3g}",
        "–" if between is None else f"{between[0]:.3g} to {between[1]:.3g}",
        f"{member['speedup']:.2f}",
        f"{low:.2f} to {high:.2f}",
        amount(member["bytes"]),
        "yes" if member["holds"] else "no",
    ]
