"""``onnxprune sparsify --permute``: the whole way, with and without samples."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import Builder

import onnxprune
from onnxprune import Model
from onnxprune.cli import main
from onnxprune.options.pattern import parse_pattern
from onnxprune.sparsity.masks import holds
from onnxprune.sparsity.weights import find

METHODS = ("wanda", "sparsegpt", "obs")


def net() -> onnx.ModelProto:
    """A block with a residual sum and a classifier."""
    b = Builder(3)
    x = b.op("Relu", [b.conv("x", "stem", 3, 16)], "stem.relu")
    y = b.op("Relu", [b.conv(x, "up", 16, 24)], "up.relu")
    x = b.op("Relu", [b.op("Add", [b.conv(y, "down", 24, 16), x], "add")], "relu")
    x = b.op("Flatten", [b.op("GlobalAveragePool", [x], "pool")], "flatten", axis=1)
    y = b.op("Gemm", [x, b.weight("fc.weight", 5, 16), b.weight("fc.bias", 5)], "fc", transB=1)
    return b.model({"x": ["N", 3, 8, 8]}, y)


def samples() -> dict[str, np.ndarray]:
    """Inputs, some of whose channels are larger than others."""
    rng = np.random.default_rng(0)
    scale = np.array([0.3, 1.0, 3.0]).reshape(1, 3, 1, 1)
    return {"x": (rng.standard_normal((60, 3, 8, 8)) * scale).astype(np.float32)}


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1}


def patterned(model: onnx.ModelProto) -> bool:
    loaded = Model.load(model)
    targets = [t for t in find(loaded)[0] if t.shape[2] >= 4]
    zeros = [t.layout.view(t.zeros(np.asarray(loaded.weight(t.name)))) for t in targets]
    return len(zeros) == 3 and all(holds(parse_pattern("2:4"), z) for z in zeros)


def test_by_magnitude_more_is_kept() -> None:
    proto = net()
    plain, other = (onnxprune.sparsify(proto, pattern="2:4", permute=p) for p in (False, True))
    assert patterned(plain.model)
    assert patterned(other.model)
    energy = {name: float((w.astype(np.float64) ** 2).mean()) for name, w in weights(proto).items()}
    plain_kept, kept = (
        sum(float((w.astype(np.float64) ** 2).sum()) / energy[n] for n, w in weights(r.model).items())
        for r in (plain, other)
    )
    gains = other.report.to_json()["order"]["groups"]
    assert kept > plain_kept
    assert kept - plain_kept == pytest.approx(sum(g["after"] - g["before"] for g in gains), rel=1e-3)
    assert plain.report.order is None
    assert "order" not in plain.report.to_json()


@pytest.mark.parametrize("method", METHODS)
def test_with_samples_it_follows_the_method(method: str) -> None:
    result = onnxprune.sparsify(net(), pattern="2:4", method=method, permute=True, calib=samples())
    assert patterned(result.model)
    order = result.report.to_json()["order"]
    assert {g["group"] for g in order["groups"]} == {"stem.weight:0", "up.weight:0"}
    assert order["law1"] < 1e-4
    assert result.report.calibration is not None
    assert not any("can't be fitted" in note for note in result.report.notes)


def test_the_command_says_what_the_order_brings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    report = tmp_path / "r.json"
    args = [
        "sparsify",
        str(tmp_path / "in.onnx"),
        str(tmp_path / "out.onnx"),
        "--pattern",
        "2:4",
        "--permute",
    ]
    assert main([*args, "--report", str(report)]) == 0
    assert "another one for 2 groups of channels" in capsys.readouterr().out
    assert len(json.loads(report.read_text())["order"]["groups"]) == 2
    first = (tmp_path / "out.onnx").read_bytes()
    assert main(args) == 0
    assert (tmp_path / "out.onnx").read_bytes() == first


def test_other_patterns_refuse_it() -> None:
    with pytest.raises(onnxprune.OnnxPruneError, match="--permute is for N:M"):
        onnxprune.sparsify(net(), pattern="unstructured", sparsity=0.5, permute=True)
