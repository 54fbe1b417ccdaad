"""LayerNorm over the channels of pictures, written out as ConvNeXt, SAM and NAFNet do, becomes an RMS norm as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import Builder

import onnxprune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.rotation.streams import streams

WIDTH = 16
#: Axes of a picture behind its channels -> sizes.
SPACE: dict[int, list[Any]] = {1: ["L"], 2: ["H", "W"], 3: [4, "H", "W"]}


def norm(b: Builder, x: str, name: str, space: int) -> str:
    ones = [1] * space
    mean = b.op("ReduceMean", [x], f"{name}.first", axes=[1])
    d = b.op("Sub", [x, mean], f"{name}.off")
    squares = b.op("Pow", [d, b.constant(f"{name}.two", np.array(2, np.float32))], f"{name}.pow")
    epsilon = b.constant(f"{name}.eps", np.array(1e-2, np.float32))
    variance = b.op("Add", [b.op("ReduceMean", [squares], f"{name}.mean", axes=[1]), epsilon], f"{name}.add")
    normed = b.op("Div", [d, b.op("Sqrt", [variance], f"{name}.sqrt")], f"{name}.div")
    scaled = b.op("Mul", [normed, b.weight(f"{name}.w", WIDTH, *ones, low=0.5)], f"{name}.scale")
    return b.op("Add", [scaled, b.weight(f"{name}.b", WIDTH, *ones)], f"{name}.shift")


def conv(b: Builder, x: str, name: str, width: int, outputs: int, space: int) -> str:
    inputs = [x, b.weight(f"{name}.weight", outputs, width, *[1] * space), b.weight(f"{name}.bias", outputs)]
    return b.op("Conv", inputs, name)


def network(space: int = 2, *, own: bool = False) -> onnx.ModelProto:
    """Two blocks on a residual stream; own: it begins with what no layer writes."""
    b = Builder(41)
    x = conv(b, "x", "stem", 3, WIDTH, space)
    if own:
        x = b.op("Relu", [x], "first")
    for n in range(2):
        up = conv(b, norm(b, x, f"norm{n}", space), f"up{n}", WIDTH, 24, space)
        x = b.op("Add", [x, conv(b, b.op("Relu", [up], f"act{n}"), f"down{n}", 24, WIDTH, space)], f"add{n}")
    if own:  # read as it is, so that each norm takes the mean off itself
        return b.model({"x": ["N", 3, *SPACE[space]]}, conv(b, x, "head", WIDTH, 5, space))
    return b.model(
        {"x": ["N", 3, *SPACE[space]]}, conv(b, norm(b, x, "last", space), "head", WIDTH, 5, space)
    )


def of_type(model: onnx.ModelProto, elem: int) -> onnx.ModelProto:
    """The same in another type of floats, but for its input and output."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(elem))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in graph.node:
        node.input[:] = ["other" if name == "x" else name for name in node.input]
    last = graph.output[0].name
    graph.node[-1].output[0] = "last_other"
    graph.node.insert(0, helper.make_node("Cast", ["x"], ["other"], "to", to=elem))
    graph.node.append(helper.make_node("Cast", ["last_other"], [last], "back", to=TensorProto.FLOAT))
    return model


def half_cut(model: onnx.ModelProto, **more: Any) -> tuple[Any, dict[str, tuple[int, ...]]]:
    result = onnxprune.prune(model, ratio=0.5, align=None, **more)
    return result, {t.name: tuple(t.dims) for t in result.model.graph.initializer}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("space", SPACE)
def test_the_width_is_cut_with_all_that_writes_and_reads_it(space: int, own: bool) -> None:
    result, weights = half_cut(network(space, own=own))
    ones = (1,) * space
    assert weights["stem.weight"] == (WIDTH // 2, 3, *ones)
    assert weights["down1.weight"] == (WIDTH // 2, 12, *ones)
    assert weights["head.weight"] == (5, WIDTH // 2, *ones)
    assert any("mean_of" in name for name in weights) == own
    assert not result.report.inexact
    assert not result.report.put_back
    assert result.report.law1["max_relative_error"] < 1e-5
    assert len(result.report.law1["sizes"]) >= 3


@pytest.mark.parametrize("own", [False, True])
def test_norms_are_put_back_where_their_width_stays(own: bool) -> None:
    found, left = (
        half_cut(network(own=own), ignore=("stem",), center_norms=choice)[0] for choice in (True, False)
    )
    assert found.model.SerializeToString() == left.model.SerializeToString()


def test_halves_are_averaged_in_floats() -> None:
    result, weights = half_cut(of_type(network(own=True), TensorProto.FLOAT16))
    assert weights["stem.weight"] == (WIDTH // 2, 3, 1, 1)
    kinds = {t.name: t.data_type for t in result.model.graph.initializer}
    assert kinds[f"mean_of_{WIDTH}_in_2d"] == TensorProto.FLOAT
    assert result.report.law1["max_relative_error"] < 1e-2


def test_doubles_which_no_convolution_averages_keep_their_norms() -> None:
    assert streams(analyse(Model.load(network(own=True))))
    assert not streams(analyse(Model.load(of_type(network(own=True), TensorProto.DOUBLE))))
