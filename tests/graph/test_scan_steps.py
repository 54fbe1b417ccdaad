"""What a Loop or Scan gathers is as long as there were steps, also where nothing that its body reads varies."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.analysis import analyse
from onnxprune.graph.inline import inline
from onnxprune.model import Model

from body_models import info, node, normal  # isort: skip
from outside import half, masked, run  # isort: skip

INT, BOOL = TensorProto.INT64, TensorProto.BOOL
STEP = [node("MatMul", "h u", "a"), node("Tanh", "a", "t"), node("Identity", "t", "g")]


def scan() -> list[onnx.NodeProto]:
    """Steps through time, of which the body makes a number of the size of its state."""
    inside = [node("ReduceMean", "s", "m", keepdims=0), node("Add", "h m", "hm"),
              node("MatMul", "hm u", "a"), *STEP[1:]]  # fmt: skip
    body = helper.make_graph(inside, "body", [info("h", [3, 8]), info("s")], [info("t"), info("g")])
    return [helper.make_node("Scan", ["h0", "x"], ["last", "all"], name="scan", body=body, num_scan_inputs=1)]


def loop(most: str = "time", ends: bool = False) -> list[onnx.NodeProto]:
    """As many steps as the input is long, of a state that nothing else has a part in."""
    on = (
        [node("ReduceSum", "t", "total", keepdims=0), node("Less", "total limit", "on")]
        if ends
        else [node("Identity", "go", "on")]
    )
    body = helper.make_graph([*STEP, *on], "body", [info("i", [], INT), info("go", [], BOOL), info("h", [3, 8])],
                             [info("on", [], BOOL), info("t"), info("g")])  # fmt: skip
    inputs = [most, "yes", "h0"]
    return [
        node("Shape", "x", "sizes"),
        node("Gather", "sizes none", "time"),
        helper.make_node("Loop", inputs, ["last", "all"], name="loop", body=body),
    ]


def model(steps: list[onnx.NodeProto], **more: Any) -> onnx.ModelProto:
    """Heads of what is gathered, in a shape that is computed."""
    nodes = [
        *steps,
        node("MatMul", "all v", "q"),
        node("Shape", "q", "long"),
        node("Gather", "long first", "many"),
        node("Concat", "many three two four", "heads", axis=0),
        node("Reshape", "q heads", "split"),
        node("Tanh", "split", "r"),
        node("Concat", "many three eight", "flat", axis=0),
        node("Reshape", "r flat", "joined"),
        node("MatMul", "joined o", "y"),
    ]
    weights = {"h0": normal(3, 8), "u": normal(8, 8, seed=1), "v": normal(8, 8, seed=2), "o": normal(8, 5),
               "first": np.array([0]), "none": np.array(0), "yes": np.array(True), "five": np.array(5),
               "two": np.array([2]), "three": np.array([3]), "four": np.array([4]), "eight": np.array([8]),
               "limit": np.array(1e9, np.float32)}  # fmt: skip
    graph = helper.make_graph(nodes, "g", [info("x", ["time", 3, 6])], [info("y")],
                              [numpy_helper.from_array(a, n) for n, a in weights.items()])  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("steps", [scan(), loop(), loop(ends=True)])
def test_a_length_that_steps_give_is_not_baked(steps: list[onnx.NodeProto]) -> None:
    original = model(steps)
    result = half(original, verify=False)
    assert {(c.tensor, c.axis) for c in result.report.cuts} >= {("v", 1), ("o", 0)}
    twin = masked(original, result)
    for time in (1, 4, 9):
        x = np.random.default_rng(time).standard_normal((time, 3, 6)).astype(np.float32)
        (right,), (found,) = run(twin, {"x": x}), run(result.model, {"x": x})
        assert right.shape == (time, 3, 5)
        assert np.abs(right - found).max() < 1e-5
    assert half(original).report.put_back == []


@pytest.mark.parametrize(
    ("steps", "varies"),
    [(loop("five"), False), (loop("five", ends=True), True), (loop(), True), (scan(), True)],
)
def test_a_number_of_steps_is_known_where_nothing_ends_them(
    steps: list[onnx.NodeProto], varies: bool
) -> None:
    analysis = analyse(inline(Model.load(model(steps))), input_shapes={"x": (5, 3, 6)})
    assert analysis.sizes.stretches("all") is varies
