"""Sizes that leave the reach of the rewriter freeze what they count; fused ops are traced too."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune.errors import NothingToPrune

from small_models import Builder  # isort: skip


def model(kind: str) -> onnx.ModelProto:
    """Conv (8 channels), Conv, and something that reads the size of what is between them."""
    b = Builder(1)
    x = b.op("Relu", [b.conv("x", "conv1", 3, 8)], "relu")
    size = b.op("Shape", [x], "shape")
    channels = b.op("Gather", [size, b.constant("one", np.array(1))], "channels")
    height = b.op("Gather", [size, b.constant("two", np.array([2]))], "height")
    read = {"shape": size, "channels": channels, "height": height, "none": ""}
    if kind == "range":
        read[kind] = b.op(
            "Range", [b.constant("zero", np.array(0)), channels, b.constant("step", np.array(1))], "range"
        )
    if kind == "index":  # of a size, and computed from the channels
        six = b.op("Sub", [channels, b.constant("six", np.array(6))], "minus")
        read[kind] = b.op("Gather", [b.op("Shape", ["x"], "input"), six], "picked")
    if kind == "subgraph":
        then = helper.make_graph([helper.make_node("Identity", [channels], ["t"])], "then", [], [_info("t")])
        other = helper.make_graph([helper.make_node("Neg", [channels], ["e"])], "else", [], [_info("e")])
        read[kind] = b.op(
            "If", [b.constant("yes", np.array(True))], "if", then_branch=then, else_branch=other
        )
    found = b.model({"x": [1, 3, 6, 6]}, b.conv(x, "conv2", 8, 4))
    if read[kind]:
        found.graph.output.append(_info(read[kind]))
    return found


def _info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, None)


@pytest.mark.parametrize("kind", ["shape", "channels", "range", "index", "subgraph"])
def test_what_an_escaping_size_counts_is_frozen(kind: str) -> None:
    with pytest.raises(
        NothingToPrune, match="its size is read by a graph output, a subgraph or an op without a row"
    ):
        onnxprune.prune(model(kind), ratio=0.5, align=1, verify=False)


@pytest.mark.parametrize("kind", ["height", "none"])
def test_other_axes_stay_free(kind: str) -> None:
    found = onnxprune.prune(model(kind), ratio=0.5, align=1)
    assert {(cut.tensor, cut.axis) for cut in found.report.cuts} >= {("conv1.weight", 0), ("conv2.weight", 1)}


@pytest.mark.parametrize(("op", "weight"), [("FusedConv", (8, 3, 1, 1)), ("FusedGemm", (3, 8))])
def test_fused_ops_are_traced(op: str, weight: tuple[int, ...]) -> None:
    b = Builder(1)
    attrs = {"kernel_shape": [1, 1]} if op == "FusedConv" else {}
    inputs = ["x", b.weight("w", *weight), b.weight("b", 8)]
    y = b.op(op, inputs, "fused", domain="com.microsoft", activation="Relu", **attrs)
    y = b.conv(y, "last", 8, 4) if op == "FusedConv" else b.linear(y, "last", 8, 4)
    shape = [1, 3, 6, 6] if op == "FusedConv" else [2, 3]
    graph = helper.make_graph(
        b.nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)], b.weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    found = onnxprune.prune(helper.make_model(graph, opset_imports=opsets, ir_version=8), ratio=0.5, align=1)
    assert found.report.law1["max_relative_error"] < 1e-5
    assert "w" in {cut.tensor for cut in found.report.cuts}
