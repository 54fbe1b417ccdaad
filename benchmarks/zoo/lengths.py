"""Law 1 at sizes other than those that a model was bound to, checked from outside.

    python benchmarks/zoo/export.py FOLDER --set lengths
    python benchmarks/zoo/lengths.py FOLDER [--only REGEX] [--calib] [--json OUT]

Each model is pruned once, bound by ``--input-shape`` to one size (and with ``--calib`` fitted on synthetic samples of
that size). Then the small model and its twin run at five other sizes, shorter and longer ones. The twin is built
from the original file, the report's `cuts` and, where layers were fitted, the values of the small file: it has the
original's shape, and zeros where something was cut. The error is the greatest max|a - b| / max|a|. The exit code
is 1 where it is over 1e-4 anywhere, or where the original runs and the small model doesn't.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.shared import run_limited
from benchmarks.zoo import compare, oracle

TOLERANCE = 1e-4
Sizes = dict[str, int]
TEXT: list[Sizes] = [
    {"batch": b, "sequence": s} for b, s in ((2, 12), (1, 5), (2, 16), (1, 31), (3, 48), (2, 60))
]
PAIRS: list[Sizes] = [
    {"batch": b, "sequence": s, "target": t}
    for b, s, t in ((2, 12, 7), (1, 5, 3), (2, 20, 9), (1, 40, 30), (3, 12, 50), (2, 130, 60))
]
PICTURES: list[Sizes] = [
    {"batch": b, "height": h, "width": w}
    for b, h, w in ((2, 64, 96), (1, 32, 32), (1, 64, 64), (2, 96, 64), (1, 128, 96), (3, 160, 160))
]
#: What an input's axes are, since exporters rename them.
AXES = {
    "pixel_values": ("batch", "", "height", "width"),
    "decoder_input_ids": ("batch", "target"),
    "decoder_attention_mask": ("batch", "target"),
    "input_features": ("batch",),
    "": ("batch", "sequence"),
}
#: By a part of the model's name: the bound sizes, then five others.
SIZES = {"vit": PICTURES, "swin": PICTURES, "t5": PAIRS, "whisper": PAIRS, "": TEXT}


def main(argv: list[str] | None = None) -> int:
    """Prune, compare, print a line for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--calib", action="store_true", help="also fit the layers on synthetic samples")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has onnxprune")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args(argv)
    rows, files = [], sorted(args.folder.rglob("*.onnx"))
    for file in (f for f in files if re.search(args.only, str(f))):
        row = examine(file, args)
        rows.append(row)
        errors = " ".join("fails" if e is None else "-" if e < 0 else f"{e:.1e}" for e in row["errors"])
        effect = f"effect {row['effect'] or 0:.1e}"
        print(
            f"{file.parent.name + '/' + file.stem:34} left {row['left']:.3f}  {errors}  {effect}  {row['note']}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return int(any(row["note"] or any(e is None or e > TOLERANCE for e in row["errors"]) for row in rows))


def examine(file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the errors at each size: None where only the small model fails, -1 where the original does, too."""
    original = oracle.load(file)
    sizes = next(value for key, value in SIZES.items() if key in file.stem)
    row: dict[str, Any] = {
        "file": f"{file.parent.name}/{file.name}",
        "errors": [],
        "effect": None,
        "left": 1.0,
        "note": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        out, report = Path(folder, "o.onnx"), Path(folder, "r.json")
        command = [args.python, "-m", "onnxprune", "prune", str(file), str(out), "--ratio", "0.5"]
        command += ["--align", "none", "--report", str(report)]
        for name, shape in shapes(original, sizes[0]).items():
            command += ["--input-shape", f"{name}:{','.join(map(str, shape))}"]
        if args.calib:
            command += ["--calib", "synthetic", "--samples", "32"]
        result = run_limited(command, 600.0, 16.0)
        if result.code:
            return row | {"note": result.reason}
        pruned, facts = oracle.load(out), json.loads(report.read_text())
        cuts = [*facts["cuts"], *facts.get("copies", [])]
        twin = widened(original, pruned, cuts) if args.calib else oracle.masked(original, pruned, cuts)
        sessions = [compare.session(m) for m in (twin, out)]
        row["left"] = oracle.parameters(pruned) / oracle.parameters(original)
        row["errors"] = [error_at(original, sessions, size) for size in sizes]
        row["effect"] = error_at(original, [compare.session(file), sessions[1]], sizes[0])
    return row


def shapes(proto: onnx.ModelProto, sizes: Sizes) -> dict[str, list[int]]:
    """Return the inputs' shapes with these sizes of their dynamic axes."""
    found = {}
    for value in proto.graph.input:
        axes, dims = AXES.get(value.name, AXES[""]), value.type.tensor_type.shape.dim
        found[value.name] = [d.dim_value or sizes[axes[n]] for n, d in enumerate(dims)]
    return found


def error_at(original: onnx.ModelProto, sessions: list[Any], sizes: Sizes) -> float | None:
    """Run both at these sizes."""
    named = dict(sizes)
    feeds = compare._feeds(sessions[0], (64, 16), np.random.default_rng(0), shapes(original, named))
    try:
        expected = compare.run(sessions[0], [feeds])
    except Exception:  # a size that the original doesn't take
        return -1.0
    try:
        return compare.distance(expected, compare.run(sessions[1], [feeds]))
    except Exception:  # the small model must take what the original takes
        return None


def widened(original: onnx.ModelProto, pruned: onnx.ModelProto, cuts: list[Any]) -> onnx.ModelProto:
    """Return the original with the values of the small model, and zeros where something was cut."""
    twin = onnx.ModelProto()
    twin.CopyFrom(pruned if not cuts else original)
    removed: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for cut in cuts:
        if "copy" in cut:
            raise ValueError("copies of shared weights aren't supported with --calib")
        removed[cut["tensor"]][cut["axis"]] |= set(cut["removed"])
    small = oracle.weights(pruned)
    for name, tensor in oracle.weights(twin).items():
        array = numpy_helper.to_array(tensor)
        if name not in small or array.dtype.kind != "f":
            continue
        keep = [sorted(set(range(n)) - removed[name][axis]) for axis, n in enumerate(array.shape)]
        values = numpy_helper.to_array(small[name])
        wide = np.zeros_like(array)
        wide[np.ix_(*keep)] = values
        oracle._store(tensor, wide)
    return twin


if __name__ == "__main__":
    sys.exit(main())
