"""Graphs as exporters of language models write them: caches, totals of lengths, weights of four bits in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.ops import Node, Refusal, lookup
from onnxprune.ops.resolve import out_shapes
from onnxprune.runtime import binding

RNG = np.random.default_rng(3)
MICROSOFT = "com.microsoft"


def _inputs(**axes: list[int | str]) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in axes.items()]
    return helper.make_graph([], "g", values, [])


def test_a_total_is_the_sum_of_past_and_new() -> None:
    graph = _inputs(
        ids=["batch", "sequence_length"],
        mask=["batch", "total_sequence_length"],
        past=["batch", 2, "past_sequence_length", 8],
    )
    for inputs in (*binding.bindings(graph, {}), *binding.bindings(graph, {}, other=True)):
        assert inputs["mask"][1] == inputs["past"][2] + inputs["ids"][1]
    one = next(binding.bindings(graph, {"past": (1, 2, 5, 8), "ids": (1, 3)}))
    assert one["mask"] == (1, 8)


def test_a_total_of_nothing_else_is_a_size_of_its_own() -> None:
    graph = _inputs(ids=["batch", "sequence_length"], mask=["batch", "total_sequence_length"])
    assert binding.input_axes(graph)["mask"] == ("batch", "total_sequence_length")


def _nbits(name: str, data: str, width: int, count: int, block: int = 16) -> onnx.NodeProto:
    return helper.make_node(
        "MatMulNBits", [data, f"{name}.w", f"{name}.s"], [name], name, domain=MICROSOFT, K=width, N=count, bits=4,
        block_size=block,
    )  # fmt: skip


def _table(name: str, count: int, width: int, block: int = 16) -> list[TensorProto]:
    packed = RNG.integers(0, 255, (count, width // block, block // 2)).astype(np.uint8)
    scales = RNG.uniform(0.01, 0.05, (count, width // block)).astype(np.float32)
    return [numpy_helper.from_array(packed, f"{name}.w"), numpy_helper.from_array(scales, f"{name}.s")]


def _mlp() -> onnx.ModelProto:
    nodes = [_nbits("up", "x", 32, 64), helper.make_node("Relu", ["up"], ["act"]), _nbits("y", "act", 64, 32)]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 32])],
        [*_table("up", 64, 32), *_table("y", 32, 64)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_neurons_between_weights_of_four_bits_go_by_whole_blocks(tmp_path: Path, ratio: float) -> None:
    onnx.save(_mlp(), tmp_path / "in.onnx")
    onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=ratio, align="none")
    small = onnx.load(tmp_path / "out.onnx")
    left = {t.name: tuple(t.dims) for t in small.graph.initializer}
    blocks = int(4 * (1 - ratio))
    assert left["up.w"] == (16 * blocks, 2, 8)
    assert left["y.w"] == (32, blocks, 8)
    attributes = {n.output[0]: {a.name: a.i for a in n.attribute} for n in small.graph.node}
    assert attributes["up"]["N"] == attributes["y"]["K"] == 16 * blocks


@pytest.mark.parametrize("rank", [2, 4, 5])
def test_coordinates_are_no_axis_of_what_they_address(rank: int) -> None:
    """A table of four axes or more has a fourth letter, which once was the coordinates' as well."""
    shape, count = tuple(range(6, 6 + rank)), 3
    places = np.zeros((count, rank), np.int64)
    made = {
        "ScatterND": (shape, places.shape, (count,)),
        "GatherND": (shape, places.shape),
    }
    for op, shapes in made.items():
        results = (shape,) if op == "ScatterND" else ((count,),)
        names = tuple("abc"[: len(shapes)])
        node = Node(
            op, "", 17, op, {}, shapes, results, (None,) * len(shapes), (False,) * len(shapes), names, ("y",)
        )
        row = lookup(node)
        assert not isinstance(row, Refusal)
        assert out_shapes(row, node)[0] == results[0]


@pytest.mark.parametrize("known", [True, False])
def test_lengths_of_a_position_bias_are_values_of_its_inputs(known: bool) -> None:
    values = (None, np.array(5), np.array(7)) if known else (None, None, None)
    node = Node(
        "RelativePositionBias", MICROSOFT, 1, "bias", {}, ((32, 4), (), ()), (None,), values, (True, False, False),
        ("table", "queries", "keys"), ("y",),
    )  # fmt: skip
    row = lookup(node)
    assert not isinstance(row, Refusal)
    assert out_shapes(row, node) == [(1, 4, 5, 7) if known else None]
