"""The pass ``fuse``: normalisations and second layers go into the layer before them, and outputs stay."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
from pass_models import dims, error, ops
from small_models import Builder, chain

import onnxprune
from onnxprune.report.lossless import LosslessReport
from onnxprune.rotation import fusion


def fused(model: onnx.ModelProto, passes: str = "fuse") -> tuple[onnx.ModelProto, LosslessReport]:
    reports: list[LosslessReport] = []
    result = onnxprune.run(model, passes, each=lambda _, report: reports.append(report))
    return result.to_proto(), reports[0]


def conv(b: Builder, x: str, name: str, cin: int, cout: int, k: int = 1, **more: object) -> str:
    """Without a bias unless it is asked for; without a border unless pads are given."""
    inputs = [x, b.weight(f"{name}.weight", cout, cin // int(more.get("group", 1)), k, k)]
    if more.pop("bias", False):
        inputs.append(b.weight(f"{name}.bias", cout))
    return b.op("Conv", inputs, name, kernel_shape=[k, k], **more)


def deconv(b: Builder, x: str) -> str:
    weight = b.weight("up.weight", 4, 6, 2, 2)
    return b.op("ConvTranspose", [x, weight], "up", kernel_shape=[2, 2], strides=[2, 2])


BEFORE: dict[str, Callable[[Builder, str], str]] = {
    "a convolution with a bias": lambda b, x: conv(b, x, "c", 4, 6, 3, bias=True, pads=[1] * 4),
    "a convolution without one": lambda b, x: conv(b, x, "c", 4, 6, 3, strides=[2, 2]),
    "groups": lambda b, x: conv(b, x, "c", 4, 6, 3, bias=True, group=2),
    "a transposed convolution": deconv,
    "a Gemm": lambda b, x: b.op(
        "Gemm",
        [b.op("Flatten", [b.op("GlobalMaxPool", [x], "p")], "f"), b.weight("g", 6, 4), b.weight("gb", 6)],
        "gemm",
        transB=1,
        alpha=0.5,
        beta=2.0,
    ),
    "a product and its sum": lambda b, x: b.linear(
        b.op("Flatten", [b.op("GlobalMaxPool", [x], "p")], "f"), "m", 4, 6
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_norm_goes_into_the_layer_before_it(name: str) -> None:
    b = Builder(4)
    y = b.bn(BEFORE[name](b, "x"), "norm", 6)
    model = b.model({"x": ["N", 4, 8, 8]}, y)
    result, report = fused(model)
    assert "BatchNormalization" not in ops(result)
    assert not [n for n in dims(result) if n.startswith("norm.")]
    assert [g["group"] for g in report.groups] == ["norm"]
    assert error(model, result) < 1e-5
    assert [o.name for o in result.graph.output] == [y]
    assert report.error is not None
    assert report.lines()[0] == "1 layer fused"


def test_a_chain_of_norms_goes_in_one_after_the_other() -> None:
    b = Builder(5)
    y = b.bn(b.bn(conv(b, "x", "c", 3, 5), "one", 5), "two", 5)
    model = b.model({"x": ["N", 3, 4, 4]}, y)
    result, report = fused(model)
    assert ops(result) == ["Conv"]
    assert len(report.groups) == 2
    assert error(model, result) < 1e-5


def test_the_rest_of_a_model_keeps_its_bytes() -> None:
    model = chain()
    result, _ = fused(model)
    assert ops(result) == [op for op in ops(model) if op != "BatchNormalization"]
    before, after = ({t.name: t.SerializeToString() for t in m.graph.initializer} for m in (model, result))
    assert {n for n in after if before[n] != after[n]} == {
        f"conv{k}.{p}" for k in (1, 2) for p in ("weight", "bias")
    }
    assert fused(result)[0].SerializeToString() == result.SerializeToString()


def shared_output(b: Builder) -> str:
    y = conv(b, "x", "c", 4, 4, bias=True)
    return b.op("Add", [b.bn(y, "norm", 4), b.op("Relu", [y], "r")], "sum")


def shared_weight(b: Builder) -> str:
    y = b.bn(conv(b, "x", "c", 4, 4), "norm", 4)
    return b.op("Conv", [y, "c.weight"], "again", kernel_shape=[1, 1])


def no_layer(b: Builder) -> str:
    return b.bn(b.op("Relu", ["x"], "r"), "norm", 4)


def other_axis(b: Builder) -> str:
    x = b.op("Reshape", ["x", b.constant("s", np.array([0, 4, 64]))], "flat")
    return b.bn(b.linear(x, "m", 64, 4), "norm", 4)


REFUSED = {
    shared_output: "the layer's output is read elsewhere, too",
    shared_weight: "the layer's weight is read elsewhere, too",
    no_layer: "no layer with weights of its own gives its input",
    other_axis: "it isn't about the layer's outputs",
}


@pytest.mark.parametrize("make", REFUSED)
def test_what_stays_says_why_and_keeps_its_bytes(make: Callable[[Builder], str]) -> None:
    b = Builder(6)
    model = b.model({"x": ["N", 4, 8, 8]}, make(b))
    result, report = fused(model, "fuse{layers=no}")
    assert report.refused == {"norm": REFUSED[make]}
    assert result.SerializeToString() == model.SerializeToString()
    assert report.lines() == ["no layer could be fused"]


def test_statistics_that_are_inputs_may_change() -> None:
    b = Builder(7)
    model = b.model({"x": ["N", 3, 4, 4]}, b.bn(conv(b, "x", "c", 3, 5), "norm", 5))
    model.graph.input.append(onnx.helper.make_tensor_value_info("norm.mean", onnx.TensorProto.FLOAT, [5]))
    result, report = fused(model)
    assert report.refused
    assert "BatchNormalization" in ops(result)


Pair = tuple[int, int, int, int, int, dict[str, object], dict[str, object]]
#: Channels in, between and out, kernels, and what else the two convolutions have; then why they stay, if so.
PAIRS: dict[str, tuple[Pair, str]] = {
    "a window, then one position": ((4, 32, 6, 3, 1, {"bias": True, "pads": [1] * 4}, {"bias": True}), ""),
    "the second has no bias": ((4, 32, 6, 3, 1, {"bias": True, "strides": [2, 2]}, {}), ""),
    "one position, then a window": ((4, 32, 6, 1, 3, {"bias": True}, {"bias": True}), ""),
    "a border, and no bias in front of it": ((4, 32, 6, 1, 3, {}, {"bias": True, "pads": [1] * 4}), ""),
    "a border and a bias": ((4, 32, 6, 1, 3, {"bias": True}, {"pads": [1] * 4}), "one layer would take more"),
    "narrow on purpose": ((32, 4, 32, 1, 1, {}, {}), "one layer would take more"),
    "two windows": ((4, 32, 6, 3, 3, {}, {}), "one layer would take more"),
    "fewer positions behind": ((4, 8, 6, 3, 1, {}, {"strides": [2, 2]}), "one layer would take more"),
    "groups": ((4, 32, 4, 3, 1, {}, {"group": 2}), "it is a grouped convolution"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_layers_are_one_where_that_is_exact_and_pays(name: str) -> None:
    (cin, between, out, k, second, one, two), why = PAIRS[name]
    b = Builder(8)
    y = conv(b, conv(b, "x", "one", cin, between, k, **one), "two", between, out, second, **two)
    model = b.model({"x": ["N", cin, 8, 8]}, y)
    result, report = fused(model)
    assert error(model, result) < 1e-5
    assert len(ops(result)) == (2 if why else 1)
    assert list(report.refused) == (["two"] if why else [])
    assert all(reason.startswith(why) for reason in report.refused.values())
    if why:
        assert result.SerializeToString() == model.SerializeToString()


def test_products_are_one_with_their_sums() -> None:
    b = Builder(9)
    y = b.linear(b.linear("x", "one", 6, 40), "two", 40, 5)
    model = b.model({"x": ["N", "T", 6]}, y)
    result, _ = fused(model)
    assert ops(result) == ["MatMul", "Add"]
    assert error(model, result) < 1e-5


def test_what_is_not_the_same_is_put_back_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fusion._FusionFinder.norms

    def wrong(self: fusion._FusionFinder) -> Iterator[fusion.Fusion]:
        for one in right(self):
            yield replace(one, bias=one.bias + 1) if one.name == "conv2.bn" else one

    monkeypatch.setattr(fusion._FusionFinder, "norms", wrong)
    model = chain()
    result, report = fused(model)
    assert [g["group"] for g in report.groups] == ["conv1.bn"]
    assert "differs" in report.refused["conv2.bn"]
    assert error(model, result) < 1e-5


def test_norms_or_layers_may_be_left_alone() -> None:
    b = Builder(10)
    y = b.bn(conv(b, conv(b, "x", "one", 4, 32, 3), "two", 32, 6), "norm", 6)
    model = b.model({"x": ["N", 4, 8, 8]}, y)
    assert ops(fused(model)[0]) == ["Conv"]
    assert ops(fused(model, "fuse{norms=no}")[0]) == ["Conv", "BatchNormalization"]
    assert ops(fused(model, "fuse{layers=no}")[0]) == ["Conv", "Conv"]


def test_an_old_model_lists_its_weights_as_inputs() -> None:
    """Below IR version 4 every weight is an input as well, and that says nothing of it."""
    model = chain(opset=9)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    result, report = fused(model)
    assert len(report.groups) == 2
    assert "BatchNormalization" not in ops(result)
    assert {v.name for v in result.graph.input} == {"x", *dims(result)}
