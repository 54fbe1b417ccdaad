"""Models of several outputs are compared by the first one that the cut reaches."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.graph.kept import Kept
from onnxprune.model import Model
from onnxprune.runtime.session import open_session


def heads() -> onnx.ModelProto:
    """Features ``t`` and a head ``y`` of two layers behind them, the features first."""
    rng = np.random.default_rng(0)
    sizes = {"a": (6, 8), "b": (8, 16), "c": (16, 4)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in sizes.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["t"]),
        helper.make_node("MatMul", ["t", "b"], ["p"]),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["y"]),
    ]
    shapes = {"x": ["n", 6], "t": ["n", 8], "y": ["n", 4]}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("recover", ["lstsq", "none"])
def test_an_output_that_the_cut_does_not_reach_says_nothing(recover: str) -> None:
    x = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    made = prune(heads(), ratio=0.5, calib={"x": x}, recover=recover, align=1, seed=0, rotate=False)
    fresh = {"x": np.random.default_rng(2).normal(size=(200, 6)).astype(np.float32)}
    want, got = (open_session(Model.load(m)).run(fresh) for m in (heads(), made.model))
    np.testing.assert_array_equal(want["t"], got["t"])
    error = np.linalg.norm(want["y"] - got["y"]) / np.linalg.norm(want["y"])
    told = made.report.calibration["original"]["relative_error"]
    assert told == pytest.approx(error, rel=0.4)
    assert not any("did harm" in note for note in made.report.notes)


def test_outputs_and_inputs_that_are_left_out_are_no_tensor() -> None:
    """Both are called "": a state alone of a recurrent layer that is cut, and a Clip without a lower bound."""

    def applied(inputs: list[str], outputs: list[str], dim: int) -> SimpleNamespace:
        node = SimpleNamespace(inputs=inputs, outputs=outputs)
        return SimpleNamespace(node=node, proto=SimpleNamespace(attribute=()), ins=((dim,), None), outs=())

    nodes = [applied(["x"], ["", "h"], 1), applied(["x", "", "high"], ["t"], 2), applied(["h"], ["y"], 2)]
    coupling = SimpleNamespace(nodes=nodes, space=SimpleNamespace(find=lambda dim: dim))
    kept = Kept(coupling, {1: np.array([True, False])})  # type: ignore[arg-type]
    assert {"h", "y"} <= kept.reached()
    assert "t" not in kept.reached()
    assert "t" in kept.reached(lambda one: "t" in one.node.outputs)
