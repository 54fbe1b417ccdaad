"""Vectors behind one DequantizeLinear are given to each reader apart, as plain vectors are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import node, normal
from onnx import helper, numpy_helper

from onnxprune.graph.apart import apart, together
from onnxprune.model import Model

from outside import half  # isort: skip

WIDTH = 12


def gains(*made: onnx.NodeProto, gain: str = "gain", wide: bool = False) -> onnx.ModelProto:
    """Two layers whose results are multiplied by one quantised vector."""
    nodes = [
        *made,
        node("MatMul", "x w", "a"),
        node("Mul", f"a {gain}", "b"),
        node("Relu", "b", "c"),
        node("MatMul", "c u", "d"),
        node("Mul", f"d {gain}", "e"),
        node("Relu", "e", "f"),
        node("MatMul", "f v", "y"),
    ]
    rng = np.random.default_rng(1)
    weights = {
        "w": normal(6, WIDTH),
        "u": normal(WIDTH, WIDTH, seed=1),
        "v": normal(WIDTH, 4),
        "q": rng.integers(40, 120, (2, WIDTH) if wide else WIDTH).astype(np.int8),
        "scale": np.float32(0.01),
        "plain": normal(WIDTH).astype(np.float16),
    }
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", 2, 6])],
        [helper.make_tensor_value_info("y", 1, ["n", 2, 4])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


QUANTISED = gains(node("DequantizeLinear", "q scale", "gain"))
CHAIN = gains(node("DequantizeLinear", "q scale", "g"), node("Neg", "g", "gain"))


@pytest.mark.parametrize("model", [QUANTISED, CHAIN])
def test_layers_that_share_a_quantised_vector_are_cut_by_themselves(model: onnx.ModelProto) -> None:
    result = half(model)
    first, second = ([c.removed for c in result.report.cuts if c.tensor == n and c.axis == 1] for n in "wu")
    assert len(first[0]) == len(second[0]) == WIDTH // 2
    assert list(first[0]) != list(second[0])
    vectors = [t for t in result.model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert [list(t.dims) for t in vectors] == [[WIDTH // 2]] * 2
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.law1["max_relative_error"] < 1e-5


def test_what_is_cut_alike_or_not_at_all_is_one_node_again() -> None:
    model, copies = apart(Model.load(CHAIN))
    count = [n.op_type for n in model.proto.graph.node]
    assert (count.count("DequantizeLinear"), count.count("Neg"), len(copies)) == (2, 2, 2)
    assert len({n.name for n in model.proto.graph.node}) == len(count)
    assert together(model, copies).to_proto() == CHAIN


@pytest.mark.parametrize(
    "model",
    [
        gains(node("Cast", "plain", "gain", to=1)),  # folded where that helps
        gains(node("DequantizeLinear", "q scale", "gain"), wide=True),
        gains(node("DequantizeLinear", "q scale", "g"), node("Dropout", "g", "gain")),
    ],
)
def test_what_is_folded_or_random_or_no_vector_stays_one(model: onnx.ModelProto) -> None:
    loaded = Model.load(model)
    assert apart(loaded) == (loaded, {})
