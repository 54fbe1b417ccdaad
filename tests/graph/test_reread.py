"""A tensor that is laid out flat and looked up in its own order is cut as the tensor that it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import normal
from onnx import helper
from outside import masked, run
from small_models import Builder

import onnxprune
from onnxprune.graph.inline import inline
from onnxprune.model import Model

WIDTH = 6


def strided(change: str = "", batch: int | str = "N", opset: int = 18) -> onnx.ModelProto:
    """The mean over positions as PyTorch's newer exporter writes it for a dynamic batch: by as_strided."""
    b = Builder(4)
    h = b.op("Relu", [b.conv("x", "one", 3, WIDTH)], "r")
    axes = b.constant("axes", np.array([2, 3], np.int64))
    mean = b.op("ReduceMean", [h, axes], "mean", keepdims=1)
    flat = b.op("Reshape", [mean, b.constant("all", np.array([-1], np.int64))], "flat")
    channels = np.arange(WIDTH).reshape(1, WIDTH, 1, 1)
    table = b.constant("channels", channels[:, ::-1].copy() if change == "order" else channels)
    if isinstance(batch, int):
        index = b.constant("index", np.arange(batch)[:, None, None, None] * WIDTH + channels)
    else:
        size = b.op("Shape", ["other" if change == "another batch" else "x"], "size", start=0, end=1)
        zero, one = (b.constant(f"number{n}", np.array(n, np.int64)) for n in (0, 1))
        rows = b.op("Range", [one if change == "start" else zero, b.op("Squeeze", [size], "n"), one], "rows")
        if change == "square":
            rows = b.op("Mul", [rows, rows], "squared")
        stride = b.constant("stride", np.array(WIDTH - (change == "stride"), np.int64))
        rows = b.op("Mul", [rows, stride], "starts")
        if change != "row":
            behind = np.array([0, 2, 3] if change == "axis" else [1, 2, 3], np.int64)
            rows = b.op("Unsqueeze", [rows, b.constant("behind", behind)], "column")
        index = b.op("Add", [b.op("Add", [rows, table], "index"), zero], "index.more")
    looked = b.op("Gather", [flat, index], "strided", axis=0)
    y = b.op("Flatten", [b.conv(looked, "two", WIDTH, 4, 1)], "y") if change != "axis" else looked
    inputs = {"x": [batch, 3, "H", "W"], "other": ["M", 3]}
    if change != "another batch":
        del inputs["other"]
    return b.model(inputs, y, opset)


@pytest.mark.parametrize("batch", ["N", 2])
def test_what_is_looked_up_in_its_own_order_is_cut(batch: int | str) -> None:
    model = strided(batch=batch)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert {(c.tensor, c.axis) for c in result.report.cuts} >= {("one.weight", 0), ("two.weight", 1)}
    assert not {"Gather", "Range"} & {node.op_type for node in result.model.graph.node}
    twin = masked(model, result)
    for n in (1, 3) if isinstance(batch, str) else (2,):
        given = {"x": normal(n, 3, 5, 7)}
        want, have, whole = (run(m, given)[0] for m in (twin, result.model, model))
        np.testing.assert_allclose(have, want, atol=1e-5)
        assert np.abs(whole - have).max() > 1e-3


@pytest.mark.parametrize("change", ["order", "another batch", "start", "square", "stride", "axis", "row"])
def test_lookups_in_another_order_stay(change: str) -> None:
    model = Model.load(strided(change))
    assert inline(model) is model


def test_a_long_sum_of_sums_ends() -> None:
    model = strided()
    (last,) = (node for node in model.graph.node if node.name == "strided")
    place = next(n for n, node in enumerate(model.graph.node) if node is last or node.name == "strided")
    name = last.input[1]
    for n in range(2000):
        model.graph.node.insert(place + n, helper.make_node("Add", [name, name], [f"twice{n}"]))
        name = f"twice{n}"
    model.graph.node[place + 2000].input[1] = name
    long = Model.load(model)
    assert inline(long) is long
