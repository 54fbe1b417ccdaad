"""CenterCropPad along channels: what is cropped or padded is cut as a Slice or Pad of the same elements is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.testing import check_row

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [4, 5, 6, 9])
@pytest.mark.parametrize("axes", [[1], [-1], [1, 2]])
def test_law_two_holds_for_odd_and_even_lengths(size: int, axes: list[int]) -> None:
    x = RNG.normal(size=(2, size, size)).astype(np.float32)
    node = helper.make_node("CenterCropPad", ["x", "shape"], ["y"], axes=axes)
    for wide in (2, 3, 4, 5, 7, 8, 12):
        assert check_row(node, {"x": x, "shape": np.full(len(axes), wide, np.int64)}) == []


def _net(crop: int) -> onnx.ModelProto:
    weights = {
        "a": RNG.normal(size=(16, 8, 1, 1)).astype(np.float32),
        "bias": RNG.normal(size=16).astype(np.float32),
        "size": np.array([crop]),
        "b": RNG.normal(size=(3, crop, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a", "bias"], ["c"]),
        helper.make_node("CenterCropPad", ["c", "size"], ["p"], axes=[1]),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("crop", [5, 12, 13, 19, 24])
@pytest.mark.parametrize("criterion", ["l2", "random"])
def test_channels_in_front_are_cut(crop: int, criterion: str) -> None:
    model = _net(crop)
    result = onnxprune.prune(model, ratio=0.5, align="none", criterion=criterion)
    gone = next(c.removed for c in result.report.cuts if c.tensor == "b" and c.axis == 1)
    weight = numpy_helper.to_array(model.graph.initializer[3]).copy()
    weight[:, list(gone)] = 0
    masked = onnx.ModelProto.FromString(model.SerializeToString())
    masked.graph.initializer[3].CopyFrom(numpy_helper.from_array(weight, "b"))
    small = result.model
    assert len(gone) >= min(crop, 16) // 2
    for shape in [(1, 8, 1, 1), (2, 8, 5, 3), (3, 8, 4, 9)]:
        x = RNG.normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(_run(small, x), _run(masked, x), rtol=1e-4, atol=1e-5)
