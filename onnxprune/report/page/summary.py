"""The head of the page: what became of the model, in one sentence, a few large numbers and the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from onnxprune.report.known import known
from onnxprune.report.page.words import count, power, size, times
from onnxprune.report.sentences import at_sizes, segment_lines, share_of_time, whole_lines

__all__ = [
    "accuracy",
    "agreement",
    "bar",
    "card",
    "cards",
    "ceiling",
    "head",
    "lead",
    "proof",
    "summary",
    "title",
]

Values = Mapping[str, Any]


def title(values: Values) -> str:
    """Return the escaped name of the model."""
    return escape((values.get("files") or {}).get("input") or "model")


def head(values: Values, names: Sequence[tuple[str, str]], kind: str, lead: str) -> str:
    """Return the header: what the page is, the files, the result in a sentence, and links to the sections."""
    links = "".join(f'<a href="#{name}">{text}</a>' for name, text in names)
    files = values.get("files") or {}
    to = f' <span class="to">→ {escape(files["output"])}</span>' if files.get("output") else ""
    return (
        '<a class="skip" href="#main">Skip to the content</a>\n'
        f'<header><div class="top"><p class="brand">onnxprune <span>{kind}</span></p>'
        '<button type="button" id="theme" hidden>Theme: system</button></div>'
        f'<h1>{title(values)}{to}</h1><p class="lead">{lead}</p>'
        f'<nav aria-label="Sections">{links}</nav></header>'
    )


def lead(values: Values) -> str:
    """Return the result in one or two sentences."""
    if "options" not in values:
        half = values["left"]["half"]
        groups = sum(not g.get("alternative") for g in values["groups"])
        return (
            f"{groups:,} groups can be cut. With half of their units gone, {half['parameters']:.0%} of the parameters "
            f"and {half['macs']:.0%} of the MACs would be left."
        )
    cut = [g for g in values["groups"] if g["removed"]]
    if not cut:
        return "Nothing was cut."
    left = [
        f"{100 * pair['after'] / pair['before']:.0f} % of the {name}"
        for name, pair in (("MACs", values["macs"]), ("parameters", values["parameters"]))
        if pair["before"] and pair["after"] is not None
    ]
    units, gone = sum(g["units"] for g in values["groups"]), sum(g["removed"] for g in cut)
    text = f"{gone:,} of {units:,} units went, in {len(cut):,} of {len(values['groups']):,} groups. "
    return text + (f"{' and '.join(left)} are left." if left else "")


def summary(values: Values) -> str:
    """Return the cards, and what is proved."""
    told = proof(values) if "options" in values else ceiling(values)
    return (
        '<section id="summary" aria-labelledby="summary-h"><h2 id="summary-h" class="unseen">Summary</h2>'
        f"{cards(values)}{told}</section>"
    )


def cards(values: Values) -> str:
    """Return the large numbers, before and after."""
    made = [
        card(name, _pair(values.get(key)), show, note)
        for key, name, show, note in (
            ("macs", "MACs", count, ""),
            ("parameters", "Parameters", count, ""),
            ("bytes", "File size", size, ""),
            ("memory", "Peak memory", size, "estimate"),
        )
        if _pair(values.get(key)).get("before") is not None
    ]
    if values.get("latency"):
        made.append(_latency(values["latency"]))
    return f'<div class="cards">{"".join(made)}</div>'


def _pair(figure: Any) -> Mapping[str, Any]:
    return figure if isinstance(figure, Mapping) else {"before": figure}


def card(name: str, pair: Mapping[str, Any], show: Any, note: str = "", what: str = "") -> str:
    """Return a card with a number before and after; ``what`` is left, if not what the name says."""
    before, after = pair.get("before"), pair.get("after")
    if before is None or after is None:
        return f'<div class="card"><h3>{name}</h3><p class="big">{show(before)}</p><p class="fine">{note}</p></div>'
    share = after / before if before else 1.0
    return (
        f'<div class="card"><h3>{name}</h3><p class="big">{show(after)}</p>'
        f'<p class="from">of {show(before)}<span class="times">{_less(before, after)}</span></p>'
        f"{bar(share, f'{100 * share:.1f} % of the {what or name} left', note)}</div>"
    )


def _less(before: float, after: float) -> str:
    if before == after:
        return "unchanged"
    return f"{times(before, after)} less" if after < before else f"{times(after, before)} more"


def bar(share: float, text: str, note: str = "") -> str:
    """Return a bar of what is left; the text says it to those who don't see it."""
    return (
        f'<div class="left" role="img" aria-label="{escape(text)}"><i style="width:{min(100 * share, 100):.2f}%"></i>'
        f'</div><p class="share" aria-hidden="true">{100 * share:.1f} %<span>{note}</span></p>'
    )


def _latency(latency: Values) -> str:
    before, after = latency["before"], latency["after"]
    share = after["p50_ms"] / before["p50_ms"] if before["p50_ms"] else 1.0
    share = 1 / latency["ratio"] if latency.get("ratio") else share
    low_high: Sequence[float] = latency.get("interval") or ()
    interval = f", 95 % interval {low_high[0]:.2f}× to {low_high[1]:.2f}×" if len(low_high) == 2 else ""
    return (
        f'<div class="card"><h3>Latency <span class="soft">p50</span></h3><p class="big">{_ms(after["p50_ms"])}</p>'
        f'<p class="from">of {_ms(before["p50_ms"])}<span class="times">{_faster(share)}</span></p>'
        f"{bar(share, f'{100 * share:.1f} % of the time')}"
        f'<p class="fine">p95 {_ms(after["p95_ms"])} of {_ms(before["p95_ms"])}</p>'
        f'<p class="fine">the ratio is that of runs in turns{interval}</p></div>'
    )


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def _seconds(value: float) -> str:
    return _ms(1000 * value)


def _faster(share: float) -> str:
    if share == 1 or share <= 0:
        return ""
    return f"{1 / share:.2f}× faster" if share < 1 else f"{share:.2f}× slower"


def proof(values: Values) -> str:
    """Return what is known of the accuracy, what is proved, and which targets are met."""
    items = [accuracy(values, "prune")] if any(g["removed"] for g in values["groups"]) else []
    law = values.get("law1")
    if law is not None:
        inputs = f"{law['inputs']} input{'' if law['inputs'] == 1 else 's'}{escape(at_sizes(law))}"
        items.append(
            f'<li class="good"><b>Proved</b> The result equals the original with the same channels masked, '
            f"{_within(law['max_relative_error'])}, on {inputs}.</li>"
        )
    elif any(g["removed"] for g in values["groups"]):
        items.append('<li class="warn"><b>Not proved</b> The proof was skipped.</li>')
    if values.get("inexact"):
        items.append(
            '<li class="warn"><b>Inexact</b> A cut changes an average or a maximum, as --allow-inexact asked.</li>'
        )
    for t in values.get("targets") or ():
        show = {"s": _seconds, "B": size}.get(t["unit"], count)
        asked, got = share_of_time(t, values.get("latency")) or (show(t["asked"]), show(t["got"]))
        items.append(
            f'<li class="{"good" if t["holds"] else "warn"}"><b>{"Met" if t["holds"] else "Not met"}</b> '
            f"Target {escape(t['target'])}: asked {asked}, got {got}.</li>"
        )
    calibration = values.get("calibration")
    if calibration:
        fits = calibration["layers"]
        changed = sum(f["variant"] != "kept" for f in fits)
        items.append(
            f"<li><b>Refitted</b> {changed:,} of {len(fits):,} layers, on {calibration['samples']:,} samples "
            f"({escape(str(calibration['criterion']))})."
            " The result is no longer the masked original; the cut is exact.</li>"
        )
        items += [
            f"<li><b>Blocks</b> {line.capitalize()}.</li>"
            for line in (
                *segment_lines(calibration.get("segments") or ()),
                *whole_lines(calibration.get("whole")),
            )
        ]
    if values.get("put_back"):
        n = len(values["put_back"])
        items.append(
            f'<li class="warn"><b>Put back</b> {n} cut{"s" * (n > 1)} failed verification and '
            f'{"were" if n > 1 else "was"} undone: <a href="#run">why</a>.</li>'
        )
    return f'<ul class="proof">{"".join(items)}</ul>' if items else ""


def _within(error: float) -> str:
    return f"within {power(error)} of the largest output" if error else "without any difference"


def accuracy(values: Values, command: str) -> str:
    """Return what is known of the accuracy, as the first item of what is proved."""
    told = known(values.get("calibration"), command)
    text = told.text[0].upper() + told.text[1:]
    return f'<li class="{told.level}"><b>{told.word}</b> {escape(text)}.</li>'


def ceiling(values: Values) -> str:
    """Return what would be left of a model that is only looked at."""
    rows = "".join(
        f'<tr><th scope="row">{text}</th>'
        + "".join(f'<td class="n">{values["left"][key][name]:.1%}</td>' for name in ("parameters", "macs"))
        + "</tr>"
        for key, text in (("half", "at ratio 0.5"), ("floor", "with one unit a group"))
    )
    return (
        '<h3>What would be left</h3><table class="plain"><thead><tr><td></td><th class="n">parameters</th>'
        f'<th class="n">MACs</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(figures: Values) -> str:
    ends: Sequence[float] = figures["accuracy"].get("drop_interval") or ()
    return f", 95 % interval {-ends[1]:+.1f} to {-ends[0]:+.1f}" if ends else ""


def agreement(figures: Values) -> str:
    """Return how far the result is from the original on samples that no fit saw."""
    parts = [
        '<section id="agreement" aria-labelledby="agreement-h"><h2 id="agreement-h">Agreement with the original</h2>',
        f'<p class="hint">On {figures["samples"]:,} samples set aside, which no fit has seen.</p><div class="cards">',
    ]
    if "agreement" in figures:
        low, high = figures["agreement_interval"]
        share = figures["agreement"]
        parts.append(
            f'<div class="card"><h3>Same top-1</h3><p class="big">{_percent(share)}</p>'
            f'<p class="from">95 % interval {_percent(low)} to {_percent(high)}</p>'
            f'<div class="left" role="img" aria-label="between {_percent(low)} and {_percent(high)}">'
            f'<i style="width:{100 * share:.2f}%"></i>'
            f'<b style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></b></div></div>'
        )
    if "accuracy" in figures:
        old, new = figures["accuracy"]["before"], figures["accuracy"]["after"]
        parts.append(
            f'<div class="card"><h3>Accuracy</h3><p class="big">{new:.1f} %</p>'
            f'<p class="from">of {old:.1f} %<span class="times">{new - old:+.1f} points{_interval(figures)}</span></p>'
            f'<div class="left" role="img" aria-label="{new:.1f} percent"><i style="width:{new:.2f}%"></i></div></div>'
        )
    parts.append(
        f'<div class="card"><h3>Error of the outputs</h3><p class="big">{figures["relative_error"]:.3f}</p>'
        f'<p class="from">relative; mean cosine {figures["cosine"]:.4f}</p></div>'
    )
    return "".join([*parts, "</div></section>"])
