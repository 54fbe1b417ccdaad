"""Sizes that no guess meets are taken from the inputs or samples that are given anyway."""

from typing import Any

import numpy as np
import onnx
import pytest
from small_models import Builder

import onnxprune
from onnxprune.errors import ModelError, OnnxPruneError

LENGTH = 7 * 1012 + 10


def framed() -> onnx.ModelProto:
    """A signal of a fixed number of samples, which only the width of its last layer says."""
    b = Builder(7)
    x = b.op("Conv", ["x", b.weight("first.weight", 8, 1, 10)], "first", strides=[7])
    x = b.op("MaxPool", [b.op("Relu", [x], "act")], "pool", kernel_shape=[11], strides=[11])
    x = b.op("Conv", [x, b.weight("second.weight", 8, 8, 3)], "second", strides=[2])
    x = b.op("Flatten", [b.op("Relu", [x], "act2")], "flat")
    return b.model({"x": ["N", 1, "length"]}, b.linear(x, "out", 8 * 45, 3))


def given(n: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((n, 1, LENGTH)).astype(np.float32)}


@pytest.mark.parametrize("more", [{"inputs": given(3)}, {"calib": given(60)}, {"calib": [given(4)] * 15}])
def test_shapes_of_inputs_and_samples_bind_dynamic_axes(more: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="--input-shape"):
        onnxprune.prune(framed(), ratio=0.5, align=None)
    report = onnxprune.prune(framed(), ratio=0.5, align=None, **more).report
    assert report.input_shapes["x"][2] == LENGTH
    assert any("sizes that the samples have" in note for note in report.notes)


def test_what_can_be_read_but_once_is_left_for_the_fit() -> None:
    with pytest.raises(ModelError, match="--input-shape"):
        onnxprune.prune(framed(), ratio=0.5, align=None, calib=iter([given(60)]))


def test_samples_that_dont_fit_either_are_refused() -> None:
    with pytest.raises(OnnxPruneError):
        onnxprune.prune(framed(), ratio=0.5, align=None, calib={"x": given(60)["x"][..., 900:]})


def test_sparsify_too() -> None:
    result = onnxprune.sparsify(framed(), pattern="unstructured", sparsity=0.5, calib=given(60))
    assert any("sizes that the samples have" in note for note in result.report.notes)
