"""Spelled out RMS norms keep their form in a cut: epsilon and scale take what the mean of squares lost."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import Builder

import onnxprune
from onnxprune.cut import shares

WIDTH = 16


def norm(b: Builder, x: str, name: str, form: str, epsilon: str) -> str:
    """x / sqrt(mean(x^2) + e) * w in the forms that exporters write."""
    half = form == "half"
    x = b.op("Cast", [x], f"{name}.wide", to=TensorProto.FLOAT) if half else x
    squares = b.op("Mul", [x, x], f"{name}.squares")
    mean = b.op("ReduceMean", [squares], f"{name}.mean", axes=[-1])
    root = b.op("Sqrt", [b.op("Add", [mean, epsilon], f"{name}.add")], f"{name}.root")
    if form == "reciprocal":
        y = b.op("Mul", [x, b.op("Reciprocal", [root], f"{name}.inverse")], f"{name}.normed")
    else:
        y = b.op("Div", [x, root], f"{name}.normed")
    if form == "no scale":
        return y
    kind = np.float16 if half else np.float32
    weight = b.constant(f"{name}.w", b.rng.uniform(0.5, 1.5, WIDTH).astype(kind))
    y = b.op("Cast", [y], f"{name}.narrow", to=TensorProto.FLOAT16) if half else y
    y = b.op("Mul", [y, weight], f"{name}.out")
    return b.op("Cast", [y], f"{name}.again", to=TensorProto.FLOAT) if half else y


def network(form: str) -> onnx.ModelProto:
    """Two norms on a stream, which share their epsilon."""
    b = Builder(21)
    epsilon = b.constant("epsilon", np.array(1e-2, np.float32))
    x = b.linear("x", "first", 6, WIDTH)
    y = b.op("Relu", [b.linear(norm(b, x, "one", form, epsilon), "up", WIDTH, 24)], "act")
    x = b.op("Add", [x, b.linear(y, "down", 24, WIDTH)], "sum")
    return b.model({"x": ["N", 3, 6]}, b.linear(norm(b, x, "last", form, epsilon), "head", WIDTH, 5))


def ops(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


@pytest.mark.parametrize("form", ["quotient", "reciprocal"])
def test_no_node_is_added_and_law_1_holds(form: str) -> None:
    model = network(form)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    weights = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    assert weights["first.weight"].shape == (6, WIDTH // 2)
    assert ops(result.model) == ops(model)
    assert sorted(float(v) for n, v in weights.items() if n.startswith("epsilon")) == pytest.approx(
        [2e-2] * 2
    )
    assert result.report.law1["max_relative_error"] < 1e-5
    assert not result.report.put_back


@pytest.mark.parametrize("form", ["no scale", "half"])
def test_where_constants_cannot_take_it_the_product_stays(form: str) -> None:
    model = network(form)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert ops(result.model).count("Mul") == ops(model).count("Mul") + 2
    assert result.report.law1["max_relative_error"] < 1e-4
    assert not result.report.put_back


def test_a_scale_that_takes_the_wrong_share_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "sqrt", lambda share: share)
    result = onnxprune.prune(network("quotient"), ratio=0.5, align=None)
    assert any("law 1 doesn't hold" in entry["reason"] for entry in result.report.put_back)


def test_a_variance_that_is_an_output_keeps_its_mean() -> None:
    model = network("quotient")
    model.graph.output.append(helper.make_tensor_value_info("one.mean_out", TensorProto.FLOAT, ["N", 3, 1]))
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert ops(result.model).count("Mul") == ops(model).count("Mul") + 1
    assert result.report.law1["max_relative_error"] < 1e-5
