"""Accuracy without training: prune real models to budgets of MACs, with samples and without, and score each.

    python benchmarks/accuracy.py --data FOLDER --work FOLDER [--python PYTHON] [--align none] NAME...

FOLDER holds models/NAME.onnx, ``calib.py NAME OUT.npz N`` (unlabelled inputs that no score uses) and ``eval.py NAME
PATH`` (prints the scores as JSON); PYTHON has what these two need. For every model and budget the rows are: the
original, l2 without samples at the ratio whose MACs are nearest to the budget, and ``--calib`` with 256, 1024 and all
samples, and with synthetic ones. One table in Markdown goes to standard output, the figures to WORK/accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ODD = {"EVAL_HALF": "odd"}  # calib.py takes the samples with even index where there is no other set


def command(*parts: object, folder: Path | None = None, **env: str) -> str:
    text = [str(p) for p in parts]
    done = subprocess.run(
        text, capture_output=True, text=True, cwd=folder, env={**os.environ, **env}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(text)}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.data, self.work, self.python, self.align = (
            args.data.resolve(),
            args.work.resolve(),
            args.python,
            args.align,
        )
        self.work.mkdir(parents=True, exist_ok=True)

    def model(self, name: str) -> Path:
        return Path(self.data / "models" / f"{name}.onnx")

    def score(self, name: str, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            command(
                self.python, "eval.py", name, path, folder=self.data, **({} if "cifar10" in name else ODD)
            )
        )
        return found

    def samples(self, name: str) -> Path:
        path = self.work / f"{name}.npz"
        if not path.exists():
            command(self.python, "calib.py", name, path, folder=self.data)
        return path

    def prune(self, name: str, *options: object) -> dict[str, Any]:
        out, report = self.work / f"{name}.onnx", self.work / f"{name}.json"
        start = time.perf_counter()
        command(
            sys.executable, "-m", "onnxprune", "prune", self.model(name), out, "--align", self.align, "-q",
            "--report", report, *options,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        found = json.loads(report.read_text())
        return {
            "macs": found["macs"]["after"] / found["macs"]["before"],
            "parameters": found["parameters"]["after"] / found["parameters"]["before"],
            "seconds": round(seconds, 1),
            "score": self.score(name, out),
        }

    def plain(self, name: str, share: float) -> dict[str, Any]:
        """L2 at the ratio that comes nearest to the budget."""
        low, high, best = 0.0, 0.95, None
        for _ in range(7):
            ratio = (low + high) / 2
            found = self.prune(name, "--ratio", ratio)
            if best is None or abs(found["macs"] - share) < abs(best["macs"] - share):
                best = found
            low, high = (ratio, high) if found["macs"] > share else (low, ratio)
        assert best is not None
        return best

    def rows(self, name: str, budgets: list[float]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield (
            "original",
            {"macs": 1.0, "parameters": 1.0, "seconds": 0, "score": self.score(name, self.model(name))},
        )
        for times in budgets:
            share = 1 / times
            yield f"{times:g}x l2", self.plain(name, share)
            for label, calib in (
                ("256", [self.samples(name), "--samples", 256]),
                ("1024", [self.samples(name), "--samples", 1024]),
                ("all", [self.samples(name)]),
                ("synthetic", ["synthetic"]),
            ):
                yield f"{times:g}x {label}", self.prune(name, "--target", f"macs={share}", "--calib", *calib)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--align", default="none")
    parser.add_argument("--times", type=float, nargs="+", default=[1.5, 2.0])
    args = parser.parse_args()
    bench, figures = Bench(args), {}
    print("| model | what | MACs left | seconds | score |\n|---|---|---|---|---|", flush=True)
    for name in args.names:
        for label, row in bench.rows(name, args.times):
            figures[f"{name} {label}"] = row
            score = ", ".join(f"{k} {v}" for k, v in row["score"].items())
            print(f"| {name} | {label} | {row['macs']:.1%} | {row['seconds']} | {score} |", flush=True)
    (bench.work / "accuracy.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
