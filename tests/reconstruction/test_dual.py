"""Wide layers: the dual form of a fit against the primal one, and loss curves of contributions."""

import tracemalloc

import numpy as np
import pytest
from small_models import Builder

from onnxprune.calibration.samples import Samples
from onnxprune.criteria import obs
from onnxprune.errors import CalibrationError
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import dual
from onnxprune.reconstruction.consumers import consumers_of
from onnxprune.reconstruction.dual import DualProblem, RowStack, RowTable, contributions, merged
from onnxprune.reconstruction.evidence import HELD, Collector, Rows
from onnxprune.reconstruction.layer import Settings, fit_blocks
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.least_squares import Problem, bias_only, error_of, refit
from onnxprune.reconstruction.moments import Moments
from onnxprune.reconstruction.room import admit, kept, needed
from onnxprune.reconstruction.walk import RANKING, Walk

D, OUTPUTS, TAPS = 24, 5, 3


def both(n=60, seed=0, width=D, *, centred=True):
    """Return one regression in both forms, on two thirds of a table's rows, and its weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, width)) @ rng.standard_normal((width, width)) + 3
    x[:, 4] = 2.0  # without variance
    w = rng.standard_normal((width, OUTPUTS))
    y = x @ w + 0.1 * rng.standard_normal((n, OUTPUTS)) - 1
    table = RowTable()
    for part in np.array_split(np.arange(n), 4):
        table.add(x[part], y[part])
    index = np.flatnonzero(np.arange(n) % 3 > 0)
    moments = Moments.empty(width, OUTPUTS)
    moments.add(x[index], y[index])
    primal = Problem.of(moments)
    return (primal if centred else primal.about_zero()), DualProblem(table, index, centred), w


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [15, 90])  # fewer rows than regressors, and more
def test_the_dual_form_is_the_primal_one(monkeypatch, n, centred):
    monkeypatch.setattr(dual, "COLUMNS", 7)
    primal, kept_rows, w = both(n, centred=centred)
    kept = np.array([0, 2, 3, 4, 7, 8, 9, 15, 20, 23])
    np.testing.assert_allclose(kept_rows.mx, primal.mx, rtol=1e-10)
    np.testing.assert_allclose(kept_rows.diagonal, primal.h.diagonal(), rtol=1e-8, atol=1e-12)
    for share, prior in ((1e-3, w), (0.1, w), (0.1, None)):
        one, two = refit(primal, kept, share, prior), refit(kept_rows, kept, share, prior)
        np.testing.assert_allclose(two.w, one.w, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(two.b, one.b, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(error_of(kept_rows, two), error_of(primal, one), rtol=1e-6, atol=1e-8)
    old = bias_only(primal, kept, w)
    np.testing.assert_allclose(bias_only(kept_rows, kept, w).b, old.b, rtol=1e-8)
    np.testing.assert_allclose(kept_rows.spread(old.w), primal.spread(old.w), rtol=1e-8)
    other = refit(kept_rows, kept, 1.0, w)
    assert np.abs(other.w - two.w).max() > 1e-3  # another ridge is seen


def test_contributions_are_those_of_the_rows_and_merge(monkeypatch):
    monkeypatch.setattr(dual, "ENTRIES", 100)
    _, problem, w = both(90)
    units = [
        np.arange(u * TAPS, (u + 1) * TAPS) for u in range(D // TAPS - 1)
    ]  # the last channel is nobody's
    halves = [DualProblem(problem.table, part) for part in np.array_split(problem.index, [25])]
    whole, _ = contributions(problem, units, w)
    x = problem.table.columns(problem.index, np.arange(problem.table.width)) - problem.mx
    rows = np.stack([x[:, own] @ w[own] for own in [*units, np.arange(D - TAPS, D)]]).reshape(
        len(units) + 1, -1
    )
    np.testing.assert_allclose(whole.h, rows @ rows.T / problem.n, rtol=1e-9)
    np.testing.assert_allclose(whole.g[:, 0], rows @ (problem.y - problem.my).ravel() / problem.n, rtol=1e-9)
    together = merged([contributions(half, units, w) for half in halves], [half.my for half in halves])
    for name in ("n", "h", "g", "v"):
        np.testing.assert_allclose(getattr(together, name), getattr(whole, name), rtol=1e-9)


def net(channels=6):
    b = Builder(4)
    x = b.op("Relu", [b.conv("x", "a", 3, channels)], "relu")
    y = b.conv(x, "b", channels, 4)
    return b.model({"x": ["n", 3, 5, 4]}, y)


def evidence_of(wide, sheet=1 << 14):
    analysis = analyse(Model.load(net()))
    x = np.random.default_rng(1).standard_normal((40, 3, 5, 4)).astype(np.float32)
    samples = Samples([{"x": part} for part in np.split(x, 4)], [10] * 4, None, "", {"x": 0})
    todo, settings = sites(analysis)[1:], Settings(wide=wide, sheet=sheet)
    (evidence,) = Walk.of(analysis, [], samples, settings, todo).originals(todo)
    return analysis, todo[0], evidence, settings


def test_a_layer_is_fitted_alike_from_rows_and_from_moments():
    reports, fits = [], []
    for wide in (1000, 10):
        analysis, site, evidence, settings = evidence_of(wide)
        done, report = fit_blocks(site, evidence, [np.arange(36)], analysis.model, settings)
        reports.append(report)
        fits.append(done[0])
    assert isinstance(evidence.fitting, RowStack)
    assert reports[0].variant == reports[1].variant != "kept"
    assert reports[0].rows == reports[1].rows == 40 * 20
    np.testing.assert_allclose(fits[1].w, fits[0].w, rtol=1e-3, atol=1e-4)  # float32 rows
    assert reports[1].after == pytest.approx(reports[0].after, rel=1e-3)
    assert not fits[1].w[36:].any()


def test_curves_of_wide_layers_rank_units_by_what_they_give():
    analysis, site, evidence, _ = evidence_of(10)
    rows = [[np.arange(u * 9, u * 9 + 9) for u in range(6)]]
    (consumer,) = consumers_of(site, evidence, rows, analysis.model, evidence.spread)
    curve = obs.curve([consumer], 1)
    analysis, site, evidence, _ = evidence_of(1000)
    (exact,) = consumers_of(site, evidence, rows, analysis.model, evidence.spread)
    best = obs.curve([exact], 1)
    assert (curve.error[1:-1] >= best.error[1:-1] * 0.98).all()  # scales alone mend no more than a refit
    assert (np.diff(curve.error[:-1]) > 0).all()
    assert curve.order[0] in best.order[:3]


def test_rows_are_few_where_they_are_wide():
    _, _, evidence, settings = evidence_of(10, sheet=480)
    assert 0 < evidence.fitting.n + evidence.aside.n <= 480 // RANKING
    assert evidence.aside.n == pytest.approx(480 / RANKING / HELD, abs=8)
    site = sites(analyse(Model.load(net())))[1]
    assert kept(site, settings) == 4 * 480 * (54 + 4)
    assert kept(site, settings, 3) == 4 * 160 * (54 + 4)
    assert kept(site, Settings()) == 16 * 54 * (54 + 4)


def test_a_layer_without_room_is_refused_before_any_sample_runs():
    layers = sites(analyse(Model.load(net())))
    most = needed(layers[1], Settings())
    admit(layers, Settings(), most)
    with pytest.raises(
        CalibrationError, match=r"'b' reads 54 numbers and gives 4: .* 0\.0 GB.* free.*--ignore"
    ):
        admit(layers, Settings(), most - 1)
    wide = Settings(wide=10, sheet=96)
    assert kept(layers[1], wide) < needed(layers[1], wide) < 1e6


@pytest.mark.parametrize(("shape", "outputs"), [((1, 120, 64), 2), ((8,), 6000)])
def test_memory_follows_rows_or_inputs_never_outputs_squared(shape, outputs):
    """7,680 inputs would take 944 MB as moments, 6,000 outputs 577 MB as products with each other."""
    b, rng = Builder(1), np.random.default_rng(0)
    if len(shape) > 1:
        w = b.weight("w", outputs, shape[1], 64)
        y = b.op("Conv", ["x", w], "conv", kernel_shape=[64])
        x = rng.standard_normal((40, shape[1], 66)).astype(np.float32)
    else:
        y = b.linear("x", "l", shape[0], outputs)
        x = rng.standard_normal((40, shape[0])).astype(np.float32)
    analysis = analyse(Model.load(b.model({"x": ["n", *x.shape[1:]]}, y)))
    samples = Samples([{"x": part} for part in np.split(x, 4)], [10] * 4, None, "", {"x": 0})
    todo = sites(analysis)
    walk = Walk.of(analysis, [analysis.model.fork()], samples, Settings(), todo)
    tracemalloc.start()
    try:
        (evidence,) = walk.evidence(todo[0])
        fit_blocks(todo[0], evidence, [np.arange(todo[0].view.width // 2)], analysis.model, Settings())
        assert tracemalloc.get_traced_memory()[1] < 6e7
    finally:
        tracemalloc.stop()


def test_broken_rows_are_refused_and_tables_merge():
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        RowTable().add(np.array([[1.0, np.nan]]), np.zeros((1, 2)))
    one, two = RowTable(), RowTable()
    one.add(np.arange(6.0).reshape(3, 2), np.zeros((3, 1)))
    two.add(np.arange(6.0, 10.0).reshape(2, 2), np.ones((2, 1)))
    stack = RowStack([one], np.array([0, 2]))
    stack.merge(RowStack([two], np.array([1])))
    table, index = stack.parts[0]
    np.testing.assert_array_equal(table.columns(index, np.arange(table.width)), [[0, 1], [4, 5], [8, 9]])
    np.testing.assert_array_equal(table.targets(index)[:, 0], [0, 0, 1])


def test_rows_of_uses_of_one_weight_are_kept_once():
    """Both sets of a use lie in one table: put together they're those of moments, and no row is there twice."""
    view = sites(evidence_of(1000)[0])[0].view
    rng = np.random.default_rng(3)
    told = []
    for wide in (1000, 1):
        parts = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            collector = Collector(view, wide)
            x = rng.standard_normal((20, view.channels, 1, 1)).astype(np.float32)
            collector.add(
                np.tile(x, (1, 1, 3, 3)), rng.standard_normal((90, view.outputs)), Rows(np.arange(90), 72)
            )
            parts.append(collector.evidence())
        whole = parts[0]
        whole.fitting.parts  # noqa: B018 - read before more rows come
        for part in parts[1:]:
            whole.merge(part)
        told.append(whole)
    moments, rows = told
    assert rows.fitting.tables[0].count == 3 * 90 == rows.fitting.n + rows.aside.n
    for one, two in ((moments.fitting, rows.fitting), (moments.aside, rows.aside)):
        assert one.n == two.n
        (table, index), (known, *_) = two.parts[0], one.parts
        np.testing.assert_allclose(
            table.columns(index, np.arange(table.width)).mean(axis=0), known.mean[: view.width], atol=1e-5
        )
        np.testing.assert_allclose(
            np.square(table.targets(index)).sum(),
            (known.square + one.n * known.mean[view.width :] ** 2).sum(),
            rtol=1e-5,
        )
