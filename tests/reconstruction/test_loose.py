"""Recurrent layers, which no fit serves, go down with the layers around them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction.loose import loose
from onnxprune.runtime.session import open_session

STEPS, INPUTS, WIDTH, UNITS = 6, 5, 8, 16
GATES = {"LSTM": 4, "GRU": 3}


def net(op: str) -> onnx.ModelProto:
    """A product, a recurrent layer and a product."""
    rng, rows = np.random.default_rng(0), GATES[op] * UNITS
    weights = {
        "first": rng.normal(size=(INPUTS, WIDTH)), "w": rng.normal(size=(1, rows, WIDTH)) * 0.6,
        "r": rng.normal(size=(1, rows, UNITS)) * 0.15, "b": rng.normal(size=(1, 2 * rows)) * 0.2,
        "last": rng.normal(size=(UNITS, 4)) / 3,
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "first"),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node(op, ["t", "w", "r", "b"], ["s"], "recurrent", hidden_size=UNITS),
        helper.make_node("Squeeze", ["s", "way"], ["z"]),
        helper.make_node("MatMul", ["z", "last"], ["y"], "last"),
    ]
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, "n", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, "n", 4])],
        [*tensors, numpy_helper.from_array(np.int64([1]), "way")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def batches(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Batches of eight walks."""
    rng = np.random.default_rng(seed)
    walks = rng.normal(size=(count, STEPS, 8, INPUTS)).cumsum(axis=1) * 0.4
    return [{"x": walk.astype(np.float32)} for walk in walks]


@pytest.mark.parametrize(("op", "recover"), [("LSTM", "blocks"), ("LSTM", "distill"), ("GRU", "blocks")])
def test_a_recurrent_layer_goes_down_with_those_around_it(op, recover):
    proto, fresh, errors, moved = net(op), batches(20, 9), {}, {}
    dense = open_session(Model.load(proto))
    for how in ("lstsq", recover):
        made = Model.load(prune(proto, ratio=0.5, calib=batches(25, 1), recover=how, align=1).model)
        out = open_session(made)
        errors[how] = np.mean([np.square(out.run(b)["y"] - dense.run(b)["y"]).mean() for b in fresh])
        moved[how] = {name: made.weight(name) for name in ("w", "r", "b")}
    assert errors[recover] < 0.85 * errors["lstsq"]
    assert all(not np.array_equal(moved["lstsq"][n], moved[recover][n]) for n in ("w", "r", "b"))
    assert moved[recover]["r"].shape == (1, GATES[op] * UNITS // 2, UNITS // 2)


def test_they_are_the_weights_of_recurrent_layers_alone():
    assert loose(analyse(Model.load(net("LSTM")))) == {"w": 2, "r": 2, "b": 2}
