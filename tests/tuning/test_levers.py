"""Levers beside widths, each on a small model."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from depth_models import images, no_branches
from small_models import Builder

from onnxprune.calibration.samples import load_samples
from onnxprune.errors import OnnxPruneError
from onnxprune.tuning import members
from onnxprune.tuning.members import Lever


def test_depth_is_a_lever(tmp_path: Path) -> None:
    onnx.save(images(blocks=4), tmp_path / "in.onnx")
    x = np.random.default_rng(0).standard_normal((160, 4, 6, 6)).astype(np.float32)
    samples = load_samples(onnx.load(tmp_path / "in.onnx").graph, {"x": x})
    Lever("depth", "quarter").apply(tmp_path / "in.onnx", tmp_path / "out.onnx", samples)
    convs = [
        sum(node.op_type == "Conv" for node in onnx.load(tmp_path / name).graph.node)
        for name in ("in.onnx", "out.onnx")
    ]
    assert convs == [9, 7]
    onnx.save(no_branches(), tmp_path / "plain.onnx")
    plain = {"x": np.zeros((40, 3, 8), np.float32)}
    samples = load_samples(onnx.load(tmp_path / "plain.onnx").graph, plain)
    with pytest.raises(OnnxPruneError, match="no residual branch"):
        Lever("depth", "eighth").apply(tmp_path / "plain.onnx", tmp_path / "out2.onnx", samples)


def test_grids_are_a_lever_for_bytes_alone(tmp_path: Path) -> None:
    b = Builder()
    h = b.op("Relu", [b.linear("x", "up", 48, 96)], "relu")
    onnx.save(b.model({"x": ["N", 48]}, b.linear(h, "down", 96, 48)), tmp_path / "in.onnx")
    x = np.random.default_rng(0).standard_normal((200, 48)).astype(np.float32)
    samples = load_samples(onnx.load(tmp_path / "in.onnx").graph, {"x": x})
    Lever("grids", "0.333").apply(tmp_path / "in.onnx", tmp_path / "out.onnx", samples)
    before, after = ((tmp_path / name).stat().st_size for name in ("in.onnx", "out.onnx"))
    assert after <= before / 3
    assert "INT" in {
        onnx.TensorProto.DataType.Name(t.data_type)[:3]
        for t in onnx.load(tmp_path / "out.onnx").graph.initializer
    }
    with pytest.raises(OnnxPruneError, match=r"can't be met: .* takes [\d,]+ bytes, [\d,]+ of them"):
        Lever("grids", "0.01").apply(tmp_path / "in.onnx", tmp_path / "out.onnx", samples)
    assert "grids" in members.graded("bytes")
    assert "grids" not in members.graded("latency")
