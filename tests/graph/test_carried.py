"""States of recurrent layers that callers carry from run to run, and what is said of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.model import Model


def recurrent(
    op: str = "LSTM", width: int | str = 16, given: bool = True, told: bool = True
) -> onnx.ModelProto:
    """A recurrent layer of 16 units and a layer behind it, whose states may be given and told."""
    rng, gates = np.random.default_rng(0), {"LSTM": 4, "GRU": 3}[op]
    sizes = {"w": (1, gates * 16, 6), "r": (1, gates * 16, 16), "c": (16, 4)}
    weights = [
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 3, n) for n, s in sizes.items()
    ]
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    states = ["h", "c"] if op == "LSTM" else ["h"]
    inside = ["x", "w", "r", *["", "", *(f"{s}0" for s in states)][: 2 + len(states) if given else 0]]
    last = [f"{s}n" for s in states] if told else []
    nodes = [
        helper.make_node(op, inside, ["all", *last], hidden_size=16),
        helper.make_node("Squeeze", ["all", "one"], ["flat"]),
        helper.make_node("MatMul", ["flat", "c"], ["y"]),
    ]

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs = [value("x", "t", "n", 6)] + [value(f"{s}0", 1, "n", width) for s in states if given]
    outputs = [value("y", "t", "n", 4)] + [value(name, 1, "n", width) for name in last]
    graph = helper.make_graph(nodes, "recurrent", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def analysed(model: onnx.ModelProto) -> Analysis:
    return analyse(Model.load(model))


def said(analysis: Analysis) -> list[str]:
    return [note for note in analysis.notes if "--open-io" in note]


@pytest.mark.parametrize(("op", "names"), [("LSTM", "h0|c0|hn|cn"), ("GRU", "h0|hn")])
def test_units_whose_states_callers_carry_name_the_option_that_cuts_them(op: str, names: str) -> None:
    model = recurrent(op)
    analysis = analysed(model)
    (note,) = said(analysis)
    assert f"'^({names})$'" in note
    assert {f.reason for f in analysis.grouping.frozen if f.tensor == "w" and f.axis == 1} == {
        "axis of the graph input 'h0'"
    }, "not the gates, which never go"
    cut = prune(model, ratio=0.5, align=1, open_io=[f"^({names})$"])
    sizes = {i.name: i.dims for i in cut.model.graph.initializer}
    assert sizes["r"][2] == 8
    assert cut.report.law1["max_relative_error"] < 1e-5
    assert not any("--open-io" in note for note in cut.report.notes)


@pytest.mark.parametrize(
    "model",
    [
        recurrent(given=False),
        recurrent(told=False),
        recurrent(given=False, told=False),
        recurrent(width="h"),
    ],
    ids=["told alone", "given alone", "neither", "a width that has only a name"],
)
def test_nothing_is_said_where_the_option_would_not_do(model: onnx.ModelProto) -> None:
    assert not said(analysed(model))
