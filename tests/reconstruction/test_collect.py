"""Evidence of layers against rows that are read one by one."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calibration.samples import Samples
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import evidence as collect
from onnxprune.reconstruction import walk as _walk
from onnxprune.reconstruction.evidence import HELD, Collector, Draw, Rows, Spread, typical
from onnxprune.reconstruction.layer import Settings
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.views import channels_last, columns
from onnxprune.reconstruction.walk import Walk
from onnxprune.runtime.session import open_session


def net(depth=5, group=1):
    """Convolutions in a row, every second one with a sum around it."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], {}, "x"
    for i in range(depth):
        weights[f"w{i}"] = (0.3 * rng.standard_normal((6, 6 // group, 3, 3))).astype(np.float32)
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"y{i}"], pads=[1] * 4, group=group))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"r{i}"]))
        last = f"r{i}"
        if i % 2:
            nodes.append(helper.make_node("Add", [f"y{i}", f"r{i - 1}"], [f"s{i}"]))
            last = f"s{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [tensor("x", TensorProto.FLOAT, ["N", 6, 8, 8])], [tensor("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opset, ir_version=8))


def opened(**given):
    """Return an analysis, samples in batches, and all activations over all samples."""
    analysis = analyse(Model.load(net(**given)))
    x = np.random.default_rng(1).standard_normal((40, 6, 8, 8)).astype(np.float32) + 2
    names = [n for node in analysis.model.proto.graph.node for n in node.output]
    everything = open_session(analysis.model, names).run({"x": x}) | {"x": x}
    return (
        analysis,
        Samples([{"x": part} for part in np.split(x, 4)], [10] * 4, None, "", {"x": 0}),
        everything,
    )


@pytest.mark.parametrize("group", [1, 2, 6])
def test_evidence_of_several_layers_in_one_run_is_that_of_their_rows(group):
    analysis, samples, activations = opened(group=group)
    todo = sites(analysis)
    walk = Walk.of(analysis, [], samples, Settings(), todo)
    (some,) = walk.stretches(todo)
    assert some == todo
    for site, evidence in zip(some, walk.originals(some), strict=True):
        view, rows = site.view, np.arange(40 * 64)
        x = view.x(activations[site.x], rows)
        y = view.y(activations[site.y], rows).reshape(len(rows), view.blocks, view.outputs).transpose(1, 0, 2)
        both = np.concatenate([x, y], axis=2).astype(np.float64)
        held = rows // 64 % HELD == HELD - 1
        for mine, parts in ((both[:, ~held], evidence.fitting.parts), (both[:, held], evidence.aside.parts)):
            for block, part in zip(mine, parts, strict=True):
                assert part.n == len(block)
                np.testing.assert_allclose(part.mean, block.mean(axis=0), rtol=1e-4, atol=1e-5)
                cov = np.cov(block.T, bias=True)
                np.testing.assert_allclose(part.gram / part.n, cov[: view.width], rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(part.square / part.n, cov.diagonal()[view.width :], rtol=1e-4)
        goal = channels_last(activations[site.total.tensor if site.total else site.y], 1)
        np.testing.assert_allclose(evidence.spread, typical(goal.var(axis=0)), rtol=1e-4)
    assert not walk.dense.keep


@pytest.mark.parametrize("most_bytes", [1 << 30, 1])
def test_stretches_are_short_where_room_is_and_give_the_same(monkeypatch, most_bytes):
    analysis, samples, _ = opened()
    todo = sites(analysis)
    monkeypatch.setattr(_walk, "MOST_BYTES", most_bytes)  # with 1 nothing is held between stretches

    def found():
        walk = Walk.of(analysis, [], samples, Settings(most=1, least=500), todo)
        stretches = walk.stretches(todo)
        return [len(s) for s in stretches], [e for some in stretches for e in walk.originals(some)]

    lengths, whole = found()
    assert lengths == [5]
    size = 16 * 54 * 60 + 10 * 6 * 64 * 4 * 2  # moments of a layer, and its input and output for a batch
    monkeypatch.setattr(_walk, "ABREAST_BYTES", 3 * size)
    assert found()[0][0] in (2, 3)
    monkeypatch.setattr(_walk, "ABREAST", 1)
    lengths, alone = found()
    assert lengths == [1] * 5
    for one, other in zip(whole, alone, strict=True):
        np.testing.assert_allclose(one.fitting.gram, other.fitting.gram, rtol=1e-4, atol=1e-2)
        assert one.spread == pytest.approx(other.spread, rel=1e-5)


def test_rows_for_fitting_come_first():
    draw = Draw(20, 600, 0)
    for first in (0, 10):
        rows = draw.take(np.zeros((10, 3, 8, 8)), 640, 10)
        held = (first + rows.index // 64) % HELD == HELD - 1
        assert len(np.unique(rows.index)) == 300
        assert not held[: rows.fitting].any()
        assert held[rows.fitting :].all()


def test_float64_stays_float64():
    site = sites(analyse(Model.load(net(depth=1))))[0]
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 6, 8, 8))
    y = rng.standard_normal((50, 6))
    collector, rows = Collector(site.view), Rows(np.arange(50), 50)
    collector.add(x, y, rows)
    both = np.concatenate([site.view.x(x, rows.index)[0], y], axis=1)
    moments, cov = collector.evidence().fitting, np.cov(both.T, bias=True)
    np.testing.assert_allclose(moments.gram[0] / 50, cov[: site.view.width], atol=1e-13)
    np.testing.assert_allclose(moments.square[0] / 50, cov.diagonal()[site.view.width :], atol=1e-13)


@pytest.mark.parametrize(("shape", "axis"), [((7, 5, 6, 4), 1), ((7, 9, 5), -1), ((60, 5), 1), ((5, 30), 0)])
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_the_spread_is_the_variance(monkeypatch, shape, axis, mean):
    monkeypatch.setattr(collect, "CACHED", 64)
    rng = np.random.default_rng(2)
    arrays = [(rng.standard_normal(shape) + mean).astype(np.float32) for _ in range(3)]
    spread = Spread()
    assert spread.variance == 0
    for array in arrays:
        spread.add(array, axis, array, None)
    rows = np.concatenate([channels_last(a, axis) for a in arrays]).astype(np.float64)
    assert spread.n == len(rows)
    assert spread.variance == pytest.approx(typical(rows.var(axis=0)), rel=1e-5)
    assert spread.variance == pytest.approx(rows.var(axis=0).sum(), rel=1e-5)


def test_a_first_position_far_from_the_others_costs_no_digits():
    array = np.random.default_rng(6).standard_normal((64, 26, 4)).astype(np.float32)
    array[0, 0] = 1e6
    spread, valid = Spread(), np.ones((64, 26), bool)
    valid[:, 1] = False
    spread.add(array, -1, array, valid)
    rows = array[valid].astype(np.float64)
    assert spread.variance == pytest.approx(typical(rows.var(axis=0)), rel=1e-7)


def test_a_strong_channel_and_dead_ones_leave_the_unit_of_error_alone():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((400, 33)).astype(np.float32)
    plain, marked = Spread(), Spread()
    plain.add(rows, -1, rows, None)
    strong = np.concatenate([rows, np.full((400, 20), 3.0, np.float32)], axis=1)
    strong[:, 7] *= 1000
    marked.add(strong, -1, strong, None)
    assert marked.variance == pytest.approx(plain.variance, rel=0.35)
    assert strong.var(axis=0).sum() > 1000 * plain.variance
    np.testing.assert_allclose(typical(np.array([1.0, 2.0, 3.0, 20.0, 4000.0])), 56.0)
    assert typical(np.zeros(4)) == typical(np.zeros(0)) == 0


@pytest.mark.parametrize("count", [3, 150])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_columns_are_some_positions(count, axis):
    array = np.random.default_rng(4).standard_normal((6, 5, 8, 9))
    rows = np.random.default_rng(5).permutation(array.size // array.shape[axis])[:count]
    np.testing.assert_array_equal(columns(array, axis, rows), channels_last(array, axis)[rows])
