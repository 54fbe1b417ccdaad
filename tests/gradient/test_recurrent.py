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


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("op", "late"), [("LSTM", 0), ("GRU", 0), ("GRU", 1), ("RNN", 0)])
def test_sequences_of_their_own_lengths_are_as_if_each_were_alone(op: str, late: int, direction: str) -> None:
    attrs = {"linear_before_reset": 1} if late else {}
    node, weights = layer(op, ["s", "h"], direction, states=False, **attrs)
    lengths = np.array([5, 3, 1], np.int32)
    ways = 1 + (direction == "bidirectional")
    seed = normal(STEPS, ways, BATCH, UNITS)
    nodes = [node, helper.make_node("Add", ["s", "h"], ["y"])]  # the last states are added to all steps
    names = ["x", "w", "r", "b"]

    def of(x: np.ndarray, seed: np.ndarray, ends: np.ndarray | None) -> dict[str, np.ndarray]:
        node.input[4] = "" if ends is None else "ends"
        more = {} if ends is None else {"ends": ends}
        return gradients(model(nodes, {"x": x}, weights | more, free=False), {"x": x}, names, seed)

    whole = of(X["x"], seed, lengths)
    sums = {name: np.zeros_like(weights[name]) for name in names[1:]}
    for at, end in enumerate(lengths):
        part = slice(at, at + 1)
        rest = seed[end:, :, part].sum(axis=0)  # behind the end y is the last state alone
        found = of(X["x"][:end, part], seed[:end, :, part], None)
        extra = last_alone(node, weights, X["x"][:end, part], rest, names)
        for name in names[1:]:
            sums[name] += found[name] + extra[name]
        np.testing.assert_allclose(whole["x"][:end, part], found["x"] + extra["x"], atol=2e-5)
        assert not whole["x"][end:, part].any()
    for name, value in sums.items():
        np.testing.assert_allclose(whole[name], value, atol=1e-4)


def last_alone(
    node: onnx.NodeProto, weights: dict[str, np.ndarray], x: np.ndarray, seed: np.ndarray, names: list[str]
) -> dict[str, np.ndarray]:
    """Gradients by way of the last states."""
    proto = model([node, helper.make_node("Identity", ["h"], ["y"])], {"x": x}, weights, free=False)
    return gradients(proto, {"x": x}, names, seed)


def test_what_is_not_plain_has_none() -> None:
    seed = normal(STEPS, 1, BATCH, UNITS)
    for op, attrs, why in (
        ("LSTM", {"clip": 1.0}, "clipped"),
        ("RNN", {"activations": ["Relu"]}, "activations"),
    ):
        node, weights = layer(op, ["y"], **attrs)
        with pytest.raises(CalibrationError, match=why):
            gradients(model([node], X, weights, free=False), X, ["x"], seed)
