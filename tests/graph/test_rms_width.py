"""The width of a residual stream that RMS norms read is cut exactly; that of a LayerNorm as it is, is not."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import Builder

import onnxprune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model

WIDTH = 12


def decomposed(b: Builder, x: str, name: str, *, square: str = "pow", centred: bool = False) -> str:
    """x / sqrt(mean(x^2) + e) * w, as PyTorch exports it; with its mean taken off it is a LayerNorm."""
    if centred:
        mean = b.op("ReduceMean", [x], f"{name}.first", axes=[-1])
        x = b.op("Sub", [x, mean], f"{name}.centred")
    two = b.constant(f"{name}.two", np.array(2, np.float32))
    squares = b.op("Pow", [x, two], f"{name}.pow") if square == "pow" else b.op("Mul", [x, x], f"{name}.mul")
    mean = b.op("ReduceMean", [squares], f"{name}.mean", axes=[-1])
    eps = b.constant(f"{name}.eps", np.array(1e-2, np.float32))
    root = b.op("Sqrt", [b.op("Add", [mean, eps], f"{name}.add")], f"{name}.sqrt")
    return b.op("Mul", [b.op("Div", [x, root], f"{name}.div"), b.weight(f"{name}.w", WIDTH)], f"{name}.out")


def fused(b: Builder, x: str, name: str) -> str:
    return b.op(
        "SimplifiedLayerNormalization", [x, b.weight(f"{name}.w", WIDTH)], name, axis=-1, epsilon=1e-2
    )


def skipping(b: Builder, x: str, name: str) -> str:
    """The sum with a skip and a bias is part of the norm, and read again."""
    skip = b.linear(x, f"{name}.skip", WIDTH, WIDTH)
    inputs = [x, skip, b.weight(f"{name}.w", WIDTH), b.weight(f"{name}.b", WIDTH)]
    outputs = [f"{name}.out", "", "", f"{name}.sum"]
    b.nodes.append(
        helper.make_node(
            "SkipSimplifiedLayerNormalization", inputs, outputs, name, domain="com.microsoft", epsilon=1e-2
        )
    )
    return b.op("Add", [outputs[0], outputs[3]], f"{name}.both")


def stream(norm: Any, **kinds: Any) -> onnx.ModelProto:
    """Two blocks on a residual stream."""
    b = Builder(21)
    x = b.linear("x", "first", 6, WIDTH)
    for n in range(2):
        y = b.linear(norm(b, x, f"norm{n}", **kinds), f"up{n}", WIDTH, 24)
        x = b.op("Add", [x, b.linear(b.op("Relu", [y], f"act{n}"), f"down{n}", 24, WIDTH)], f"add{n}")
    return b.model(
        {"x": ["N", 3, 6]}, b.linear(norm(b, x, "last", **kinds), "head", WIDTH, 5), domain="com.microsoft"
    )


CASES: dict[str, onnx.ModelProto] = {
    "pow": stream(decomposed),
    "mul": stream(decomposed, square="mul"),
    "fused": stream(fused),
    "skip": stream(skipping),
}


@pytest.mark.parametrize("name", CASES)
def test_the_stream_is_cut_with_all_that_writes_and_reads_it(name: str) -> None:
    result = onnxprune.prune(CASES[name], ratio=0.5, align=None)
    weights = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert weights["first.weight"] == (6, WIDTH // 2)
    assert weights["up0.weight"] == (WIDTH // 2, 12)
    assert weights["down1.weight"] == (12, WIDTH // 2)
    assert weights["head.weight"] == (WIDTH // 2, 5)
    assert not result.report.inexact
    assert not result.report.put_back
    assert result.report.law1["max_relative_error"] < 1e-5


def halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in half floats."""
    half = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in half.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return half


@pytest.mark.parametrize("left", [6, 5])
@pytest.mark.parametrize("name", ["mul", "fused", "skip"])
def test_factors_that_no_half_float_holds_lose_nothing(name: str, left: int) -> None:
    """Neither sqrt(2), nor 5 / 12: rounded, all channels would be off by as much."""
    result = onnxprune.prune(halves(CASES[name]), ratio=1 - left / WIDTH, align=None)
    weights = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert weights["first.weight"] == (6, left)
    assert not result.report.put_back
    assert result.report.law1["max_relative_error"] < 1e-5


@pytest.mark.parametrize("name", ["pow", "fused", "skip"])
def test_without_the_count_put_right_the_proof_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.ops.base import EMITTERS

    for key in list(EMITTERS):
        if key[1] in ("ReduceMean", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"):
            monkeypatch.setitem(EMITTERS, key, lambda node, cut: [])
    result = onnxprune.prune(CASES[name], ratio=0.5, align=None)
    assert any("law 1 doesn't hold" in entry["reason"] for entry in result.report.put_back)


def test_a_stream_whose_mean_is_taken_off_stays() -> None:
    model = stream(decomposed, centred=True)
    whole = onnxprune.prune(model, ratio=0.5, align=None, center_norms=False)
    assert whole.model.graph.initializer[0].dims[1] == WIDTH
    inexact = onnxprune.prune(model, ratio=0.5, align=None, allow_inexact=True)
    assert inexact.report.inexact
    assert inexact.model.graph.initializer[0].dims[1] == WIDTH // 2
    assert not any(
        t.name.endswith("_factor") for t in inexact.model.graph.initializer
    )  # averages of what is left


def test_statistics_that_are_read_keep_the_average() -> None:
    model = CASES["fused"]
    asked = onnx.ModelProto.FromString(model.SerializeToString())
    node = next(n for n in asked.graph.node if n.op_type == "SimplifiedLayerNormalization")
    node.output.append("deviation")
    asked.graph.output.append(helper.make_tensor_value_info("deviation", onnx.TensorProto.FLOAT, ["N", 3, 1]))
    groups = {g.name for g in analyse(Model.load(asked)).grouping.groups}
    assert "first.weight:1" in {g.name for g in analyse(Model.load(model)).grouping.groups}
    assert "first.weight:1" not in groups


def test_a_cut_norm_computes_what_the_formula_says() -> None:
    """x / sqrt(mean over all + e) * w, with zeros for what went."""
    result = onnxprune.prune(CASES["fused"], ratio=0.5, align=None)
    scale = next(n for n in result.model.graph.node if n.op_type == "SimplifiedLayerNormalization")
    epsilon = next(a.f for a in scale.attribute if a.name == "epsilon")
    assert epsilon == pytest.approx(2e-2)
    factor = next(t for t in result.model.graph.initializer if t.name.endswith("_factor"))
    assert numpy_helper.to_array(factor) == pytest.approx(np.sqrt(2))
