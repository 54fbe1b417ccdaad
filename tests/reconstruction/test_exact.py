"""Outputs that a cut leaves as they were stay exact while layers are fitted together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.model import Model
from onnxprune.reconstruction import distill
from onnxprune.runtime.session import open_session


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "PACE", replace(distill.PACE, steps=40, passes=5))


def net(told: bool) -> onnx.ModelProto:
    """A state ``s`` of 8 numbers, which may be an output, and two layers behind it with 16 hidden units."""
    rng = np.random.default_rng(0)
    sizes = {"a": (6, 8), "b": (8, 16), "c": (16, 4)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in sizes.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("Tanh", ["p"], ["s"]),
        helper.make_node("MatMul", ["s", "b"], ["q"]),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    outputs += [helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", 8])] if told else []
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def fitted(told: bool, recover: str) -> Any:
    x = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    more: dict[str, Any] = {} if told else {"ignore": ["^a:"]}
    given = {"x": x}
    found = prune(net(told), ratio=0.5, calib=given, recover=recover, align=1, seed=0, rotate=False, **more)
    return found, {i.name: numpy_helper.to_array(i) for i in found.model.graph.initializer}


@pytest.mark.parametrize("recover", ["blocks", "distill"])
def test_what_an_untouched_output_is_made_of_stays(recover: str) -> None:
    """The hidden units go, and the layers behind the state make up for them by themselves."""
    result, weights = fitted(True, recover)
    own = {i.name: numpy_helper.to_array(i) for i in net(True).graph.initializer}
    np.testing.assert_array_equal(weights["a"], own["a"])
    x = np.random.default_rng(2).normal(size=(50, 6)).astype(np.float32)
    before, after = (open_session(Model.load(m)).run({"x": x}) for m in (net(True), result.model))
    np.testing.assert_array_equal(before["s"], after["s"])
    least = open_session(Model.load(fitted(True, "lstsq")[0].model)).run({"x": x})["y"]
    gap, least_gap = (float(np.square(y - before["y"]).sum()) for y in (after["y"], least))
    assert gap < least_gap
    assert weights["b"].shape == (8, 8)


def test_where_it_is_no_output_all_layers_move() -> None:
    _, weights = fitted(False, "blocks")
    own = {i.name: numpy_helper.to_array(i) for i in net(False).graph.initializer}
    assert not np.array_equal(weights["a"], own["a"])


def two_heads() -> onnx.ModelProto:
    """Convolutions without biases: one that two heads read, ``y`` of two layers and ``z`` of one."""
    rng = np.random.default_rng(0)
    sizes = {"a": (8, 3, 3, 3), "b": (8, 8, 3, 3), "c": (4, 8, 1, 1), "d": (4, 8, 1, 1)}
    weights = [
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 4, n) for n, s in sizes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["p"], ["s"]),
        helper.make_node("Conv", ["s", "b"], ["q"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("Conv", ["r", "c"], ["y"]),
        helper.make_node("Conv", ["s", "d"], ["z"]),
    ]
    shapes = {"x": ["n", 3, 6, 6], "y": ["n", 4, 6, 6], "z": ["n", 4, 6, 6]}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("recover", ["lstsq", "blocks", "distill"])
def test_a_head_beside_the_cut_stays_where_fits_add_biases(recover: str) -> None:
    x = np.random.default_rng(1).normal(size=(120, 3, 6, 6)).astype(np.float32)
    more: dict[str, Any] = {"only": ["^b:"], "rotate": False, "align": 1, "seed": 0}
    made = prune(two_heads(), ratio=0.5, calib={"x": x}, recover=recover, **more)
    want, got = (open_session(Model.load(m)).run({"x": x[:20]}) for m in (two_heads(), made.model))
    np.testing.assert_array_equal(want["z"], got["z"])
    assert not np.array_equal(want["y"], got["y"])


def carried() -> onnx.ModelProto:
    """A GRU whose state is given and told, and two layers behind it."""
    rng = np.random.default_rng(0)
    sizes = {"w": (1, 24, 6), "r": (1, 24, 8), "b": (8, 16), "c": (16, 4)}
    weights = [
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 2, n) for n, s in sizes.items()
    ]
    weights.append(numpy_helper.from_array(np.int64([1]), "one"))
    nodes = [
        helper.make_node("GRU", ["x", "w", "r", "", "", "h0"], ["all", "h1"], hidden_size=8),
        helper.make_node("Squeeze", ["all", "one"], ["s"]),
        helper.make_node("MatMul", ["s", "b"], ["q"]),
        helper.make_node("Relu", ["q"], ["r2"]),
        helper.make_node("MatMul", ["r2", "c"], ["y"]),
    ]
    shapes = {"x": ["t", "n", 6], "h0": [1, "n", 8], "y": ["t", "n", 4], "h1": [1, "n", 8]}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    graph = helper.make_graph(nodes, "net", values[:2], values[2:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_states_that_a_caller_gives_back_move_with_what_reads_them() -> None:
    rng = np.random.default_rng(1)
    given = {"x": rng.normal(size=(5, 300, 6)), "h0": rng.normal(size=(1, 300, 8)) / 3}
    given = {n: a.astype(np.float32) for n, a in given.items()}
    errors = {}
    for recover in ("lstsq", "distill"):
        made = prune(carried(), ratio=0.5, calib=given, recover=recover, align=1, seed=0, rotate=False)
        fresh = {n: a[:, ::-1][:, :100].copy() for n, a in given.items()}
        want, got = (open_session(Model.load(m)).run(fresh) for m in (carried(), made.model))
        errors[recover] = float(np.square(want["y"] - got["y"]).sum())
        assert np.array_equal(want["h1"], got["h1"]) is (recover == "lstsq")
    assert errors["distill"] < errors["lstsq"]
