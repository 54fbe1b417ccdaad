"""Record what the tool gives, and say later what differs: for changes that must change no byte of any result.

    python benchmarks/replay.py record FOLDER MODEL|FOLDER... [--jobs 2] [--python PYTHON] [--timeout 90]
    python benchmarks/replay.py check FOLDER [--jobs 2] [--python PYTHON] [--only REGEX]

For the models of the samples, those of the golden plans and tests, and every model named: `inspect --json`, `prune`
with and without samples and with budgets, a family, `plan` and `apply`, each pattern of `sparsify` with and without
samples, and the passes. What is kept of each: the exit code, the sha256 of each file that was written, and plan and
report as JSON without times, versions and paths. `check` prints "identical", or each cell that differs and in what. A
cell that ran into the timeout is not compared; how many there are is said.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SMALL = 2_000_000  # bytes: only smaller models are fitted by every method
SAMPLES = ["--calib", "synthetic", "--samples", "16"]
VOLATILE = {"seconds", "created", "versions", "command", "files", "latency", "version", "pid"}
KEPT = {".json", ".onnx", ".data"}


def cells(size: int) -> dict[str, list[str]]:
    """Return name -> arguments; IN, OUT, PLAN and REPORT stand for files."""
    written = ["--plan", "PLAN.json", "--report", "REPORT.json"]
    half = ["prune", "IN", "OUT.onnx", "--ratio", "0.5", *written]
    jobs = {
        "inspect": ["inspect", "IN", "--json"],
        "zeros": ["inspect", "--sparsity", "IN", "--json"],
        "prune": [*half, "--align", "none"],
        "aligned": [*half, "--criterion", "l1"],
        "plan": [
            "plan",
            "IN",
            "-o",
            "PLAN.json",
            "--ratio",
            "0.4",
            ";",
            "apply",
            "IN",
            "PLAN.json",
            "OUT.onnx",
        ],
        "global": [*half, "--scope", "global", "--align", "4", "--criterion", "lamp"],
        "target": ["prune", "IN", "OUT.onnx", "--target", "macs=0.6", "--target", "bytes=0.8", *written],
        "inexact": [*half, "--align", "none", "--allow-inexact"],
        "lstsq": [*half, "--align", "none", *SAMPLES, "--recover", "lstsq"],
        "family": ["prune", "IN", "OUT.onnx", "--target", "macs=0.8,0.6", *SAMPLES, "--recover", "none"],
        "passes": ["run", "IN", "OUT.onnx", "--passes", "resolve_shapes,prune{ratio=0.3},drop_dead,shrink"],
        "permuted": [
            "sparsify",
            "IN",
            "OUT.onnx",
            "--pattern",
            "2:4",
            "--permute",
            "--report",
            "REPORT.json",
        ],
    }
    for pattern in ("2:4", "unstructured", "block:4x4", "kernel", "vector"):
        jobs[f"sparsify {pattern}"] = [
            "sparsify",
            "IN",
            "OUT.onnx",
            "--pattern",
            pattern,
            "--report",
            "REPORT.json",
        ]
        if pattern != "2:4":
            jobs[f"sparsify {pattern}"] += ["--sparsity", "0.5"]
    if size <= SMALL:
        jobs["blocks"] = [*half, "--align", "none", *SAMPLES]
        jobs["budget"] = ["prune", "IN", "OUT.onnx", "--target", "macs=0.6", *SAMPLES, *written]
        jobs["taylor"] = [*half, *SAMPLES, "--criterion", "taylor", "--recover", "bias"]
        zeros = ["sparsify", "IN", "OUT.onnx", *SAMPLES, "--report", "REPORT.json", "--pattern"]
        for method in ("obs", "sparsegpt", "wanda"):
            jobs[f"zeros by {method}"] = [*zeros, "2:4", "--method", method]
        jobs["unstructured obs"] = [*zeros, "unstructured", "--sparsity", "0.6"]
    return jobs


def run(python: str, model: Path, name: str, arguments: list[str], timeout: float) -> dict[str, Any]:
    """Run one cell in an empty folder and return what is kept of it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(model, Path(folder, "IN"))
        environment = dict(os.environ, ONNXPRUNE_CACHE=str(Path(folder, "cache")), COLUMNS="100")
        for step in commands(arguments):
            command = [python, "-m", "onnxprune", *step, "-q"]
            try:
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, timeout=timeout
                )
            except subprocess.TimeoutExpired:
                return {"exit": "timeout"}
            if done.returncode:
                break
        kept: dict[str, Any] = {
            "exit": done.returncode,
            "error": done.stderr.decode() if done.returncode else "",
        }
        if name in ("inspect", "zeros") and done.returncode == 0:
            kept["stdout"] = without_times(json.loads(done.stdout))
        for path in sorted(p for p in Path(folder).iterdir() if p.suffix in KEPT):
            if path.suffix == ".json":
                kept[path.name] = without_times(json.loads(path.read_text()))
            else:
                kept[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return kept


def commands(arguments: list[str]) -> list[list[str]]:
    """Split the arguments of several commands at each semicolon."""
    return [part.split("\0") for part in "\0".join(arguments).split("\0;\0")]


def without_times(value: Any) -> Any:
    """Return JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in VOLATILE}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def gather(models: list[Path], folder: Path) -> None:
    """Copy the models to be replayed into the folder: those of the repository, and those named."""
    target = folder / "models"
    target.mkdir(parents=True, exist_ok=True)
    own = sorted((ROOT / "samples").rglob("*.onnx"))
    for path in [*own, *(p for m in models for p in (sorted(m.rglob("*.onnx")) if m.is_dir() else [m]))]:
        name = re.sub(r"\W+", "-", "-".join(path.with_suffix("").parts[-3:])) + ".onnx"
        shutil.copy(path, target / name)
    sys.path.insert(0, str(ROOT / "tests"))
    import onnx
    import small_models

    for name, proto in {
        "chain": small_models.chain(),
        "residual": small_models.residual(),
        "attention": small_models.attention(),
    }.items():
        onnx.save(proto, target / f"tests-{name}.onnx")


def replay(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run every cell of every model of the folder; cells by ``model: cell``."""
    jobs = [
        (model, name, arguments)
        for model in sorted((folder / "models").glob("*.onnx"), key=lambda p: (p.stat().st_size, p.name))
        for name, arguments in cells(model.stat().st_size).items()
        if re.search(args.only, f"{model.stem}: {name}")
    ]
    results: dict[str, Any] = {}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = {
            pool.submit(run, args.python, *job, args.timeout): f"{job[0].stem}: {job[1]}" for job in jobs
        }
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            results[futures[future]] = future.result()
            if number % 50 == 0:
                print(f"{number} of {len(jobs)} cells", file=sys.stderr, flush=True)
    return results


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Name the first few places where two values of JSON differ."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(set(before) | set(after), key=str)
        return [d for k in keys for d in differences(before.get(k), after.get(k), f"{where}.{k}")][:4]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [d for n, (a, b) in pairs for d in differences(a, b, f"{where}[{n}]")][:4]
    return [f"{where.lstrip('.')}: {str(before)[:60]} -> {str(after)[:60]}"]


def main(argv: list[str] | None = None) -> int:
    """Record or check; return 1 where something differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("record", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--timeout", type=float, default=90.0)
    parser.add_argument("--only", default="", metavar="REGEX", help="on 'model: cell'")
    args = parser.parse_args(argv)
    record = args.folder / "record.json"
    if args.what == "record":
        gather(args.models, args.folder)
        results = replay(args.folder, args)
        record.write_text(json.dumps(results, indent=1, sort_keys=True))
        late = sum(cell["exit"] == "timeout" for cell in results.values())
        print(f"{len(results)} cells recorded, {late} of them not within {args.timeout:.0f} s")
        return 0
    before, after = json.loads(record.read_text()), replay(args.folder, args)
    pairs = {
        k: (before[k], after[k]) for k in after if "timeout" not in (before[k]["exit"], after[k]["exit"])
    }
    changed = {k: differences(a, b) for k, (a, b) in pairs.items() if a != b}
    for key, lines in sorted(changed.items()):
        print(f"{key}\n    " + "\n    ".join(lines))
    untold = len(after) - len(pairs)
    verdict = f"{len(changed)} cells differ" if changed else "identical"
    print(f"{verdict}: {len(pairs)} cells compared, {untold} not within the time")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
