"""Accuracy with zeros, without training: methods and patterns on real models, each scored.

    python benchmarks/sparse_accuracy.py --data FOLDER --work FOLDER [--python PYTHON] [--rival-python PYTHON]
           [--pattern 2:4 unstructured=0.7 ...] [--method magnitude obs ...] [--samples N] NAME...

FOLDER holds models/NAME.onnx, ``calib.py NAME OUT.npz`` (unlabelled inputs that no score uses) and ``eval.py NAME
PATH`` (prints the scores as JSON); PYTHON has what these two need, and the rival's PYTHON has onnxsim >= 0.8 and
Polygraphy. For each model and pattern the rows are: magnitude without samples; each method with the refit and without;
with N:M each method with ``--permute``; the rivals. One table in Markdown goes to standard output, the figures to
WORK/sparse_accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accuracy import ODD, command

HERE = Path(__file__).resolve().parent
METHODS = ("magnitude", "wanda", "sparsegpt", "obs")
PATTERNS = (
    "2:4",
    "4:8",
    "1:4",
    "unstructured=0.5",
    "unstructured=0.7",
    "unstructured=0.8",
    "unstructured=0.9",
)


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.data, self.work = args, args.data.resolve(), args.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)

    def source(self, name: str) -> Path:
        return Path(self.data / "models" / f"{name}.onnx")

    def score(self, name: str, path: Path) -> dict[str, Any]:
        env = {} if "cifar10" in name else ODD
        found: dict[str, Any] = json.loads(
            command(self.args.python, "eval.py", name, path, folder=self.data, **env)
        )
        return found

    def samples(self, name: str) -> Path:
        path = self.work / f"{name}.npz"
        if not path.exists():
            command(self.args.python, "calib.py", name, path, folder=self.data)
        return path

    def ours(self, name: str, *options: object) -> dict[str, Any]:
        out, report = self.work / f"{name}.onnx", self.work / f"{name}.json"
        start = time.perf_counter()
        command(
            sys.executable, "-m", "onnxprune", "sparsify", self.source(name), out, "-q", "--report", report, *options
        )  # fmt: skip
        seconds = round(time.perf_counter() - start, 1)
        found = json.loads(report.read_text())
        zeros = found["zeros"] / found["weights"]
        return {"zeros": zeros, "seconds": seconds, "score": self.score(name, out)}

    def theirs(self, name: str, method: str, pattern: str, sparsity: float) -> dict[str, Any]:
        out = self.work / f"{name}.rival.onnx"
        start = time.perf_counter()
        if method == "polygraphy":
            tool = Path(self.args.rival_python).parent / "polygraphy"
            command(tool, "surgeon", "prune", self.source(name), "-o", out)
        else:
            given = ("--calib", self.samples(name), "--samples", self.args.samples)
            command(self.args.rival_python, HERE / "sparse_rival.py", self.source(name), out, method, pattern, sparsity,
                    *given)  # fmt: skip
        seconds = round(time.perf_counter() - start, 1)
        return {"zeros": sparsity, "seconds": seconds, "score": self.score(name, out)}

    def rows(self, name: str, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
        kind, _, text = pattern.partition("=")
        asked: list[object] = ["--pattern", kind, *(["--sparsity", text] if text else [])]
        calib: list[object] = ["--calib", self.samples(name), "--samples", self.args.samples]
        yield "magnitude, no samples", self.ours(name, *asked)
        for method in self.args.method:
            given = [*asked, *calib, "--method", method]
            yield method, self.ours(name, *given)
            yield f"{method}, no refit", self.ours(name, *given, "--no-refit")
            if ":" in kind:
                yield f"{method}, permuted", self.ours(name, *given, "--permute")
        if self.args.rival_python is None:
            return
        share = float(text) if text else 1 - int(kind.split(":")[0]) / int(kind.split(":")[1])
        for method in ("magnitude", "wanda", "sparsegpt", *(["polygraphy"] if kind == "2:4" else [])):
            label = method if method == "polygraphy" else f"onnxsim {method}"
            try:
                yield label, self.theirs(name, method, kind, share)
            except RuntimeError as error:  # a row all the same
                yield label, {"zeros": 0.0, "seconds": 0, "score": {"failed": str(error)[-120:]}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rival-python")
    parser.add_argument("--pattern", nargs="+", default=PATTERNS)
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("--samples", type=int, default=512)
    args = parser.parse_args()
    bench, figures = Bench(args), {}
    print("| model | pattern | what | zeros | seconds | score |\n|---|---|---|---|---|---|", flush=True)
    for name in args.names:
        dense = bench.score(name, bench.source(name))
        print(f"| {name} | | dense | 0.0% | | {dense} |", flush=True)
        for pattern in args.pattern:
            for what, row in bench.rows(name, pattern):
                figures[f"{name} {pattern} {what}"] = row
                score = ", ".join(f"{k} {v}" for k, v in row["score"].items())
                cells = f"| {name} | {pattern} | {what} | {row['zeros']:.1%} | {row['seconds']} | {score} |"
                print(cells, flush=True)
                (bench.work / "sparse_accuracy.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
