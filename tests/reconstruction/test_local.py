"""What a layer can make up for, and what it can't: refits that don't learn noise, nor one loud position."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import evidence as evidences
from onnxprune.reconstruction.evidence import LOUD, Collector, Evidence, Rows, evened
from onnxprune.reconstruction.layer import Settings, fit_blocks
from onnxprune.reconstruction.layers import Site, sites
from onnxprune.reconstruction.local import RIDGES, Local

WIDTH, OUTPUTS = 48, 12


def layer(seed: int = 0) -> tuple[Site, Model, np.ndarray]:
    """A layer without a bias that feeds a sum, and its weight."""
    w = np.random.default_rng(seed).standard_normal((WIDTH, OUTPUTS)).astype(np.float32)
    tensor = helper.make_tensor_value_info
    ends = [tensor("x", TensorProto.FLOAT, ["N", WIDTH]), tensor("s", TensorProto.FLOAT, ["N", OUTPUTS])]
    nodes = [
        helper.make_node("Relu", ["s"], ["stream"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Add", ["stream", "y"], ["sum"]),
    ]
    out = tensor("sum", TensorProto.FLOAT, ["N", OUTPUTS])
    graph = helper.make_graph(nodes, "g", ends, [out], [numpy_helper.from_array(w, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = Model.load(onnx.shape_inference.infer_shapes(made))
    (site,) = sites(analyse(model))
    assert site.total is not None
    assert site.adder is None
    return site, model, w


def inputs(count: int, seed: int) -> np.ndarray:
    """Rows whose channels say much of each other."""
    mix, rng = np.random.default_rng(9).standard_normal((16, WIDTH)), np.random.default_rng(seed)
    own = 0.3 * rng.standard_normal((count, WIDTH))
    return (rng.standard_normal((count, 16)) @ mix / 4 + own).astype(np.float32)


def told(site: Site, x: np.ndarray, y: np.ndarray, even: np.ndarray | None = None) -> Evidence:
    collector = Collector(site.view)
    collector.add(x, y, Rows(np.arange(len(x)), round(len(x) * 0.8)), even)
    return collector.evidence(1.0)


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_a_refit_from_few_rows_does_not_learn_what_others_lost(noise: float) -> None:
    """Nobody can explain the noise; what stays gives nearly what all gave, which needs no target at all."""
    site, model, w = layer()
    kept = np.arange(0, WIDTH, 2)
    x, fresh = inputs(120, 1), inputs(4000, 2)
    y = x @ w + noise * np.random.default_rng(3).standard_normal((len(x), OUTPUTS)).astype(np.float32)
    (fit,), report = fit_blocks(site, told(site, x, y), [kept], model, Settings())
    assert not np.delete(fit.w, kept, axis=0).any()
    assert np.array_equal(fit.b, np.zeros(OUTPUTS))

    def error(weights: np.ndarray) -> float:
        return float(np.square(fresh[:, kept] @ weights - fresh @ w).mean())

    best = error(np.linalg.lstsq(fresh[:, kept], fresh @ w, rcond=None)[0])
    assert error(fit.w[kept]) < 1.6 * best
    if noise:
        assert report.variant == "local"
        learned = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
        assert error(learned) > 1.3 * error(fit.w[kept])
        assert error(w[kept]) > 1.3 * error(fit.w[kept])


def test_where_rows_are_few_held_out_samples_choose_the_ridge_of_what_a_layer_needs() -> None:
    site, _, w = layer()
    kept = np.arange(0, WIDTH, 2)
    fresh = inputs(4000, 2)

    def error(rows: int, settle: bool) -> tuple[float, float]:
        found = told(site, inputs(rows, 1), np.zeros((rows, OUTPUTS), np.float32))
        prior = np.where(np.isin(np.arange(WIDTH), kept)[:, None], w, 0.0)
        local = Local([kept], w[None].astype(np.float64), prior[None])
        if settle:
            local.settle(found.train(centred=False), found.held_out(centred=False))
        (weights,) = local.weights(found.whole(centred=False))
        return float(np.square(fresh[:, kept] @ weights[kept] - fresh @ w).mean()), local.share

    (few, strong), (plain, first) = error(40, True), error(40, False)
    assert strong > first == RIDGES[0]
    assert few < 0.9 * plain
    assert error(4000, True)[1] <= RIDGES[1]  # many rows tell the weights by themselves


def test_where_nothing_goes_and_nothing_was_lost_the_weights_stay() -> None:
    site, model, w = layer()
    x = inputs(200, 1)
    (fit,), report = fit_blocks(site, told(site, x, x @ w), [np.arange(WIDTH)], model, Settings())
    np.testing.assert_allclose(fit.w, w, atol=1e-4)
    assert report.after < 1e-6


def test_rows_are_evened() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    assert evened(rows) is None
    assert evened(rows[:0]) is None
    assert evened(np.zeros((4, 3), np.float32)) is None
    rows[7] *= 100
    factors = evened(rows)
    assert factors is not None
    squares, before = np.square(rows * factors).sum(axis=1), np.square(rows).sum(axis=1)
    assert squares[7] == pytest.approx(LOUD * np.median(before), rel=1e-5)
    np.testing.assert_allclose(np.delete(squares, 7), np.delete(before, 7), rtol=1e-6)


def test_evidence_of_evened_rows_is_that_of_rows_and_targets_times_their_factors() -> None:
    site, _, w = layer()
    x = inputs(60, 1)
    even = np.random.default_rng(0).uniform(0.1, 1, (60, 1)).astype(np.float32)
    one, two = told(site, x, x @ w, even), told(site, x * even, (x @ w) * even)
    for a, b in zip(one.whole(centred=False), two.whole(centred=False), strict=True):
        np.testing.assert_allclose(a.h, b.h, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a.g, b.g, rtol=1e-5, atol=1e-6)


def test_one_loud_position_is_not_all_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position that is 300 times as loud, and that what stays can explain in another way than the rest."""
    site, model, w = layer()
    kept, x = np.arange(0, WIDTH, 2), inputs(120, 1)
    x[::20] = 300 * inputs(6, 5)
    stream, fresh = x @ w, inputs(2000, 2)

    def error() -> float:
        even = evened(stream)
        (fit,), _ = fit_blocks(site, told(site, x, x @ w, even), [kept], model, Settings())
        return float(np.square(fresh[:, kept] @ fit.w[kept] - fresh @ w).mean())

    evenly = error()
    monkeypatch.setattr(evidences, "LOUD", np.inf)
    assert error() > 1.15 * evenly
