"""Is a smaller model faster? ``python benchmarks/speed/latency.py MODELS --out latency.jsonl [--rival-python PY]``.

For each .onnx file of a folder, each ratio of MACs (1.5, 2, 3) and each batch (1, 8; models of a fixed batch have one),
on one thread, without samples:

ours         cut on this machine's multiples; MACs ratio, speed-up with its 95 % interval, and speed-up over MACs ratio
unaligned    the same budget with ``--align none``
rival        onnxsim's structured pruning at the sparsity whose MACs are nearest (needs ``--rival-python``)
predicted    what the latency model said of our cut, over what was measured, less one
latency      for one target (``--latency 0.6``): measured over asked, after the whole journey

All are ratios of times taken in turns, so a busy machine widens intervals rather than moving results. A line is written
for each (model, batch, ratio); what is in the file isn't measured again, so the program can be cut off and go on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import RIVAL, Row
from onnxprune import api
from onnxprune.errors import OnnxPruneError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.inline import inline
from onnxprune.graph.size import count_macs
from onnxprune.latency.clock import race, session_of
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.pruning.speed import Speed


class Bench:
    """One model at one batch."""

    def __init__(self, path: Path, batch: int | None, args: argparse.Namespace) -> None:
        self.path, self.args = path, args
        self.options = Options(ratio=0, batch=batch, threads=args.threads)
        self.model = Model.load(path)
        self.analysis = analyse(inline(self.model))
        self.speed = Speed(self.model, self.analysis, self.options)
        self.macs = count_macs(self.analysis.coupling)

    def timed(self, model: Model, macs: int) -> Row:
        found = race(
            self.speed.original,
            session_of(model, self.speed.bench),
            self.speed.bench,
            seconds=self.args.seconds,
        )
        ratio = self.macs / macs
        return {
            "macs": round(ratio, 3),
            "speedup": round(found.ratio, 3),
            "interval": [round(found.low, 3), round(found.high, 3)],
            "quotient": round(found.ratio / ratio, 3),
        }

    def ours(self, times: float, align: str | None) -> tuple[Row, dict[str, int]]:
        result = api.prune(
            self.model, target=(f"macs={1 / times:.6g}",), align=align, verify=False, criterion="l2"
        )
        row = self.timed(result.pruned, result.report.after.macs or 1)
        return row, {g["name"]: g["removed"] for g in result.report.groups if g["removed"]}

    def predicted(self, state: dict[str, int]) -> float:
        """Return the predicted speed-up of a cut."""
        groups = [g for g in self.analysis.grouping.groups if not g.alternative]
        predictor = self.speed.predictor(groups)
        sizes = self.analysis.coupling.space.sizes
        units = {g.name: g.units for g in groups}
        dead = self.analysis.grouping.dead({n: np.arange(units[n] - c, units[n]) for n, c in state.items()})
        left = {root: int((~mask).sum()) for root, mask in dead.items()}
        return predictor.latency(lambda d: sizes[d]) / predictor.latency(lambda d: left.get(d, sizes[d]))

    def rival(self, times: float) -> Row:
        """Bisect the sparsity until MACs are within 3 %, at most seven times."""
        low, high, best = 0.0, 0.98, None
        with tempfile.TemporaryDirectory() as place:
            for n in range(7):
                sparsity = (low + high) / 2
                out = Path(place) / f"{n}.onnx"
                command = [self.args.rival_python, str(RIVAL), str(self.path), str(out), str(sparsity)]
                subprocess.run(command, check=True, capture_output=True, timeout=300)
                model = Model.load(out)
                macs = count_macs(analyse(inline(model)).coupling)
                gap = self.macs / macs / times
                if best is None or abs(np.log(gap)) < abs(np.log(best[0])):
                    best = (gap, model, macs)
                if abs(gap - 1) < 0.03:
                    break
                low, high = (sparsity, high) if gap < 1 else (low, sparsity)
            assert best is not None
            return self.timed(best[1], best[2])

    def latency(self, share: float) -> Row:
        fields = {"batch": self.options.batch, "threads": self.args.threads}
        result = api.prune(self.model, target=(f"latency={share}",), verify=False, **fields)
        found = result.report.latency
        assert found is not None
        return {"asked": share, "met": round(1 / found["ratio"] / share, 3), "tried": len(found["tried"])}


def safely(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (OnnxPruneError, subprocess.SubprocessError, ValueError, OSError) as error:
        return {"failed": " ".join(str(error).split())[:200]}


def rows(path: Path, args: argparse.Namespace, done: set[str]) -> Iterator[Row]:
    for batch in batches(path, args):
        try:
            bench = Bench(path, batch, args)
            _ = bench.speed.original
        except OnnxPruneError as error:
            yield {"model": path.stem, "batch": batch, "times": None, "failed": str(error)[:200]}
            continue
        for times in args.times:
            row: Row = {"model": path.stem, "batch": batch, "times": times}
            if key(row) in done:
                continue
            start = time.perf_counter()
            found = safely(bench.ours, times, "auto")
            row["ours"] = found if isinstance(found, dict) else found[0]
            if not isinstance(found, dict):
                speedup = safely(bench.predicted, found[1])
                row["predicted"] = (
                    round(speedup / found[0]["speedup"] - 1, 3) if isinstance(speedup, float) else speedup
                )
            found = safely(bench.ours, times, None)
            row["unaligned"] = found if isinstance(found, dict) else found[0]
            if args.rival_python and batch in (1, None):
                row["rival"] = safely(bench.rival, times)
            row["seconds"] = round(time.perf_counter() - start, 1)
            yield row
        row = {"model": path.stem, "batch": batch, "times": "latency"}
        if args.latency and key(row) not in done and batch in (1, None):
            yield row | {"latency": safely(bench.latency, args.latency)}


def batches(path: Path, args: argparse.Namespace) -> list[int | None]:
    """Return the batches to time: those that are asked for, or None where the model has a fixed one."""
    model = Model.load(path)
    axes = [v.type.tensor_type.shape.dim[:1] for v in model.proto.graph.input if v.name not in model]
    free = axes and all(len(a) and not a[0].dim_value for a in axes)
    return list(args.batches) if free else [None]


def key(row: Row) -> str:
    return f"{row['model']}|{row['batch']}|{row['times']}"


def show(found: list[Row], out: Any = sys.stdout) -> None:
    """Print a table and the figures that matter."""
    head = f"{'model':34} {'batch':>5} {'MACs':>6} {'speed':>6} {'quot.':>6} {'unal.':>6} {'rival':>12} {'pred.':>7}"
    print(head, file=out)
    cuts = [r for r in found if isinstance(r["times"], (int, float))]
    for r in cuts:
        ours, odd, rival = r.get("ours", {}), r.get("unaligned", {}), r.get("rival", {})
        if "speedup" not in ours:
            print(
                f"{r['model']:34} {r['batch'] or '-':>5} {ours.get('failed', r.get('failed', ''))[:60]}",
                file=out,
            )
            continue
        other = f"{rival['macs']:.2f}/{rival['speedup']:.2f}" if "speedup" in rival else "-"
        guess = f"{100 * r['predicted']:+.1f}%" if isinstance(r.get("predicted"), float) else "-"
        print(
            f"{r['model']:34} {r['batch'] or '-':>5} {ours['macs']:6.2f} {ours['speedup']:6.2f} "
            f"{ours['quotient']:6.2f} {odd.get('speedup', float('nan')):6.2f} {other:>12} {guess:>7}",
            file=out,
        )
    good = [r["ours"] for r in cuts if "speedup" in r.get("ours", {})]
    guesses = [abs(r["predicted"]) for r in cuts if isinstance(r.get("predicted"), float)]
    met = [r["latency"]["met"] for r in found if "met" in r.get("latency", {})]
    missed = [r for r in found if "failed" in r.get("latency", {})]
    if good:
        quotients = [g["quotient"] for g in good]
        print(
            f"{len(good)} cuts: speed-up over MACs ratio median {np.median(quotients):.3f}, "
            f"least {min(quotients):.3f}; slower than the input: {sum(g['speedup'] < 1 for g in good)}",
            file=out,
        )
        odd = [r["unaligned"]["quotient"] for r in cuts if "quotient" in r.get("unaligned", {})]
        print(f"unaligned: median {np.median(odd):.3f}, least {min(odd):.3f}" if odd else "", file=out)
    if guesses:
        print(f"predicted against measured speed-up: median error {100 * np.median(guesses):.1f} %", file=out)
    if met or missed:
        near = sum(abs(m - 1) <= 0.05 for m in met)
        print(f"latency targets met within 5 %: {near} of {len(met) + len(missed)} {sorted(met)}", file=out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path)
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON lines; what is there isn't measured again"
    )
    parser.add_argument("--only", default="", metavar="RE")
    parser.add_argument("--times", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a race")
    parser.add_argument("--latency", type=float, default=0.6, help="target to meet; 0 for none")
    parser.add_argument("--rival-python", help="a Python that has onnxsim >= 0.8")
    parser.add_argument("--show", action="store_true", help="only print what was measured")
    args = parser.parse_args()
    found = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if not args.show:
        done = {key(row) for row in found}
        for path in sorted(p for p in args.models.rglob("*.onnx") if re.search(args.only, p.stem)):
            for row in rows(path, args, done):
                found.append(row)
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{key(row)}: {json.dumps(row)[:180]}", file=sys.stderr)
    show(found)


if __name__ == "__main__":
    main()
