"""Segments of a few layers: gradients of their losses, descent, and that it keeps what it promises."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.errors import CalibrationError
from onnxprune.gradient.loss import loss_model, part_model
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import reconstruct as _reconstruct
from onnxprune.reconstruction import room as _room
from onnxprune.reconstruction.descent import Basis, Data, _Adam, descend
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.pace import Pace
from onnxprune.reconstruction.segments import FEWEST, segments
from onnxprune.runtime.session import open_session

RNG = np.random.default_rng(0)


def net(blocks: int = 3, channels: int = 6, batch: int | str = "n") -> onnx.ModelProto:
    """A residual net of convolutions."""
    rng = np.random.default_rng(1)
    nodes, weights = [], []

    def conv(x: str, name: str, inputs: int, outputs: int) -> str:
        weights.extend(
            numpy_helper.from_array(a.astype(np.float32), f"{name}_{kind}")
            for kind, a in (
                ("w", rng.normal(size=(outputs, inputs, 3, 3)) / 6),
                ("b", rng.normal(size=outputs) / 4),
            )
        )
        inside = [x, f"{name}_w", f"{name}_b"]
        nodes.append(helper.make_node("Conv", inside, [name], name=name, pads=[1, 1, 1, 1]))
        return name

    def step(kind: str, *inputs: str) -> str:
        out = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [out], name=out))
        return out

    x = step("Relu", conv("x", "stem", 3, channels))
    for n in range(blocks):
        y = step("Relu", conv(x, f"b{n}_1", channels, 2 * channels))
        x = step("Relu", step("Add", conv(y, f"b{n}_2", 2 * channels, channels), x))
    x = step("Flatten", step("GlobalAveragePool", x))
    weights.append(numpy_helper.from_array(rng.normal(size=(channels, 5)).astype(np.float32), "fc_w"))
    nodes.append(helper.make_node("Gemm", [x, "fc_w"], ["out"], name="fc"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 5])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def images(count: int, seed: int = 0) -> np.ndarray:
    """Smooth images: neighbours are alike, as in real ones."""
    raw = np.random.default_rng(seed).normal(size=(count, 3, 10, 10))
    return (raw[:, :, 2:, 2:] + raw[:, :, 1:-1, 2:] + raw[:, :, 2:, 1:-1]).astype(np.float32)


def parts_of(proto: onnx.ModelProto):
    analysis = analyse(Model.load(proto))
    return analysis, segments(analysis, sites(analysis))


def test_segments_partition_the_graph_and_end_where_one_activation_is_alive():
    analysis, parts = parts_of(net(blocks=6))
    assert [p.first for p in parts] == [0, *(p.end for p in parts[:-1])]
    assert [s.name for p in parts for s in p.sites] == [s.name for s in sites(analysis)]
    assert len(parts) > 1
    assert all(len(p.sites) >= FEWEST for p in parts[:-1])
    for part in parts[:-1]:
        assert len(part.goals) == 1
        assert analysis.coupling.nodes[part.end - 1].node.op in ("Relu", "Flatten")
    for part, following in itertools.pairwise(parts):
        assert set(following.given) <= set(part.goals) | set(part.given)
    assert parts[-1].goals == ("out",)


def test_what_ends_in_an_arg_max_goes_toward_what_stands_before_it():
    model = net(blocks=6)
    model.graph.node.append(helper.make_node("ArgMax", ["out"], ["class"], axis=1, name="class"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("class", TensorProto.INT64, ["n", 1]))
    assert parts_of(model)[1][-1].goals == ("out",)


def test_the_gradients_of_a_segment_are_those_of_its_loss():
    analysis, parts = parts_of(net(blocks=6))
    part = parts[1]
    names = [n for s in part.sites for n in (s.weight, s.bias.name)]
    found = loss_model(analysis, part.given, names, {part.goals[0]: 0.5})
    session = open_session(found.model)
    weights = {n: np.array(analysis.model.weight(n)) for n in names}
    given, goal = (RNG.random((4, 6, 8, 8), np.float32) for _ in range(2))
    feed = {part.given[0]: given, found.targets[part.goals[0]]: goal}

    def loss(changed: dict[str, np.ndarray]) -> float:
        return float(session.run({**feed, **weights, **changed}, [found.loss])[found.loss])

    got = session.run({**feed, **weights})
    for name in names:
        way = RNG.normal(size=weights[name].shape).astype(np.float32)
        up, down = (loss({name: weights[name] + np.float32(s * 1e-3) * way}) for s in (1, -1))
        slope = 2 * float((got[found.gradients[name]] * way).sum())
        assert (up - down) / 2e-3 == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_what_is_masked_counts_nothing():
    rng = np.random.default_rng(2)
    weight = numpy_helper.from_array(rng.normal(size=(4, 3)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, 3])],
        [weight],
    )
    analysis = analyse(
        Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    )
    found = loss_model(analysis, ["x"], ["w"], {"y": 1.0}, masked=["y"])
    feed = {"x": rng.random((2, 5, 4), np.float32), "w": numpy_helper.to_array(weight)}
    feed[found.targets["y"]] = np.zeros((2, 5, 3), np.float32)
    valid = np.ones((2, 5, 1), np.float32)
    valid[1, 3:] = 0
    feed[found.valid] = valid
    first = open_session(found.model).run(feed)
    assert first[found.loss] == pytest.approx(
        float(np.square((feed["x"] @ feed["w"]) * valid).sum()), rel=1e-5
    )
    feed["x"][1, 3:] += 7
    second = open_session(found.model).run(feed)
    assert all(np.array_equal(first[n], second[n]) for n in (found.loss, *found.gradients.values()))


def test_a_basis_turns_and_turns_back():
    analysis, parts = parts_of(net())
    site = parts[0].sites[1]
    weight = np.array(analysis.model.weight(site.weight))
    x = open_session(part_model(analysis, ["x"], [site.x])).run({"x": images(8)})[site.x]
    basis = Basis.of(site.view, weight.shape, x, np.arange(8 * 64), 0)
    turned = basis.turn(weight)
    assert np.allclose(basis.back(turned), weight, atol=1e-5)
    rows = site.view.x(x, np.arange(8 * 64))[0]
    moments = (rows @ basis.axes[0]).T @ (rows @ basis.axes[0])
    assert np.abs(moments - np.diag(np.diag(moments))).max() < 1e-4 * np.diag(moments).max()


def test_steps_are_short_where_inputs_hardly_are():
    """Adam alone goes as far along coordinates of which samples say next to nothing: there it follows noise."""
    analysis, parts = parts_of(net(blocks=6, batch="n"))
    part = parts[1]
    site = part.sites[0]
    found = loss_model(analysis, part.given, [site.weight], {part.goals[0]: 1.0})
    x = RNG.random((40, 6, 8, 8), np.float32)
    x[:, 0] *= 1e-4
    y = open_session(part_model(analysis, part.given, part.goals)).run({part.given[0]: x})[part.goals[0]]
    feeds = {part.given[0]: x, found.targets[part.goals[0]]: y + RNG.normal(size=y.shape).astype(np.float32)}
    start = {site.weight: np.float32(0.7) * np.array(analysis.model.weight(site.weight))}
    basis = Basis.of(site.view, start[site.weight].shape, x, np.arange(40 * 64), 0)
    moved = {}
    for name, mine in (("short", basis), ("full", replace(basis, pace=np.ones_like(basis.pace)))):
        best, before, after = descend(found, start, Data([feeds], [40], True), {site.weight: mine}, Pace(), 0)
        assert after < before
        change = np.abs(best[site.weight] - start[site.weight])
        moved[name] = change[:, 0].mean() / change[:, 1:].mean()
    assert moved["short"] < 0.01 < 0.1 < moved["full"]


@pytest.mark.parametrize("free", [True, False])
def test_descent_finds_weights_that_were_disturbed(free):
    analysis, parts = parts_of(net(blocks=6, batch="n" if free else 1))
    part = parts[1]
    names = [s.weight for s in part.sites]
    found = loss_model(analysis, part.given, names, {part.goals[0]: 1.0})
    right = {n: np.array(analysis.model.weight(n)) for n in names}
    x = RNG.random((40, 6, 8, 8), np.float32)
    run = open_session(part_model(analysis, part.given, part.goals))
    y = np.concatenate([run.run({part.given[0]: x[i : i + 1]})[part.goals[0]] for i in range(40)])
    target = found.targets[part.goals[0]]
    feeds = [{part.given[0]: x, target: y}]
    feeds = feeds if free else [{n: a[i : i + 1] for n, a in feeds[0].items()} for i in range(40)]
    data = Data(feeds, [40] if free else [1] * 40, free)
    start = {
        n: w + np.float32(0.2 * w.std()) * RNG.normal(size=w.shape).astype(np.float32)
        for n, w in right.items()
    }
    best, before, after = descend(found, start, data, {}, Pace(), 0)
    assert after < 0.2 * before
    assert descend(found, start, data, {}, Pace(), 0)[1:] == (before, after)  # the same seed
    same, before, after = descend(found, right, data, {}, Pace(steps=8), 0)
    assert before == after
    assert all(same[n] is right[n] for n in names)
    assert all(best[n].dtype == right[n].dtype for n in names)


@pytest.mark.parametrize("free", [True, False])
def test_no_step_is_made_on_samples_that_are_held_out(free):
    x = np.arange(40.0)[:, None]
    data = (
        Data([{"x": x}], [40], True)
        if free
        else Data([{"x": x[i : i + 1]} for i in range(40)], [1] * 40, False)
    )
    assert len(data.held) > 0
    assert sorted([*data.train, *data.held]) == list(range(40))


def test_blocks_come_nearer_than_layers_on_samples_that_no_fit_saw():
    model, fresh = net(blocks=4, channels=8), {"x": images(200, 9)}
    dense = open_session(Model.load(model)).run(fresh)["out"]
    off = {}
    for recover in ("lstsq", "blocks"):
        result = prune(model, ratio=0.5, calib={"x": images(250)}, recover=recover, align=1, seed=0)
        off[recover] = float(
            np.square(open_session(Model.load(result.model)).run(fresh)["out"] - dense).mean()
        )
    assert off["blocks"] < 0.8 * off["lstsq"]


def test_layers_without_room_together_keep_the_fit_that_each_has(monkeypatch):
    """What a descent takes follows from weights and inputs, and is asked for before anything of it is there."""
    alone = prune(net(), ratio=0.5, calib={"x": images(60)}, align=1, recover="lstsq").model
    needs = [_room.abreast(part.sites) for part in parts_of(net())[1]]
    monkeypatch.setattr(_reconstruct, "TOGETHER", min(needs) / 100)
    found = prune(net(), ratio=0.5, calib={"x": images(60)}, align=1)
    assert all("each keeps its own fit" in line["why"] for line in found.report.calibration["segments"])
    assert [t.raw_data for t in found.model.graph.initializer] == [
        t.raw_data for t in alone.graph.initializer
    ]
    monkeypatch.setattr(_reconstruct, "TOGETHER", max(needs))
    found = prune(net(), ratio=0.5, calib={"x": images(60)}, align=1)
    assert not any("keeps its own" in line["why"] for line in found.report.calibration["segments"])


def test_descent_is_bounded_by_its_work():
    """Long samples are seen fewer at a time first, and then in fewer steps; pictures as ever."""
    pace = Pace()
    assert pace.within(60, 1e8) is pace
    small = pace.within(60, 2.5e9)
    assert (small.steps, small.size(48)) == (200, 3)
    few = pace.within(60, 1e10)
    assert (few.steps, few.size(48)) == (150, 1)
    assert pace.within(60, 1e12) is None


def test_samples_too_long_for_descent_leave_each_layer_its_own_fit(monkeypatch):
    alone = prune(net(), ratio=0.5, calib={"x": images(60)}, align=1, recover="lstsq").model
    sizes = []
    within = Pace.within
    monkeypatch.setattr(
        Pace, "within", lambda pace, count, macs: sizes.append((count, macs)) or within(pace, count, 1e12)
    )
    found = prune(net(), ratio=0.5, calib={"x": images(60)}, align=1)
    assert all(
        "each of its layers keeps its own fit" in line["why"] for line in found.report.calibration["segments"]
    )
    assert [t.raw_data for t in found.model.graph.initializer] == [
        t.raw_data for t in alone.graph.initializer
    ]
    assert sizes == [(54, found.report.after.macs)]  # of one sample


def test_wide_layers_go_down_in_their_own_coordinates(monkeypatch):
    """Of 65,536 inputs the second moments would take 34 GB."""
    asked = []
    real = Basis.of
    monkeypatch.setattr(Basis, "of", lambda view, *more: asked.append(view.width) or real(view, *more))
    monkeypatch.setattr(_reconstruct, "WIDE", 70)
    monkeypatch.setattr(_room, "WIDE", 70)
    found = prune(net(), ratio=0.5, calib={"x": images(60)}, align=1).report.calibration["segments"]
    assert asked
    assert max(asked) <= 70 < 9 * 12
    assert any(line["after"] < line["before"] for line in found)
    sites_of = parts_of(net())[1][0].sites
    assert _room.abreast(sites_of) < _room.abreast([*sites_of, *sites_of])


def test_the_same_seed_gives_the_same_bytes():
    found = [
        prune(net(), ratio=0.5, calib={"x": images(60)}, align=1).model.SerializeToString() for _ in range(2)
    ]
    assert found[0] == found[1]


def test_sizes_that_the_model_leaves_open_are_those_of_the_samples():
    model = net(blocks=6)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    found = prune(model, ratio=0.5, calib={"x": images(60)}, align=1).report.calibration["segments"]
    assert not any(line["why"] for line in found)
    assert found[0]["after"] < found[0]["before"]


def test_constants_are_no_goals():
    model = net(blocks=6)
    weights = {w.name: w for w in model.graph.initializer}
    for number, (name, weight) in enumerate(weights.items()):
        node = helper.make_node("Constant", [], [name], value=weight)
        model.graph.node.insert(number, node)
    del model.graph.initializer[:]
    parts = parts_of(model)[1]
    assert all(goal not in weights for part in parts for goal in part.goals)
    assert all(len(part.goals) == 1 for part in parts)


def test_too_few_samples_change_nothing():
    found = prune(net(), ratio=0.5, calib={"x": images(5)}, align=1).report.calibration["segments"]
    assert all(line["why"] or line["after"] <= line["before"] for line in found)


def barred(blocks: int, at: str) -> onnx.ModelProto:
    """A net with a Mod in front of a convolution: it keeps values below its constant, and has no rule."""
    model = net(blocks)
    first = next(i for i, n in enumerate(model.graph.node) if n.name == at)
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e6, np.float32), "big"))
    node = helper.make_node("Mod", [model.graph.node[first].input[0], "big"], ["odd"], fmod=1)
    model.graph.node.insert(first, node)
    model.graph.node[first + 1].input[0] = "odd"
    return model


def test_gradients_end_where_an_op_has_none_and_layers_behind_it_move():
    result = prune(barred(6, "b0_2"), ratio=0.5, calib={"x": images(250)}, align=1)
    first, *others = result.report.calibration["segments"]
    assert "Mod" in first["stop"]
    assert first["after"] < first["before"]
    assert not any(line["stop"] for line in others)
    assert any("gradients end at 1 place: Mod" in line for line in result.report.lines())


def test_where_no_gradient_reaches_anything_it_is_said():
    model = barred(1, "b0_2")
    analysis = analyse(Model.load(model))
    found = loss_model(analysis, ["x"], ["stem_w", "b0_2_w"], {"out": 1.0})
    assert list(found.gradients) == ["stem_w", "b0_2_w"]  # the stem's by way of the sum
    assert found.stop.startswith("Mod")
    with pytest.raises(CalibrationError, match="no gradients: Mod 'odd' has no gradient rule"):
        loss_model(analysis, ["x"], ["b0_1_w"], {"out": 1.0})


def test_a_segment_that_reads_what_has_no_batch_axis_is_fitted_batch_by_batch():
    model = net(blocks=6)
    nodes = model.graph.node
    first = next(i for i, n in enumerate(nodes) if n.name == "b5_1")
    nodes.insert(0, helper.make_node("ReduceMean", ["x"], ["level"], keepdims=0, name="level"))
    nodes.insert(
        first + 1, helper.make_node("Add", [nodes[first + 1].input[0], "level"], ["raised"], name="raised")
    )
    nodes[first + 2].input[0] = "raised"
    found = prune(model, ratio=0.5, calib={"x": images(60)}, align=1).report.calibration["segments"]
    assert not any(line["why"] for line in found)
    assert all(line["samples"] == 54 for line in found)


@pytest.mark.parametrize("size", [1e-12, 1e-23, 1e-30, 1e-38, 0.0])
def test_a_gradient_whose_square_is_too_small_for_a_float_moves_nothing_far(size):
    adam = _Adam({"w": np.ones((2, 3), np.float32)}, {})
    for _ in range(50):
        adam.step({"w": np.full((2, 3), size, np.float32)}, 0.01)
    assert np.abs(adam.weights()["w"] - 1).max() <= 0.51


def test_samples_of_several_batches_are_picked_as_of_one():
    x = RNG.random((10, 2))
    whole = Data([{"x": x}], [10], True)
    parts = Data([{"x": x[:4]}, {"x": x[4:5]}, {"x": x[5:]}], [4, 1, 5], True, most=3)
    for units in ([0, 3, 4, 5, 9], [7], list(range(10))):
        (one,), several = whole.feeds(units), parts.feeds(units)
        assert all(len(feed["x"]) <= 3 for feed in several)
        assert np.array_equal(one["x"], np.concatenate([feed["x"] for feed in several]))
        assert np.array_equal(one["x"], x[units])
    assert np.array_equal(whole.held, parts.held)
