"""MatMulNBits with several zero points a byte, as onnxruntime's own quantiser writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.allocation.costs import instance_terms
from onnxprune.cut.writer import Writer
from onnxprune.graph.analysis import analyse
from onnxprune.graph.belongings import numbers_of, packed_in
from onnxprune.graph.size import count_macs, count_parameters
from onnxprune.model import Model
from onnxprune.ops.packed import pack, repack, unpack
from onnxprune.permutation.symmetry import Order
from onnxprune.testing import check_row

WIDTH = 64


def _weights(name: str, *shape: int, seed: int) -> onnx.TensorProto:
    values = np.random.default_rng(seed).normal(0.1, shape[0] ** -0.5, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def gated(inner: int) -> onnx.ModelProto:
    """``x + (f(x) * sigmoid(g(x))) w``."""
    nodes = [
        helper.make_node("MatMul", ["x", "up.w"], ["up"], "up"),
        helper.make_node("MatMul", ["x", "gate.w"], ["gate"], "gate"),
        helper.make_node("Sigmoid", ["gate"], ["open"]),
        helper.make_node("Mul", ["up", "open"], ["h"]),
        helper.make_node("MatMul", ["h", "down.w"], ["down"], "down"),
        helper.make_node("Add", ["x", "down"], ["y"]),
    ]
    value = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", value, ["batch", "time", WIDTH])],
        [helper.make_tensor_value_info("y", value, ["batch", "time", WIDTH])],
        [
            _weights("up.w", WIDTH, inner, seed=1),
            _weights("gate.w", WIDTH, inner, seed=2),
            _weights("down.w", inner, WIDTH, seed=3),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantised(inner: int, block: int, symmetric: bool) -> onnx.ModelProto:
    pytest.importorskip("onnx_ir")
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    made = quantizer.MatMulNBitsQuantizer(gated(inner), block_size=block, is_symmetric=symmetric)
    made.process()
    return made.model.model


def parts(model: onnx.ModelProto) -> tuple[int, int]:
    """Return the scales of a quantised model, and its zero points, which lie two a byte."""
    scales = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    points = {name for n in model.graph.node for name in n.input[3:4] if name}
    zeros = [t for t in model.graph.initializer if t.name in points]
    count, point_count = (sum(int(np.prod(t.dims)) for t in some) for some in (scales, zeros))
    return count, 2 * point_count


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("inner", [128, 112])
def test_four_bits_count_as_the_numbers_that_they_are(inner: int, symmetric: bool) -> None:
    plain, packed = gated(inner), quantised(inner, 16, symmetric)
    of_plain, of_packed = (analyse(Model.load(m)) for m in (plain, packed))
    assert count_macs(of_packed.coupling) == count_macs(of_plain.coupling)
    more = sum(parts(packed))
    assert count_parameters(Model.load(plain)) == 3 * WIDTH * inner
    assert count_parameters(Model.load(packed)) == 3 * WIDTH * inner + more
    (layer,), (blocks,) = of_plain.grouping.groups, of_packed.grouping.groups
    assert blocks.macs.sum() == layer.macs.sum()
    assert (
        layer.params.sum() < blocks.params.sum() <= layer.params.sum() + more
    )  # flat zero points have no axis
    terms = instance_terms(of_packed, of_packed.numbers.__getitem__)  # as budgets count
    sizes = of_packed.coupling.space.sizes
    total = sum(t.weight * np.prod([sizes[d] for d in t.dims]) for t in terms)
    assert total == count_parameters(Model.load(packed))


def test_the_report_counts_four_bits_as_numbers() -> None:
    report = onnxprune.prune(quantised(128, 16, True), target="params=0.5", align="none").report
    assert report.before.parameters == 3 * WIDTH * 128 * 17 // 16
    assert report.after.parameters == report.before.parameters // 2


@pytest.mark.parametrize(
    ("op", "attributes", "bits"),
    [
        ("MatMulNBits", {}, {"1": 4, "3": 4}),
        ("MatMulNBits", {"bits": 2}, {"1": 2, "3": 2}),
        ("GatherBlockQuantized", {"bits": 8}, {"0": 8, "3": 8}),
        (
            "QMoE",
            {"expert_weight_bits": 8, "fc2_expert_weight_bits": 2},
            {"2": 8, "11": 8, "5": 2, "12": 2, "8": 8, "13": 8},
        ),
        ("MatMulInteger", {}, {}),
    ],
)
def test_what_lies_packed(op: str, attributes: dict[str, int], bits: dict[str, int]) -> None:
    node = helper.make_node(op, [*map(str, range(14))], ["y"], domain="com.microsoft", **attributes)
    assert packed_in([node]) == bits


def test_numbers_of_types_that_hold_one_each_count_once() -> None:
    """A table of ONNX's own four bits isn't packed as its dims show."""
    types = onnx.TensorProto
    counts = [numbers_of(elem, 4) for elem in (types.UINT8, types.UINT4, types.FLOAT, types.INT64)]
    assert counts == [2, 1, 1, 0]


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def masked(model: onnx.ModelProto, keep: np.ndarray) -> onnx.ModelProto:
    """Return the model with what ``down`` reads multiplied by zeros and ones."""
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    down = next(i for i, n in enumerate(twin.graph.node) if n.input[0] == "h")
    twin.graph.node[down].input[0] = "kept"
    twin.graph.node.insert(down, helper.make_node("Mul", ["h", "keep"], ["kept"]))
    twin.graph.initializer.append(numpy_helper.from_array(keep.astype(np.float32), "keep"))
    return twin


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("inner", "block"), [(128, 16), (112, 16), (160, 32), (64, 32), (640, 128), (512, 128)]
)
def test_neurons_go_by_whole_blocks_whatever_the_zero_points(
    tmp_path: Path, inner: int, block: int, symmetric: bool
) -> None:
    model = quantised(inner, block, symmetric)
    onnx.save(model, tmp_path / "in.onnx")
    result = onnxprune.prune(
        tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none", criterion="random"
    )
    small = onnx.load(tmp_path / "out.onnx")
    nodes = {n.input[0]: n for n in model.graph.node}
    assert len(nodes["h"].input) == (3 if symmetric else 4)
    gone = next(c.removed for c in result.report.cuts if c.tensor == nodes["h"].input[1] and c.axis == 1)
    blocks = inner // block
    assert len(gone) in (blocks // 2, -(-blocks // 2))
    keep = np.repeat(~np.isin(np.arange(blocks), gone), block)
    for seed, shape in enumerate([(1, 1), (2, 5), (3, 17)]):
        x = np.random.default_rng(seed).normal(size=(*shape, WIDTH)).astype(np.float32)
        np.testing.assert_allclose(run(small, x), run(masked(model, keep), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("blocks", "gone"), [(48, 24), (12, 6), (6, 3)])
def test_blocks_are_wide_enough_for_any_alignment(blocks: int, gone: int) -> None:
    """Each holds 32 channels; what counts blocks is no width: 12 of them are no 12 channels."""
    result = onnxprune.prune(quantised(32 * blocks, 32, True), ratio=0.5, align=16)
    assert [(g["units"], g["removed"]) for g in result.report.groups] == [(blocks, gone)]


def test_layers_that_share_packed_zero_points_keep_sharing_them(tmp_path: Path) -> None:
    """Both read the same weights, so that what they keep is the same; it is packed once."""
    model = quantised(128, 16, symmetric=False)
    nodes = model.graph.node
    down = next(n for n in nodes if n.input[0] == "h")
    again = onnx.NodeProto.FromString(down.SerializeToString())
    again.input[0], again.output[0], again.name = "up", "again", "again"
    nodes.insert(len(nodes) - 1, again)
    nodes[-1].input[0] = "again"
    onnx.save(model, tmp_path / "in.onnx")
    onnxprune.prune(
        tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none"
    )  # which checks law 1
    small = onnx.load(tmp_path / "out.onnx")
    readers = [n for n in small.graph.node if n.input[0] in ("h", "up") and n.op_type == "MatMulNBits"]
    assert len({tuple(n.input[1:]) for n in readers}) == 1
    assert {a.i for n in readers for a in n.attribute if a.name == "K"} == {64}


def test_blocks_in_another_order_keep_their_zero_points() -> None:
    model = quantised(80, 16, symmetric=False)
    analysis = analyse(Model.load(model))
    coupling = analysis.coupling
    applied = next(a for a in coupling.nodes if a.node.inputs[0] == "h")
    neurons = coupling.space.find((applied.ins[0] or ())[-1])
    blocks = coupling.space.find(applied.letters["q"])
    order = np.array([3, 0, 4, 2, 1])
    places = (order[:, None] * 16 + np.arange(16)).ravel()
    writer = Writer(analysis.model, coupling, Order(coupling, {neurons: places, blocks: order}))
    writer.slice_weights()
    x = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(run(writer.model.to_proto(), x), run(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_law_two_holds_for_packed_zero_points(bits: int, flat: bool, blocks: int) -> None:
    rng = np.random.default_rng(0)
    count, block = 6, 16
    each = -(-blocks * bits // 8)
    if each == blocks:
        pytest.skip("nothing is packed")
    node = helper.make_node(
        "MatMulNBits", ["a", "b", "s", "z"], ["y"], domain="com.microsoft",
        K=block * blocks, N=count, bits=bits, block_size=block,
    )  # fmt: skip
    points = rng.integers(0, 255, (count, each)).astype(np.uint8)
    values = {
        "a": rng.normal(size=(3, block * blocks)).astype(np.float32),
        "b": rng.integers(0, 255, (count, blocks, block * bits // 8)).astype(np.uint8),
        "s": rng.uniform(0.01, 0.05, count * blocks if flat else (count, blocks)).astype(np.float32),
        "z": points.ravel() if flat else points,
    }
    assert check_row(node, values) == []


@pytest.mark.parametrize("bits", [2, 4])
def test_numbers_in_bytes_are_taken_one_by_one(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for count in range(1, 10):
        numbers = rng.integers(0, 1 << bits, (3, count)).astype(np.uint8)
        packed = pack(numbers, bits)
        assert (unpack(packed, bits)[:, :count] == numbers).all()
        index = np.flatnonzero(rng.random(count) > 0.4)
        if index.size:
            taken = repack(packed, bits, count, index)
            assert (unpack(taken, bits)[:, : index.size] == numbers[:, index]).all()
            assert (repack(packed.ravel(), bits, count, index) == taken.ravel()).all()
