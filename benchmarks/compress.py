"""Bytes of a packed model against what it still can: `onnxprune compress` beside plain rounding, onnxruntime and zeros.

    python benchmarks/compress.py MODEL.onnx CALIB.npz EVAL.npz [--labels KEY | --metric SCRIPT.py:FUNCTION]
        [--ratios 4 8 16 25] [--rows REGEX]

One JSON line a row, and a table at the end. Every row is packed by the same zstd. EVAL's samples are seen by no fit;
how far the outputs are from the input's is told, and with labels in it under KEY the accuracy, or what the metric
says (as `onnxprune tune --metric` has it). Rows:

- floats: the input as it is
- int8, int4: nearest steps, one step for each output, no samples
- ort dynamic, ort static: onnxruntime's quantiser (static with CALIB)
- zeros S: `onnxprune sparsify --pattern unstructured --sparsity S --calib CALIB`
- onnx R: `onnxprune compress --to onnx --target bytes=1/R`, the size of the model itself
- zst R: `onnxprune compress --to zst --target bytes=1/R`
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxprune.api import compress, sparsify
from onnxprune.calibration.samples import load_samples
from onnxprune.compression.forms import HALF, Stored, step_of
from onnxprune.compression.parts import parts_of
from onnxprune.compression.rounding import MOST
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Model
from onnxprune.tuning.levers import int8
from onnxprune.tuning.metric import Accuracy, script_of

ZEROS = (0.5, 0.8, 0.9)


def outputs(model: bytes, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Return the first output for all samples, one by one where the model wants that."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    fixed = session.get_inputs()[0].shape[0]
    step = fixed if isinstance(fixed, int) else 64
    rows = [
        session.run(None, {n: a[first : first + step] for n, a in feeds.items()})[0]
        for first in range(0, count, step)
    ]
    return np.concatenate(rows)


def plain(model: Model, ends: tuple[int, int]) -> Model:
    """Put all weights on the nearest steps, one step for each output (the first axis)."""
    made = model.fork()
    stored = Stored(made)
    for part in parts_of(model, {})[0]:
        w = np.asarray(model.weight(part.name))
        axes = tuple(range(1, w.ndim))
        largest = np.abs(w).max(axis=axes, keepdims=True).astype(np.float64)
        step = np.where(largest > 0, largest, 1.0) / ends[1]
        k = np.clip(np.rint(w / step), *ends).astype(np.int8)
        stored.put(part.name, k, step_of(step))
    return made


Made = tuple[Model, int | None]


def rows(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Made]]:
    """Return by name what makes a model, and its bytes where they aren't those of the packed model."""
    source = Model.load(args.model)
    given = {"calib": args.calib, "labels": args.labels, "samples": args.samples}

    def quantised(setting: str) -> Made:
        out = folder / f"{setting}.onnx"
        int8.apply(
            Path(args.model), out, setting, load_samples(source.proto.graph, args.calib, labels=args.labels)
        )
        return Model.load(out), None

    def zeros(share: float) -> Made:
        return sparsify(source, pattern="unstructured", sparsity=share, **given).sparse, None

    def compressed(form: str, ratio: float) -> Made:
        result = compress(source, to=form, target=f"bytes={1 / ratio:.6g}", **given)
        return result.compressed, result.report.bytes_after

    made: dict[str, Callable[[], Made]] = {
        "floats": lambda: (source, None),
        "int8": lambda: (plain(source, (-MOST, MOST)), None),
        "int4": lambda: (plain(source, (-HALF[1], HALF[1])), None),
    }
    made |= {f"ort {setting}": partial(quantised, setting) for setting in ("dynamic", "static")}
    made |= {f"zeros {share:g}": partial(zeros, share) for share in ZEROS}
    made |= {f"onnx {ratio:g}": partial(compressed, "onnx", ratio) for ratio in args.ratios if ratio <= 7}
    made |= {f"zst {ratio:g}": partial(compressed, "zst", ratio) for ratio in args.ratios}
    return made


def main() -> None:
    """Make the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "calib", "eval"):
        parser.add_argument(name)
    parser.add_argument("--labels")
    parser.add_argument("--metric")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--ratios", type=float, nargs="*", default=[4, 8, 16, 25])
    parser.add_argument("--rows", default="", help="rows whose name matches, such as 'floats|zst'")
    args = parser.parse_args()
    data = dict(np.load(args.eval))
    judge = script_of(args.metric, None) if args.metric else None
    if args.labels:
        data.pop(args.labels)
        graph = Model.load(args.model).proto.graph
        judge = judge or Accuracy(load_samples(graph, args.eval, labels=args.labels))
        judge.of(Path(args.model))  # labels are held against the original, which comes first
    dense = outputs(Path(args.model).read_bytes(), data)
    whole, lines = Path(args.model).stat().st_size, []
    with tempfile.TemporaryDirectory() as name:
        wanted = {row: make for row, make in rows(args, Path(name)).items() if re.search(args.rows, row)}
        for row, make in wanted.items():
            start = time.process_time()
            try:
                model, size = make()
            except OnnxPruneError as error:
                print(f"{row}: not made: {error}", file=sys.stderr)
                continue
            size = size or compress(model, to="zst").report.bytes_after
            out = outputs(model.serialize(), data)
            line: dict[str, Any] = {"row": row, "bytes": size, "times": round(whole / size, 2)}
            line["error"] = round(float(np.linalg.norm(out - dense) / np.linalg.norm(dense)), 4)
            if judge:
                model.save(Path(name) / "judged.onnx")
                line[judge.name] = round(judge.of(Path(name) / "judged.onnx").value, 2)
            line["seconds"] = round(time.process_time() - start, 1)
            lines.append(line)
            print(json.dumps(line), flush=True)
    columns = list(lines[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for line in lines:
        print("| " + " | ".join(str(line.get(c, "")) for c in columns) + " |")


if __name__ == "__main__":
    main()
