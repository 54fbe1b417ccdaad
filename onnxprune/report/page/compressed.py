"""The sections of a page on a file made small: its size in each form, what bytes cost, a line for each weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import log
from typing import Any

from onnxprune.report.page.sections import FOOTER, run, why
from onnxprune.report.page.summary import accuracy, agreement, card, head
from onnxprune.report.page.words import count, size

__all__ = ["all_of"]

Values = Mapping[str, Any]
#: Size of the plot, and what is left of it and below it for its scales.
WIDTH, HEIGHT, LEFT, BELOW = 560, 300, 70, 44
#: Weights that the table has; the JSON report has all of them.
MOST_LINES = 1000


def all_of(values: Values) -> Iterator[str]:
    """Yield the sections of the report of `onnxprune compress`."""
    original = (values.get("calibration") or {}).get("original")
    names = [
        ("summary", "Summary"),
        *([("agreement", "Agreement")] if original else []),
        *([("curve", "Bytes and loss")] if values["curve"] else []),
        ("weights", "Weights"),
        ("left", "Left as they are"),
        ("run", "Run"),
    ]
    yield head(values, names, "report", _lead(values))
    yield '<main id="main">'
    yield _summary(values)
    yield agreement(original) if original else ""
    yield _curve(values) if values["curve"] else ""
    yield _weights(values["tensors"])
    left = [(one["tensor"], one["reason"]) for one in values["left"]]
    yield why("left", "Left as they are, and why", left, "weights keep their values")
    yield run(values)
    yield "</main>"
    yield FOOTER


def _lead(values: Values) -> str:
    stored, treated = values["bytes"], len(values["tensors"])
    text = f"{size(stored['before'])} became {size(stored['after'])}, {values['ratio']:.1f} times less"
    if not treated:
        return f"{text}; no weight was changed."
    zeros = 100 * values["zeros"] / max(values["weights"], 1)
    return f"{text}: {treated:,} weights lie on grids, {zeros:.1f} % of their values are zero."


def _summary(values: Values) -> str:
    stored = values["bytes"]
    cards = [card("On disk", {"before": stored["before"], "after": stored["model"]}, size, what="bytes")]
    if values["form"] == "zst":
        packed = {"before": stored["before"], "after": stored["after"]}
        cards.append(card("In transfer, packed", packed, size, what="bytes"))
    items = accuracy(values, "compress") if values["tensors"] else ""
    items += "".join(f'<li class="warn"><b>{word}</b> {escape(text)}</li>' for word, text in _facts(values))
    return (
        '<section id="summary" aria-labelledby="summary-h"><h2 id="summary-h" class="unseen">Summary</h2>'
        f'<div class="cards">{"".join(cards)}</div>'
        f'<ul class="proof">{items}</ul></section>'
    )


def _facts(values: Values) -> Iterator[tuple[str, str]]:
    if values["tensors"]:
        yield "Memory", values["memory"]
    if values.get("latency"):
        low, high = values["latency"]["interval"]
        ratio = values["latency"]["ratio"]
        yield (
            "Latency",
            f"A run takes {1 / ratio:.2f} of the input's time here ({1 / high:.2f} to {1 / low:.2f}).",
        )
    if values["form"] == "zst":
        yield "Unpack", f"onnxprune decompress, or zstd -d; sha256 {values['sha256']['unpacked']}."


def _curve(values: Values) -> str:
    """Return a plot of what is lost over the bytes of the file, both on logarithmic scales."""
    points = [(one["bytes"], one["loss"]) for one in values["curve"] if one["bytes"] > 0 and one["loss"] > 0]
    if len(points) < 2:
        return ""
    after = values["bytes"]["after"]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    bottom, top = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        along = log(x / low) / (log(high / low) or 1.0)
        up = log(y / bottom) / (log(top / bottom) or 1.0)
        return LEFT + along * (WIDTH - LEFT - 16), 8 + (1 - up) * (HEIGHT - BELOW - 16)

    drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(x, y) for x, y in sorted(points)))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" style="max-width:100%" role="img" '
        'aria-label="loss over bytes">',
        f'<polyline points="{drawn}" fill="none" stroke="var(--soft)" stroke-width="2"/>',
    ]
    for x, y in points:
        a, b = place(x, y)
        said = f"{size(x)}: loss {y:.3g}"
        parts.append(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="var(--soft)"><title>{said}</title></circle>'
        )
    at = min(max(after, low), high)
    a, _ = place(at, bottom)
    parts.append(f'<line x1="{a:.1f}" x2="{a:.1f}" y1="8" y2="{HEIGHT - BELOW}" stroke="var(--good)"/>')
    for x in (low, (low * high) ** 0.5, high):
        parts.append(_text(place(x, bottom)[0], HEIGHT - BELOW + 18, size(x), "middle"))
    for y in (bottom, (bottom * top) ** 0.5, top):
        parts.append(_text(LEFT - 6, place(low, y)[1] + 4, f"{y:.2g}", "end"))
    parts.append(_text((WIDTH + LEFT) / 2, HEIGHT - 6, "bytes of the file", "middle"))
    return (
        '<section id="curve" aria-labelledby="curve-h"><h2 id="curve-h">Bytes and loss</h2>'
        '<p class="hint">What all layers together were expected to lose (squared error of their outputs, each as a '
        "share of what it feeds) at other sizes of the file; the line is the size that was "
        "written. Other sizes: --target.</p>"
        f"{''.join(parts)}</svg></section>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="12" fill="var(--soft)">{escape(text)}</text>'


def _weights(lines: Sequence[Values]) -> str:
    names = ["weight", "zeros", "bits stored", "bits coded", "bytes before", "stored", "coded", "loss"]
    heads = "".join(f'<th scope="col"{" class=n" if name != "weight" else ""}>{name}</th>' for name in names)
    rows = "".join(_line(line) for line in lines[:MOST_LINES])
    more = len(lines) - MOST_LINES
    rest = f'<p class="hint">and {more:,} more; the JSON report has them all</p>' if more > 0 else ""
    hint = (
        "Bits stored are those of a value in the model, bits coded what an entropy coder makes of it at best. The loss "
        "is the squared error of the layer's output on held-out samples as a share of what it feeds; of weights that "
        "no sample tells of, their own."
    )
    return (
        '<section id="weights" aria-labelledby="weights-h"><h2 id="weights-h">Weights</h2>'
        f'<p class="hint">{hint}</p><div class="wide" tabindex="0" role="region" aria-label="Table of weights">'
        f'<table class="zeros"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{rest}</section>'
    )


def _line(line: Values) -> str:
    zeros = 100 * line["zeros"] / max(line["weights"], 1)
    coded = line["bytes_coded"]
    cells = [
        f"{zeros:.1f} % of {count(line['weights'])}",
        f"{line['bits']:.3g}",
        f"{line['entropy']:.2f}",
        size(line["bytes_before"]),
        size(line["bytes_stored"]),
        "–" if coded is None else size(coded),
        f"{line['loss']:.3g}",
    ]
    under = f'<span class="soft">{escape(line["layer"])}</span>'
    first = f'<th scope="row"><code>{escape(line["tensor"])}</code><br>{under}</th>'
    return f'<tr class="weight">{first}{"".join(f"<td class=n>{cell}</td>" for cell in cells)}</tr>'
