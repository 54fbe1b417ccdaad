"""Sizes that inference lets pass and no runtime takes: they are looked for before anything is run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.runtime.session import open_session

RNG = np.random.default_rng(0)


def _audio() -> onnx.ModelProto:
    """Convolutions of strides that leave little of a short signal; ONNX infers one of one."""
    nodes, weights, data, inputs = list[onnx.NodeProto](), list[TensorProto](), "x", 1
    for n, (kernel, stride) in enumerate([(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]):
        weights.append(
            numpy_helper.from_array(RNG.standard_normal((4, inputs, kernel)).astype(np.float32), f"w{n}")
        )
        nodes.append(helper.make_node("Conv", [data, f"w{n}"], [f"y{n}"], f"conv{n}", kernel_shape=[kernel],
                                      strides=[stride], pads=[0, 0]))  # fmt: skip
        data, inputs = f"y{n}", 4
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, "samples"])],
        [helper.make_tensor_value_info(data, TensorProto.FLOAT, ["batch", 4, "frames"])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_signal_is_as_long_as_its_convolutions_reach() -> None:
    model = Model.load(_audio())
    shape = analyse(model).inputs["x"]
    assert shape[2] >= 400
    open_session(model).run({"x": np.zeros(shape, np.float32)})


@pytest.mark.parametrize("op", ["ConvInteger", "MaxPool"])
def test_only_kernels_of_weights_ask_for_a_signal_as_long(op: str) -> None:
    """onnxruntime runs no convolution over less than its kernel, of integers either; a pool it does."""
    integer = op == "ConvInteger"
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    nodes = [helper.make_node(op, ["x", "w"][: 1 + integer], ["y"], op, kernel_shape=[16], strides=[8])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, ["batch", 1, "t"])],
        [helper.make_tensor_value_info("y", TensorProto.INT32 if integer else kind, None)],
        [numpy_helper.from_array(np.ones((4, 1, 16), np.int8), "w")][:integer],
    )  # fmt: skip
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    shape = analyse(model).inputs["x"]
    assert (shape[2] >= 16) == integer
    open_session(model).run({"x": np.zeros(shape, np.uint8 if integer else np.float32)})


def _rotated() -> onnx.ModelProto:
    """Cosines and sines of one batch: onnxruntime takes a batch of one then."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        helper.make_node("RotaryEmbedding", ["q", "cos", "sin"], ["y"], "rotary", num_heads=2),
    ]
    tables = {"w": (6, 16), "cos": (1, 12, 4), "sin": (1, 12, 4)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence_length", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence_length", 16])],
        [numpy_helper.from_array(RNG.standard_normal(s).astype(np.float32), n) for n, s in tables.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_positions_of_one_batch_ask_for_a_batch_of_one() -> None:
    model = Model.load(_rotated())
    shape = analyse(model).inputs["x"]
    assert shape == (1, 12, 6)
    open_session(model).run({"x": np.zeros(shape, np.float32)})


def test_a_padded_signal_may_be_shorter_than_its_kernel() -> None:
    """The padding counts: what the runtime takes is not refused."""
    proto = _audio()
    del proto.graph.node[1:]
    del proto.graph.initializer[1:]
    proto.graph.node[0].output[0] = proto.graph.output[0].name
    next(a for a in proto.graph.node[0].attribute if a.name == "pads").ints[:] = [4, 4]
    model = Model.load(proto)
    found = analyse(model, input_shapes={"x": (1, 1, 2)})
    assert found.inputs["x"] == (1, 1, 2)
    open_session(model).run({"x": np.zeros((1, 1, 2), np.float32)})


def _beside_a_state(name: str = "") -> onnx.ModelProto:
    """A recurrence over a signal, with one state for each; what it does isn't known by shapes."""
    axes = [None, None] if not name else ["batch", "samples"]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, axes),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, None, 8]),
    ]
    nodes = [helper.make_node("Recurrence", ["x", "state"], ["y"], "recurrence", domain="another")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", values, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("another", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("name", ["", "named"])
@pytest.mark.parametrize("length", [512, 256, 64])
def test_a_state_is_for_as_many_sequences_as_the_batch_has(length: int, name: str) -> None:
    """The axis has no name; only runs tell, and they are few."""
    asked = []

    def runs(shapes: Mapping[str, tuple[int, ...]]) -> str:
        asked.append(shapes)
        sound = shapes["x"][0] == shapes["state"][1] and shapes["x"][1] == length
        return "" if sound else "the state is for other sequences, or the signal has another length"

    inputs = analyse(Model.load(_beside_a_state(name)), runs=runs).inputs
    assert inputs["x"][0] == inputs["state"][1] < 12
    assert inputs["x"][1] == length
    assert len(asked) <= 24
