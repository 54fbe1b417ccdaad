"""The journey with samples, on small nets whose answer is known."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import registry
from onnxprune.errors import CalibrationError, FloorMissed, NothingToPrune, UsageError
from onnxprune.model import Model
from onnxprune.reconstruction import sequential
from onnxprune.reconstruction.layer import write
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.least_squares import Consumer, Fit, Problem
from onnxprune.reconstruction.moments import Moments
from onnxprune.runtime import session as runtime

RNG = np.random.default_rng


def model_of(nodes, weights, given, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", None]) for n in outputs],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residual(channels=8, inner=12, redundant=True, seed=0, scale=0.2):
    """Two blocks with a sum; half of each block's inner channels are copies of the other half."""
    rng = RNG(seed)
    weights, nodes = {}, [helper.make_node("Conv", ["x", "w0", "b0"], ["s0"], pads=[1] * 4)]
    weights["w0"], weights["b0"] = 0.3 * rng.standard_normal((channels, 3, 3, 3)), np.zeros(channels)
    for i in range(2):
        w = 0.2 * rng.standard_normal((inner, channels, 3, 3))
        b = 0.1 * rng.standard_normal(inner)
        if redundant:
            w[inner // 2 :], b[inner // 2 :] = w[: inner // 2] * 2, b[: inner // 2] * 2
        weights |= {f"w{i}a": w, f"b{i}a": b, f"w{i}b": scale * rng.standard_normal((channels, inner, 3, 3))}
        nodes += [
            helper.make_node("Conv", [f"s{i}", f"w{i}a", f"b{i}a"], [f"h{i}"], pads=[1] * 4),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
            helper.make_node("Conv", [f"r{i}", f"w{i}b"], [f"o{i}"], pads=[1] * 4),
            helper.make_node("Add", [f"s{i}", f"o{i}"], [f"s{i + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", ["s2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "wf"], ["y"]),
    ]
    weights["wf"] = rng.standard_normal((channels, 5))
    return model_of(nodes, weights, ["N", 3, 6, 6])


def run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def images(n=160, seed=1):
    return RNG(seed).standard_normal((n, 3, 6, 6)).astype(np.float32)


INNER = ("w0a", "w1a")


def test_redundant_channels_go_without_loss():
    model = residual()
    result = onnxprune.prune(model, ratio=0.5, align=None, only=INNER, calib={"x": images()}, seed=0)
    fresh = images(64, seed=9)
    before, after = run(model, fresh), run(result.model, fresh)
    assert np.linalg.norm(after - before) < 0.02 * np.linalg.norm(before)
    plain = onnxprune.prune(model, ratio=0.5, align=None, only=INNER)
    assert np.linalg.norm(run(plain.model, fresh) - before) > 0.2 * np.linalg.norm(before)
    found = result.report.calibration
    assert found["original"]["samples"] >= 16
    assert found["original"]["relative_error"] < 0.02
    assert all(line["after"] <= line["before"] for line in found["layers"])
    assert result.report.law1["max_relative_error"] < 1e-4


@pytest.mark.parametrize(
    "criterion", ["obs", "wanda", "act_variance", "apoz", "taylor", "obd", "regression", "l2"]
)
def test_a_refit_is_never_worse_than_a_bias_and_that_than_nothing(criterion):
    model, fresh = residual(redundant=False), images(128, seed=9)
    before = run(model, fresh)

    def error(recover):
        result = onnxprune.prune(
            model,
            ratio=0.4,
            align=None,
            only=INNER,
            calib={"x": images(320)},
            criterion=criterion,
            recover=recover,
        )
        return np.linalg.norm(run(result.model, fresh) - before) / np.linalg.norm(before)

    none, bias, lstsq = error("none"), error("bias"), error("lstsq")
    assert lstsq < bias <= none * 1.02
    assert lstsq < 0.9 * none


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_the_budget_is_met(kind):
    model = residual(redundant=False)
    result = onnxprune.prune(model, target=f"{kind}=0.6", align=None, calib={"x": images()})
    before, after = result.report.before, result.report.after
    share = after.macs / before.macs if kind == "macs" else after.parameters / before.parameters
    assert 0.45 < share <= 0.6 + 1e-3


def test_a_budget_that_cannot_be_met_is_refused():
    with pytest.raises(NothingToPrune, match="can't be met"):
        onnxprune.prune(residual(), target="macs=0.01", calib={"x": images()}, only=INNER)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        onnxprune.prune(
            residual(), tmp_path / name, target="macs=0.6", align=None, calib={"x": images()}, seed=4
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_input_is_not_touched():
    model = residual()
    raw = model.SerializeToString()
    onnxprune.prune(model, ratio=0.5, calib={"x": images()})
    assert model.SerializeToString() == raw


def test_the_largest_cut_that_holds_is_searched(monkeypatch):
    model = residual()
    x = images(400)
    labels = run(model, x).argmax(axis=1)
    found = onnxprune.prune(
        model, align=None, calib={"x": x, "truth": labels}, labels="truth", min_agreement=0.9, max_drop=10.0
    ).report
    assert found.calibration["original"]["agreement"] >= 0.9
    assert found.calibration["original"]["accuracy"]["before"] == 100
    assert found.after.macs < 0.9 * found.before.macs
    monkeypatch.setattr("onnxprune.pruning.search.FRONTIER", 1)
    model = residual(redundant=False, scale=3.0)
    given = {"x": x, "truth": run(model, x).argmax(axis=1)}
    fields = {
        "labels": "truth",
        "max_drop": 0.0,
        "min_agreement": 1.0,
        "recover": "none",
        "criterion": "wanda",
    }
    with pytest.raises(FloorMissed, match="No cut"):
        onnxprune.prune(model, align=None, target="macs=0.1", calib=given, **fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"min_agreement": 0.9}, "--min-agreement needs samples"),
        ({"ratio": 0.5, "criterion": "obs"}, "--criterion obs needs samples"),
        ({"target": "flops=0.5", "calib": {"x": images(8)}}, "must look like macs=0.5"),
        ({"target": "macs=0.5", "ratio": 0.5, "calib": {"x": images(8)}}, "give one of them"),
        ({"max_drop": 1.0, "calib": {"x": images(8)}}, "--labels"),
        ({"calib": {"x": images(8)}}, "must say how much"),
        ({"ratio": 0.5, "calib": {"x": images(8)}, "recover": "lsq"}, "lstsq"),
    ],
)
def test_options_that_do_not_go_together_are_refused(fields, text):
    with pytest.raises(UsageError, match=text):
        onnxprune.prune(residual(), **fields)


def test_too_few_samples_are_detected_and_handled():
    model = residual(redundant=False)
    result = onnxprune.prune(model, ratio=0.5, align=None, calib={"x": images(6)[:, :, :6, :6]})
    assert any("too few samples for a regression" in note for note in result.report.notes)
    with pytest.raises(CalibrationError, match="3 samples only"):
        onnxprune.prune(model, ratio=0.5, calib={"x": images(3)})


def test_a_bias_is_added_after_a_product_and_shared_ones_are_copied():
    rng = RNG(3)
    weights = {"w1": rng.standard_normal((6, 16)), "b": rng.standard_normal(16) + 1,
               "w2": rng.standard_normal((16, 16)), "w3": rng.standard_normal((16, 3))}  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]), helper.make_node("MatMul", ["d", "w2"], ["e"]),
        helper.make_node("Add", ["b", "e"], ["f"]), helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "w3"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, weights, ["N", 6])
    x = rng.standard_normal((800, 6)).astype(np.float32)
    result = onnxprune.prune(model, ratio=0.25, align=None, calib={"x": x})
    fresh = rng.standard_normal((200, 6)).astype(np.float32)
    before = run(model, fresh)
    error = np.linalg.norm(run(result.model, fresh) - before) / np.linalg.norm(before)
    plain = onnxprune.prune(model, ratio=0.25, align=None)
    assert error < 0.6 * np.linalg.norm(run(plain.model, fresh) - before) / np.linalg.norm(before)


def consumer(seed=0, units=6, taps=2, outputs=3):
    rng = RNG(seed)
    d = units * taps
    x = rng.standard_normal((500, d)) @ rng.standard_normal((d, d))
    w = rng.standard_normal((d, outputs))
    moments = Moments.empty(d, outputs)
    moments.add(np.hstack([x, x @ w]))
    rows = [np.arange(u * taps, (u + 1) * taps) for u in range(units)]
    return Consumer(Problem.of(moments), rows, w, 1.0), x


def test_scores_follow_their_papers():
    one, x = consumer()
    square = (x**2).mean(axis=0)
    expected = {
        "wanda": (np.abs(one.w).sum(axis=1) * np.sqrt(square)),
        "act_variance": x.var(axis=0) * (one.w**2).sum(axis=1),
        "obd": square * (one.w**2).sum(axis=1) / 2,
    }
    for name, scores in expected.items():
        curve = registry.load("onnxprune.criteria", name).curve([one], 1)
        total = scores.reshape(6, 2).sum(axis=1)
        np.testing.assert_array_equal(curve.order, np.argsort(total))
        np.testing.assert_allclose(curve.error[:-1], np.cumsum([0, *np.sort(total)])[:-1], rtol=1e-9)


def test_a_unit_that_nothing_needs_goes_first():
    for name in ("obs", "regression", "wanda", "obd", "act_variance"):
        one, _ = consumer()
        w, g = one.w.copy(), one.problem.g
        w[4:6] = 0
        h, m = one.problem.h, one.problem
        problem = Problem(m.n, h, h @ w, (w * (h @ w)).sum(axis=0), m.mx, w.T @ m.mx)
        curve = registry.load("onnxprune.criteria", name).curve([Consumer(problem, one.rows, w, 1.0)], 1)
        assert curve.order[0] == 2, name
        assert g.shape == problem.g.shape


@pytest.mark.parametrize("version", [3, 8])
def test_the_checker_takes_a_refitted_model_with_no_weight_that_nobody_reads(version):
    model = residual()
    model.ir_version = version
    if version < 4:
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
    found = onnxprune.prune(model, ratio=0.5, calib={"x": images()})
    onnx.checker.check_model(found.model, full_check=True)
    read = {n for node in found.model.graph.node for n in node.input}
    assert {t.name for t in found.model.graph.initializer} <= read
    assert len(found.model.graph.initializer) > len(model.graph.initializer)  # two layers had no bias


def test_narrow_layers_are_fitted_on_more_positions_than_trials_use():
    """The last fit took a trial's number of positions once, and a small net lost five points by it."""
    result = onnxprune.prune(residual(), ratio=0.5, calib={"x": images(1200)}, align=None)
    rows = [layer["rows"] for layer in result.report.calibration["layers"]]
    positions = 1080 * int(np.prod(images(1).shape[2:]))
    assert max(rows) > 1 << 14 > positions // 4 > 1 << 13


@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.5}, {"target": "macs=0.7"}, {"ratio": 0.5, "criterion": "taylor", "recover": "bias"}],
)
def test_samples_run_on_the_provider_that_is_named(monkeypatch, options):
    """All of calibration does, and nothing else: the proof stays on the CPU."""
    used, real = [], runtime._Config.session

    def session(config, proto, settings):
        used.append(config.provider)
        return real(replace(config, provider=runtime.CPU), proto, settings)

    known = ort.get_available_providers()
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*known, "OddExecutionProvider"])
    monkeypatch.setattr(runtime._Config, "session", session)
    plain = onnxprune.prune(residual(), calib={"x": images()}, verify=False, **options)
    before = len(used)
    assert set(used) == {runtime.CPU}
    odd = onnxprune.prune(residual(), calib={"x": images()}, calib_provider="odd", verify=False, **options)
    mine = used[before:]
    assert mine.count("OddExecutionProvider") > 8
    assert mine.count(runtime.CPU) < 0.2 * len(mine)  # probes of types, and the rows of the table of ops
    assert odd.model.SerializeToString() == plain.model.SerializeToString()
    assert odd.report.to_json()["options"]["calib_provider"] == "odd"


def test_a_ratio_of_nothing_gives_the_input_back():
    model = residual()
    result = onnxprune.prune(model, ratio=0, calib={"x": images()})
    assert result.model == model
    assert result.report.calibration is None


@pytest.mark.parametrize("harm", [False, True])
def test_a_fit_that_does_harm_is_told(harm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: Model, site: Site, fits: list[Fit]) -> None:
        write(model, site, [Fit(3 * f.w, f.b) for f in fits] if harm else fits)

    monkeypatch.setattr(sequential, "write", spoiled)
    options = {"ratio": 0.5, "align": 1, "recover": "lstsq"}
    result = onnxprune.prune(residual(redundant=False), calib={"x": images()}, **options)
    assert (
        any("the fit did harm" in note and "--recover none" in note for note in result.report.notes) is harm
    )
