"""The sections of a page on zeros: sizes in each form, what runtimes make of them, and a line for each weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from onnxprune.report.page.sections import FOOTER, run, why
from onnxprune.report.page.summary import accuracy, agreement, bar, card, head
from onnxprune.report.page.words import count, power, size

__all__ = ["all_of"]

Values = Mapping[str, Any]
#: Weights that the table has; the JSON report has all of them.
MOST_LINES = 1000


def all_of(values: Values) -> Iterator[str]:
    """Yield the sections of the report of `onnxprune sparsify`."""
    original = (values.get("calibration") or {}).get("original")
    names = [
        ("summary", "Summary"),
        *([("agreement", "Agreement")] if original else []),
        ("weights", "Weights"),
    ]
    names += [("left", "Left dense"), ("run", "Run")]
    yield head(values, names, "report", _lead(values))
    yield '<main id="main">'
    yield _summary(values)
    yield agreement(original) if original else ""
    yield _weights(values["tensors"])
    left = [(one["tensor"], one["reason"]) for one in values["left"]]
    yield why("left", "Left dense, and why", left, "weights keep their values")
    yield run(values)
    yield "</main>"
    yield FOOTER


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _lead(values: Values) -> str:
    treated, left = len(values["tensors"]), len(values["left"])
    return (
        f"{_percent(values['zeros'], values['weights'])} of {count(values['weights'])} weights in {treated:,} tensors "
        f"are zero ({escape(values['pattern'])})." + (f" {left:,} tensors stay dense." if left else "")
    )


def _summary(values: Values) -> str:
    zeros, weights, stored = values["zeros"], values["weights"], values["bytes"]
    share = 1 - zeros / weights if weights else 1.0
    cards = [
        f'<div class="card"><h3>Zeros</h3><p class="big">{_percent(zeros, weights)}</p>'
        f'<p class="from">{count(zeros)} of {count(weights)} weights</p>'
        f"{bar(share, f'{100 * share:.1f} % of the weights stay', 'stay')}</div>",
        card("File", stored, size, what="bytes"),
    ]
    for name, form in (
        ("Compressed by zlib", "compressed"),
        ("As sparse_initializer", "sparse"),
        ("Packed 2:4", "two_four"),
    ):
        if form == "two_four" and not any(line["two_four"] for line in values["tensors"]):
            continue
        pair = {"before": stored["before"], "after": values["bytes_in"][form]}
        cards.append(card(name, pair, size, what="bytes"))
    items = accuracy(values, "sparsify") if zeros else ""
    items += "".join(
        f'<li class="{kind}"><b>{name}</b> {text}</li>' for kind, name, text in _verdicts(values)
    )
    return (
        '<section id="summary" aria-labelledby="summary-h"><h2 id="summary-h" class="unseen">Summary</h2>'
        f'<div class="cards">{"".join(cards)}</div>'
        f'<ul class="proof">{items}</ul></section>'
    )


def _verdicts(values: Values) -> Iterator[tuple[str, str, str]]:
    """Yield what the zeros buy, and what was done beside them: a class, a word, a sentence."""
    ready = any(line["useful"] and line["two_four"] for line in values["tensors"])
    yield "good" if ready else "warn", "GPU", escape(values["speed"]["sparse_tensor_cores"])
    yield "warn", "CPU", escape(values["speed"]["onnxruntime_cpu"])
    order = values.get("order") or {"groups": []}
    total, before, after = (sum(g[key] for g in order["groups"]) for key in ("total", "before", "after"))
    if total:
        as_before = (
            "" if order["law1"] is None else f", and outputs as before within {order['law1']:.1e} (relative)"
        )
        yield (
            "good",
            "Reordered",
            f"{len(order['groups']):,} groups of channels have another order, by which the zeros take "
            f"{1 - after / total:.2%} instead of {1 - before / total:.2%} of what matters{as_before}.",
        )
    fits = [line["fit"] for line in values["tensors"] if line.get("fit")]
    if values.get("calibration"):
        changed = sum(fit["variant"] != "kept" for fit in fits)
        yield (
            "also",
            "Refitted",
            f"{changed:,} of {len(values['tensors']):,} weights, on {values['calibration']['samples']:,} samples.",
        )
    if values["sparse_initializers"]:
        yield (
            "also",
            "Stored sparse",
            f"{len(values['sparse_initializers']):,} weights, as sparse_initializer.",
        )


def _weights(lines: Sequence[Values]) -> str:
    fitted, methods = any(line.get("fit") for line in lines), {line["method"] for line in lines}
    names = ["weight", "zeros", "sparse tensor cores", "shape", "axis"]
    names += ["method"] if len(methods) > 1 else []
    numbers = ["axis", "error before", "error after"]
    names += numbers[1:] if fitted else []
    heads = "".join(
        '<th scope="col"' + (' class="n"' if name in numbers else "") + f">{name}</th>" for name in names
    )
    rows = "".join(_line(line, names) for line in lines[:MOST_LINES])
    more = len(lines) - MOST_LINES
    rest = f'<p class="hint">and {more:,} more; the JSON report has them all</p>' if more > 0 else ""
    hint = "Zeros of each weight; axis is the one that is summed over, and N:M lies along it."
    hint += f" All chosen by {escape(min(methods))}." if len(methods) == 1 else ""
    if fitted:
        hint += (
            " Errors are those of the layer's output on held-out samples, as a share of its variance: with the old "
            "weights where they stay, and refitted."
        )
    return (
        '<section id="weights" aria-labelledby="weights-h"><h2 id="weights-h">Weights</h2>'
        f'<p class="hint">{hint}</p><div class="wide" tabindex="0" role="region" aria-label="Table of weights">'
        f'<table class="zeros"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{rest}</section>'
    )


def _line(line: Values, names: Sequence[str]) -> str:
    under = ", ".join(line["layers"][:3]) + (
        f" and {len(line['layers']) - 3} more" if len(line["layers"]) > 3 else ""
    )
    tail = f'<br><span class="flag">dense tail: {escape(line["tail"])}</span>' if line["tail"] else ""
    cells = [
        f'<th scope="row"><code>{escape(line["tensor"])}</code><br><span class="soft">{escape(under)}</span>'
        f"{tail}</th>",
        f"<td>{_zeros(line)}</td>",
        f'<td data-name="sparse tensor cores">{_cores(line)}</td>',
        f'<td data-name="shape">{" × ".join(map(str, line["dims"]))}</td>',
        f'<td class="n" data-name="axis">{"–" if line["axis"] is None else line["axis"]}</td>',
    ]
    cells += [f'<td data-name="method">{escape(line["method"])}</td>'] if "method" in names else []
    if "error after" in names:
        fit = line.get("fit") or {}
        errors = [(key, power(fit[key], 1e-6, 3) if key in fit else "–") for key in ("before", "after")]
        cells += [f'<td class="n" data-name="error {key}">{text}</td>' for key, text in errors]
    return f'<tr class="weight">{"".join(cells)}</tr>'


def _zeros(line: Values) -> str:
    share = 1 - line["zeros"] / line["weights"] if line["weights"] else 1.0
    was = f", was {_percent(line['zeros_before'], line['weights'])}" if line["zeros_before"] else ""
    return (
        f'<span class="bar whole" aria-hidden="true"><i style="width:{100 * share:.2f}%"></i></span>'
        f"{_percent(line['zeros'], line['weights'])}"
        f'<span class="soft"> of {count(line["weights"])}{was}</span>'
    )


def _cores(line: Values) -> str:
    if not line["tensor_cores"]["eligible"]:
        return f'no <span class="soft">{escape(line["tensor_cores"]["why_not"])}</span>'
    if not line["two_four"]:
        return 'no <span class="soft">2:4 doesn\'t hold</span>'
    return "yes" if line["useful"] else 'yes <span class="soft">but too small to gain</span>'
