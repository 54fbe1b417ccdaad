"""Gradients through recurrent layers against central differences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.errors import CalibrationError
from tests.gradient.finite import disagreement, gradients, model, normal

CLOSE = 2e-4
STEPS, BATCH, INPUTS, UNITS = 5, 3, 4, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
X = {"x": normal(STEPS, BATCH, INPUTS)}


def layer(
    op: str,
    outputs: list[str],
    direction: str = "forward",
    bias: bool = True,
    states: bool = True,
    **attrs: object,
) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    ways, rows = 1 + (direction == "bidirectional"), GATES[op] * UNITS
    weights = {"w": normal(ways, rows, INPUTS) / 2, "r": normal(ways, rows, UNITS) / 2}
    weights |= {"b": normal(ways, 2 * rows)} if bias else {}
    begins = ["h0", "c0"][: 1 + (op == "LSTM")] if states else []
    weights |= {name: normal(ways, BATCH, UNITS) for name in begins}
    inputs = ["x", "w", "r", "b" if bias else "", "", *begins]
    node = helper.make_node(op, inputs, outputs, hidden_size=UNITS, direction=direction, **attrs)
    return node, weights


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("op", "attrs"), [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})]
)
def test_all_steps(op: str, attrs: dict[str, int], direction: str) -> None:
    node, weights = layer(op, ["y"], direction, **attrs)
    assert disagreement(model([node], X, weights, free=False), X, ["x", *weights], draws=2) < CLOSE


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(("op", "late"), [("LSTM", 0), ("GRU", 0), ("GRU", 1), ("RNN", 0)])
def test_last_states_without_biases(op: str, late: int, opset: int) -> None:
    attrs = {"linear_before_reset": 1} if late else {}
    ends = ["", "h", "c"][: len(op) - 1 if op == "LSTM" else 2]
    node, weights = layer(op, ends, bias=False, states=False, **attrs)
    last = [n for n in ends if n]
    nodes = [node, helper.make_node("Sum", last, ["y"])]
    assert disagreement(model(nodes, X, weights, opset, free=False), X, ["x", *weights], draws=2) < CLOSE


def test_what_is_not_plain_has_none() -> None:
    seed = normal(STEPS, 1, BATCH, UNITS)
    for op, attrs, why in (
        ("LSTM", {"clip": 1.0}, "clipped"),
        ("RNN", {"activations": ["Relu"]}, "activations"),
    ):
        node, weights = layer(op, ["y"], **attrs)
        with pytest.raises(CalibrationError, match=why):
            gradients(model([node], X, weights, free=False), X, ["x"], seed)
