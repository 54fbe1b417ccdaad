"""Integers of eight bits by onnxruntime's quantiser, as a lever."""

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import pytest
from onnx import numpy_helper
from small_models import Builder

from onnxprune.calibration.samples import load_samples
from onnxprune.errors import OnnxPruneError
from onnxprune.tuning.levers import int8
from onnxprune.tuning.members import Lever


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    b = Builder(3)
    h = b.op("Relu", [b.linear("x", "first", 12, 24)], "relu")
    onnx.save(b.model({"x": ["N", 12]}, b.linear(h, "head", 24, 5)), "in.onnx")
    x = np.random.default_rng(0).standard_normal((200, 12)).astype(np.float32)
    np.savez("s.npz", x=x, y=np.arange(200) % 5)
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "op"),
    [("static", "DequantizeLinear"), ("layers", "DequantizeLinear"), ("dynamic", "MatMulInteger")],
)
def test_onnxruntimes_quantiser_is_a_lever(place: Path, setting: str, op: str) -> None:
    samples = load_samples(onnx.load("in.onnx").graph, "s.npz", labels="y")
    Lever("int8", setting).apply(Path("in.onnx"), Path("int8.onnx"), samples)
    made = onnx.load("int8.onnx")
    assert op in {node.op_type for node in made.graph.node}
    onnx.checker.check_model(made)


def test_what_onnxruntime_warns_of_is_kept_to_itself(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a weight that nothing reads, which a quantiser's own session removes."""
    proto = onnx.load("in.onnx")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unread"))
    onnx.save(proto, "in.onnx")
    samples = load_samples(proto.graph, "s.npz", labels="y")
    Lever("int8", "static").apply(Path("in.onnx"), Path("int8.onnx"), samples)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("setting", "gated"), [("static", True), ("layers", False)])
def test_products_alone_are_in_integers(place: Path, setting: str, gated: bool) -> None:
    """A gate behind them is in floats then."""
    b = Builder(3)
    h = b.linear("x", "first", 12, 12)
    proto = b.model({"x": ["N", 12]}, b.op("Mul", [b.op("Sigmoid", [h], "sigmoid"), h], "gate"))
    onnx.save(proto, "in.onnx")
    samples = load_samples(proto.graph, "s.npz", labels="y")
    Lever("int8", setting).apply(Path("in.onnx"), Path("int8.onnx"), samples)
    made = onnx.load("int8.onnx").graph
    unpacked = {n.output[0] for n in made.node if n.op_type == "DequantizeLinear"}
    (product,) = (n for n in made.node if n.op_type in ("MatMul", "Gemm"))
    (gate,) = (n for n in made.node if n.op_type == "Mul")
    assert {*product.input[:2]} <= unpacked
    assert ({*gate.input} <= unpacked) is gated


@pytest.mark.parametrize("setting", ["static", "layers"])
def test_a_bias_with_an_axis_in_front_is_quantised(place: Path, setting: str) -> None:
    """The quantiser reads it along its first axis, and ended in numpy's "truth value of an array"."""
    proto = onnx.load("in.onnx")
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 1:
            tensor.dims.insert(0, 1)
    onnx.save(proto, "in.onnx")
    samples = load_samples(proto.graph, "s.npz", labels="y")
    Lever("int8", setting).apply(Path("in.onnx"), Path("int8.onnx"), samples)
    assert "DequantizeLinear" in {node.op_type for node in onnx.load("int8.onnx").graph.node}


@pytest.mark.parametrize("setting", ["static", "dynamic"])
def test_weights_that_are_inputs_as_well_are_quantised(place: Path, setting: str) -> None:
    """So wrote exporters before IR version 4; the quantiser's own runs ask for them."""
    proto = onnx.load("in.onnx")
    for weight in proto.graph.initializer:
        value = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        proto.graph.input.append(value)
    proto.ir_version = 3
    onnx.save(proto, "in.onnx")
    samples = load_samples(proto.graph, "s.npz", labels="y")
    Lever("int8", setting).apply(Path("in.onnx"), Path("int8.onnx"), samples)
    made = onnx.load("int8.onnx")
    assert [value.name for value in made.graph.input] == ["x"]
    assert any(t.data_type == onnx.TensorProto.INT8 for t in made.graph.initializer)


@pytest.mark.parametrize("works", [True, False])
def test_weights_of_older_models_have_a_scale_for_each_channel(
    place: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Opset 11 knows one for all; what the converter gets wrong is left as it was."""
    b = Builder(3)
    proto = b.model({"x": ["N", 12]}, b.op("Relu", [b.linear("x", "first", 12, 24)], "relu"), 11)
    onnx.save(proto, "in.onnx")
    if not works:
        other = onnx.version_converter.convert_version(proto, 13)
        other.graph.node[-1].op_type = "Neg"
        monkeypatch.setattr(onnx.version_converter, "convert_version", lambda *_: other)
    samples = load_samples(proto.graph, "s.npz", labels="y")
    Lever("int8", "layers").apply(Path("in.onnx"), Path("int8.onnx"), samples)
    scales = [numpy_helper.to_array(t) for t in onnx.load("int8.onnx").graph.initializer if "scale" in t.name]
    assert (max(s.size for s in scales) == 24) is works
    assert "Neg" not in {n.op_type for n in onnx.load("int8.onnx").graph.node}


@pytest.mark.parametrize("setting", ["static", "dynamic"])
@pytest.mark.parametrize("narrow", [False, True])
def test_weights_have_seven_bits_where_sums_saturate(
    place: Path, monkeypatch: pytest.MonkeyPatch, setting: str, narrow: bool
) -> None:
    """Two products of u8 and s8 don't fit 16 bits: onnxruntime's default cuts such sums on x86 without VNNI."""
    monkeypatch.setattr(int8, "saturates", lambda: narrow)
    samples = load_samples(onnx.load("in.onnx").graph, "s.npz", labels="y")
    Lever("int8", setting).apply(Path("in.onnx"), Path("int8.onnx"), samples)
    weights = [numpy_helper.to_array(t) for t in onnx.load("int8.onnx").graph.initializer if t.data_type == 3]
    most = max(abs(int(w.min())) for w in weights if w.size > 1)
    assert most in ((63, 64) if narrow else (127, 128))


def test_a_quantiser_that_fails_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime.quantization as ort

    def failing(*_: object, **__: object) -> None:
        raise ValueError("no such type")

    monkeypatch.setattr(ort, "quantize_dynamic", failing)
    samples = load_samples(onnx.load("in.onnx").graph, "s.npz", labels="y")
    with pytest.raises(OnnxPruneError, match=r"doesn't take the model \(ValueError: no such type\)"):
        Lever("int8", "dynamic").apply(Path("in.onnx"), Path("int8.onnx"), samples)
    assert not Path("int8.onnx").exists()
