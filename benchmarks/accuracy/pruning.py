"""Accuracy without training: prune real models to budgets of MACs, with samples and without, and score each.

    python benchmarks/accuracy/pruning.py --data FOLDER --work FOLDER [options] NAME...

FOLDER holds models/NAME.onnx, ``calib.py NAME OUT.npz`` (unlabelled inputs that no score uses), ``eval.py NAME PATH``
(prints the scores as JSON); ``--python`` has what these two need. WORK/models/NAME.onnx and WORK/NAME.npz, where they
are there, come before those of the folder. The rows of a model:

==============  =======================================================================================================
``dense``       the original
``2x l2``       no samples; the ratio, the same for all groups, whose MACs are nearest to the budget
``2x rival``    onnxsim's structured pruning ranked by Wanda's metric, with its refit (`pruning_rival.py`), at the
                sparsity whose MACs are nearest to the budget; needs ``--rival-python``; it knows no alignment
``2x 256``      ``--target macs=0.5 --calib``, with so many samples (``--counts``), ``all``, ``synthetic``
``2x 256 R``    the same with ``--recover R``, for each of ``--recover``
==============  =======================================================================================================

MACs of every result are counted by our counter. Rows go to standard output as they come, all figures to
WORK/accuracy.json; what is there is not measured again unless ``--again``. ``--rows REGEX`` picks rows, so that a long
table can be had in pieces; ``--table`` prints the table of all that is there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import RIVAL, Data, Row, Store, command, scores, table_parser
from onnxprune import Options
from onnxprune.errors import NothingToPrune
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.inline import inline
from onnxprune.graph.size import count_macs
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.pruning.decision import decide, limit_of
from onnxprune.pruning.saliency import FromWeights

GRID = 16


def nearest(share: float, macs: Callable[[list[float]], list[float]]) -> float:
    """Return the ratio whose share of MACs is nearest, by two rounds of a search on a grid; ratio 0 leaves all."""
    low, high, best = 0.0, 0.95, (1.0 - share, 0.0)
    for _ in range(2):
        ratios = [round(low + (high - low) * n / (GRID + 1), 4) for n in range(1, GRID + 1)]
        shares = macs(ratios)
        best = min(best, *((abs(s - share), r) for s, r in zip(shares, ratios, strict=True)))
        above = [r for s, r in zip(shares, ratios, strict=True) if s > share]
        low, high = (
            max(above, default=low),
            min((r for r in ratios if r > max(above, default=low)), default=high),
        )
    return best[1]


class Bench(Data):
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args.data, args.work, args.python)
        self.rival_python, self.align = args.rival_python, args.align
        self.counts, self.recover = args.counts, args.recover
        self.seen: dict[str, tuple[Model, Analysis, int]] = {}

    def path(self, name: str) -> Path:
        own = self.work / "models" / f"{name}.onnx"
        return own if own.exists() else Path(self.data / "models" / f"{name}.onnx")

    def original(self, name: str) -> tuple[Model, Analysis, int]:
        if name not in self.seen:
            model = inline(Model.load(self.path(name)))
            analysis = analyse(model, keep_blocks=self.align != "none")
            macs = count_macs(analysis.coupling)
            if not macs:
                raise RuntimeError("no layer of it counts as MACs")
            self.seen = {name: (model, analysis, macs)}
        return self.seen[name]

    def share(self, name: str, path: Path) -> float:
        return count_macs(analyse(Model.load(path)).coupling) / self.original(name)[2]

    def place(self, name: str, label: str) -> Path:
        """Of a result: a folder of its own, since scores may ask for the model's name in that of the file."""
        folder = self.work / f"{label} {self.align}".replace(" ", "_")
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.onnx"

    def dense(self, name: str, *_: Any) -> Row:
        return {"macs": 1.0, "seconds": 0, "score": self.score(name, self.path(name))}

    def ours(self, name: str, out: Path, *options: object) -> Row:
        report = out.with_suffix(".json")
        start = time.perf_counter()
        command(
            sys.executable, "-m", "onnxprune", "prune", self.path(name), out, "--align", self.align, "-q",
            "--report", report, *options,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        found = json.loads(report.read_text())
        row = {
            "macs": found["macs"]["after"] / found["macs"]["before"],
            "parameters": found["parameters"]["after"] / found["parameters"]["before"],
            "seconds": round(seconds, 1),
            "score": self.score(name, out),
        }
        if "calibration" in found:
            row["held_out"] = found["calibration"]["original"]
        return row

    def l2(self, name: str, out: Path, share: float) -> Row:
        model, analysis, whole = self.original(name)

        def macs(ratio: float) -> float:
            try:
                options = Options(ratio=ratio, criterion="l2", align=self.align)
                run = Run(options, model)
                saliency = FromWeights.open(run, analysis)
                limit = limit_of(run, analysis, saliency.groups)
                decision = decide(run, saliency.groups, saliency.rankings(limit), limit)
                dead = analysis.grouping.dead(decision.removed)
            except NothingToPrune:
                return 1.0
            return count_macs(analysis.coupling, dead) / whole

        ratio = nearest(share, lambda ratios: [macs(r) for r in ratios])
        return self.ours(name, out, "--criterion", "l2", "--ratio", ratio)

    def rival(self, name: str, out: Path, share: float) -> Row:
        if self.rival_python is None:
            raise RuntimeError("the rival's row needs --rival-python")

        def macs(sparsities: list[float]) -> list[float]:
            command(self.rival_python, RIVAL, self.path(name), out, *sparsities)
            files = [Path(f"{out}.{n}") for n in range(len(sparsities))]
            found = [self.share(name, file) for file in files]
            for file in files:
                file.unlink()
            return found

        sparsity = nearest(share, macs)
        start = time.perf_counter()
        command(self.rival_python, RIVAL, self.path(name), out, sparsity, "--calib", self.samples(name))
        seconds = round(time.perf_counter() - start, 1)
        score = self.score(name, out)
        return {"macs": self.share(name, out), "seconds": seconds, "sparsity": sparsity, "score": score}

    def rows(self, budgets: list[float]) -> Iterator[tuple[str, Callable[[str, Path], Row]]]:
        yield "dense", self.dense
        for times in budgets:
            share = 1 / times
            yield f"{times:g}x l2", lambda name, out, share=share: self.l2(name, out, share)
            yield f"{times:g}x rival", lambda name, out, share=share: self.rival(name, out, share)
            for kind in (*map(str, self.counts), "all", "synthetic"):
                for label in (kind, *(f"{kind} {recover}" for recover in self.recover)):
                    yield f"{times:g}x {label}", self._calibrated(share, label)

    def _calibrated(self, share: float, label: str) -> Callable[[str, Path], Row]:
        kind, _, recover = label.partition(" ")

        def run(name: str, out: Path) -> Row:
            calib = "synthetic" if kind == "synthetic" else self.samples(name)
            more = ["--samples", kind] if kind.isdigit() else []
            more += ["--recover", recover] if recover else []
            return self.ours(name, out, "--target", f"macs={share:.6g}", "--calib", calib, *more)

        return run


def line(key: str, row: Row) -> str:
    name, align, label = key.split("|")
    if "error" in row:
        return f"| {name} | {align} | {label} | | | {row['error']} |"
    return f"| {name} | {align} | {label} | {row['macs']:.1%} | {row['seconds']} | {scores(row)} |"


def main() -> None:
    parser = table_parser(__doc__)
    parser.add_argument("--align", default="none")
    parser.add_argument("--times", type=float, nargs="+", default=[1.5, 2.0])
    parser.add_argument("--counts", type=int, nargs="*", default=[256, 1024], help="of samples")
    parser.add_argument("--recover", nargs="*", default=["distill"], help="beside the default")
    parser.add_argument("--again", action="store_true", help="also those that have been measured")
    args = parser.parse_args()
    bench = Bench(args)
    store = Store(bench.work / "accuracy.json")
    print("| model | align | what | MACs left | seconds | score |\n|---|---|---|---|---|---|", flush=True)
    if args.table:
        for key, row in store.read().items():
            print(line(key, row))
    for name in args.names:
        for label, measure in bench.rows(args.times):
            # neither the original nor the rival knows of an alignment
            key = f"{name}|{'-' if re.search('dense|rival', label) else args.align}|{label}"
            if not re.search(args.rows, label):
                continue
            store.fill(key, partial(measure, name, bench.place(name, label)), again=args.again)
            print(line(key, store.read()[key]), flush=True)


if __name__ == "__main__":
    main()
