"""Peak anonymous memory of pruning a 3 GB model that lies in external data.

A chain of 48 MatMul of 64 MB each is written to a temporary folder, a command runs on it, and meanwhile the
anonymous memory of the command (``RssAnon`` in ``/proc/<pid>/status``; mapped files don't count, the kernel
takes those back at will) is sampled every few milliseconds. The folder is deleted at the end. Linux only.

    python benchmarks/speed/memory.py                     the file layer alone: open, cut every weight by half, save
    python benchmarks/speed/memory.py --command "onnxprune prune {input} {output} --ratio 0.5 --no-verify"
    python benchmarks/speed/memory.py --session           one plain onnxruntime session of the input, for comparison

The target is the largest tensor + 200 MB.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

MB = 1e6
TARGET = 200 * MB


def write_model(folder: Path, layers: int, width: int) -> Path:
    """Write the chain, one weight at a time; gives the path of the model."""
    rng = np.random.default_rng(0)
    size = width * width * 4
    nodes, weights, last = [], [], "x"
    with (folder / "model.onnx.data").open("wb") as file:
        for layer in range(layers):
            weight = rng.standard_normal((width, width), np.float32)
            weight *= np.float32((2 / width) ** 0.5)
            file.write(weight.data)
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=(width, width))
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "model.onnx.data"), ("offset", layer * size), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [last, tensor.name], [f"h{layer}"]))
            nodes.append(helper.make_node("Relu", [f"h{layer}"], [f"a{layer}"]))
            last = f"a{layer}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def cut_by_half(source: str, target: str) -> None:
    """The file layer alone: every inner width is halved."""
    from onnxprune.model import Model

    model = Model.load(source).fork()
    names = model.names()
    for layer, name in enumerate(names):
        rows, columns = model.info(name).dims
        keep = {0: np.arange(0, rows, 2)} if layer else {}
        if layer < len(names) - 1:
            keep[1] = np.arange(0, columns, 2)
        model.take(name, keep)
    model.save(target)


def open_session(source: str) -> None:
    """One plain session and one run."""
    import onnxruntime

    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    session.run(None, {first.name: np.ones(first.shape, np.float32)})


def _anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process and its children; 0 once it's gone."""
    total = 0
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            total = int(line.split()[1]) * 1024
    return total + sum(_anonymous(int(child)) for child in children)


def measure(command: list[str]) -> tuple[float, float]:
    """Peak anonymous memory (bytes) and time (s) of a command that must succeed."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.003)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} failed with exit code {process.returncode}")
    return float(peak), time.perf_counter() - start


def main() -> int:
    """Measure, print, and fail if the target is missed."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--command", help="what to measure; {input} and {output} are filled in")
    parser.add_argument("--session", action="store_true", help="measure a plain onnxruntime session instead")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--width", type=int, default=4096, help="the weights are width x width, float32")
    parser.add_argument("--limit", type=float, help="MB of anonymous memory allowed [largest tensor + 200]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnxprune-memory-") as folder:
        source = write_model(Path(folder), options.layers, options.width)
        target = Path(folder) / "out" / "model.onnx"
        target.parent.mkdir()
        inner = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import memory; memory."
        layer = f"cut_by_half({str(source)!r}, {str(target)!r})"
        call = f"open_session({str(source)!r})" if options.session else layer
        command = [sys.executable, "-c", inner + call]
        if options.command:
            command = shlex.split(options.command.format(input=source, output=target))
        peak, seconds = measure(command)
        written = sum(file.stat().st_size for file in target.parent.iterdir())
    largest = options.width**2 * 4
    limit = (options.limit * MB) if options.limit else largest + TARGET
    print(f"{'model':>10} {'largest':>10} {'written':>10} {'peak anon':>10} {'limit':>10} {'time':>8}")
    print(
        f"{largest * options.layers / MB:7.0f} MB {largest / MB:7.0f} MB {written / MB:7.0f} MB "
        f"{peak / MB:7.0f} MB {limit / MB:7.0f} MB {seconds:6.1f} s"
    )
    return int(peak > limit and not options.session)


if __name__ == "__main__":
    raise SystemExit(main())
