"""The page of several models from one calibration: what each has left, what it loses, and a link to its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from onnxprune.report.page.beyond import copied
from onnxprune.report.page.sections import FOOTER
from onnxprune.report.page.summary import head
from onnxprune.report.page.words import count, size

__all__ = ["all_of"]

Values = Mapping[str, Any]
#: Size of the plot, and what is left of it and below it for its scales.
WIDTH, HEIGHT, LEFT, BELOW = 640, 300, 64, 44


def all_of(values: Values) -> Iterator[str]:
    """Yield the sections of what `onnxprune.pruning.family.page_of` gives."""
    members = values["members"]
    names = [("plot", "Plot"), ("members", "Models"), ("run", "Run")]
    yield head(values, names, "family", f"{len(members)} models from one calibration.")
    yield '<main id="main">'
    yield _plot(members)
    yield _table(members)
    yield f'<section id="run" aria-labelledby="run-h"><h2 id="run-h">The run</h2>{copied(values["command"])}</section>'
    yield "</main>"
    yield FOOTER


def _lost(member: Values) -> tuple[str, float | None]:
    if member["agreement"] is not None:
        return "answers unlike the original's, %", 100 * (1 - member["agreement"])
    return "relative error of the outputs", member["relative_error"]


def _plot(members: Sequence[Values]) -> str:
    points = [
        (100 * m["macs_left"], _lost(m)[1] or 0.0, m["target"]) for m in members if _lost(m)[1] is not None
    ]
    hint = (
        "No samples were given, so what each loses isn't known."
        if not points
        else "What each loses on samples set "
    )
    hint += "aside, over what is left of it." if points else ""
    return (
        '<section id="plot" aria-labelledby="plot-h"><h2 id="plot-h">What is left, and what is lost</h2>'
        f'<p class="hint">{hint}</p>{_drawn(points, _lost(members[0])[0]) if points else ""}</section>'
    )


def _drawn(points: Sequence[tuple[float, float, str]], what: str) -> str:
    top = max(y for _, y, _ in points) * 1.15 or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / 100 * (WIDTH - LEFT - 120), HEIGHT - BELOW - y / top * (HEIGHT - BELOW - 24)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" style="max-width:100%" role="img" '
        f'aria-label="{escape(what)} over the MACs that are left">'
    ]
    for share in (0.0, 0.5, 1.0):
        _, y = place(0, share * top)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--faint)"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{share * top:.2g}", "end"))
    for left in (0, 25, 50, 75, 100):
        x, _ = place(left, 0)
        parts.append(_text(x, HEIGHT - BELOW + 18, f"{left} %", "middle"))
    parts += [_text(4, 14, what, "start"), _text(WIDTH / 2, HEIGHT - 6, "MACs left", "middle")]
    line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y, _ in sorted(points))
    parts.append(f'<polyline points="{line}" fill="none" stroke="var(--kept)" stroke-width="1.5"/>')
    for x, y, name in points:
        at, over = place(x, y)
        parts.append(f'<circle cx="{at:.1f}" cy="{over:.1f}" r="5" fill="var(--kept)"/>')
        parts.append(_text(at + 9, over - 7, name, "start", "var(--ink)"))
    return "".join([*parts, "</svg>"])


def _text(x: float, y: float, text: str, anchor: str, colour: str = "var(--soft)") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{colour}">{escape(text)}</text>'


def _table(members: Sequence[Values]) -> str:
    heads = ("model", "MACs", "left", "parameters", "bytes", "agreement", "error", "speed-up")
    first = "".join(f'<th scope="col"{_align(n)}>{name}</th>' for n, name in enumerate(heads))
    rows = "".join(_row(member) for member in members)
    return (
        '<section id="members" aria-labelledby="members-h"><h2 id="members-h">Models</h2>'
        '<div class="wide" tabindex="0" role="region" aria-label="Table of models"><table><thead><tr>'
        f"{first}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _align(column: int) -> str:
    return ' class="n"' if column else ""


def _row(member: Values) -> str:
    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    page = member.get("page")
    name = escape(member["target"])
    cells = [
        count(member["macs"]),
        f"{member['macs_left']:.1%}",
        count(member["params"]),
        size(member["bytes"]),
        shown(member["agreement"], ".1%"),
        shown(member["relative_error"], ".3f"),
        shown(member["speedup"], ".2f"),
    ]
    link = f'<a href="{escape(quote(page))}">{name}</a>' if page else name
    return f'<tr><th scope="row">{link}</th>' + "".join(f'<td class="n">{c}</td>' for c in cells) + "</tr>"
