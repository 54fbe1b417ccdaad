"""The sections on what lies beyond the cut: what others would leave, what to do next, and where the time went."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from onnxprune.report.page.words import milliseconds, power

__all__ = ["commands", "copied", "next_steps", "outlook", "times_by_layer"]

Values = Mapping[str, Any]
#: Layers in the table of times; the JSON report has all of them.
MOST_LAYERS = 40
#: Errors below this share of a variance are rounding.
LEAST = 1e-6


def copied(command: str) -> str:
    """Return a command with a button that copies it, where scripts run."""
    return (
        f'<div class="copied"><pre class="command" tabindex="0"><code>{escape(command)}</code></pre>'
        '<button type="button" class="copy" hidden>Copy</button></div>'
    )


def next_steps(values: Values) -> str:
    """Return what would be left by other cuts, and the commands to go on with."""
    steps = "".join(f"<p>{escape(why)}:</p>{copied(command)}" for command, why in commands(values))
    table = outlook(values)
    if not steps and not table:
        return ""
    return (
        '<section id="next" aria-labelledby="next-h"><h2 id="next-h">What else, and what next</h2>'
        f"{table}{steps}</section>"
    )


def commands(values: Values) -> Iterator[tuple[str, str]]:
    """Yield commands to go on with, and what each is for."""
    files, options = values.get("files") or {}, values.get("options")
    source = shlex.quote(files.get("input") or "model.onnx")
    output = shlex.quote(files.get("output") or "small.onnx")
    calibration = values.get("calibration") or {}
    if not values["groups"]:
        return
    if options is None:
        yield f"onnxprune prune {source} {output} --ratio 0.5", "Half of each group, without samples"
        yield (
            f"onnxprune prune {source} {output} --target macs=0.5 --calib samples.npz",
            "Half of the MACs where it costs least, refitted and measured on samples",
        )
        return
    given = options.get("calib")
    samples = shlex.quote(given) if isinstance(given, str) and given != "given" else "samples.npz"
    if not calibration:
        how = f"--ratio {options['ratio']:g}" if options.get("ratio") else ""
        how = " ".join(f"--target {shlex.quote(t)}" for t in options.get("target") or ()) or how
        if how:
            command = f"onnxprune prune {source} {output} {how} --calib {samples}"
            yield command, "The same cut, refitted and measured on samples"
    else:
        command = f"onnxprune prune {source} {output} --target macs=0.7,0.5,0.3 --calib {samples}"
        yield command, "Three sizes to choose from; the curves are kept, so it takes less time than this run"
    if not values.get("latency"):
        yield f"onnxprune profile {source}", "Where the time goes on this machine, and what no cut reaches"


def outlook(values: Values) -> str:
    """Return what the same ratio for all groups would leave."""
    lines = values.get("outlook") or ()
    if not lines:
        return ""
    curves = (values.get("calibration") or {}).get("curves") or {}
    units = {g["name"]: g["units"] for g in values["groups"]}
    errors = [_errors(curves, units, line["ratio"]) for line in lines]
    more = ["median error", "largest error"] if any(errors) else []
    heads = "".join(
        f'<th scope="col" class="n">{name}</th>' for name in ("MACs left", "parameters left", "ratio", *more)
    )
    rows = "".join(_row(line, found, bool(more)) for line, found in zip(lines, errors, strict=True))
    hint = "Sizes if every group lost the same share of its units, without alignment."
    hint += " Errors of groups are read off the curves of this run." if more else ""
    hint += " A --target shares the loss so that it costs less."
    return (
        f'<p class="hint">{hint}</p><div class="wide" tabindex="0" role="region" aria-label="Other sizes">'
        f'<table class="plain"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(line: Mapping[str, float], errors: Sequence[float], with_errors: bool) -> str:
    cells = [f"{100 * line['macs']:.0f} %", f"{100 * line['parameters']:.0f} %", f"{line['ratio']:.2f}"]
    if with_errors:
        cells += (
            [power(sorted(errors)[len(errors) // 2], LEAST), power(max(errors), LEAST)]
            if errors
            else ["–", "–"]
        )
    return "<tr>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"


def _errors(curves: Mapping[str, Any], units: Mapping[str, int], ratio: float) -> list[float]:
    """Return the error of each group with such a share of its units gone, between the points that are known."""
    return [
        _between(curve, int(ratio * units[name])) for name, curve in curves.items() if curve and name in units
    ]


def _between(curve: Sequence[Sequence[float]], removed: int) -> float:
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= removed <= x1:
            return float(y0 + (y1 - y0) * (removed - x0) / (x1 - x0))
    return float(curve[-1][1])


def times_by_layer(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return the time of each layer before and after, the longest first."""
    most = max((max(line["before"], line["after"]) for line in layers), default=0.0) or 1.0
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(line["name"])}</code> <span class="soft">{escape(line["op"])}</span></th>'
        f'<td class="pair" aria-hidden="true"><i class="old" style="width:{100 * line["before"] / most:.1f}%"></i>'
        f'<i class="new" style="width:{100 * line["after"] / most:.1f}%"></i></td>'
        f'<td class="n">{milliseconds(line["before"])}</td><td class="n">{milliseconds(line["after"])}</td></tr>'
        for line in layers[:MOST_LAYERS]
    )
    more = len(layers) - MOST_LAYERS
    rest = (
        f'<p class="hint">and {more:,} more, each shorter; the JSON report has them all</p>'
        if more > 0
        else ""
    )
    return (
        '<section id="times" aria-labelledby="times-h"><h2 id="times-h">Time of each layer</h2>'
        '<p class="hint">Measured inside both models, in turns, on this machine. A profile slows small layers down, so '
        "their sum is more than a run.</p>"
        '<p class="keys"><span><span class="key cut"></span>before</span> <span><span class="key kept"></span>after'
        '</span></p><div class="wide" tabindex="0" role="region" aria-label="Times of layers">'
        '<table class="layer-times"><thead><tr><th scope="col">layer</th><td></td><th scope="col" class="n">before</th>'
        f'<th scope="col" class="n">after</th></tr></thead><tbody>{rows}</tbody></table></div>{rest}</section>'
    )
