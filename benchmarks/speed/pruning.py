"""How long the command takes, beside the floor and the rivals, on one machine in one run.

    python benchmarks/speed/pruning.py resnet50.onnx
    python benchmarks/speed/pruning.py resnet50.onnx --rival-python PYTHON    with Torch-Pruning and onnxsim

Every job is a process of its own, from its start to the file it writes. Jobs alternate, so that a busy
machine slows all of them, and medians are given, with their ratios: absolute times say little.

floor          start Python, import onnx and onnxruntime, read the model, two plain onnxruntime sessions with
               one run each, write the model
onnxprune      ``onnxprune prune IN OUT --ratio 0.5``
no-verify      the same with --no-verify
analysis       the engine alone, without reading the file; "analysis+cut" with the rewriting
torch-pruning  torchvision's resnet50: dependency graph and half of the channels ("graph+cut"), export to ONNX
onnxsim        ``onnxsim.pruning.apply_structured_pruning`` at 0.5 on the same file
chain          load and analyse chains of 50,000 and 100,000 nodes: twice the nodes, twice the time
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHAIN = (50_000, 100_000)
TARGETS = (
    ("onnxprune", "floor", 2.0),
    ("onnxprune", "torch-pruning", 0.5),
    ("no-verify", "onnxsim", 1.0),
    ("analysis", "graph+cut", 1.0),
)


def floor(source: str, target: str) -> dict[str, float]:
    import numpy as np
    import onnx
    import onnxruntime as ort

    model = onnx.load(source)
    for _ in range(2):
        session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
        session.run(
            None,
            {
                i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], np.float32)
                for i in session.get_inputs()
            },
        )
    onnx.save(model, target)
    return {}


def torch_pruning(_source: str, target: str) -> dict[str, float]:
    import torch
    import torch_pruning as tp

    from benchmarks.zoo.init import define_torchvision_operators

    define_torchvision_operators()
    import torchvision

    torch.set_num_threads(1)  # faster here, since other processes share the cores
    model = torchvision.models.resnet50(weights=None).eval()
    example = torch.zeros(1, 3, 224, 224)
    start = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model.fc],
    )
    pruner.step()
    seconds = time.perf_counter() - start
    torch.onnx.export(model, (example,), target, dynamo=False)
    return {"graph+cut": seconds}


def onnxsim(source: str, target: str) -> dict[str, float]:
    import onnx
    from onnxsim.pruning import apply_structured_pruning

    result = apply_structured_pruning(onnx.load(source), sparsity=0.5)
    onnx.save(result[0] if isinstance(result, tuple) else result, target)
    return {}


def analysis(source: str, _target: str) -> dict[str, float]:
    """Analysis and cut: what Torch-Pruning's graph and step are, and no import."""
    import networkx  # noqa: F401
    import numpy as np

    from onnxprune.cut.rewrite import rewrite
    from onnxprune.graph.analysis import analyse
    from onnxprune.model import Model

    model = Model.load(source)
    start = time.perf_counter()
    found = analyse(model)
    seconds = time.perf_counter() - start
    removed = {g.name: np.arange(g.units // 2) for g in found.grouping.groups if not g.alternative}
    rewrite(model, found.coupling, found.tracer, found.grouping.dead(removed))
    return {"analysis": seconds, "analysis+cut": time.perf_counter() - start}


def chain(source: str, _target: str) -> dict[str, float]:
    """Seconds by the clock and of the processor: the latter don't count what a busy machine takes away."""
    from onnxprune.graph.analysis import analyse
    from onnxprune.model import Model

    start = time.perf_counter()
    model = Model.load(source)
    loaded, processor = time.perf_counter(), time.process_time()
    found = analyse(model)
    assert found.grouping.groups
    return {
        "load": loaded - start,
        "analysis": time.perf_counter() - loaded,
        "processor": time.process_time() - processor,
    }


JOBS = {f.__name__.replace("_", "-"): f for f in (floor, torch_pruning, onnxsim, analysis, chain)}


def make_chain(path: Path, nodes: int) -> None:
    """Write a chain of convolutions (1x1, eight channels) and Relus in turn."""
    import numpy as np
    from onnx import helper, numpy_helper, save

    rng = np.random.default_rng(0)
    made, weights = [], []
    for i in range(nodes):
        if i % 2 == 0:
            weights.append(
                numpy_helper.from_array(rng.standard_normal((8, 8, 1, 1)).astype(np.float32), f"w{i}")
            )
            made.append(helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"n{i}"))
        else:
            made.append(helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}"))
    values = [helper.make_tensor_value_info(n, 1, [1, 8, 4, 4]) for n in ("t0", f"t{nodes}")]
    graph = helper.make_graph(made, "chain", values[:1], values[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def timed(command: list[str]) -> tuple[float, str]:
    """Run a process; return its seconds and the last line that it printed."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}  # installed or not
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return seconds, (done.stdout.strip().splitlines() or [""])[-1]


def job(name: str, python: str, source: Path, target: Path) -> tuple[float, dict[str, float]]:
    seconds, line = timed([python, str(Path(__file__).resolve()), "--job", name, str(source), str(target)])
    return seconds, json.loads(line)


def measure(source: Path, runs: int, rival: str | None, folder: Path) -> dict[str, float]:
    """Return the median seconds of every job."""
    out = folder / "out.onnx"
    prune = [
        sys.executable,
        "-m",
        "onnxprune",
        "prune",
        str(source),
        str(out),
        "--ratio",
        "0.5",
        "--align",
        "none",
        "-q",
    ]
    found: dict[str, list[float]] = {}
    for number in range(runs + 1):  # the first warms the disk's cache up
        results: dict[str, float] = {}

        def own(name: str, more: dict[str, Any], results: dict[str, float] = results) -> None:
            results.update({name: more.pop("process"), **more})

        for name, python in (("floor", sys.executable), ("analysis", sys.executable)):
            seconds, inner = job(name, python, source, out)
            own(name if name == "floor" else "analysis process", {"process": seconds, **inner})
        results["onnxprune"] = timed(prune)[0]
        results["no-verify"] = timed([*prune, "--no-verify"])[0]
        for name in ("torch-pruning", "onnxsim") if rival else ():
            seconds, inner = job(name, str(rival), source, out)
            own(name, {"process": seconds, **inner})
        for name, value in results.items():
            if number:
                found.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", type=Path, help="an ONNX file; without it, only the chain is measured"
    )
    parser.add_argument("target", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=3, help="runs of each job, after one that doesn't count")
    parser.add_argument(
        "--rival-python", metavar="PYTHON", help="interpreter with torch-pruning, torchvision, onnxsim"
    )
    parser.add_argument("--no-chain", action="store_true", help="leave the long chains out")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--job", choices=sorted(JOBS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(JOBS[args.job](str(args.model), str(args.target))))
        return
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.model:
            figures |= measure(args.model, args.runs, args.rival_python, folder)
            for what, seconds in figures.items():
                print(f"{what:20s}{seconds:8.2f} s")
        for nodes in CHAIN if not args.no_chain else ():
            make_chain(folder / "chain.onnx", nodes)
            _, inner = job("chain", sys.executable, folder / "chain.onnx", folder / "none")
            figures |= {f"chain {nodes} {what}": seconds for what, seconds in inner.items()}
            print(
                f"chain of {nodes} nodes: loaded {inner['load']:.2f} s, analysed {inner['analysis']:.2f} s "
                f"({inner['processor']:.2f} s of the processor)"
            )
    for what, beside, limit in TARGETS:
        if what in figures and beside in figures:
            ratio = figures[what] / figures[beside]
            verdict = "" if ratio <= limit else "  MISSED"
            print(f"{what} / {beside}: {ratio:.2f} (target: at most {limit:g}){verdict}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
