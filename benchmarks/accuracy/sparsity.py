"""Accuracy with zeros, without training: methods and patterns on real models, each scored.

    python benchmarks/accuracy/sparsity.py --data FOLDER --work FOLDER [--python PYTHON] [--rival-python PYTHON]
           [--pattern 2:4 unstructured=0.7 ...] [--rows REGEX] [--samples N] NAME...

FOLDER holds models/NAME.onnx, ``calib.py NAME OUT.npz`` (unlabelled inputs that no score uses) and ``eval.py NAME
PATH`` (prints the scores as JSON); PYTHON has what these two need, and the rival's PYTHON has onnxsim >= 0.8 and
Polygraphy. For each model and pattern the rows are: magnitude without samples; each method with the refit and without;
with N:M each method with ``--permute``; the rivals. One table in Markdown goes to standard output, the figures to
WORK/sparse_accuracy.json; what is there is not measured again. ``--rows REGEX`` picks rows ("obs", "rival"), and
``--table`` prints all that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import Data, Row, Store, command, scores, table_parser

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


class Bench(Data):
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args.data, args.work, args.python)
        self.args = args

    def source(self, name: str) -> Path:
        return Path(self.data / "models" / f"{name}.onnx")

    def dense(self, name: str) -> Row:
        return {"zeros": 0.0, "seconds": 0, "score": self.score(name, self.source(name))}

    def ours(self, name: str, *options: object) -> Row:
        folder = self.work / str(os.getpid())  # scores ask for the model's name in that of the file
        folder.mkdir(exist_ok=True)
        out, report = folder / f"{name}.onnx", folder / f"{name}.json"
        start = time.perf_counter()
        command(
            sys.executable, "-m", "onnxprune", "sparsify", self.source(name), out, "-q", "--report", report, *options
        )  # fmt: skip
        seconds = round(time.perf_counter() - start, 1)
        found = json.loads(report.read_text())
        zeros = found["zeros"] / found["weights"]
        return {"zeros": zeros, "seconds": seconds, "score": self.score(name, out)}

    def theirs(self, name: str, method: str, pattern: str, sparsity: float) -> Row:
        if self.args.rival_python is None:
            raise RuntimeError("the rival's row needs --rival-python")
        out = self.work / f"{name}.{os.getpid()}.rival.onnx"
        start = time.perf_counter()
        if method == "polygraphy":
            tool = Path(self.args.rival_python).parent / "polygraphy"
            command(tool, "surgeon", "prune", self.source(name), "-o", out)
        else:
            given = ("--calib", self.samples(name), "--samples", self.args.samples)
            asked = (method, pattern, sparsity, *given)
            command(self.args.rival_python, HERE / "sparsity_rival.py", self.source(name), out, *asked)
        seconds = round(time.perf_counter() - start, 1)
        return {"zeros": sparsity, "seconds": seconds, "score": self.score(name, out)}

    def rows(self, name: str, pattern: str) -> Iterator[tuple[str, Callable[[], Row]]]:
        kind, _, text = pattern.partition("=")
        asked: list[object] = ["--pattern", kind, *(["--sparsity", text] if text else [])]
        calib: list[object] = ["--calib", self.samples(name), "--samples", self.args.samples]
        yield "magnitude, no samples", partial(self.ours, name, *asked)
        for method in METHODS:
            given = [*asked, *calib, "--method", method]
            yield method, partial(self.ours, name, *given)
            yield f"{method}, no refit", partial(self.ours, name, *given, "--no-refit")
            if ":" in kind:
                yield f"{method}, permuted", partial(self.ours, name, *given, "--permute")
        share = float(text) if text else 1 - int(kind.split(":")[0]) / int(kind.split(":")[1])
        for method in METHODS[:3]:
            yield f"rival onnxsim {method}", partial(self.theirs, name, method, kind, share)
        if kind == "2:4":
            yield "rival polygraphy", partial(self.theirs, name, "polygraphy", kind, share)


def line(key: str, row: Row) -> str:
    cells = " | ".join(key.split("|"))
    if "error" in row:
        return f"| {cells} | | | {row['error']} |"
    return f"| {cells} | {row['zeros']:.1%} | {row['seconds']} | {scores(row)} |"


def main() -> None:
    parser = table_parser(__doc__)
    parser.add_argument("--pattern", nargs="+", default=PATTERNS)
    parser.add_argument("--samples", type=int, default=256)
    args = parser.parse_args()
    bench = Bench(args)
    store = Store(bench.work / "sparse_accuracy.json")
    print("| model | pattern | what | zeros | seconds | score |\n|---|---|---|---|---|---|", flush=True)
    if args.table:
        for key, row in store.read().items():
            print(line(key, row))
    for name in args.names:
        todo = [("|dense", lambda name=name: bench.dense(name))]
        todo += [
            (f"{pattern}|{what}", measure)
            for pattern in args.pattern
            for what, measure in bench.rows(name, pattern)
            if re.search(args.rows, what)
        ]
        for label, measure in todo:
            store.fill(f"{name}|{label}", measure, again=False)
            print(line(key := f"{name}|{label}", store.read()[key]), flush=True)


if __name__ == "__main__":
    main()
