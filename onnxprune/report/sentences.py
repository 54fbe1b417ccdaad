"""Facts of a report as sentences for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from onnxprune.errors import many
from onnxprune.report.table import amount

__all__ = [
    "at_sizes",
    "calibration_lines",
    "depth_lines",
    "original_lines",
    "segment_lines",
    "share_of_time",
    "size_lines",
    "speed_lines",
    "vocabulary_lines",
    "whole_lines",
]

#: Groups that a sentence names.
NAMED = 5


def at_sizes(law1: Mapping[str, Any]) -> str:
    """Say at which sizes of the dynamic axes law 1 was checked, and how many branches; nothing where there are none.

    Examples
    --------
    >>> sizes = [{"N": 2, "T": 12}, {"N": 1, "T": 12}, {"N": 1, "T": 64}]
    >>> at_sizes({"sizes": sizes, "refused": [{"sizes": {"N": 1, "T": 65}, "reason": "..."}]})
    "; N 1, 2; T 12, 64 (the original doesn't run at 65)"
    """
    checked = law1.get("sizes") or []
    refused = [one["sizes"] for one in law1.get("refused") or ()]
    texts = []
    for axis in checked[0] if checked else ():
        sizes = sorted({s[axis] for s in checked})
        text = f"{axis} {', '.join(map(str, sizes))}"
        alone = [r[axis] for r in refused if any(r == {**c, axis: r[axis]} for c in checked)]
        beyond = min((size for size in alone if size > sizes[-1]), default=0)
        texts.append(text + (f" (the original doesn't run at {beyond})" if beyond else ""))
    branches = {(name, then) for one in law1.get("branches") or () for name, then in one.items()}
    if branches:
        ifs = len({name for name, _ in branches})
        texts.append(f"{len(branches)} branch{'es' * (len(branches) > 1)} of {ifs} If{'s' * (ifs > 1)}")
    return "".join(f"; {text}" for text in texts)


def size_lines(shapes: Mapping[str, Sequence[int]], samples: int = 1) -> list[str]:
    """Say which sizes of the inputs the figures are for, and that they are of one sample where a run has several.

    Examples
    --------
    >>> size_lines({"image": [1, 3, 224, 224]})
    ['sizes: image 1 x 3 x 224 x 224']
    """
    named = [f"{name} {' x '.join(map(str, shape)) or 'a number'}" for name, shape in shapes.items()]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    one = f"; MACs and peak memory are of one of {samples} samples" if samples > 1 else ""
    return [f"sizes: {', '.join(named[:NAMED])}{more}{one}"] if named else []


def speed_lines(latency: Mapping[str, Any] | None, targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how fast it is, and what of each budget was met."""
    lines = []
    if latency is not None:
        low, high = latency["interval"]
        lines.append(
            f"latency {latency['before']['p50_ms']:.3g} ms -> {latency['after']['p50_ms']:.3g} ms (p50), "
            f"{latency['ratio']:.2f} times as fast ({low:.2f} to {high:.2f}){_timed_at(latency)}"
        )
    for t in targets:
        asked, got = share_of_time(t, latency) or (_told(t, "asked"), _told(t, "got"))
        holds = "" if t["holds"] else ", which does not hold"
        lines.append(f"target {t['target']}: asked {asked}, got {got}{holds}")
    return lines


def share_of_time(target: Mapping[str, Any], latency: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """Return what was asked and got of the time, where a share was asked: by runs in turns, as the speed-up is.

    Examples
    --------
    >>> share_of_time({"target": "latency=0.7", "unit": "s", "asked": 7.0, "got": 5.0}, {"ratio": 2.0})
    ('70.0 % of the time', '50.0 %')
    """
    value = target["target"].partition("=")[2].strip()
    if target["unit"] != "s" or not latency or not re.fullmatch(r"[0-9.eE+-]+%?", value):
        return None
    whole = target["got"] * latency["ratio"]
    return f"{100 * target['asked'] / whole:.1f} % of the time", f"{100 / latency['ratio']:.1f} %"


def _timed_at(latency: Mapping[str, Any]) -> str:
    """Say on what it was timed, where that is known."""
    if "shapes" not in latency:
        return ""
    threads = latency.get("threads")
    how = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
    (sizes,) = size_lines(latency["shapes"]) or ("sizes: none",)
    return f"; on {latency.get('provider', 'cpu')}{how}, {sizes.removeprefix('sizes: ')}"


def _told(target: Mapping[str, Any], key: str) -> str:
    return f"{1e3 * target[key]:.3g} ms" if target["unit"] == "s" else amount(target[key])


def by_norm_lines(names: Sequence[str]) -> list[str]:
    """Say which groups were cut although samples tell nothing of what reads them."""
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    groups = "1 group was" if len(names) == 1 else f"{len(names)} groups were"
    first = ", ".join(names[:NAMED])
    return [
        f"{groups} cut by weights alone, as not all that reads them can be fitted to samples: {first}{more}."
    ]


def calibration_lines(figures: Mapping[str, Any]) -> list[str]:
    """Say what was refitted."""
    layers = figures["layers"]
    refitted = sum(line["variant"] != "kept" for line in layers)
    of = many(len(layers), "layer")
    return [
        f"refitted {refitted} of {of} on {figures['samples']:,} samples ({figures['criterion']})",
        *segment_lines(figures.get("segments") or ()),
        *whole_lines(figures.get("whole")),
    ]


def segment_lines(segments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how much nearer blocks of layers came when they were fitted together.

    Examples
    --------
    >>> segment_lines([{"before": 0.2, "after": 0.1, "why": ""}, {"before": 0.0, "after": 0.0, "why": "no gradients"}])
    ['fitted 1 of 2 blocks of layers together: error on held-out samples 0.500 times what it was']
    >>> segment_lines([{"before": 0.0, "after": 0.0, "why": "no gradients"}] * 2)
    ['fitted none of 2 blocks of layers together: 2 x no gradients']
    >>> segment_lines([{"before": 0.2, "after": 0.1, "why": "", "stop": "Det 'd' has no gradient rule"}])[1]
    "gradients end at 1 place: Det 'd' has no gradient rule; layers in front follow nearer goals alone"
    """
    ratios = [line["after"] / line["before"] for line in segments if line["after"] < line["before"]]
    if segments and not ratios:
        reasons = Counter(line["why"] or "no nearer on held-out samples" for line in segments).most_common(
            NAMED
        )
        why = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        return [f"fitted none of {len(segments)} blocks of layers together: {why}"]
    if not ratios:
        return []
    return [
        f"fitted {len(ratios)} of {len(segments)} blocks of layers together: error on held-out samples "
        f"{prod(ratios) ** (1 / len(ratios)):.3f} times what it was",
        *_stop_lines(segments),
    ]


def _stop_lines(fitted: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say where gradients ended."""
    stops = list(dict.fromkeys(line["stop"] for line in fitted if line.get("stop")))
    if not stops:
        return []
    where = f"{many(len(stops), 'place')}: {'; '.join(stops[:NAMED])}"
    return [f"gradients end at {where}; layers in front follow nearer goals alone"]


def whole_lines(whole: Mapping[str, Any] | None) -> list[str]:
    """Say how much nearer the model came when all of its layers were fitted together.

    Examples
    --------
    >>> whole_lines({"before": 0.2, "after": 0.1, "why": ""})
    ['fitted all layers together: error on held-out samples 0.500 times what it was']
    >>> whole_lines({"before": 0.2, "after": 0.2, "why": ""})
    ['fitted all layers together: no nearer on held-out samples, so they stay as they were']
    """
    if whole is None:
        return []
    what = "fitted all layers together: "
    if whole["why"]:
        return [f"{what}not possible, {whole['why']}"]
    if whole["after"] >= whole["before"]:
        return [f"{what}no nearer on held-out samples, so they stay as they were"]
    times = whole["after"] / whole["before"]
    return [f"{what}error on held-out samples {times:.3f} times what it was", *_stop_lines([whole])]


def original_lines(original: Mapping[str, Any] | None) -> list[str]:
    """Say how far the result is from the original on samples set aside."""
    if original is None:
        return [
            "too few samples to set any aside, or their moments alone: nothing is said of the whole model"
        ]
    text = f"on {original['samples']} samples set aside: relative error {original['relative_error']:.3f}"
    if "agreement" in original:
        low, high = original["agreement_interval"]
        text += f", top-1 as the original's on {original['agreement']:.1%} ({low:.1%} to {high:.1%})"
    if "accuracy" in original:
        accuracy = original["accuracy"]
        text += f", accuracy {accuracy['before']:.1f} -> {accuracy['after']:.1f}"
        if "drop_interval" in accuracy:
            low, high = accuracy["drop_interval"]
            text += f" ({-high:+.1f} to {-low:+.1f} points)"
    return [text]


def depth_lines(depth: Mapping[str, Any] | None) -> list[str]:
    """Say which residual branches went.

    Examples
    --------
    >>> depth_lines({"branches": 9, "gone": [{"name": "layer1.2"}]})
    ['depth: 1 of 9 residual branches is gone: layer1.2']
    >>> depth_lines({"branches": 9, "gone": [{"name": "attn", "inputs": ["past.0"], "outputs": ["present.0"]}]})[1]
    'depth: 2 inputs and outputs of the model went with them: past.0, present.0'
    """
    if depth is None:
        return []
    names = [branch["name"] for branch in depth["gone"]]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    verb = "is" if len(names) == 1 else "are"
    listed = f": {', '.join(names[:NAMED])}{more}" if names else ""
    lines = [f"depth: {len(names)} of {depth['branches']} residual branches {verb} gone{listed}"]
    ends = [name for branch in depth["gone"] for end in ("inputs", "outputs") for name in branch.get(end, ())]
    if ends:
        more = f" and {len(ends) - NAMED} more" if len(ends) > NAMED else ""
        lines.append(
            f"depth: {len(ends)} inputs and outputs of the model went with them: {', '.join(ends[:NAMED])}{more}"
        )
    return lines


def vocabulary_lines(vocabulary: Mapping[str, Any] | None) -> list[str]:
    """Say how many ids of a vocabulary stay, and what they are in the result."""
    if vocabulary is None:
        return []
    shrunk, how = ", ".join(vocabulary["outputs"]), "they count anew, see ids.json"
    if vocabulary["remap"]:
        how = f"others are read as {vocabulary['unk']}" + (f"; in {shrunk} {how}" if shrunk else "")
    of = f"{vocabulary['size']:,} ids of {vocabulary['weights'][0]} stay"
    return [f"vocabulary: {vocabulary['kept']:,} of {of}; {how}"]
