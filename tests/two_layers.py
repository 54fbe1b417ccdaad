"""A chain of two products with its weights in external data, and what it is when its width is halved."""

from pathlib import Path

import numpy as np
import onnx
from attacks import chain, external
from onnx import helper, numpy_helper

from onnxprune.model import Model

SIZE = 32 * 32 * 4
W = np.arange(1024, dtype=np.float32).reshape(32, 32)
V = W[::-1].copy()


def two_layers(folder: Path, location: str = "model.onnx.data") -> Path:
    """x -> MatMul w -> MatMul v -> y with both weights in one data file, between them a gap."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    weights = [
        external("w", location=location, offset=0, length=SIZE),
        external("v", location=location, offset=8192, length=SIZE),
    ]
    folder.mkdir(exist_ok=True)
    (folder / location).parent.mkdir(exist_ok=True)
    (folder / location).write_bytes(W.tobytes().ljust(8192, b"\0") + V.tobytes())
    onnx.save(chain(nodes, weights), folder / "model.onnx")
    return folder / "model.onnx"


def embedded(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    onnx.save(chain(), folder / "model.onnx")
    return folder / "model.onnx"


def halve(model: Model) -> Model:
    """Cut the width between the layers."""
    fork = model.fork()
    fork.take("w", {1: range(16)})
    if "v" in fork:
        fork.take("v", {0: range(16)})
    return fork


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def loads_halved(path: Path) -> None:
    """The file is what `halve` made, for our reader, onnx's and onnxruntime's."""
    import onnxruntime

    model, loaded = Model.load(path), onnx.load(path)
    w, v = (numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer)
    assert np.array_equal(w, W[:, :16])
    assert np.array_equal(v, V[:16])
    assert np.array_equal(model.weight("w"), w)
    x = np.ones((1, 32), np.float32)
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert np.allclose(y, x @ w @ v, rtol=1e-5)
