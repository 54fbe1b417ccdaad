"""Prune every model of a zoo with the onnxprune command and check each result from outside.

    python benchmarks/zoo/check.py FOLDER|FILE|GLOB... [--ratio 0.5] [--allow-inexact] [--control] [--json OUT]
    python benchmarks/zoo/check.py --self-test

For every .onnx: `python -m onnxprune prune IN OUT --ratio R --align none --report R.json` in a process of
its own, then: OUT opens in onnxruntime; names, types and order of inputs and outputs are those of IN; law
1 (see oracle.py) on random inputs; float parameters left beside Torch-Pruning's and onnxsim's
(rivals.json, or measured here with --onnxsim). The exit code is 1 if any model failed.

Columns: `left` share of the parameters left; `TP`, `onnxsim` the rivals'; `law 1` greatest max|a-b|/max|a|
between the pruned model and the masked original; `effect` the same between the original and its masked
twin (near zero: the comparison says nothing); seconds and peak memory of the command.
"""

from __future__ import annotations

import argparse
import glob
import json
import re
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import onnx

from benchmarks.shared import run_limited
from benchmarks.zoo import compare, oracle

HERE = Path(__file__).parent
NOTHING = 4  # exit code of the command when nothing can be pruned
SLACK = 0.02  # parameters left: at most this much above Torch-Pruning
NORMALISED = re.compile(
    r"^(convnext|swin|vit|maxvit)"
)  # residual width runs through LayerNorm: only --allow-inexact cuts it
VACUOUS = 1e-6
ACCEPTED = "the oracle accepts a wrong cut list"


@dataclass
class Row:
    """What is known about one model."""

    model: str
    file: str
    status: str = "ok"  # ok | nothing | FAILED
    note: str = ""
    params: int = 0
    params_left: int = 0
    left: float | None = None
    torch_pruning: float | None = None
    onnxsim: float | None = None
    law1: float | None = None
    effect: float | None = None
    control: float | None = None
    cuts: int = 0
    inexact: bool = False
    seconds: float = 0.0
    peak_mib: float = 0.0


def main(argv: list[str] | None = None) -> int:
    """Prune, check, print; return 1 if any model failed."""
    args = _arguments(argv)
    if args.self_test:
        from benchmarks.zoo.selftest import self_test

        return self_test()
    files = [f for f in _files(args.models) if re.search(args.only, str(f))]
    if not files:
        print("no .onnx files found", file=sys.stderr)
        return 2
    rivals = json.loads((HERE / "rivals.json").read_text())["models"]
    rows: list[Row] = []
    print(HEADER, flush=True)
    for file in files:
        row = examine(file, args, rivals)
        rows.append(row)
        print(line(row), flush=True)
        if args.json:
            args.json.write_text(
                json.dumps({"summary": summary(rows), "rows": [asdict(r) for r in rows]}, indent=1)
            )
    for key, value in summary(rows).items():
        print(f"{key:46} {value}")
    return int(any(r.status == "FAILED" for r in rows))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="folders, .onnx files or quoted globs")
    parser.add_argument("--only", default="", metavar="REGEX", help="on the files' paths")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument(
        "--allow-inexact", action="store_true", help="law 1 is then shown but not required of inexact results"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="law 1, relative (1e-2 for models with fp16 or bf16 outputs)",
    )
    parser.add_argument(
        "--control", action="store_true", help="also give the oracle a wrong cut list; it must object"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter that has onnxprune")
    parser.add_argument(
        "--extra", default="", metavar="OPTIONS", help="further options for `onnxprune prune`"
    )
    parser.add_argument("--timeout", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument(
        "--memory", type=float, default=16.0, metavar="GIB", help="address space of the command"
    )
    parser.add_argument("--max-mb", type=float, default=float("inf"), help="skip larger files")
    parser.add_argument(
        "--onnxsim", action="store_true", help="measure onnxsim where rivals.json has no figure"
    )
    parser.add_argument("--rival-python", default=sys.executable, help="interpreter that has onnxsim")
    parser.add_argument(
        "--rival-cache", type=Path, metavar="JSON", help="keep onnxsim's measured figures here"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep pruned models and reports there")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="show that the oracle accepts right and refuses wrong results",
    )
    parser.add_argument(
        "-j", type=int, default=1, choices=[1], help="models at a time (only 1: the timings are the point)"
    )
    return parser.parse_args(argv)


def _files(names: list[str]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        paths = [Path(p) for p in glob.glob(name, recursive=True)]
        for path in paths:
            found += sorted(path.rglob("*.onnx"), key=lambda p: p.stat().st_size) if path.is_dir() else [path]
    return list(dict.fromkeys(p for p in found if p.suffix == ".onnx"))


def examine(file: Path, args: argparse.Namespace, rivals: dict[str, Any]) -> Row:
    """Prune one file in a process and check the result."""
    row = Row(file.stem, str(file))
    if file.stat().st_size > args.max_mb * 1e6:
        row.status, row.note = "skipped", "larger than --max-mb"
        return row
    figures = rivals.get(file.stem, {})
    row.torch_pruning, row.onnxsim = figures.get("torch_pruning"), figures.get("onnxsim")
    with tempfile.TemporaryDirectory(prefix="zoo") as temporary:
        folder = Path(temporary) if args.keep is None else args.keep / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        out, report = folder / file.name, folder / f"{file.stem}.json"
        command = [
            args.python,
            "-m",
            "onnxprune",
            "prune",
            str(file.resolve()),
            str(out),
            "--ratio",
            str(args.ratio),
            "--align",
            "none",
        ]
        command += [
            "--report",
            str(report),
            *(["--allow-inexact"] if args.allow_inexact else []),
            *args.extra.split(),
        ]
        for old in (out, report):
            old.unlink(missing_ok=True)
        result = run_limited(command, args.timeout, args.memory)
        row.seconds, row.peak_mib = round(result.seconds, 2), round(result.peak_mib, 1)
        if result.code == NOTHING:
            row.status, row.note = "nothing", result.reason
        elif result.code != 0:
            row.status, row.note = "FAILED", result.reason
        else:
            try:
                check(row, file, out, json.loads(report.read_text()), args)
            except Exception as error:  # whatever goes wrong with one model belongs in its row
                row.status, row.note = "FAILED", f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
        if args.onnxsim and row.onnxsim is None:
            row.onnxsim = _measure_onnxsim(file, Path(temporary), args)
    return row


def check(row: Row, file: Path, out: Path, report: dict[str, Any], args: argparse.Namespace) -> None:
    """Fill in the row from the two files and the report."""
    original, pruned = oracle.load(file), oracle.load(out)
    row.params, row.params_left = oracle.parameters(original), oracle.parameters(pruned)
    row.left = round(row.params_left / row.params, 4) if row.params else None
    cuts = [*report["cuts"], *report.get("copies", [])]
    row.cuts, row.inexact = len(cuts), args.allow_inexact and _inexact(report)
    problems = oracle.interface_differences(original, pruned)
    before = compare.session(file)
    feeds = compare.find_inputs(before, shapes=_manifest_shapes(file))
    plain = compare.run(before, feeds)
    del before
    found = compare.run(compare.session(out), feeds)
    row.law1, expected = _law1(original, pruned, cuts, feeds, found, args.tolerance)
    row.effect = compare.distance(plain, expected)
    tolerance = max(args.tolerance, 1e-2) if any(o.dtype.itemsize == 2 for o in plain[0]) else args.tolerance
    if not row.law1 <= tolerance and not row.inexact:
        problems.append(f"law 1 violated: {row.law1:.3g}")
    if cuts and row.effect < VACUOUS:
        row.note = "vacuous: the cuts change no output"
    if args.control and cuts:
        row.control, _ = _law1(original, pruned, wrong(cuts, original), feeds, found, 0.0)
        if row.control <= tolerance and row.effect >= VACUOUS:
            problems.append(f"{ACCEPTED}: {row.control:.3g}")
    if problems:
        row.status, row.note = "FAILED", "; ".join(problems)


def _law1(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    cuts: list[Any],
    feeds: Any,
    found: Any,
    tolerance: float,
) -> tuple[float, Any]:
    """Return the distance to the nearer of the two masked twins, and that twin's outputs."""
    best: tuple[float, Any] = (float("inf"), None)
    for contracted_only in (False, True):
        twin = oracle.masked(original, pruned, cuts, contracted_only)
        expected = compare.run(compare.session(twin), feeds)
        error = compare.distance(expected, found)
        if best[1] is None or error < best[0]:
            best = (error, expected)
        if best[0] <= tolerance:
            break
    return best


def wrong(cuts: list[Any], original: onnx.ModelProto) -> list[Any]:
    """Shift the removed indices of the largest cut tensor by one: a wrong list that looks right."""
    original = oracle.with_weights(original, {cut["tensor"] for cut in cuts})
    dims = {name: t.dims for name, t in oracle.weights(original).items()}

    def size(cut: Any) -> int:
        total = 1
        for d in dims[cut["tensor"]]:
            total *= d
        return total

    worst = max(range(len(cuts)), key=lambda i: ("copy" not in cuts[i], size(cuts[i])))
    cut = cuts[worst]
    length = dims[cut["tensor"]][cut["axis"]]
    shifted = sorted((i + 1) % length for i in cut["removed"])
    return [cut | {"removed": shifted} if i == worst else other for i, other in enumerate(cuts)]


def _inexact(report: dict[str, Any]) -> bool:
    """Whether the report marks the result inexact; one that does not say counts as inexact."""
    return bool(report.get("inexact", True))


def _manifest_shapes(file: Path) -> dict[str, list[int]]:
    manifest = file.parent.parent / "manifest.json"
    if not manifest.exists():
        return {}
    entry = json.loads(manifest.read_text()).get(f"{file.parent.name}/{file.name}", {})
    return dict(entry.get("inputs", {}))


def _measure_onnxsim(file: Path, folder: Path, args: argparse.Namespace) -> float | None:
    """Return the share that onnxsim leaves, from the cache or measured; None where it fails."""
    cache = json.loads(args.rival_cache.read_text()) if args.rival_cache and args.rival_cache.exists() else {}
    key = f"{file.parent.name}/{file.name}"
    if key not in cache:
        out = folder / "rival.onnx"
        command = [
            args.rival_python,
            str(HERE / "rival.py"),
            str(file.resolve()),
            str(out),
            str(args.ratio),
        ]
        result = run_limited(command, 120.0, args.memory)
        cache[key] = None
        if result.code == 0:
            try:
                compare.find_inputs(compare.session(out), shapes=_manifest_shapes(file))
                before = oracle.parameters(oracle.load(file))
                cache[key] = round(oracle.parameters(oracle.load(out)) / before, 4)
            except Exception as error:  # a rival's broken file is a result, not an error of this program
                print(f"  onnxsim's {file.name} does not run: {str(error)[:150]}", file=sys.stderr)
        if args.rival_cache:
            args.rival_cache.write_text(json.dumps(cache, indent=1))
    value = cache[key]
    return None if value is None else float(value)


HEADER = (
    f"{'model':38} {'M par':>7} {'left':>6} {'TP':>5} {'onnxsim':>7} {'law 1':>8} {'effect':>8} "
    f"{'s':>6} {'MiB':>6}  status"
)


def line(row: Row) -> str:
    """Return the row as one line of text."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    name = f"{Path(row.file).parent.name}/{row.model}"
    columns = [
        f"{name[-38:]:38}",
        f"{row.params / 1e6:7.2f}",
        f"{number(row.left, '.3f'):>6}",
        f"{number(row.torch_pruning, '.2f'):>5}",
    ]
    columns += [
        f"{number(row.onnxsim, '.2f'):>7}",
        f"{number(row.law1, '.1e'):>8}",
        f"{number(row.effect, '.1e'):>8}",
    ]
    columns += [
        f"{row.seconds:6.2f}",
        f"{row.peak_mib:6.0f} ",
        row.status,
        "(inexact)" if row.inexact else "",
        row.note,
    ]
    return " ".join(columns).rstrip()


def summary(rows: list[Row]) -> dict[str, Any]:
    """Return the figures that the zoo must show."""
    done = [r for r in rows if r.status == "ok"]
    lefts = [r.left for r in done if r.left is not None and r.cuts]
    exact = [r.law1 for r in done if r.law1 is not None and not r.inexact]
    tp = [r for r in done if r.torch_pruning is not None and r.left is not None]
    onnxsim = [r for r in done if r.onnxsim is not None and r.left is not None]
    above_tp = [r for r in tp if (r.left or 0) > (r.torch_pruning or 0) + SLACK]
    above_onnxsim = [r for r in onnxsim if not (r.left or 0) < (r.onnxsim or 0)]
    controls = [r for r in rows if r.control is not None]
    missed = [r for r in controls if ACCEPTED in r.note]
    return {
        "models": len(rows),
        "valid": len(done),
        "nothing to prune": ", ".join(_names([r for r in rows if r.status == "nothing"])) or 0,
        "failed": ", ".join(_names([r for r in rows if r.status == "FAILED"])) or 0,
        "worst law-1 error (exact results)": max(exact, default=None),
        "median left": round(statistics.median(lefts), 3) if lefts else None,
        f"at or below Torch-Pruning + {SLACK}": f"{len(tp) - len(above_tp)} of {len(tp)}",
        "above it": ", ".join(_names(above_tp)) or 0,
        "of these with a normalised residual width": len([r for r in above_tp if NORMALISED.match(r.model)]),
        "below onnxsim": f"{len(onnxsim) - len(above_onnxsim)} of {len(onnxsim)}",
        "not below onnxsim": ", ".join(_names(above_onnxsim)) or 0,
        "vacuous comparisons": ", ".join(_names([r for r in done if "vacuous" in r.note])) or 0,
        "wrong cut lists refused": f"{len(controls) - len(missed)} of {len(controls)}"
        if controls
        else "not tried (--control)",
        "seconds, all": round(sum(r.seconds for r in rows), 1),
        "peak memory, MiB": max((r.peak_mib for r in rows), default=0),
    }


def _names(rows: list[Row]) -> list[str]:
    return [f"{Path(r.file).parent.name}/{r.model}" for r in rows]


if __name__ == "__main__":
    sys.exit(main())
