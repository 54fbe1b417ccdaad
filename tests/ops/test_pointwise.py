"""Convolutions whose windows are of one position: what stands at other positions has no part in a result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from nets import normal
from onnxruntime import InferenceSession
from outside import masked
from small_models import Builder

import onnxprune
from onnxprune.errors import NothingToPrune

TOKENS, WIDE = 9, 16


def mixed(op: str = "Conv", **attrs: Any) -> onnx.ModelProto:
    """Tokens are mixed by a convolution over channels, whose positions are the features of a token."""
    b = Builder(6)
    h = b.op("Relu", [b.op("MatMul", ["x", b.weight("up", 8, WIDE)], "wide")], "relu")
    y = b.op(op, [h, b.weight("mix", TOKENS, TOKENS, 1), b.weight("mix.bias", TOKENS)], "mixed", **attrs)
    y = b.op("MatMul", [y, b.weight("down", WIDE + sum(attrs.get("pads", ())), 8)], "y")
    return b.model({"x": ["N", TOKENS, 8]}, y)


def session(model: onnx.ModelProto) -> InferenceSession:
    return InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Conv", {}),
        ("Conv", {"kernel_shape": [1], "strides": [1], "pads": [0, 0]}),
        ("Conv", {"auto_pad": "SAME_UPPER"}),
        ("ConvTranspose", {"output_padding": [0]}),
    ],
)
def test_positions_pass(op: str, attrs: dict[str, Any]) -> None:
    model = mixed(op, **attrs)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert [(g["units"], g["removed"]) for g in result.report.groups] == [(WIDE, WIDE // 2)]
    twin = masked(model, result)
    for count in (1, 4):
        feed = {"x": normal(count, TOKENS, 8)}
        np.testing.assert_allclose(
            session(twin).run(None, feed)[0], session(result.model).run(None, feed)[0], atol=1e-5
        )


def test_positions_of_windows_with_a_border_stay() -> None:
    with pytest.raises(NothingToPrune, match="the positions of a convolution"):
        onnxprune.prune(mixed(pads=[1, 1]), ratio=0.5, align=None)


def test_groups_of_which_no_whole_one_can_go_lose_channels_inside() -> None:
    """Three groups, then five: neither can lose a group, both lose channels of each, whatever the alignment says."""
    b = Builder(7)
    h = b.op("Relu", [b.op("Conv", ["x", b.weight("one", 15, 2, 3, 3)], "c1", group=3)], "r1")
    h = b.op("Relu", [b.op("Conv", [h, b.weight("two", 30, 3, 3, 3)], "c2", group=5)], "r2")
    model = b.model({"x": ["N", 6, 9, 9]}, b.op("Conv", [h, b.weight("out", 4, 30, 1, 1)], "y"))
    for align in ("auto", None):
        result = onnxprune.prune(model, ratio=0.5, align=align)
        removed = [g for g in result.report.groups if g["removed"]]
        assert removed
        feed = {"x": normal(2, 6, 9, 9)}
        assert session(result.model).run(None, feed)[0].shape == (2, 4, 5, 5)
    assert onnxprune.inspect(model).groups
