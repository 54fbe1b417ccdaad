"""Damaged models through the commands: does each end in a sound result, or in one sentence? Linux only.

    python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--jobs 2] [--keep FOLDER] [--first N]

The models are ONNX's node models, with some of their inputs made weights, often behind two layers; those of the
samples; and small nets of the tests. Each is damaged one to three times (`fuzz_mutations`): bytes, dims, declared
shapes, attributes, arity, edges, opsets, names, types, values, nodes, inputs. A case is one command, as the command
line runs it (behind its wall), on one damaged file: inspect, prune, sparsify or run. What can be wrong: a traceback,
"this is a bug", a signal, a hang (over 5 s of the processor), over 1 GB, something left behind, an exit code that
isn't documented, not one sentence; and, where the file is sound by onnx's checker and onnxruntime, a result that either
refuses, or outputs that aren't those of the masked original (law 1 from outside: `zoo/oracle.py`) or, for `run`, those
of the original.

Every case is forked from a process in which the libraries are loaded already, so that 10,000 take minutes. The exit
code is 1 if anything is wrong; `--keep` keeps those files.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
import onnxruntime
import small_models
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks import attempt
from benchmarks.fuzz_mutations import damaged
from benchmarks.zoo import compare, oracle
from onnxprune.cli import main as command_line

ROOT = Path(__file__).resolve().parents[1]
PRUNE = ("prune", "IN", "OUT", "--ratio", "0.5", "--align", "none", "--report", "REPORT")
COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "IN"),
    "prune": PRUNE,
    "sparsify": ("sparsify", "IN", "OUT", "--pattern", "2:4"),
    "run": ("run", "IN", "OUT", "--passes", "resolve_shapes,drop_dead,shrink", "-q"),
}
SECONDS, MEMORY, PATIENCE = attempt.SECONDS, attempt.MEMORY, 90.0
TOLERANCE = 1e-2  # from outside: only what is plainly another function


@dataclass(frozen=True)
class Verdict:
    """How a case ended."""

    case: int
    kind: str
    what: str
    text: str

    @property
    def fine(self) -> bool:
        return self.kind in ("ok", "refused")


def bases() -> list[ModelProto]:
    """Return the sound models that are damaged, in a fixed order."""
    from onnx.backend.test.case.node import collect_testcases

    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = sorted(collect_testcases(None), key=lambda case: case.name)
    found = []
    for case in cases:
        model = _with_weights(case.model, case.data_sets[0][0], rng)
        if model.ByteSize() < 200_000:
            found.append(model)
    nets = [small_models.chain(), small_models.residual(), small_models.attention()]
    nets += [onnx.load(path) for path in sorted((ROOT / "samples").rglob("*.onnx"))]
    return found + nets * (len(found) // 20)


def _with_weights(model: ModelProto, feeds: list[Any], rng: np.random.Generator) -> ModelProto:
    """Return a node model with its later inputs as weights, and a layer before it where it has one float input."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.ir_version, graph = min(copy.ir_version, 10), copy.graph
    for at in range(len(graph.input) - 1, 0, -1):
        array = feeds[at] if at < len(feeds) else None
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub" and rng.random() < 0.6:
            graph.initializer.append(numpy_helper.from_array(array, graph.input[at].name))
            del graph.input[at]
    first = graph.input[0] if graph.input else None
    shape = [d.dim_value for d in first.type.tensor_type.shape.dim] if first is not None else []
    if (
        first is not None
        and first.type.tensor_type.elem_type == TensorProto.FLOAT
        and len(shape) > 1
        and all(shape)
    ):
        name, width = first.name, shape[-1]
        for suffix, size in (("in", (6, 8)), ("out", (8, width))):
            values = rng.standard_normal(size).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(values, f"fuzz_{suffix}"))
        first.name = "fuzz_x"
        first.type.tensor_type.shape.dim[-1].dim_value = 6
        graph.node.insert(0, helper.make_node("MatMul", ["fuzz_x", "fuzz_in"], ["fuzz_h"]))
        graph.node.insert(1, helper.make_node("Relu", ["fuzz_h"], ["fuzz_r"]))
        graph.node.insert(2, helper.make_node("MatMul", ["fuzz_r", "fuzz_out"], [name]))
    return copy


def examine(number: int, models: list[ModelProto], seed: int, keep: Path | None) -> Verdict:
    """Run one case: every fourth number is another damage, and those between are its commands."""
    rng = np.random.default_rng([seed, number // len(COMMANDS)])
    name = list(COMMANDS)[number % len(COMMANDS)]
    data, done = damaged(rng, models[int(rng.integers(len(models)))])
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "in.onnx").write_bytes(data)
        (here / ".tmp").mkdir()
        places = {"IN": "in.onnx", "OUT": "out.onnx", "REPORT": "report.json"}
        kind, text = _run(
            [places.get(word, word) for word in COMMANDS[name]], here, wants="OUT" in COMMANDS[name]
        )
        if kind == "ok" and "OUT" in COMMANDS[name]:
            kind, text = _judged(here, name)
        if kind not in ("ok", "refused") and keep is not None:
            shutil.copy(here / "in.onnx", keep / f"{seed}-{number}-{name}-{kind}.onnx")
    return Verdict(number, kind, f"{name} of {done}", text)


def _run(arguments: list[str], here: Path, *, wants: bool) -> tuple[str, str]:
    """Run the command line in a forked process, and return how it ended."""
    before = attempt._print(here)
    start, pid = time.monotonic(), os.fork()
    if pid == 0:
        _become(["onnxprune", *arguments], here)
    status, usage, late = 0, None, False
    while usage is None:
        done, status, found = os.wait4(pid, os.WNOHANG)
        if done:
            usage = found
        elif time.monotonic() - start > PATIENCE and not late:
            os.killpg(pid, signal.SIGKILL)
            late = True
        else:
            time.sleep(0.005)
    code = None if late else os.waitstatus_to_exitcode(status)
    err = (here / ".tmp" / "err").read_text(errors="replace")
    for path in (here / ".tmp").iterdir():
        if path.name in ("out", "err"):
            path.unlink()
    after = attempt._print(here)
    made = {n for n in after if n not in before} - {"report.json"}
    kept = all(after.get(n) == text for n, text in before.items())
    kind = attempt._kind(code, err, wants=wants, made=made, kept=kept)
    if kind in ("ok", "refused") and usage.ru_utime + usage.ru_stime > SECONDS:
        kind = "slow"
    if kind in ("ok", "refused") and usage.ru_maxrss * 1024.0 > MEMORY:
        kind = "memory"
    return kind, (err.strip().splitlines() or [""])[-1][:300]


def _become(argv: list[str], here: Path) -> None:
    """Be the command line, in a folder, with files for its output; doesn't come back."""
    code = 70
    try:
        os.setsid()
        os.chdir(here)
        os.environ.update(TMPDIR=str(here / ".tmp"), ONNXPRUNE_CACHE=str(here / ".cache"))
        tempfile.tempdir = None
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(here / ".tmp" / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(file, number)
            os.close(file)
        sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        sys.argv = argv
        code = command_line()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _judged(here: Path, name: str) -> tuple[str, str]:
    """Judge a result in a forked process, since it may crash onnxruntime; what kills that is no fault of ours."""
    answer, pid = here / ".tmp" / "answer", os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            answer.write_text(_judge(here, name))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    text = answer.read_text() if answer.exists() else ""
    return ("result", text) if text else ("ok", "")


def _judge(here: Path, name: str) -> str:
    """Say what is wrong with a result; empty where nothing is, or nothing can be said."""
    source = here / "in.onnx"
    try:
        original = onnx.load(source)
        onnx.checker.check_model(original)
        before = compare.session(source)
    except Exception:  # what neither the checker nor onnxruntime takes has no right result
        return ""
    try:
        result = onnx.load(here / "out.onnx")
        onnx.checker.check_model(result)
        after = compare.session(here / "out.onnx")
    except Exception as error:
        return f"the result is refused: {str(error)[:200]}"
    try:
        feeds = compare.find_inputs(before)
        expected = _expected(original, result, here, name, before, feeds)
    except Exception:
        return ""
    if expected is None:
        return ""
    for outputs in expected:
        if not all(o.dtype.kind != "f" or np.isfinite(o).all() for o in outputs):
            return ""
    error = compare.distance(expected, compare.run(after, feeds))
    return f"outputs differ by {error:.3g}" if error > TOLERANCE else ""


def _expected(original: Any, result: Any, here: Path, name: str, before: Any, feeds: Any) -> Any:
    if name == "run":
        return compare.run(before, feeds)
    if name != "prune":
        return None
    report = json.loads((here / "report.json").read_text())
    cuts = [*report["cuts"], *report.get("copies", [])]
    if report["inexact"] or report["law1"] is None:
        return None
    twin = oracle.masked(original, result, cuts)
    return compare.run(compare.session(twin), feeds)


def main(argv: list[str] | None = None) -> int:
    """Run the cases, and print what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    args = parser.parse_args(argv)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    models = bases()
    _warm()
    counts: collections.Counter[str] = collections.Counter()
    numbers = range(args.first, args.first + args.cases)
    with multiprocessing.get_context("fork").Pool(args.jobs, _worker, (models, args.seed, args.keep)) as pool:
        for verdict in pool.imap_unordered(_case, numbers, chunksize=8):
            counts[verdict.kind] += 1
            if not verdict.fine:
                print(f"{verdict.case:6} {verdict.kind:9} {verdict.what}: {verdict.text}", flush=True)
            if sum(counts.values()) % 1000 == 0:
                print(f"{sum(counts.values())} of {args.cases}: {dict(counts)}", file=sys.stderr, flush=True)
    wrong = sum(n for kind, n in counts.items() if kind not in ("ok", "refused"))
    print(f"{args.cases} cases, seed {args.seed}: {dict(sorted(counts.items()))}; {wrong} wrong")
    return int(wrong > 0)


_SHARED: list[Any] = []


def _worker(*shared: Any) -> None:
    _SHARED[:] = shared


def _case(number: int) -> Verdict:
    return examine(number, *_SHARED)


def _warm() -> None:
    """Import all that the commands import, without opening a session: threads don't survive a fork."""
    import contextlib
    import importlib
    import pkgutil

    import onnxprune

    for module in pkgutil.walk_packages(onnxprune.__path__, "onnxprune."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # a plugin whose tool isn't installed
                importlib.import_module(module.name)
    onnxruntime.set_default_logger_severity(4)


if __name__ == "__main__":
    sys.exit(main())
