"""The page's sections, in order; every text from a model is escaped here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from onnxprune.graph.reasons import plain_reason, worth_telling
from onnxprune.report.page.beyond import copied, next_steps, times_by_layer
from onnxprune.report.page.summary import agreement, head, lead, summary, title
from onnxprune.report.signature import interface_lines
from onnxprune.report.table import amount

__all__ = ["FOOTER", "all_of", "run", "title", "why"]

Values = Mapping[str, Any]
#: Frozen axes that are listed for one reason.
MOST_LISTED = 500


def all_of(values: Values) -> Iterator[str]:
    """Yield the sections; empty ones say that there is nothing to show."""
    calibration = values.get("calibration") or {}
    names, shown_next = [("summary", "Summary")], next_steps(values)
    layers = (values.get("latency") or {}).get("layers")
    names += [("agreement", "Agreement")] if calibration.get("original") else []
    names += [("interface", "Interface")] if values.get("interface") else []
    names += [("next", "Next")] if shown_next else []
    names += [("groups", "Groups"), ("map", "Map")] if values["groups"] else []
    names += [("sensitivity", "Sensitivity")] if calibration.get("curves") else []
    names += [("times", "Times")] if layers else []
    names += [("layers", "Layer errors")] if calibration.get("layers") else []
    names += [("frozen", "Frozen"), ("run", "Run" if "options" in values else "Model")]
    shown = dict(names)
    yield head(values, names, "report" if "options" in values else "inspection", lead(values))
    yield '<main id="main">'
    yield summary(values)
    yield agreement(calibration["original"]) if "agreement" in shown else ""
    yield interface(values["interface"]) if "interface" in shown else ""
    yield shown_next
    yield _GROUPS if "groups" in shown else ""
    yield _MAP if "map" in shown else ""
    yield _SENSITIVITY if "sensitivity" in shown else ""
    yield times_by_layer(layers) if layers else ""
    yield _LAYERS if "layers" in shown else ""
    axes = [(f"{f['tensor']}:{f['axis']}", f["reason"]) for f in values["frozen"]]
    yield why("frozen", "Frozen, and why", axes, "axes of weights (tensor:axis) can't be cut")
    yield run(values) if "options" in values else model(values)
    yield "</main>"
    yield FOOTER


FOOTER = "<footer><p>Made by onnxprune. This file asks the network for nothing.</p></footer>"

_NOSCRIPT = '<noscript><p class="note">This part is drawn by a script, and scripts are off.</p></noscript>'

_GROUPS = f"""<section id="groups" aria-labelledby="groups-h">
<h2 id="groups-h">Groups</h2>
<p class="hint">Channels that can only be cut together. Open one to see its members.</p>
<div class="tools" id="group-tools"></div>
<div id="group-list"></div>{_NOSCRIPT}
</section>"""

_MAP = f"""<section id="map" aria-labelledby="map-h">
<h2 id="map-h">How the layers hang together</h2>
<p class="hint">Layers from the first (top) to the last. Each line is a group: it starts at the layer that makes its
channels and ends at the last one that reads them. Select a line or a layer for details.</p>
<div class="tools" id="map-tools"></div>
<div class="map"><div id="map-view" tabindex="0" role="application"
aria-label="Map of layers and groups. Arrow keys go from group to group."></div>
<aside id="map-detail" aria-live="polite"></aside></div>{_NOSCRIPT}
</section>"""

_SENSITIVITY = f"""<section id="sensitivity" aria-labelledby="sensitivity-h">
<h2 id="sensitivity-h">Sensitivity</h2>
<p class="hint">What the layers that read a group lose when more and more of its units go and the rest is refitted:
squared error as a share of their outputs' variance. Dots mark what was cut.</p>
<div id="curves"></div>{_NOSCRIPT}
</section>"""

_LAYERS = f"""<section id="layers" aria-labelledby="layers-h">
<h2 id="layers-h">Error of each layer</h2>
<p class="hint">Squared error of a layer's output on held-out samples, as a share of its variance, after the cut: with
the old weights, and refitted.</p>
<div class="tools" id="fit-tools"></div>
<div id="fits"></div>{_NOSCRIPT}
</section>"""


def interface(changes: Sequence[Mapping[str, Any]]) -> str:
    """Return the inputs and outputs that shrank: who runs the model must give and take these."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in interface_lines(changes))
    return (
        '<section id="interface" aria-labelledby="interface-h"><h2 id="interface-h">Interface</h2>'
        f'<p class="hint">Inputs and outputs that shrank, as --open-io allowed.</p><ul>{lines}</ul></section>'
    )


def why(name: str, heading: str, lines: Sequence[tuple[str, str]], what: str) -> str:
    """Return what stays as it is and why, the most frequent reason first.

    Parameters
    ----------
    name, heading : str
        Of the section.
    lines : sequence of (str, str)
        What, and the reason, in which names stand in quotes.
    what : str
        What they are, in the plural.
    """
    by_reason: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in lines:
        by_reason[plain_reason(line[1])].append(line)
    parts = [f'<section id="{name}" aria-labelledby="{name}-h">', f'<h2 id="{name}-h">{heading}</h2>']
    parts.append(f'<p class="hint">{f"{len(lines):,} {what}" if lines else "None"}.</p>')
    for reason, alike in sorted(
        by_reason.items(), key=lambda item: (*worth_telling(item[0], len(item[1])), item[0])
    ):
        share = 100 * len(alike) / len(lines)
        parts.append(
            f'<details class="why"><summary><span class="why-n">{len(alike):,}</span>'
            f'<span class="why-text">{escape(reason)}</span>'
            f'<span class="why-bar" aria-hidden="true"><i style="width:{share:.2f}%"></i></span></summary><ul>'
        )
        parts += [_why_line(line, reason) for line in alike[:MOST_LISTED]]
        if len(alike) > MOST_LISTED:
            parts.append(f"<li>and {len(alike) - MOST_LISTED:,} more; the JSON report has them all</li>")
        parts.append("</ul></details>")
    return "\n".join([*parts, "</section>"])


def _why_line(line: tuple[str, str], plain: str) -> str:
    text = f"<code>{escape(line[0])}</code>"
    if line[1] != plain:
        text += f' <span class="soft">{escape(line[1])}</span>'
    return f"<li>{text}</li>"


def run(values: Values) -> str:
    """Return what is needed to do it again."""
    parts = ['<section id="run" aria-labelledby="run-h">', '<h2 id="run-h">The run</h2>']
    if values.get("command"):
        parts.append(copied(values["command"]))
    facts = [("Made", values.get("created", ""))]
    facts += [(f"SHA-256 of the {which}", text) for which, text in values["sha256"].items()]
    shapes = values.get("input_shapes") or {}
    facts += [(f"Input {name}", " × ".join(map(str, shape))) for name, shape in shapes.items()]
    facts += [("Versions", ", ".join(f"{name} {text}" for name, text in values["versions"].items()))]
    parts += [_facts(facts), _seconds(values["seconds"])]
    parts += filter(None, [_texts("Checks", values.get("checks")), _texts("Notes", values.get("notes"))])
    if values.get("put_back"):
        items = "".join(
            f"<li><code>{escape(e['group'])}</code> {escape(e['reason'])}</li>" for e in values["put_back"]
        )
        parts.append(f"<h3>Put back</h3><ul>{items}</ul>")
    options = [(name, _option(value)) for name, value in values["options"].items()]
    parts.append(f"<details><summary>All options</summary>{_facts(options)}</details>")
    return "\n".join([*parts, "</section>"])


def model(values: Values) -> str:
    """Return the op types of an inspected model."""
    rows = "".join(
        f'<tr><td>{escape(o["op"])}</td><td class="n">{o["nodes"]:,}</td><td>{_op_row(o)}</td></tr>'
        for o in values["ops"]
    )
    shapes = [(f"Input {n}", " × ".join(map(str, s))) for n, s in values["input_shapes"].items()]
    return (
        '<section id="run" aria-labelledby="run-h"><h2 id="run-h">The model</h2>'
        f"{_facts(shapes)}<h3>Ops, and what is known of them</h3>"
        '<div class="wide" tabindex="0"><table class="plain">'
        '<thead><tr><th>op</th><th class="n">nodes</th><th>row</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{_texts('Notes', values.get('notes'))}</section>"
    )


def _texts(heading: str, texts: Sequence[str] | None) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts or ())
    return f"<h3>{heading}</h3><ul>{items}</ul>" if items else ""


def _op_row(line: Mapping[str, Any]) -> str:
    if line["rows"]:
        return "<br>".join(f"<code>{escape(row)}</code>" for row in line["rows"])
    return f'<span class="soft">none: {escape("; ".join(line["refused"]))}</span>'


def _option(value: object) -> str:
    if value is None or value == [] or value == {}:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _facts(lines: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines if text)
    return f'<dl class="facts">{items}</dl>'


def _seconds(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    if not total:
        return ""
    bars = "".join(
        f"<li><span>{escape(name)}</span>"
        f'<span class="track" aria-hidden="true"><i style="width:{100 * s / total:.2f}%"></i></span>'
        f'<span class="n">{s:,.2f} s</span></li>'
        for name, s in seconds.items()
    )
    return f'<h3>Time, {amount(total) if total >= 10 else f"{total:.2g}"} s in all</h3><ul class="bars">{bars}</ul>'
