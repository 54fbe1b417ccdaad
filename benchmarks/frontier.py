"""How fast for one point? ``python benchmarks/frontier.py MODEL.onnx --calib S --labels KEY --eval E --out FOLDER``.

One run for each model, everything measured here: `onnxprune tune`, and on the same samples, items and clock what else
one could do:

tune     the best member, and the whole frontier (``--minimize bytes``: the smallest)
int8     onnxruntime's own int8 alone, static and dynamic
rival    onnxsim's structured cut at a few sparsities with its refit on the samples, alone and with int8 (needs
         ``--rival-python``, an interpreter that has it)

A model's figures are one JSON file in the folder, which is read and not measured again; ``--table`` prints all files as
one table. The state of the search lies there, too, so that the program can be cut off and go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.shared import RIVAL
from onnxprune import api
from onnxprune.errors import NotFaster, OnnxPruneError
from onnxprune.options.tuning import TuneOptions
from onnxprune.report.table import plain

#: Sparsities of the rival.
SPARSITIES = (0.1, 0.25, 0.5)


def tuned(args: argparse.Namespace) -> dict[str, Any]:
    """Search, and return the figures."""
    out = args.out / f"{args.model.stem}-{args.minimize}.onnx"
    options = TuneOptions(
        max_drop=args.max_drop, calib=str(args.calib), labels=args.labels, metric=args.metric,
        held_out=None if args.eval is None else str(args.eval), minimize=args.minimize, minutes=args.minutes,
        threads=args.threads, recover=args.recover, state=str(args.out / "state"),
    )  # fmt: skip
    start, wall = time.process_time(), time.perf_counter()
    try:
        report = api.tune(args.model, out, options, progress=lambda text: None).to_json()
    except NotFaster as error:
        report = {
            "best": None,
            "refused": [{"what": "all", "reason": str(error)}],
            "frontier": [],
            "others": [],
        }
    spent = {"cpu_s": round(time.process_time() - start, 1), "wall_s": round(time.perf_counter() - wall, 1)}
    return report | spent


def line_of(report: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the figures of one member."""
    keys = ("name", "metric", "lost", "interval", "speedup", "speed_interval", "bytes", "holds")
    members = [*report["frontier"], *report["others"]]
    return next(({k: m[k] for k in keys} for m in members if m["name"] == name), None)


def rivals(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Cut with onnxsim; each file is judged and timed by `judged`."""
    lines: list[dict[str, Any]] = []
    for sparsity in SPARSITIES if args.rival_python else ():
        made = args.out / f"{args.model.stem}-rival{sparsity:g}.onnx"
        if not made.exists():
            plain_samples = args.out / f"{args.model.stem}-samples.npz"
            if not plain_samples.exists():
                with np.load(args.calib) as data:
                    np.savez(
                        plain_samples, **{name: data[name] for name in data.files if name != args.labels}
                    )
            command = [
                args.rival_python,
                str(RIVAL),
                str(args.model),
                str(made),
                str(sparsity),
                "--calib",
                str(plain_samples),
            ]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
            except subprocess.TimeoutExpired:
                lines.append({"sparsity": sparsity, "refused": "an hour wasn't enough"})
                continue
            if done.returncode:
                lines.append({"sparsity": sparsity, "refused": done.stderr.strip().splitlines()[-1:]})
                continue
        try:
            lines.append({"sparsity": sparsity, **judged(args, made)})
        except OnnxPruneError as error:
            lines.append({"sparsity": sparsity, "refused": str(error)})
    return lines


def judged(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Judge and time a file as members are."""
    from onnxprune.calibration.samples import load_samples
    from onnxprune.graph.analysis import analyse
    from onnxprune.graph.inline import inline
    from onnxprune.latency.apart import race_apart
    from onnxprune.latency.clock import bench_of
    from onnxprune.model import Model
    from onnxprune.tuning.floor import Floor
    from onnxprune.tuning.metric import Accuracy, script_of

    model = Model.load(args.model)
    metric = (
        script_of(args.metric, None)
        if args.metric
        else Accuracy(load_samples(model.proto.graph, str(args.eval), labels=args.labels))
    )
    floor = Floor.of(metric.of(args.model), args.max_drop, bool(args.metric), False)
    score = metric.of(path)
    apart = race_apart(args.model, path, bench_of(model, analyse(inline(model)), "cpu", None, args.threads))
    return {
        "metric": score.value,
        "lost": floor.lost(score),
        "interval": floor.interval(score),
        "speedup": apart.ratio,
        "speed_interval": apart.interval,
        "bytes": path.stat().st_size,
        "holds": floor.holds(score),
    }


def table(folder: Path) -> str:
    """Return all files of a folder as one table."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        best, int8 = entry["best"], entry["int8"]
        shown = {
            name: "-" if one is None else f"{one['speedup']:.2f}x {-one['lost']:+.2f}"
            for name, one in int8.items()
        }
        figures = ["-"] * 4
        if best is not None:
            low, high = best["interval"] or (float("nan"),) * 2
            figures = [
                f"{best['speedup']:.2f}", f"{-best['lost']:+.2f}", f"{-high:+.2f} to {-low:+.2f}",
                f"{best['bytes'] / entry['original']['bytes']:.0%}",
            ]  # fmt: skip
        good = [r for r in entry["rivals"] if r.get("holds")]
        rival = max((r["speedup"] for r in good), default=None)
        rows.append(
            [entry["model"], entry["aim"], best["name"] if best else "nothing", *figures, *shown.values(),
             "-" if rival is None else f"{rival:.2f}", f"{entry['cpu_s']:.0f}"]
        )  # fmt: skip
    head = [
        "model",
        "aim",
        "best",
        "speed-up",
        "change",
        "95 %",
        "bytes",
        "int8 static",
        "int8 dynamic",
        "rival",
        "CPU s",
    ]
    return plain(head, rows, left=3)


def main() -> None:
    """Measure one model, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--labels")
    parser.add_argument("--metric")
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--minimize", default="latency")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recover", default="blocks")
    parser.add_argument("--rival-python")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.table:
        print(table(args.out), end="")
        return
    place = args.out / f"{args.model.stem}-{args.minimize}.json"
    if not place.exists():
        report = tuned(args)
        best = None if report["best"] is None else line_of(report, report["best"])
        int8 = {name: line_of(report, f"int8-{name}") for name in ("static", "dynamic")}
        entry = {
            "model": args.model.stem, "aim": args.minimize, "original": {"bytes": args.model.stat().st_size},
            "best": best, "int8": int8, "rivals": rivals(args), "cpu_s": report["cpu_s"], "wall_s": report["wall_s"],
            "report": report,
        }  # fmt: skip
        place.write_text(json.dumps(entry, indent=1, default=str), encoding="utf-8")
    print(place)


if __name__ == "__main__":
    main()
