"""Maxima over channels: a zero raises none of what is never below zero, so that these channels go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from nets import normal
from onnxruntime import InferenceSession
from small_models import Builder

import onnxprune
from onnxprune.errors import NothingToPrune

WIDTH = 12


def gated(before: Callable[[Builder, str], str]) -> onnx.ModelProto:
    """A convolution, what comes behind it, and a gate from the greatest of its channels, as in CBAM."""
    b = Builder(5)
    x = before(b, b.conv("x", "wide", 3, WIDTH))
    most = b.op("ReduceMax", [x], "most", axes=[1], keepdims=1)
    y = b.op("Mul", [x, b.op("Sigmoid", [most], "gate")], "gated")
    return b.model({"x": ["N", 3, 6, 6]}, b.conv(y, "out", WIDTH, 4))


def relu(b: Builder, x: str) -> str:
    return b.op("Relu", [x], f"relu_{x}")


def clipped(low: float) -> Callable[[Builder, str], str]:
    def made(b: Builder, x: str) -> str:
        ends = [b.constant(n, np.array(v, np.float32)) for n, v in (("low", low), ("high", 6.0))]
        return b.op("Clip", [x, *ends], "clip")

    return made


def weighed(b: Builder, x: str) -> str:
    """Squeeze and excitation: products and sums of what is never below zero."""
    x = relu(b, x)
    share = b.op("Sigmoid", [b.op("GlobalAveragePool", [x], "pool")], "share")
    x = b.op("Mul", [x, share], "scaled")
    y = b.op("Add", [x, relu(b, x)], "sum")
    return b.op("MaxPool", [y], "pooled", kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def session(model: onnx.ModelProto) -> InferenceSession:
    return InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "before", [relu, clipped(0.0), clipped(0.5), weighed], ids=["relu", "relu6", "above", "weighed"]
)
def test_channels_of_maxima_go_where_nothing_is_below_zero(before: Callable[[Builder, str], str]) -> None:
    model = gated(before)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert [(g["units"], g["removed"]) for g in result.report.groups] == [(WIDTH, WIDTH // 2)]
    assert not result.report.inexact
    gone = next(list(c.removed) for c in result.report.cuts if c.tensor.startswith("out") and c.axis == 1)
    mask = np.ones((1, WIDTH, 1, 1), np.float32)
    mask[:, gone] = 0
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    twin.graph.initializer.append(onnx.numpy_helper.from_array(mask, "mask"))
    at = next(n for n, node in enumerate(twin.graph.node) if node.op_type == "ReduceMax")
    source = twin.graph.node[at].input[0]
    for node in list(twin.graph.node)[at:]:  # whoever reads the channels reads zeros in their places
        node.input[:] = ["masked" if name == source else name for name in node.input]
    twin.graph.node.insert(at, onnx.helper.make_node("Mul", [source, "mask"], ["masked"]))
    for count in (1, 3):
        feed = {"x": normal(count, 3, 6, 6)}
        np.testing.assert_allclose(
            session(twin).run(None, feed)[0], session(result.model).run(None, feed)[0], atol=1e-5
        )


def tanh(b: Builder, x: str) -> str:
    return b.op("Tanh", [x], "tanh")


def lowered(b: Builder, x: str) -> str:
    return b.op("Sub", [relu(b, x), b.constant("one", np.array(1.0, np.float32))], "lowered")


def half(b: Builder, x: str) -> str:
    return b.op("Add", [relu(b, x), tanh(b, x)], "half")


@pytest.mark.parametrize(
    "before", [tanh, lowered, half, clipped(-1.0)], ids=["tanh", "lowered", "half", "below"]
)
def test_others_stay_but_where_that_is_asked_for(before: Callable[[Builder, str], str]) -> None:
    with pytest.raises(NothingToPrune, match="a maximum is taken over it"):
        onnxprune.prune(gated(before), ratio=0.5, align=None)
    assert onnxprune.prune(gated(before), ratio=0.5, align=None, allow_inexact=True).report.inexact
