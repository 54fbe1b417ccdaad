"""Loss curves from few rows."""

import numpy as np
import pytest
from small_models import Builder

from onnxprune.calibration.samples import load_samples
from onnxprune.criteria import obs
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.options.pattern import parse_pattern
from onnxprune.options.sparsity import SparseOptions
from onnxprune.pruning.saliency import criterion_of
from onnxprune.reconstruction import consumers as _consumers
from onnxprune.reconstruction import layer as _sequence
from onnxprune.reconstruction.evidence import Evidence
from onnxprune.reconstruction.few_rows import ENOUGH, steadied
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.least_squares import Consumer, Problem, error_of, refit
from onnxprune.reconstruction.moments import Moments, Stack
from onnxprune.reconstruction.sequential import Calibration
from onnxprune.sparsity import sequential as sequence
from onnxprune.sparsity.weights import find

UNITS, OUTPUTS = 60, 8
ROWS = [np.array([u]) for u in range(UNITS)]


def problem(n, w, seed):
    x = np.random.default_rng(seed).standard_normal((n, UNITS)) + 0.5
    moments = Moments.empty(UNITS, OUTPUTS)
    moments.add(np.concatenate([x, x @ w], axis=1))
    return Problem.of(moments)


def half(found, factor, w):
    curve = obs.curve([Consumer(found, ROWS, w, 1.0 / factor)], 1)
    return curve.error[UNITS // 2], np.sort(curve.order[UNITS // 2 :])


@pytest.mark.parametrize("seed", range(4))
def test_a_curve_from_few_rows_promises_no_more_than_others_will_see(seed):
    w = np.random.default_rng(seed).standard_normal((UNITS, OUTPUTS))
    train, held, whole = problem(40, w, 10 + seed), problem(10, w, 20 + seed), problem(50, w, 30 + seed)
    fresh = problem(5000, w, 99)
    told, kept = half(*steadied([train, held, problem(50, w, 30 + seed)], ROWS, w), w)
    prior = np.where(np.isin(np.arange(UNITS), kept)[:, None], w, 0.0)
    seen = min(float(error_of(fresh, refit(whole, kept, s, prior)).sum()) for s in (0.1, 1.0, 10.0))
    assert told > 0.9 * seen
    blind, _ = half(whole, 1.0, w)
    assert blind < 0.4 * seen  # as it was without


def test_enough_rows_are_left_alone():
    w = np.random.default_rng(0).standard_normal((UNITS, OUTPUTS))
    train, held = problem(ENOUGH * UNITS, w, 1), problem(200, w, 2)
    found, factor = steadied([train, held, train], ROWS, w)
    assert found is train
    assert factor == 1.0


def test_many_rows_that_are_nearly_all_alike_are_few():
    """A recording and the silence behind it: twenty rows for each regressor, of which one in twenty says anything."""
    w = np.random.default_rng(0).standard_normal((UNITS, OUTPUTS))
    fresh = problem(5000, w, 99)

    def recordings(sounding, seed):
        rng = np.random.default_rng(seed)
        sound, silence = rng.standard_normal((sounding, UNITS)), rng.standard_normal((19 * sounding, UNITS))
        x = np.concatenate([sound, 1e-3 * silence])
        moments = Moments.empty(UNITS, OUTPUTS)
        moments.add(np.concatenate([x, x @ w], axis=1))
        return Problem.of(moments)

    train, held, whole = recordings(UNITS + 5, 1), recordings(20, 2), recordings(UNITS + 25, 3)
    assert train.n > ENOUGH * UNITS
    blind, _ = half(whole, 1.0, w)
    found, factor = steadied([train, held, whole], ROWS, w)
    told, kept = half(found, factor, w)
    prior = np.where(np.isin(np.arange(UNITS), kept)[:, None], w, 0.0)
    seen = min(float(error_of(fresh, refit(found, kept, s, prior)).sum()) for s in (1e-4, 1e-2, 0.1)) / 20
    assert blind < 0.5 * seen < told


def test_errors_are_scaled_up_to_those_on_held_out_samples_and_never_down():
    """Ten times the error on held-out samples is ten times the curve; less than it says is no reason; decision 9."""
    w = np.random.default_rng(0).standard_normal((UNITS, OUTPUTS))
    train, others = problem(40, w, 1), problem(400, w, 2)

    def factor(times):
        held = Problem(400, others.h * times, others.g * times, others.v * times, train.mx, train.my)
        return steadied([train, held, problem(50, w, 3)], ROWS, w)[1]

    assert factor(1e-3) == 1.0
    assert factor(40.0) > 2.0
    assert factor(400.0) == pytest.approx(10 * factor(40.0))


def test_few_rows_of_texts_cost_what_held_out_ones_say():
    """Where a layer's own weights explain its targets a weak ridge is enough, and errors are as large as elsewhere."""
    w = np.random.default_rng(0).standard_normal((UNITS, OUTPUTS))
    train, held, fresh = problem(3 * UNITS, w, 1), problem(60, w, 2), problem(5000, w, 99)
    whole = problem(3 * UNITS + 60, w, 3)
    found, factor = steadied([train, held, whole], ROWS, w, texts=True)
    assert found is whole
    told, kept = half(found, factor, w)
    seen = float(error_of(fresh, refit(whole, kept, 1e-4)).sum())
    assert told == pytest.approx(seen, rel=0.3)
    assert factor > 1.2
    pulled, _ = half(*steadied([train, held, problem(3 * UNITS + 60, w, 3)], ROWS, w), w)
    assert pulled > 1.3 * seen
    few = steadied([problem(UNITS, w, 1), held, problem(UNITS + 60, w, 3)], ROWS, w, texts=True)[0]
    assert few.h[0, 0] > problem(UNITS + 60, w, 3).h[0, 0]  # a ridge


@pytest.mark.parametrize("where", ["channels", "zeros"])
def test_the_journeys_scale_their_curves_by_it(where, monkeypatch):
    """Twice the factor is twice the curve, in both journeys: what it says isn't lost on the way."""
    seen = []
    for times in (1.0, 2.0):

        def doubled(*given, times=times, **more):
            found, factor = steadied(*given, **more)
            return found, factor * times

        monkeypatch.setattr(_consumers, "steadied", doubled)
        monkeypatch.setattr(sequence, "steadied", doubled)
        seen.append(_curves(where))
    assert seen[0].keys() == seen[1].keys()
    for name, curve in seen[0].items():
        live = np.isfinite(curve) & (curve > 0)
        assert live.sum() > 3
        np.testing.assert_allclose(seen[1][name][live], 2 * curve[live], rtol=1e-9)


def _curves(where):
    b = Builder()
    y = b.op("Relu", [b.linear("x", "up", 12, 40)], "relu")
    model = Model.load(b.model({"x": ["N", 12]}, b.linear(y, "down", 40, 4)))
    analysis = analyse(model, input_shapes={"x": (2, 12)})
    given = {"x": np.random.default_rng(1).standard_normal((60, 12)).astype(np.float32)}
    samples = load_samples(model.proto.graph, given)
    if where == "channels":
        calibration = Calibration(analysis, samples, analysis.grouping.groups, criterion_of("obs").measure)
        calibration.measure_curves()
        return {name: curve.error for name, curve in calibration.curves.items()}
    targets = {t.name: t for t in find(model)[0]}
    options = SparseOptions(pattern="unstructured", sparsity=0.5, calib=given, method="obs")
    fitter = sequence.Fitter(analysis, samples, targets, set(), options, lambda text: None)
    return fitter._curves(parse_pattern("unstructured"))


def test_a_fit_is_chosen_by_what_it_has_not_seen():
    """Rows of another function than the one that holds: a refit looks perfect on them, and is worse than none."""
    b = Builder()
    analysis = analyse(
        Model.load(b.model({"x": ["N", 6]}, b.linear("x", "only", 6, 4))), input_shapes={"x": (2, 6)}
    )
    (site,) = sites(analysis)
    old = _sequence.weights_of(site, analysis.model)
    rng = np.random.default_rng(0)
    right, wrong = old[0][0], rng.standard_normal((6, 4))

    def moments(w, rows):
        x, found = rng.standard_normal((rows, 6)), Moments.empty(6, 4)
        found.add(np.concatenate([x, x @ w + old[1][0]], axis=1))
        return found

    for fitted, others, variant in ((wrong, right, "kept"), (wrong, wrong, "lstsq 0.0001")):
        train, held = moments(fitted, 80), moments(others, 20)
        evidence = Evidence(
            site.view, *(Stack(m.n, m.mean[None], m.gram[None], m.square[None]) for m in (train, held))
        )
        _, told = _sequence.fit_blocks(site, evidence, [np.arange(6)], analysis.model, _sequence.Settings())
        assert told.variant == variant
        assert (told.before < 1e-9) == (variant == "kept")
