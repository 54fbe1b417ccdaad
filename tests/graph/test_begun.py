"""States of zeros that recurrent layers begin with."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.graph.begun import begun
from onnxprune.model import Model
from onnxprune.runtime.session import open_session

STEPS, WIDTH, UNITS = 4, 5, 8


def stack(value: float = 0.0, made: str = "constant") -> onnx.ModelProto:
    """Two LSTMs that begin with slices of one tensor, as PyTorch writes them."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        f"{kind}{n}": rng.normal(size=(1, 4 * UNITS, size)).astype(np.float32) / 3
        for n in (0, 1)
        for kind, size in (("w", UNITS if n else WIDTH), ("r", UNITS))
    }
    weights |= {"last": rng.normal(size=(UNITS, 3)).astype(np.float32), "way": np.int64([1])}
    weights |= {
        "dims": np.int64([2, 2, UNITS]),
        "at0": np.int64([0]),
        "at1": np.int64([1]),
        "at2": np.int64([2]),
    }
    nodes = [
        helper.make_node(
            "ConstantOfShape", ["dims"], ["z"], value=numpy_helper.from_array(np.float32([value]))
        )
    ]
    if made == "stored":
        nodes, weights["z"] = [], np.full((2, 2, UNITS), value, np.float32)
    if made == "as many as there are":
        nodes = [
            helper.make_node("Shape", ["x"], ["shape"], start=1, end=2),
            helper.make_node("Concat", ["at2", "shape", "units"], ["dims"], axis=0),
            *nodes,
        ]
        del weights["dims"]
        weights["units"] = np.int64([UNITS])
    x = "x"
    for n in (0, 1):
        nodes += [
            helper.make_node("Slice", ["z", f"at{n}", f"at{n + 1}", "at0"], [f"h{n}"]),
            helper.make_node(
                "LSTM", [x, f"w{n}", f"r{n}", "", "", f"h{n}", f"h{n}"], [f"s{n}"], hidden_size=UNITS
            ),
            helper.make_node("Squeeze", [f"s{n}", "way"], [f"y{n}"]),
        ]
        x = f"y{n}"
    nodes.append(helper.make_node("MatMul", [x, "last"], ["y"]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, 2, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 2, 3])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("made", ["constant", "stored", "as many as there are"])
def test_layers_that_begin_with_zeros_lose_units_of_their_own(made):
    model = stack(made=made)
    found = begun(Model.load(model))
    states = [[name for name in n.input[3:] if name] for n in found.proto.graph.node if n.op_type == "LSTM"]
    if made == "as many as there are":
        assert states == [[], []]
    else:
        assert not set(states[0]) & set(states[1])
        assert all(found.weight(name).shape == (1, 2, UNITS) for name in [*states[0], *states[1]])
    feeds = {"x": np.random.default_rng(1).normal(size=(STEPS, 2, WIDTH)).astype(np.float32)}
    want = open_session(Model.load(model)).run(feeds)["y"]
    np.testing.assert_array_equal(open_session(found).run(feeds)["y"], want)
    result = prune(model, ratio=0.5, align=1)
    assert sorted(group["units"] for group in result.report.groups) == [UNITS, UNITS]


@pytest.mark.parametrize("made", ["constant", "stored"])
def test_zeros_of_a_fixed_number_still_say_how_many_samples_there_are(made):
    model = stack(made=made)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_param = "N"
    result = prune(model, ratio=0.5, align=1)
    assert sorted(group["units"] for group in result.report.groups) == [UNITS, UNITS]
    assert [size["N"] for size in result.report.to_json()["law1"]["sizes"]] == [2]


def test_states_of_other_numbers_stay():
    for made in ("constant", "stored"):
        model = Model.load(stack(0.5, made))
        assert begun(model) is model
