"""What the first command makes of every exported transformer: one row a file, with a rival in the same run.

    python benchmarks/zoo/deployed.py run FOLDER [--only REGEX] [--again] [--rival PYTHON] [--jobs 1] [--open-io REGEX]
    python benchmarks/zoo/deployed.py table FOLDER [--only REGEX]

`run` prunes each .onnx file under FOLDER (written by deployed_export.py) with ``prune IN OUT --ratio 0.5 --align
none``, without ``--input-shape``, and writes FOLDER/table.json: exit status and sentence, seconds, the report's law 1
and its sizes, and the share of the weights' bytes left, tables of the vocabulary apart. ``--rival`` is a python with
onnxsim (0.8 or later), whose structured pruning and head pruning get the same file. Nothing is run twice, unless
``--again`` says so. ``--open-io`` is given to ``prune`` where an input or output has such a name; the table is then
FOLDER/table-open.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

#: Words of the small configurations (deployed_models.VOCABULARY); no other axis is a multiple of it.
VOCABULARY = 1000
RIVAL = Path(__file__).resolve().parents[1] / "accuracy" / "pruning_rival.py"


def main() -> int:
    """Run files, or print what their runs have shown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--rival")
    parser.add_argument("--open-io", default="")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=300)
    options = parser.parse_args()
    record = options.folder / ("table-open.json" if options.open_io else "table.json")
    rows = _read(record)
    names = [n for n in files(options.folder) if re.search(options.only, n)]
    if options.command == "run":
        with ThreadPoolExecutor(options.jobs) as pool:
            done = dict(rows)
            for name, row in pool.map(lambda n: (n, _row(n, done.get(n, {}), options)), names):
                rows = _read(record) | {name: row}  # others may have written meanwhile
                partial = record.with_suffix(f".{os.getpid()}")
                partial.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
                partial.replace(record)
                print(_line(name, row), flush=True)
        return 0
    for name in names:
        print(_line(name, rows.get(name, {})))
    print(_summary([rows[n] for n in names if n in rows]))
    return 0


def _read(record: Path) -> dict[str, dict[str, Any]]:
    return dict(json.loads(record.read_text())) if record.exists() else {}


def files(folder: Path) -> list[str]:
    """Return the exported files, without their suffix."""
    return sorted(
        str(path.relative_to(folder).with_suffix(""))
        for path in folder.rglob("*.onnx")
        if not path.name.startswith(".")
    )


def weights(path: Path) -> tuple[int, int]:
    """Return the bytes of a file's weights, and of those that have an axis of the vocabulary."""
    proto = onnx.load(path, load_external_data=False)
    every = vocabulary = 0
    for tensor in _tensors(proto.graph):
        size = -(-_elements(tensor) * _bits(tensor.data_type) // 8)
        if size > 64:  # shapes and scalars aren't weights
            every += size
            vocabulary += size if any(d and d % VOCABULARY == 0 for d in tensor.dims) else 0
    return every, vocabulary


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield attribute.t
            yield from (t for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
                        for t in _tensors(body))  # fmt: skip


def _elements(tensor: TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _bits(kind: int) -> int:
    if kind in (TensorProto.INT4, TensorProto.UINT4):
        return 4
    return onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8


def _row(name: str, row: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    source = options.folder / f"{name}.onnx"
    if "exit" not in row or options.again:
        row = {k: v for k, v in row.items() if k == "rival"} | _prune(source, options)
    if options.rival and "rival" not in row:
        row["rival"] = _rival(source, options.rival, options.timeout)
    return row


def _prune(source: Path, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        target, report = Path(scratch, "out.onnx"), Path(scratch, "report.json")
        command = [sys.executable, "-m", "onnxprune", "prune", str(source), str(target), "--ratio", "0.5", "--align",
                   "none", "--report", str(report)]  # fmt: skip
        row = _timed(command + _opened(source, options.open_io), options.timeout)
        if row["exit"] == 0:
            check = json.loads(report.read_text())["law1"] or {}
            row |= {"error": check.get("max_relative_error"), "sizes": check.get("sizes")}
            row |= left(source, target)
        return row


def _opened(source: Path, pattern: str) -> list[str]:
    """Return the words that open a file's inputs and outputs, if one has such a name."""
    graph = onnx.load(source, load_external_data=False).graph if pattern else onnx.GraphProto()
    return (
        ["--open-io", pattern]
        if any(re.search(pattern, v.name) for v in (*graph.input, *graph.output))
        else []
    )


def _rival(source: Path, python: str, timeout: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "out.onnx")
        row = _timed([python, str(RIVAL), str(source), str(target), "0.5"], timeout)
        return row | left(source, target) if row["exit"] == 0 else row


def _timed(command: list[str], timeout: float) -> dict[str, Any]:
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        code, said = done.returncode, done.stderr.strip().splitlines()
    except subprocess.TimeoutExpired:
        code, said = 124, [f"over {timeout:.0f} s"]
    said = [line for line in said if line.startswith(("onnxprune", "error"))] or said
    return {"exit": code, "seconds": round(time.monotonic() - start, 1)} | (
        {"said": said[-1][:400]} if code and said else {}
    )


def left(source: Path, target: Path) -> dict[str, float]:
    """Return the shares of weight bytes left: of all, and of what has no axis of the vocabulary."""
    (before, table), (after, rest) = weights(source), weights(target)
    return {
        "left": round(after / max(before, 1), 3),
        "left_apart": round((after - rest) / max(before - table, 1), 3),
    }


def _line(name: str, row: dict[str, Any]) -> str:
    rival = row.get("rival", {})
    cells = [f"{name:52s}", f"{row.get('exit', '-')!s:>3s}", f"{row.get('seconds', 0):6.1f} s"]
    cells += [f"{row[k]:.2f}" if k in row else "   -" for k in ("left_apart",)]
    cells += [
        f"onnxsim {rival['left_apart']:.2f}"
        if "left_apart" in rival
        else f"onnxsim {'-' if rival else '?':>4s}"
    ]
    cells += [f"{row['error']:.0e}" if row.get("error") is not None else "     "]
    return "  ".join([*cells, row.get("said", "")[:150]])


def _summary(rows: list[dict[str, Any]]) -> str:
    done = [r for r in rows if r["exit"] == 0]
    half = sum(r["left_apart"] <= 0.55 for r in done)
    rivals = [r for r in done if "left_apart" in r.get("rival", {})]
    ahead = sum(r["left_apart"] <= r["rival"]["left_apart"] + 0.005 for r in rivals)
    return (
        f"{len(done)} of {len(rows)} run; {half} keep at most .55 of their weight bytes; at or below onnxsim in "
        f"{ahead} of {len(rivals)} that both cut"
    )


if __name__ == "__main__":
    sys.exit(main())
