"""Experts as exporters write them without an op for them: stacks of weights that each token gathers, or all run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.proof.sizes import AT_ONCE, SizeTrials
from onnxprune.runtime import binding
from onnxprune.wall import board

EXPERTS, HIDDEN, UNITS = 4, 16, 24


def _graph(
    nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], **ints: list[int]
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()
    ]
    tensors += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in ints.items()]
    shape: list[int | str] = ["tokens", HIDDEN]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _router() -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", ["x", "router"], ["scores"]),
        helper.make_node("TopK", ["scores", "two"], ["best", "ids"]),
        helper.make_node("Softmax", ["best"], ["shares"], axis=-1),
    ]


def _gated(data: str, pairs: bool) -> list[onnx.NodeProto]:
    """Gate and value of a product: in halves (Split), or side by side (Slice with a step)."""
    names = [["zero", "end", "last", "step"], ["one", "end", "last", "step"]]
    apart = [
        helper.make_node("Slice", [data, *n], [o]) for n, o in zip(names, ("gate", "value"), strict=True)
    ]
    halves = [helper.make_node("Split", [data], ["gate", "value"], axis=-1)]
    return [
        *(apart if pairs else halves),
        helper.make_node("Sigmoid", ["gate"], ["open"]), helper.make_node("Mul", ["gate", "open"], ["silu"]),
        helper.make_node("Mul", ["silu", "value"], ["inner"]),
    ]  # fmt: skip


INTS = {
    "two": [2],
    "zero": [0],
    "one": [1],
    "end": [1 << 60],
    "last": [-1],
    "step": [2],
    "behind": [-1],
    "sum": [1],
}
STACKS = {"router": (HIDDEN, EXPERTS), "up": (EXPERTS, HIDDEN, 2 * UNITS), "down": (EXPERTS, UNITS, HIDDEN)}


def _gathered(pairs: bool = False) -> onnx.ModelProto:
    """Each token gathers the weights of its two experts."""
    nodes = [
        *_router(),
        helper.make_node("Gather", ["up", "ids"], ["own_up"]),
        helper.make_node("Gather", ["down", "ids"], ["own_down"]),
        helper.make_node("Unsqueeze", ["x", "sum"], ["x1"]), helper.make_node("Unsqueeze", ["x1", "sum"], ["x2"]),
        helper.make_node("MatMul", ["x2", "own_up"], ["both"]), *_gated("both", pairs),
        helper.make_node("MatMul", ["inner", "own_down"], ["each"]),
        helper.make_node("Squeeze", ["each", "axis"], ["flat"]),
        helper.make_node("Unsqueeze", ["shares", "behind"], ["share"]),
        helper.make_node("Mul", ["flat", "share"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "sum"], ["y"], keepdims=0),
    ]  # fmt: skip
    return _graph(nodes, STACKS, **INTS, axis=[2])


def _batched(pairs: bool = False) -> onnx.ModelProto:
    """All experts run on all tokens, as one batched product; the router's shares are scattered."""
    nodes = [
        *_router(),
        helper.make_node("Mul", ["scores", "none"], ["nothing"]),
        helper.make_node("ScatterElements", ["nothing", "ids", "shares"], ["dense"], axis=1),
        helper.make_node("Transpose", ["dense"], ["turned"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["turned", "behind"], ["share"]),
        helper.make_node("MatMul", ["x", "up"], ["both"]), *_gated("both", pairs),
        helper.make_node("MatMul", ["inner", "down"], ["each"]),
        helper.make_node("Mul", ["each", "share"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "axis"], ["y"], keepdims=0),
    ]  # fmt: skip
    model = _graph(nodes, STACKS, **INTS, axis=[0])
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "none"))
    return model


def _looped() -> onnx.ModelProto:
    """A loop that was unrolled: each expert runs on the tokens that chose it, and is added to them."""
    nodes, weights = _router(), {"router": (HIDDEN, EXPERTS)}
    nodes.append(helper.make_node("Mul", ["x", "none"], ["y0"]))
    for e in range(EXPERTS):
        weights |= {f"up{e}": (HIDDEN, UNITS), f"down{e}": (UNITS, HIDDEN)}
        nodes += [
            helper.make_node("Equal", ["ids", f"n{e}"], [f"hit{e}"]),
            helper.make_node("NonZero", [f"hit{e}"], [f"at{e}"]),
            helper.make_node("Gather", [f"at{e}", "first"], [f"row{e}"]),
            helper.make_node("Gather", ["x", f"row{e}"], [f"x{e}"]),
            helper.make_node("Transpose", [f"at{e}"], [f"pairs{e}"], perm=[1, 0]),
            helper.make_node("GatherND", ["shares", f"pairs{e}"], [f"s{e}"]),
            helper.make_node("Unsqueeze", [f"s{e}", "behind"], [f"share{e}"]),
            helper.make_node("MatMul", [f"x{e}", f"up{e}"], [f"u{e}"]), helper.make_node("Relu", [f"u{e}"], [f"a{e}"]),
            helper.make_node("MatMul", [f"a{e}", f"down{e}"], [f"d{e}"]),
            helper.make_node("Mul", [f"d{e}", f"share{e}"], [f"w{e}"]),
            helper.make_node("Unsqueeze", [f"row{e}", "behind"], [f"place{e}"]),
            helper.make_node("ScatterND", [f"y{e}", f"place{e}", f"w{e}"], [f"y{e + 1}"], reduction="add"),
        ]  # fmt: skip
    nodes[-1].output[0] = "y"
    model = _graph(nodes, weights, two=[2], behind=[-1], **{f"n{e}": [e] for e in range(EXPERTS)})
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "none"))
    return model


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("make", [_gathered, _batched])
def test_half_of_the_units_of_a_stack_go(make: Callable[[bool], onnx.ModelProto], pairs: bool) -> None:
    result = onnxprune.prune(make(pairs), ratio=0.5, align="none")
    shapes = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert shapes["up"] == (EXPERTS, HIDDEN, UNITS)
    assert shapes["down"] == (EXPERTS, UNITS // 2, HIDDEN)
    assert result.report.law1["max_relative_error"] <= 1e-5


def test_half_of_the_units_of_each_expert_go_where_each_has_weights_of_its_own() -> None:
    result = onnxprune.prune(_looped(), ratio=0.5, align="none")
    shapes = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert [shapes[f"up{e}"] for e in range(EXPERTS)] == [(HIDDEN, UNITS // 2)] * EXPERTS
    assert [shapes[f"down{e}"] for e in range(EXPERTS)] == [(UNITS // 2, HIDDEN)] * EXPERTS
    assert result.report.law1["max_relative_error"] <= 1e-5


def test_sizes_that_are_tried_leave_room_for_what_tokens_gather() -> None:
    """A token takes the weights of its experts along: memory grows by powers of two, with several such at once."""
    most, tried = 20e6, list[int]()
    with board.bounds():
        board.limit(memory=most)
        found = analyse(Model.load(_gathered()), input_shapes={"x": (8, HIDDEN)})
        trials = SizeTrials(found, lambda shapes, sizes: tried.append(shapes["x"][0]) or "")
        trials.axes.batch.clear()  # tokens are a length here
        trials.tables = lambda: {4096, 700}  # type: ignore[method-assign]
        trials.run()
    needed = [4 * 2 * tokens * HIDDEN * 2 * UNITS for tokens in tried]
    assert max(tried) > 64
    assert max(needed) * 2 * AT_ONCE <= most


def test_a_window_and_a_width_of_another_name_are_solved_together() -> None:
    """The first node asks for both at once: a longer cache, and heads as wide as the weight says."""
    node = helper.make_node(
        "GroupQueryAttention", ["q", "", "", "past_k", "past_v", "lengths", "total"], ["y", "new_k", "new_v"],
        "attention", domain="com.microsoft", num_heads=4, kv_num_heads=2, local_window_size=100,
        sliding_window_cache=1,
    )  # fmt: skip
    product = helper.make_node("MatMul", ["x", "w"], ["q"])
    cache: list[int | str] = ["batch", 2, "past_sliding_length", "kv_cache_dim"]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence_length", 6])]
    values += [helper.make_tensor_value_info(n, TensorProto.FLOAT, cache) for n in ("past_k", "past_v")]
    values.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]))
    values.append(helper.make_tensor_value_info("total", TensorProto.INT32, []))
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence_length", 32])]
    weight = numpy_helper.from_array(np.ones((6, 64), np.float32), "w")
    graph = helper.make_graph([product, node], "g", values, results, [weight])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    first = next(binding.bindings(model.graph, {}))["past_k"]
    assert first[2] < 100  # no guess has both
    assert first[3] != 8
    shape = analyse(Model.load(model)).inputs["past_k"]
    assert shape[2] >= 100
    assert shape[3] == 8
