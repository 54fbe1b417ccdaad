"""What the tests of passes share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnxprune import Model
from onnxprune.journey import passes as passlist

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
CNN = SAMPLES / "01_digits_cnn" / "digits_cnn.onnx"
# Channels of the net are named that matter to it: training has silenced many others nearly, not quite.
TRANSFORMER = SAMPLES / "02_digits_transformer" / "digits_transformer.onnx"


def run(model: onnx.ModelProto, passes: str) -> onnx.ModelProto:
    return passlist.apply(Model.load(model), passlist.parse(passes)).to_proto()


def outputs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[np.ndarray] = ort.InferenceSession(model.SerializeToString(), options).run(None, dict(feeds))
    return found


def feeds_of(model: onnx.ModelProto, sizes: Sequence[int] = (2, 5)) -> dict[str, np.ndarray]:
    """Draw an input for each size that a dynamic axis takes in turn."""
    rng, free = np.random.default_rng(7), iter(sizes)
    found = {}
    for value in model.graph.input:
        shape = [d.dim_value or next(free) for d in value.type.tensor_type.shape.dim]
        found[value.name] = rng.normal(size=shape).astype(np.float32)
    return found


def error(one: onnx.ModelProto, other: onnx.ModelProto, sizes: Sequence[int] = (2, 5)) -> float:
    """Return the greatest relative difference; fails if the outputs say nothing."""
    feeds = feeds_of(one, sizes)
    worst = 0.0
    for a, b in zip(outputs(one, feeds), outputs(other, feeds), strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        assert np.ptp(a) > 0
        worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()))
    return worst


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def dims(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def edit(model: onnx.ModelProto, name: str, index: Any, value: float = 0.0) -> None:
    """Set part of a weight, which may be an initializer or the value of a Constant node."""
    tensors = {t.name: t for t in model.graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    array = numpy_helper.to_array(tensors[name]).copy()
    array[index] = value
    tensors[name].CopyFrom(numpy_helper.from_array(array, tensors[name].name))
