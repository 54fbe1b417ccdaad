"""All layers of a cut model together: toward the original's states, with what it gives computed as it is needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.gradient.loss import Classes, Variation, loss_model, weighed
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import distill as module
from onnxprune.runtime.session import open_session
from tests.calibration.test_agreement import detector
from tests.reconstruction.test_segments import barred, images, net


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "PACE", replace(module.PACE, steps=240, passes=15))


def off_by(model: onnx.ModelProto, recover: str, **more: object) -> tuple[float, dict[str, object]]:
    """Prune by half, and return the error on fresh samples and what is told of all layers together."""
    fresh = {"x": images(200, 9)}
    result = prune(model, ratio=0.5, calib={"x": images(250)}, recover=recover, align=1, seed=0, **more)
    dense = open_session(Model.load(model)).run(fresh)["out"]
    out = open_session(Model.load(result.model)).run(fresh)["out"]
    return float(np.square(out - dense).mean()), result.report.calibration.get("whole")


def test_all_layers_together_come_nearer_than_a_few_on_samples_that_no_fit_saw():
    model = net(blocks=4, channels=8)
    few, told = off_by(model, "blocks")
    assert told is None
    every, told = off_by(model, "distill")
    assert every < 0.9 * few
    assert told["after"] < told["before"]
    assert told["samples"] == 225
    assert len(told["layers"]) == 10


def test_the_mean_of_what_is_centred_is_no_goal():
    spreads = {
        "sum": Variation(40.0, 50.0, 100), "small": Variation(4e-6, 5e-6, 100), "noise": Variation(1e-13, 1e-13, 100),
        "steady": Variation(1e-12, 4.0, 8), "never": Variation(0.0, 0.0, 8), "lost": Variation(float("nan"), 1.0, 1),
    }  # fmt: skip
    assert weighed(spreads) == pytest.approx({"sum": 1 / 80, "small": 1 / 8e-6})
    assert weighed({}) == {}


def test_the_same_seed_gives_the_same_bytes():
    found = [
        prune(net(), ratio=0.5, calib={"x": images(60)}, align=1, recover="distill").model for _ in range(2)
    ]
    assert found[0].SerializeToString() == found[1].SerializeToString()


def test_samples_run_a_few_at_a_time_give_the_same(monkeypatch):
    feeds = []
    for most in (1 << 29, 1 << 12):
        monkeypatch.setattr(module, "RUN_BYTES", most)
        seen = []
        monkeypatch.setattr(
            module, "descend", lambda *given, seen=seen: seen.append(given[2]) or (given[1], 1.0, 1.0)
        )
        prune(net(), ratio=0.5, calib={"x": images(60)}, align=1, recover="distill")
        feeds.append(seen[0].feeds([0, 3, 4, 7]))
    (whole,), parts = feeds
    assert len(parts) > 1
    for name, array in whole.items():
        assert np.allclose(np.concatenate([part[name] for part in parts]), array, atol=1e-5)
        assert len(array) == 4


def test_batches_of_the_models_own_size_are_units():
    model = net(batch=1)
    result = prune(model, ratio=0.5, calib={"x": images(60)}, align=1, recover="distill")
    told = result.report.calibration["whole"]
    assert not told["why"]
    assert told["after"] < told["before"]


def test_samples_held_out_are_learned_from_once_they_have_judged(monkeypatch):
    seen = []
    real = module.descend

    def descend(found, start, data, *more):
        seen.append((set(data.train.tolist()), set(data.held.tolist()), more[1]))
        return real(found, start, data, *more)

    monkeypatch.setattr(module, "descend", descend)
    _, told = off_by(net(blocks=4, channels=8), "distill")
    (first, held, pace), (last, _, rest) = seen[0], seen[-1]
    assert told["after"] < told["before"]
    assert held
    assert not first & held
    assert last == first | held
    assert (pace.looks > 0, rest.looks) == (True, 0)
    assert pace.steps + rest.steps == module.PACE.steps
    assert pace.rate == rest.rate


def test_where_no_rate_comes_nearer_the_start_is_kept(monkeypatch):
    rates = []

    def descend(found, start, data, bases, pace, *more):
        rates.append(pace.rate)
        return {n: w + 1 for n, w in start.items()}, 1.0, 1.0

    monkeypatch.setattr(module, "descend", descend)
    few, _ = off_by(net(), "blocks")
    same, told = off_by(net(), "distill")
    assert same == few
    assert rates == [share * module.PACE.rate for share in module.RATES]
    assert (told["before"], told["after"]) == (1.0, 1.0)


def test_too_few_samples_change_nothing_and_say_so():
    told = prune(net(), ratio=0.5, calib={"x": images(5)}, align=1, recover="distill").report.calibration[
        "whole"
    ]
    assert told["why"] or told["after"] <= told["before"]


def test_gradients_end_where_an_op_has_none_and_it_is_said():
    fresh, model, errors = {"x": images(200, 9)}, barred(3, "b1_2"), {}
    dense = open_session(Model.load(model)).run(fresh)["out"]
    for recover in ("lstsq", "distill"):
        result = prune(model, ratio=0.5, calib={"x": images(250)}, align=1, recover=recover)
        out = open_session(Model.load(result.model)).run(fresh)["out"]
        errors[recover] = float(np.square(out - dense).mean())
    assert errors["distill"] < 0.95 * errors["lstsq"]
    assert "Mod" in result.report.calibration["whole"]["stop"]
    assert any("gradients end at 1 place: Mod" in line for line in result.report.lines())


def classifier(opset: int) -> tuple[Model, np.ndarray]:
    weight = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Model.load(proto), weight


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_the_divergence_of_classes_and_its_gradient(opset):
    model, weight = classifier(opset)
    found = loss_model(analyse(model), ["x"], ["w"], {}, classes={"y": Classes(1, 0.7)})
    rng = np.random.default_rng(4)
    x, target = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(np.float64(z) - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    p, q = softmax(x @ weight), softmax(target)
    got = open_session(found.model).run({"x": x, "w": weight, found.targets["y"]: target})
    assert got[found.loss] == pytest.approx(0.7 * float((q * np.log(q / p)).sum()), rel=1e-4)
    gradient = got[found.gradients["w"]]
    assert np.allclose(gradient, 0.35 * x.T @ (p - q), atol=1e-4)
    assert np.abs(gradient).max() > 0.1


def test_how_far_it_goes_follows_epochs_and_rate(monkeypatch):
    monkeypatch.undo()
    assert module.pace_of(225, None, None) is module.PACE
    pace = module.pace_of(225, 20, 0.01)
    assert (pace.steps, pace.passes, pace.rate) == (282, 20, 0.01)
    assert pace.size(225) == 16
    assert module.pace_of(3, 1, None).steps == pace.looks


def test_boxes_of_a_model_s_own_number_are_aimed_at_by_what_they_are_made_of():
    """Those that are left of many can't be compared one by one, and are no goal; pictures may still be mirrored."""
    given = np.random.default_rng(1).standard_normal((40, 3, 16, 16)).astype(np.float32)
    result = prune(detector(), ratio=0.5, calib={"x": given}, recover="distill", align=1, seed=0)
    whole = result.report.calibration["whole"]
    assert whole["why"] == ""
    assert 0 < whole["after"] < whole["before"] < np.inf
