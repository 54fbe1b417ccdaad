"""Where do latency targets land? ``python benchmarks/speed/landing.py MODELS... --out landing.jsonl [--share 0.5]``.

Each model is cut to a share of its latency, without samples, on one thread; then it is timed again by races in three
processes that know nothing of the search. A line has what was asked, what the report says, what the races say as a
share of the input's time, with their interval, the step of widths, and the reason where the target was refused. A model
that has a line isn't measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from onnxprune import api
from onnxprune.errors import OnnxPruneError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.inline import inline
from onnxprune.latency.apart import race_apart
from onnxprune.latency.clock import bench_of
from onnxprune.model import Model


def landed(path: Path, share: float, threads: int) -> dict[str, Any]:
    """Cut one model, and time what came of it."""
    line: dict[str, Any] = {"model": path.stem, "asked": share}
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.onnx")
        try:
            result = api.prune(path, out, target=(f"latency={share:g}",), threads=threads)
        except OnnxPruneError as error:
            return line | {"refused": str(error)}
        took = time.process_time() - start
        model = Model.load(path)
        bench = bench_of(model, analyse(inline(model)), "cpu", None, threads, seed=1)
        apart = race_apart(path, out, bench, processes=3)
    report = result.report
    low, high = apart.interval
    said = None if report.latency is None else round(1 / report.latency["ratio"], 4)
    figures = {
        "reported": said,
        "measured": round(1 / apart.ratio, 4),
        "interval": [round(1 / high, 4), round(1 / low, 4)],
    }
    return line | figures | {"step": report.align, "cpu_s": round(took, 1)}


def main() -> None:
    """Measure the models that have no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    lines = [json.loads(text) for text in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(line["model"], line["asked"]) for line in lines}
    for path in args.models:
        if (path.stem, args.share) in done:
            continue
        line = landed(path, args.share, args.threads)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
