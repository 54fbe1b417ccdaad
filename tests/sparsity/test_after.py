"""What comes after: dead units go by shrink, and onnxruntime's own quantisation keeps the zeros."""

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import onnxprune
from onnxprune.api import inspect_sparsity
from onnxprune.model import Model
from onnxprune.sparsity.weights import find

from .models import graph, one, run, values

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = {
    "cnn": ROOT / "samples/01_digits_cnn/digits_cnn.onnx",
    "transformer": ROOT / "samples/02_digits_transformer/digits_transformer.onnx",
}


def feed_of(path, count=32):
    """The digits in the form that a sample net takes."""
    value = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0]
    with np.load(ROOT / "samples/data/digits.npz") as data:
        images = next(a for n, a in data.items() if "test" in n and a.ndim > 1).astype(np.float32)
    shape = [count if not isinstance(d, int) else d for d in value.shape]
    return {value.name: images[:count].reshape(shape)}


def outputs(path, feed):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]


@pytest.mark.parametrize(("pattern", "sparsity"), [("vector", 0.6), ("kernel", 0.97)])
@pytest.mark.parametrize("calib", [False, True])
def test_dead_channels_go_by_shrink(pattern, sparsity, calib, tmp_path):
    source, path = SAMPLES["cnn"], tmp_path / "sparse.onnx"
    feed = feed_of(source)
    more = {"calib": feed, "scope": "local"} if calib else {}
    result = onnxprune.sparsify(source, path, pattern=pattern, sparsity=sparsity, **more)
    notes = [text for text in result.report.notes if "shrink" in text]
    assert notes, "the user must be told"
    small = onnxprune.run(path, "shrink", tmp_path / "small.onnx")
    before, after = (sum(np.prod(m.info(n).dims) for n in m.names()) for m in (result.sparse, small))
    assert after < 0.9 * before
    want, have = outputs(path, feed), outputs(tmp_path / "small.onnx", feed)
    assert np.abs(want).max() > 0
    assert np.allclose(want, have, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_nothing_is_said_where_nothing_is_dead():
    result = onnxprune.sparsify(one("Conv", values((8, 8, 3, 3)), ["N", 8, 5, 5]), pattern="2:4")
    assert result.report.notes == []


class Reader(CalibrationDataReader):
    def __init__(self, feed):
        self.feeds = iter([feed])

    def get_next(self):
        return next(self.feeds, None)


def zero_share(path):
    """Zeros of the weights that products read, as they are read."""
    found = inspect_sparsity(Model.load(path)).tensors
    return {t.tensor: t.zeros / t.weights for t in found if t.weights >= 64}


def masks(path):
    model = Model.load(path)
    return {t.name: t.zeros(np.asarray(model.weight(t.name))) for t in find(model)[0]}


def dynamically(small, out, original):
    """Quantise; skip where onnxruntime refuses the original too, as before 1.32 it does where it mistakes a shape."""
    try:
        quantize_dynamic(small, out, weight_type=QuantType.QInt8)
    except onnx.shape_inference.InferenceError:
        try:
            quantize_dynamic(original, out, weight_type=QuantType.QInt8)
        except onnx.shape_inference.InferenceError as error:
            pytest.skip(f"onnxruntime's quantiser refuses the original too: {error}")
        raise


@pytest.mark.parametrize("net", SAMPLES)
@pytest.mark.parametrize("way", ["static", "dynamic"])
@pytest.mark.parametrize("first", ["sparse", "pruned"])
def test_zeros_stay_zeros(net, way, first, tmp_path):
    source, small, out = SAMPLES[net], tmp_path / "small.onnx", tmp_path / "int8.onnx"
    if first == "pruned":
        onnxprune.prune(source, tmp_path / "cut.onnx", ratio=0.3)
        source = tmp_path / "cut.onnx"
    onnxprune.sparsify(source, small, pattern="2:4")
    feed = feed_of(small)
    if way == "static":
        quantize_static(small, out, Reader(feed), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8,
                        per_channel=True)  # fmt: skip
    else:
        dynamically(small, out, SAMPLES[net])
    want, have = outputs(small, feed), outputs(out, feed)
    assert np.isfinite(have).all()
    assert np.corrcoef(want.ravel(), have.ravel())[0, 1] > 0.9
    before, after = masks(small), masks(out)
    seen = 0
    for name, zero in before.items():
        quantised = after.get(f"{name}_quantized", after.get(name))
        if quantised is not None and quantised.shape == zero.shape:
            assert quantised[zero].all(), name
            seen += 1
    assert seen >= 2, (sorted(before), sorted(after))
    sparse = [t for t in inspect_sparsity(Model.load(out)).tensors if t.dims and t.dims[t.axis or 0] % 4 == 0]
    assert any("2:4" in t.holds for t in sparse)


def test_a_quantised_model_can_be_sparsified(tmp_path):
    out, feed = tmp_path / "int8.onnx", feed_of(SAMPLES["cnn"])
    quantize_static(SAMPLES["cnn"], out, Reader(feed), quant_format=QuantFormat.QDQ, per_channel=True)
    result = onnxprune.sparsify(out, tmp_path / "sparse.onnx", pattern="2:4")
    whole = [line for line in result.report.lines if not line.tail]
    assert len(whole) >= 5
    assert all(line.zeros >= line.weights // 2 and line.two_four for line in whole)
    assert (tmp_path / "sparse.onnx").stat().st_size <= out.stat().st_size
    have = outputs(tmp_path / "sparse.onnx", feed)
    assert np.isfinite(have).all()


def test_the_integer_ops_of_dynamic_quantisation(tmp_path):
    onnx.save(one("MatMul", values((16, 8)), ["N", 16]), tmp_path / "m.onnx")
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", weight_type=QuantType.QUInt8)
    result = onnxprune.sparsify(tmp_path / "q.onnx", pattern="2:4")
    (line,) = result.report.lines
    assert (line.axis, line.zeros, line.two_four) == (0, 64, True)
    weights = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    point = next(w for n, w in weights.items() if "zero_point" in n)
    assert (weights[line.tensor] == point).mean() == 0.5
    x = values((4, 16), 3)
    dense = onnx.load(tmp_path / "q.onnx")
    assert np.linalg.norm(run(result.model, x)[0] - run(dense, x)[0]) < 0.6 * np.linalg.norm(run(dense, x)[0])


def test_a_zero_that_is_no_zero_is_seen():
    """The check of this file can fail: behind a zero point of 3 a stored 0 is none."""
    weights = {"w": np.zeros((8, 8), np.int8), "s": np.float32(0.1), "z": np.int8(3)}
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]),
        onnx.helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    (found,) = inspect_sparsity(Model.load(graph(nodes, weights, ["N", 8]))).tensors
    assert found.zeros == 0
    assert found.holds == []


def test_the_recipe_of_the_readme(tmp_path, monkeypatch):
    (recipe,) = re.findall(
        r"```py\n(.*?)```", (ROOT / "docs" / "zeros.md").read_text(encoding="utf-8"), re.DOTALL
    )
    shutil.copy(SAMPLES["cnn"], tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    exec(recipe, {})
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * (tmp_path / "model.onnx").stat().st_size
