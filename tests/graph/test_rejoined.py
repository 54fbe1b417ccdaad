"""Single channels that a Split takes apart and a Concat joins again are cut as the tensor that they are of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from nets import normal
from onnx import helper
from outside import masked, run
from small_models import Builder

import onnxprune
from onnxprune.errors import NothingToPrune
from onnxprune.graph.inline import inline
from onnxprune.model import Model


def swapped(
    order: Sequence[int], lengths: Sequence[int] = (1,) * 6, between: str = "", opset: int = 17, axis: int = 1
) -> onnx.ModelProto:
    """Channels of a convolution are split, and joined in another order for the next one."""
    b, wide = Builder(4), sum(lengths)
    h = b.op("Relu", [b.conv("x", "one", 3, wide)], "r")
    parts = [f"part{n}" for n in range(len(lengths))]
    given = [h] if opset < 13 else [h, b.constant("lengths", np.array(lengths, np.int64))]
    attrs = {"split": list(lengths)} if opset < 13 else {}
    b.nodes.append(helper.make_node("Split", given, parts, "split", axis=axis, **attrs))
    read = [b.op(between, [parts[n]], f"between{n}") if between else parts[n] for n in order]
    y = b.conv(b.op("Concat", read, "joined", axis=1), "two", sum(lengths[n] for n in order), 4)
    return b.model({"x": ["N", 3, "H", "W"]}, y, opset)


@pytest.mark.parametrize(
    ("order", "lengths"),
    [
        ((0, 1, 2, 3, 4, 5), (1,) * 6),
        ((2, 1, 0, 5, 4, 3), (1,) * 6),
        ((2, 0, 0, 5), (1,) * 6),
        ((1, 0, 2), (1, 4, 3)),
    ],
)
@pytest.mark.parametrize(("opset", "axis"), [(11, 1), (17, -3)])
def test_channels_that_are_joined_again_are_cut(
    order: Sequence[int], lengths: Sequence[int], opset: int, axis: int
) -> None:
    model = swapped(order, lengths, opset=opset, axis=axis)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert {(c.tensor, c.axis) for c in result.report.cuts} >= {("one.weight", 0), ("two.weight", 1)}
    assert "Split" not in {node.op_type for node in result.model.graph.node}
    twin = masked(model, result)
    for shape in [(1, 3, 8, 8), (3, 3, 5, 9)]:
        given = {"x": normal(*shape)}
        want, have, whole = (run(m, given)[0] for m in (twin, result.model, model))
        np.testing.assert_allclose(have, want, atol=1e-5)
        assert np.abs(whole - have).max() > 1e-3


def test_channels_that_are_read_one_by_one_stay() -> None:
    with pytest.raises(NothingToPrune, match="by itself an axis of one element"):
        onnxprune.prune(swapped(range(6), between="Tanh"), ratio=0.5, align=None)
    model = swapped([1, 0, 2, 3, 4, 5])
    model.graph.output.append(helper.make_tensor_value_info("part0", onnx.TensorProto.FLOAT, None))
    with pytest.raises(NothingToPrune, match="axis of the graph output"):
        onnxprune.prune(model, ratio=0.5, align=None)


def test_longer_parts_and_parts_of_an_input_stay_as_they_are() -> None:
    longer = Model.load(swapped([1, 0], (2, 4)))
    assert inline(longer) is longer
    b = Builder(4)
    b.nodes.append(helper.make_node("Split", ["x"], ["red", "green", "blue"], "split", axis=1))
    y = b.conv(b.op("Concat", ["blue", "green", "red"], "joined", axis=1), "one", 3, 4)
    pictures = Model.load(b.model({"x": ["N", 3, "H", "W"]}, y))
    assert inline(pictures) is pictures
