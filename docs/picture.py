"""Draw docs/picture.svg, the README's picture, from a run of the main job on sample 01: ``python docs/picture.py``.

Each layer is a rectangle, output channels high and input channels wide; what is left of it is filled.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

ROOT = Path(__file__).resolve().parents[1]
CNN = ROOT / "samples" / "01_digits_cnn" / "digits_cnn.onnx"
PICTURE = ROOT / "docs" / "picture.svg"
COMMAND = "onnxprune prune digits_cnn.onnx small.onnx --ratio 0.5 --align 8"
WIDTH, HEIGHT, TOP, SCALE = 860, 340, 88, 0.62
INK, QUIET, PAPER, FRAME, FILL = "#1b2733", "#5b6b7a", "#ffffff", "#c9d3dc", "#1f77b4"


def accuracy(model: onnx.ModelProto) -> float:
    """Return the share of 450 held-out digits that a model gets right."""
    with np.load(ROOT / "samples" / "data" / "digits.npz") as data:
        images, labels = data["test_x"].astype(np.float32)[:, None] / 16, data["test_y"]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return float((logits.argmax(1) == labels).mean())


def measured() -> tuple[dict[str, Any], tuple[float, float]]:
    """Return the report of the run, and the accuracies before and after."""
    import onnxprune

    model = onnx.load(CNN)
    result = onnxprune.prune(model, ratio=0.5, align=8)
    small = result.model
    assert small is not None  # a model went in, so a model comes out
    return result.report.to_json(), (accuracy(model), accuracy(small))


def text(x: float, y: float, words: str, size: int = 13, colour: str = INK, more: str = "") -> str:
    """Return one line of text."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{more}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, look: str) -> str:
    """Return a rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {look}/>'


def layer(x: float, room: float, entry: dict[str, Any]) -> list[str]:
    """Return the shapes of one layer, in a column that begins at `x`."""
    sizes = [[max(n * SCALE, 4) for n in entry[key][:2]] for key in ("shape", "left")]
    (high, wide), (left_high, left_wide) = sizes
    start, middle, centred = x + (room - wide) / 2, x + room / 2, ' text-anchor="middle"'
    return [
        text(middle, TOP + 8, entry["weight"].split(".")[0], 12, QUIET, centred),
        box(start, TOP + 24, wide, high, f'fill="none" stroke="{FRAME}"'),
        box(start, TOP + 24, left_wide, left_high, f'fill="{FILL}"'),
        text(middle, TOP + high + 42, f"{entry['shape'][0]} → {entry['left'][0]}", 11, QUIET, centred),
    ]


def drawn(report: dict[str, Any], right: tuple[float, float]) -> str:
    """Return the picture."""
    shapes = [
        box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, f'rx="10" fill="{PAPER}" stroke="{FRAME}"'),
        text(24, 40, f"$ {COMMAND}", 15, INK, ' font-family="ui-monospace, Menlo, Consolas, monospace"'),
        text(
            24,
            66,
            "Filled: the part of each layer that is left. Beneath: output channels, before and after.",
            13,
            QUIET,
        ),
    ]
    room = (WIDTH - 48) / len(report["layers"])
    for place, entry in enumerate(report["layers"]):
        shapes += layer(24 + place * room, room, entry)
    figures = [("right answers", *(f"{share:.2%}" for share in right), "450 held-out digits, no training")]
    for word, key in (("parameters", "parameters"), ("multiply-adds", "macs"), ("bytes", "bytes")):
        before, after = report[key]["before"], report[key]["after"]
        figures.append((word, f"{before:,}", f"{after:,}", f"{after / before:.1%} left"))
    for place, (word, old, new, note) in enumerate(figures):
        x = 24 + place * 206
        shapes += [
            text(x, 268, word, 12, QUIET),
            text(x, 291, f"{old} → {new}", 15, INK, ' font-weight="600"'),
            text(x, 312, note, 12, QUIET),
        ]
    inner = "\n".join(shapes)
    label = (
        f"Layers of a small net before and after {COMMAND}: {right[0]:.2%} right before, {right[1]:.2%} after"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(label)}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">\n'
        f"{inner}\n</svg>\n"
    )


def main() -> None:
    """Draw the picture anew."""
    PICTURE.write_text(drawn(*measured()), encoding="utf-8", newline="\n")
    print(f"drew {PICTURE.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
