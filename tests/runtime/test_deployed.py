"""Graphs as exporters of language models write them: caches, totals of lengths, weights of four bits in blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import NothingToPrune, UsageError, VerificationError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.feasible import LARGE
from onnxprune.model import Model
from onnxprune.ops import Node, Refusal, lookup
from onnxprune.ops.resolve import out_shapes
from onnxprune.proof.sizes import SizeTrials
from onnxprune.runtime import binding
from onnxprune.wall import board

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


@pytest.mark.parametrize("known", [np.array, np.atleast_1d, None])
def test_lengths_of_a_position_bias_are_values_of_its_inputs(
    known: Callable[[int], np.ndarray] | None,
) -> None:
    values = (None, known(5), known(7)) if known else (None, None, None)
    node = Node(
        "RelativePositionBias", MICROSOFT, 1, "bias", {}, ((32, 4), (), ()), (None,), values, (True, False, False),
        ("table", "queries", "keys"), ("y",),
    )  # fmt: skip
    row = lookup(node)
    assert not isinstance(row, Refusal)
    assert out_shapes(row, node) == [(1, 4, 5, 7) if known else None]


def _pixels_attend(batch: int | str = "batch") -> onnx.ModelProto:
    """All pixels attend to all, as in the first level of a diffusion net."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["q"]),
        helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["k", "q"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["q", "shares"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([0, 4, -1]), "flat")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_sizes_are_small_where_tensors_grow_with_their_square() -> None:
    model = Model.load(_pixels_attend())
    most = max(np.prod(shape) for _, shape in analyse(model).tracer.types.values() if shape)
    assert most <= LARGE < 2 * 4096**2
    given = analyse(model, input_shapes={"x": (2, 4, 64, 64)})
    assert given.inputs["x"] == (2, 4, 64, 64)


def _scoped(name: str, data: str, weight: str, scopes: str) -> onnx.NodeProto:
    node = helper.make_node("MatMul", [data, weight], [name], f"node_{name}")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    return node


def _modules(scopes: str) -> onnx.ModelProto:
    """Two hidden layers; the first was exported from modules of these names."""
    nodes = [
        _scoped("val_1", "x", "val_7", scopes),
        helper.make_node("Relu", ["val_1"], ["val_2"]),
        helper.make_node("MatMul", ["val_2", "val_8"], ["val_3"]),
        helper.make_node("Relu", ["val_3"], ["val_4"]),
        helper.make_node("MatMul", ["val_4", "val_9"], ["y"]),
    ]
    weights = {"val_7": (6, 8), "val_8": (8, 10), "val_9": (10, 4)}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), n) for n, shape in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _cut(model: onnx.ModelProto, **options: tuple[str, ...]) -> tuple[int, int]:
    """Return the widths of both hidden layers after the cut."""
    small = onnxprune.prune(model, ratio=0.5, align="none", **options).model
    left = {t.name: tuple(t.dims) for t in small.graph.initializer}
    return left["val_7"][1], left["val_9"][0]


def test_modules_that_an_exporter_names_can_be_picked() -> None:
    model = _modules("['', 'decoder', 'decoder.mlp', 'decoder.mlp.up_proj', 'linear']")
    assert _cut(model, only=("mlp",)) == (4, 10)
    assert _cut(model, ignore=(r"mlp\.up_proj$",)) == (8, 5)


@pytest.mark.parametrize("scopes", ["", "nothing [", "3", "['linear']", "[None, 'linear']"])
def test_what_names_no_module_matches_nothing(scopes: str) -> None:
    with pytest.raises(UsageError, match="matches no group"):
        _cut(_modules(scopes), only=("mlp",))


def _cached(window: int) -> onnx.ModelProto:
    """A cache that slides: onnxruntime wants it to be no shorter than the window."""
    inputs = ["q", "k", "v", "past_k", "past_v", "lengths", "total"]
    node = helper.make_node(
        "GroupQueryAttention", inputs, ["y", "new_k", "new_v"], "attention", domain=MICROSOFT, num_heads=2,
        kv_num_heads=2, local_window_size=window, sliding_window_cache=1,
    )  # fmt: skip
    data: list[int | str] = ["batch", "sequence_length", 16]
    cache: list[int | str] = ["batch", 2, "past_sequence_length", 8]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, data) for n in "qkv"]
    values += [helper.make_tensor_value_info(n, TensorProto.FLOAT, cache) for n in inputs[3:5]]
    values.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]))
    values.append(helper.make_tensor_value_info("total", TensorProto.INT32, []))
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, data)]
    graph = helper.make_graph([node], "g", values, results)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _grouped(width: int | str) -> onnx.ModelProto:
    """Grouped attention of what one weight makes, with a cache whose heads have a named width."""
    inputs = ["qkv", "", "", "past_k", "past_v", "lengths", "total"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["qkv"]),
        helper.make_node(
            "GroupQueryAttention", inputs, ["mixed", "new_k", "new_v"], "attention", domain=MICROSOFT, num_heads=4,
            kv_num_heads=2,
        ),
        helper.make_node(
            "MatMulNBits", ["mixed", "out", "scales"], ["y"], domain=MICROSOFT, K=32, N=12, bits=4, block_size=16
        ),
    ]  # fmt: skip
    cache: list[int | str] = ["batch", 2, "past_sequence_length", width]
    new: list[int | str] = ["batch", 2, "total_sequence_length", width]
    data: list[int | str] = ["batch", "sequence_length", 12]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, data)]
    values += [helper.make_tensor_value_info(n, TensorProto.FLOAT, cache) for n in ("past_k", "past_v")]
    values.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]))
    values.append(helper.make_tensor_value_info("total", TensorProto.INT32, []))
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, data)]
    results += [helper.make_tensor_value_info(n, TensorProto.FLOAT, new) for n in ("new_k", "new_v")]
    weights = [
        numpy_helper.from_array(RNG.standard_normal((12, 64)).astype(np.float32), "w"),
        numpy_helper.from_array(RNG.integers(0, 256, (12, 2, 8), np.uint8), "out"),
        numpy_helper.from_array(RNG.uniform(0.1, 0.2, (12, 2)).astype(np.float32), "scales"),
    ]
    graph = helper.make_graph(nodes, "g", values, results, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("width", [8, "kv_cache_dim"])
def test_heads_go_from_a_cache_whose_width_has_a_name_that_weights_fix(width: int | str) -> None:
    """The weight has 64 columns and there are 8 heads in all, so only a width of 8 fits."""
    model = _grouped(width)
    result = onnxprune.prune(model, ratio=0.5, align=None, open_io=("past|new",))
    cache = next(v for v in result.model.graph.input if v.name == "past_k").type.tensor_type.shape.dim
    assert (cache[1].dim_value, cache[3].dim_param or cache[3].dim_value) == (1, width)
    counts = {a.name: a.i for a in result.model.graph.node[1].attribute}
    assert (counts["num_heads"], counts["kv_num_heads"]) == (2, 1)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(result.model)
    tensor = next(t for t in wrong.graph.initializer if t.name == "out")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), "out"))
    with pytest.raises(VerificationError, match="law 1"):
        onnxprune.verify(model, wrong, result.plan)
    with pytest.raises(NothingToPrune, match="axis of the graph"):
        onnxprune.prune(model, ratio=0.5, align=None)


def test_a_width_that_nothing_fixes_stays() -> None:
    """Where data gives the heads' width, with no weight behind it, the name stands for any size."""
    model = _cached(32)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value in (8, 16):
                dim.dim_param = "width" if dim.dim_value == 8 else "whole"
    found = analyse(Model.load(model))
    lengths = found.sizes.lengths
    assert lengths["past_k"][3] != 8
    assert lengths["past_k"][3] not in found.sizes.pinned


@pytest.mark.parametrize("window", [32, 100, 4096])
def test_a_sliding_cache_is_as_long_as_its_window(window: int) -> None:
    found = analyse(Model.load(_cached(window)))
    assert found.inputs["past_k"][2] == found.inputs["past_v"][2] >= window


@pytest.mark.parametrize(("batch", "most"), [("batch", 200e6), (1, 150e6)])
def test_sizes_that_are_tried_fit_where_tensors_grow_with_their_square(batch: int | str, most: float) -> None:
    tried = list[tuple[int, ...]]()
    with board.bounds():
        board.limit(memory=most)
        found = analyse(Model.load(_pixels_attend(batch)), input_shapes={"x": (1, 4, 32, 32)})
        SizeTrials(found, lambda shapes, sizes: tried.append(shapes["x"]) or "").run()
    needed = [4 * images * (rows * width) ** 2 for images, _, rows, width in tried]
    assert max(rows * width for _, _, rows, width in tried) > 32 * 32  # larger ones are tried
    assert max(needed) * 3 <= most


def _dequantized(axis: int, block: int = 16) -> onnx.ModelProto:
    """Two layers of four-bit weights in blocks of what they contract; the second's width goes into whole blocks."""
    shapes = {"up": (32, 64), "down": (64, 32)}
    weights, nodes = list[TensorProto](), list[onnx.NodeProto]()
    for name, shape in shapes.items():
        codes = RNG.integers(-8, 8, shape).astype(np.int8)
        own = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
        weights.append(helper.make_tensor(f"{name}.q", TensorProto.INT4, shape, codes.ravel().tolist()))
        weights.append(numpy_helper.from_array(RNG.uniform(0.01, 0.1, own).astype(np.float32), f"{name}.s"))
        nodes.append(
            helper.make_node(
                "DequantizeLinear",
                [f"{name}.q", f"{name}.s"],
                [f"{name}.w"],
                f"{name}.dq",
                axis=axis,
                block_size=block,
            )
        )
    nodes += [
        helper.make_node("MatMul", ["x", "up.w"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "down.w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_in_blocks_stay_quantized_and_go_by_whole_blocks(axis: int) -> None:
    small = onnxprune.prune(_dequantized(axis), ratio=0.5, align="none").model
    left = {t.name: (t.data_type, tuple(t.dims)) for t in small.graph.initializer}
    assert left["up.q"] == (TensorProto.INT4, (32, 32))
    assert left["down.q"] == (TensorProto.INT4, (32, 32))
    assert sum(n.op_type == "DequantizeLinear" for n in small.graph.node) == 2


def test_a_last_block_that_is_not_whole_is_locked() -> None:
    found = analyse(Model.load(_dequantized(0, block=24)), folds="needed")
    assert not found.grouping.groups
    assert (
        found.folded is None
    )  # floats in the place of the weights could be cut, and take eight times the bytes
