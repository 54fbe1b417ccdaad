"""Of queries, keys and values in one weight, only what is summed over is read there: heads are read behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model

HEADS, WIDTH, INPUTS = 8, 4, 12


def _model(cached: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    inputs = ["x", "qkv", "bias", "", "past"] if cached else ["x", "qkv", "bias"]
    nodes = [
        helper.make_node(
            "Attention", inputs, ["mixed"], "attention", domain="com.microsoft", num_heads=HEADS
        ),
        helper.make_node("MatMul", ["mixed", "out"], ["y"], "layer"),
    ]
    whole = HEADS * WIDTH
    weights = {"qkv": (INPUTS, 3 * whole), "bias": (3 * whole,), "out": (whole, INPUTS)}
    tensors = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()
    ]
    if cached:
        past = np.zeros((2, 2, HEADS, 1, WIDTH), np.float32)
        tensors.append(numpy_helper.from_array(past, "past"))
    shape: list[int | str] = [2 if cached else "batch", 5, INPUTS]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("cached", [False, True])
def test_heads_are_not_summed_over_where_they_are_made(cached: bool) -> None:
    groups = analyse(Model.load(_model(cached))).grouping.groups
    read = {(m.tensor, m.axis): m.contracted for g in groups if g.units == HEADS for m in g.members}
    read = {place: contracted for place, contracted in read.items() if place[0] in ("qkv", "out")}
    assert set(read.values()) == {True, False}
    assert all(contracted == (tensor == "out") for (tensor, _), contracted in read.items())


def test_widths_of_queries_and_keys_are() -> None:
    groups = analyse(Model.load(_model(cached=True))).grouping.groups
    widths = [m for g in groups for m in g.members if g.units == WIDTH and m.tensor == "qkv"]
    assert widths
    assert all(m.contracted for m in widths)


def test_heads_are_measured_on_samples(tmp_path: Path) -> None:
    """Heads of large weights that no output reads go; without samples they would stay."""
    model = _model()
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    packed = arrays["qkv"].reshape(INPUTS, 3, HEADS, WIDTH)
    packed[:, :, :4] *= 9  # loud heads
    arrays["out"].reshape(HEADS, WIDTH, INPUTS)[:4] *= 1e-3  # that nobody hears
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    x = np.random.default_rng(1).standard_normal((64, 5, INPUTS)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=x)
    result = onnxprune.prune(model, ratio=0.5, align="none", calib=tmp_path / "samples.npz", rotate=False)
    assert not result.report.calibration["by_norm"]
    left = next(numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name == "out")
    assert left.shape[0] == HEADS * WIDTH // 2
    assert np.abs(left).max() > 0.1
