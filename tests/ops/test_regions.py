"""What a node leaves whole passes: channels at a Resize of regions, and the element of an optional that is a tensor."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import normal
from onnx import helper
from onnxruntime import InferenceSession
from outside import masked
from small_models import Builder

import onnxprune
from onnxprune.errors import NothingToPrune
from onnxprune.testing import check_row

#: Regions by axis: all of them, parts of rows and columns, a part of the channels.
WHOLE, INSIDE, CHANNELS = (0.0, 0.0), (0.25, 0.25), (0.1, 0.25)


def resized(roi: tuple[float, float], mode: str = "linear", **attrs: float) -> onnx.ModelProto:
    """A region of a picture is resized between two convolutions; the last axes are dynamic."""
    starts = np.array([0, roi[0] if roi is CHANNELS else 0, roi[1], roi[1]], np.float32)
    b = Builder(2)
    h = b.op("Relu", [b.conv("x", "one", 3, 16)], "r")
    region = b.constant("roi", np.concatenate([starts, 1 - starts]))
    scales = b.constant("scales", np.array([1, 1, 2, 2], np.float32))
    how = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": mode, **attrs}
    return b.model(
        {"x": ["N", 3, "H", "W"]}, b.conv(b.op("Resize", [h, region, scales], "z", **how), "two", 16, 4)
    )


@pytest.mark.parametrize("roi", [WHOLE, INSIDE])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_channels_pass_a_resize_of_regions(roi: tuple[float, float], mode: str) -> None:
    model = resized(roi, mode)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert [(g["units"], g["removed"]) for g in result.report.groups] == [(16, 8)]
    twin = masked(model, result)
    for shape in [(1, 3, 8, 8), (2, 3, 12, 6)]:
        feed = {"x": normal(*shape)}
        one, other = (
            InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
            for m in (twin, result.model)
        )
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_channels_stay_where_a_region_of_them_is_taken_or_something_is_filled_in() -> None:
    with pytest.raises(NothingToPrune, match="resized"):
        onnxprune.prune(resized(CHANNELS), ratio=0.5, align=None)
    with pytest.raises(NothingToPrune, match="fills in"):
        onnxprune.prune(resized(WHOLE, extrapolation_value=2.0), ratio=0.5, align=None)


def test_axes_that_are_not_named_are_whole() -> None:
    x, roi = normal(2, 4, 6, 6), np.array([0.2, 0, 0.8, 1], np.float32)
    node = helper.make_node(
        "Resize", ["x", "roi", "s"], ["y"], axes=[2, -1], coordinate_transformation_mode="tf_crop_and_resize"
    )
    assert check_row(node, {"x": x, "roi": roi, "s": np.array([2, 1], np.float32)}) == []


def test_the_element_of_an_optional_that_is_a_plain_tensor_is_that_tensor() -> None:
    b = Builder(2)
    h = b.op("OptionalGetElement", [b.op("Relu", [b.conv("x", "one", 3, 16)], "r")], "element")
    model = b.model({"x": ["N", 3, 8, 8]}, b.conv(h, "two", 16, 4), 18)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert [(g["units"], g["removed"]) for g in result.report.groups] == [(16, 8)]
