"""Speed of `onnxprune sparsify`, in seconds of wall clock and of CPU.

    python benchmarks/speed/sparsity.py [--work FOLDER] [--rival-python PYTHON]

Rows: 2:4 by magnitude on 25 M weights (Gemm with the inputs on either axis, and 3x3 convolutions), SparseGPT and the
refit after it on layers of 768 inputs and 3072 outputs and the reverse. PYTHON has Polygraphy, whose ``surgeon prune``
then runs on a model of 1 M weights beside ours.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import registry
from onnxprune.options.pattern import parse_pattern
from onnxprune.reconstruction.least_squares import Problem
from onnxprune.sparsity.refit import is_exact, masked_refit
from onnxprune.sparsity.task import Task

RNG = np.random.default_rng(0)


def timed(label: str, work: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    print(f"| {label} | {time.perf_counter() - wall:.2f} | {time.process_time() - cpu:.2f} |", flush=True)
    return found


def chain(kind: str, layers: int, width: int) -> onnx.ModelProto:
    shape = {"conv": (width, width, 3, 3)}.get(kind, (width, width))
    attrs: dict[str, Any] = {"conv": {"pads": [1] * 4}, "gemm transB": {"transB": 1}}.get(kind, {})
    op = "Conv" if kind == "conv" else "Gemm"
    nodes = [helper.make_node(op, [f"x{i}", f"w{i}"], [f"x{i + 1}"], **attrs) for i in range(layers)]
    given = ["N", width, 8, 8] if kind == "conv" else ["N", width]
    weights = [
        numpy_helper.from_array(RNG.standard_normal(shape, dtype=np.float32), f"w{i}") for i in range(layers)
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, given) for n in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def magnitude() -> None:
    for kind, layers, width in (("gemm transB", 6, 2048), ("gemm", 6, 2048), ("conv", 11, 512)):
        model = onnxprune.Model.load(chain(kind, layers, width))
        count = sum(int(np.prod(model.info(n).dims)) for n in model.names())
        label = f"2:4 magnitude, {kind}, {count / 1e6:.1f} M weights"
        result = timed(f"{label}: all, with the report", lambda m=model: onnxprune.sparsify(m, pattern="2:4"))
        print(f"| ... of it: masks and zeros | {result.report.seconds['choose']:.2f} | |", flush=True)


def layer(inputs: int, outputs: int) -> None:
    x = RNG.standard_normal((2 * inputs, inputs), dtype=np.float32)
    h, w = (x.T @ x / len(x)).astype(float), RNG.standard_normal((inputs, outputs))
    problem = Problem(len(x), h, h @ w, np.ones(outputs), np.zeros(inputs), np.zeros(outputs))
    task = Task(problem, w, inputs, 1, parse_pattern("2:4"))
    method, name = registry.load("onnxprune.sparsity.methods", "sparsegpt"), f"{inputs} -> {outputs}"
    keep, _ = timed(f"sparsegpt 2:4, {name}", lambda: method.solve(task).at(0.5))
    way = "exact" if is_exact(keep) else "conjugate gradients"
    timed(f"... refit on its support ({way})", lambda: masked_refit(problem, keep, 1e-2, w))


def rival(python: str, work: Path) -> None:
    source = work / "one.onnx"
    onnx.save(chain("gemm transB", 1, 1024), source)
    timed("2:4, 1.0 M weights, from file to file: onnxprune",
          lambda: onnxprune.sparsify(source, work / "ours.onnx", pattern="2:4"))  # fmt: skip
    command = [Path(python).parent / "polygraphy", "surgeon", "prune", source, "-o", work / "theirs.onnx"]
    start = time.perf_counter()
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    print(f"| ... polygraphy surgeon prune | {time.perf_counter() - start:.2f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rival-python")
    args = parser.parse_args()
    print("| | seconds | CPU seconds |\n|---|---|---|")
    magnitude()
    layer(768, 3072)
    layer(3072, 768)
    if args.rival_python:
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            rival(args.rival_python, Path(folder))


if __name__ == "__main__":
    main()
