"""Large models: curves added up over readers, layers fitted by fewer outputs, units that go in company."""

import tracemalloc

import numpy as np
import pytest
from small_models import Builder

from onnxprune.calibration.samples import Samples
from onnxprune.criteria import obs as criterion
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import consumers as _consumers
from onnxprune.reconstruction import contributions as _contributions
from onnxprune.reconstruction import narrow as _narrow
from onnxprune.reconstruction import obs as _obs
from onnxprune.reconstruction import sheets as _sheets
from onnxprune.reconstruction.consumers import Together, consumers_of, crowded
from onnxprune.reconstruction.contributions import Outgoing, of_moments, of_products
from onnxprune.reconstruction.dual import DualProblem, RowTable
from onnxprune.reconstruction.layer import Settings, fit_blocks, weights_of, write
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.least_squares import Problem, ridge_of
from onnxprune.reconstruction.moments import Moments
from onnxprune.reconstruction.narrow import lean, narrowed
from onnxprune.reconstruction.walk import Walk

D, OUTPUTS = 24, 5
UNITS = [
    np.array([3, 0]),
    np.array([], np.int64),
    np.arange(4, 11),
    np.array([1]),
    np.arange(12, 23),
]  # 2, 11, 23: rest


def rows(n=90, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, D)) @ rng.standard_normal((D, D)) + 3
    w = rng.standard_normal((D, OUTPUTS))
    return x, w, x @ w + 0.1 * rng.standard_normal((n, OUTPUTS)) - 1


def exact(x, w, y):
    """Return h, g and v of contributions by their definition."""
    rest = np.setdiff1d(np.arange(D), np.concatenate(UNITS))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    given = np.stack([(x[:, own] @ w[own]).ravel() for own in [*UNITS, rest]])
    return given @ given.T / len(x), given @ y.ravel() / len(x), float(np.square(y).sum() / len(x))


@pytest.mark.parametrize("linear", [False, True])
def test_contributions_are_those_of_their_definition(monkeypatch, linear):
    monkeypatch.setattr(_contributions, "STRIPE", 3)
    x, w, y = rows()
    if linear:
        y = x @ w
    h, g, v = exact(x, w, y)
    moments = Moments.empty(D, 0 if linear else OUTPUTS)
    moments.add(*([x] if linear else [x, y]))
    table = RowTable()
    for part in np.split(np.arange(90), 3):
        table.add(x[part], y[part, :0] if linear else y[part])
    halves = [np.arange(30), np.arange(30, 90)]
    sets = [DualProblem(table, half) for half in (*halves, np.arange(90))]
    found = of_products(sets, UNITS, Outgoing.of(w))
    for one in (of_moments(Problem.of(moments), UNITS, Outgoing.of(w)), found[-1]):
        np.testing.assert_allclose(one.h, h, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(one.g[:, 0], g, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(one.v, v, rtol=1e-9)
    for half, one in zip(halves, found, strict=False):
        h, g, v = exact(x[half], w, y[half])
        np.testing.assert_allclose(one.h, h, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(one.g[:, 0], g, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("outputs", [1, 400])
@pytest.mark.parametrize("exact_targets", [False, True])
def test_a_wide_layer_has_the_same_curve_whichever_way_is_cheaper(monkeypatch, outputs, exact_targets):
    """Rows without targets are those that the layer itself gives; the cheaper way is taken for them as well."""
    taken = []
    for name in ("of_products", "contributions"):
        way = getattr(_consumers, name)
        monkeypatch.setattr(_consumers, name, lambda *a, way=way, name=name: taken.append(name) or way(*a))
    rng = np.random.default_rng(3)
    x = rng.standard_normal((90, D)) @ rng.standard_normal((D, D)) + 3
    w = rng.standard_normal((D, outputs))
    y = x @ w + (0.1 * rng.standard_normal((90, outputs)) - 1 if exact_targets else 0)
    table = RowTable()
    table.add(x, y if exact_targets else y[:, :0])
    sets = [DualProblem(table, half) for half in (np.arange(30), np.arange(30, 90), np.arange(90))]
    found, units, ones = _consumers._scaled(sets, UNITS, w, exact=exact_targets)
    assert set(taken) == ({"of_products"} if outputs > 1 else {"contributions"})
    assert [u.tolist() for u in units] == [[n] for n in range(len(UNITS))]
    assert ones.shape == (len(UNITS) + 1, 1)
    for part, one in zip((slice(30), slice(30, 90), slice(90)), found, strict=True):
        goal = y[part] - y[part].mean(axis=0)
        rest = np.setdiff1d(np.arange(D), np.concatenate(UNITS))
        centred = x[part] - x[part].mean(axis=0)
        given = np.stack([(centred[:, own] @ w[own]).ravel() for own in [*UNITS, rest]])
        n = len(goal)
        scale = np.abs(given @ given.T).max() / n
        np.testing.assert_allclose(one.h, given @ given.T / n, rtol=0, atol=1e-6 * scale)  # floats of 32 bits
        np.testing.assert_allclose(one.g[:, 0], given @ goal.ravel() / n, rtol=0, atol=1e-6 * scale)
        np.testing.assert_allclose(one.v, np.square(goal).sum() / n, rtol=1e-6)


def many(readers=6, width=12, outputs=40):
    """A stream that several products read, each with many outputs."""
    b = Builder(3)
    x = b.op("Relu", [b.op("MatMul", ["x", b.weight("w", 7, width)], "first")], "relu")
    ends = [b.op("MatMul", [x, b.weight(f"w{i}", width, outputs)], f"y{i}") for i in range(readers)]
    return b.model({"x": ["n", 5, 7]}, b.op("Relu", [b.op("Concat", ends, "all", axis=-1)], "end"))


def opened(model, n=200):
    analysis = analyse(Model.load(model))
    x = np.random.default_rng(1).standard_normal((n, 5, 7)).astype(np.float32)
    return analysis, Samples([{"x": part} for part in np.split(x, 4)], [n // 4] * 4, None, "", {"x": 0})


def test_readers_of_a_crowded_group_are_added_up(monkeypatch):
    """One matrix for all readers: where a unit may be scaled by itself alone, each of them is one regressor anyway."""
    analysis, samples = opened(many())
    todo, settings = sites(analysis)[1:], Settings()
    every = [[np.array([u]) for u in range(12)]]
    together, alone = Together(12), []
    originals = Walk.of(analysis, [], samples, settings, todo).originals(todo, linear=True)
    for site, evidence in zip(todo, originals, strict=True):
        together.add(site, evidence, every, analysis.model)
        alone += consumers_of(site, evidence, every, analysis.model)
    consumer = together.consumer()
    assert consumer.problem.h.shape == (13, 13)
    best, scaled = criterion.curve(alone, 1), criterion.curve([consumer], 1)
    live = slice(1, -1)
    assert (scaled.error[live] >= 0.98 * best.error[live]).all()  # scales promise no more than refits
    assert set(scaled.order[:3]) & set(best.order[:4])
    reads = [(site, every) for site in todo]
    assert not crowded(reads, settings)
    monkeypatch.setattr(_consumers, "ROOM", 8 * 12 * 52 * 6 - 1)
    assert crowded(reads, settings)
    assert not crowded(reads[:1], settings)


def test_targets_that_weights_give_need_not_be_kept():
    analysis, samples = opened(many())
    todo = sites(analysis)
    kept, left = (
        Walk.of(analysis, [], samples, Settings(), todo).originals(todo, linear=b) for b in (False, True)
    )
    every = [[np.array([u]) for u in range(12)]]
    for site, one, two in zip(todo[1:], kept[1:], left[1:], strict=True):
        assert two.linear
        assert two.fitting.gram.shape == (1, 12, 12)
        (a,), (b,) = (consumers_of(site, e, every, analysis.model) for e in (one, two))
        np.testing.assert_allclose(b.problem.g, a.problem.g, rtol=1e-3, atol=1e-4)
        assert b.unit == pytest.approx(a.unit, rel=1e-3)
        np.testing.assert_allclose(
            criterion.curve([b], 1).error, criterion.curve([a], 1).error, rtol=1e-2, atol=1e-5
        )


@pytest.mark.parametrize("rank", [12, 7])
def test_a_layer_of_many_outputs_is_fitted_as_one_of_few(monkeypatch, rank):
    monkeypatch.setattr(_narrow, "LEAST", 1)
    monkeypatch.setattr(_sheets, "ENTRIES", 12 * 16)  # several sheets
    model = many(1)
    if rank < 12:  # the weight has fewer dimensions than inputs
        analysis = analyse(Model.load(model))
        rng = np.random.default_rng(5)
        weight = (rng.standard_normal((12, rank)) @ rng.standard_normal((rank, 40))).astype(np.float32)
        model = analysis.model.fork()
        model.put("w0", weight)
    analysis, samples = opened(model)
    (site,) = lean(sites(analysis)[1:], analysis.model)
    assert site.lean
    results = []
    for one in (sites(analysis)[1], site):
        fork = analysis.model.fork()
        fork.put("w", np.array(fork.weight("w")) * np.float32(0.9))  # what is read has changed
        walk = Walk.of(analysis, [fork], samples, Settings(), [one])
        (evidence,) = walk.evidence(one)
        kept = [np.array([0, 1, 2, 4, 5, 7, 8, 9, 11])]
        fits, report = fit_blocks(walk.form, evidence, kept, fork, Settings())
        assert fits[0].w.shape[1] == (rank if one is site else 40)
        write(fork, walk.form, fits)
        results.append((np.array(fork.weight("w0")), report))
    (plain, told), (narrow, seen) = results
    assert seen.variant == told.variant
    np.testing.assert_allclose(narrow, plain, rtol=1e-3, atol=1e-4)
    assert not narrow[[3, 6, 10]].any()
    for field in ("before", "after"):
        assert getattr(seen, field) == pytest.approx(getattr(told, field), rel=1e-3)


def test_a_narrow_layer_is_the_layer():
    analysis, _ = opened(many(1))
    site = sites(analysis)[1]
    form = narrowed(site, analysis.model)
    fork = analysis.model.fork()
    (root,), (bias,) = weights_of(form, fork)
    old = np.array(fork.weight("w0"), np.float64)
    np.testing.assert_allclose(root @ root.T, old @ old.T, rtol=1e-9, atol=1e-12)
    assert not bias.any()
    form.codec.write(fork, form.view.pack(root[None]))
    np.testing.assert_allclose(fork.weight("w0"), old, rtol=1e-5, atol=1e-7)
    form.codec.write(fork, form.view.pack(2 * root[None]))
    np.testing.assert_allclose(fork.weight("w0"), 2 * old, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("given", [{"LEAST": 12 * 40 + 1}, {"MORE": 4}])
def test_layers_of_few_outputs_are_left(monkeypatch, given):
    monkeypatch.setattr(_narrow, "LEAST", 1)
    analysis, _ = opened(many(1))
    assert [s.lean for s in lean(sites(analysis), analysis.model)] == [False, True]
    for name, value in given.items():
        monkeypatch.setattr(_narrow, name, value)
    assert not any(s.lean for s in lean(sites(analysis), analysis.model))


def test_a_vocabulary_costs_no_memory(monkeypatch):
    """A layer of 40,000 outputs: neither they nor a second weight in float64 are ever there at once."""
    analysis, samples = opened(many(1, outputs=40_000), 100)
    (site,) = lean(sites(analysis)[1:], analysis.model)
    fork = analysis.model.fork()
    tracemalloc.start()
    try:
        walk = Walk.of(analysis, [fork], samples, Settings(), [site])
        (evidence,) = walk.evidence(site)
        fit_blocks(walk.form, evidence, [np.arange(12)], fork, Settings())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 500 * 40_000 * 4 / 2  # less than half of the outputs


def test_units_go_in_company_where_they_are_many(monkeypatch):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((900, 60)) @ (np.eye(60) + 0.1 * rng.standard_normal((60, 60)))
    moments = Moments.empty(60, 3)
    moments.add(x, x @ (rng.standard_normal((60, 3)) * np.linspace(0.1, 2, 60)[:, None]))
    problem, units = Problem.of(moments), list(np.arange(60)[:, None])
    alone = _obs.obs([(problem, units)], [1.0], least=5)
    monkeypatch.setattr(_obs, "MANY", 20)
    monkeypatch.setattr(_obs, "SHARE", 10)
    company = _obs.obs([(problem, units)], [1.0], least=5)
    assert sorted(company.order) == list(range(60))
    assert np.isinf(company.error[56:]).all()
    assert (np.diff(company.error[:56]) >= -1e-12).all()
    np.testing.assert_allclose(company.error[:56], alone.error[:56], rtol=0.1, atol=1e-3 * alone.error[55])
    gone = 20
    keep = np.sort(company.order[gone:])
    h = problem.h[np.ix_(keep, keep)] + ridge_of(problem.h, 1e-3) * np.eye(40)
    left = float(problem.variance - (problem.g[keep] * np.linalg.solve(h, problem.g[keep])).sum())
    full = problem.h + ridge_of(problem.h, 1e-3) * np.eye(60)
    least = float(problem.variance - (problem.g * np.linalg.solve(full, problem.g)).sum())
    assert company.error[gone] == pytest.approx(left - least, rel=0.2)


def test_a_large_inverse_is_the_inverse(monkeypatch):
    monkeypatch.setattr(_obs, "MANY", 8)
    rng = np.random.default_rng(0)
    h = rng.standard_normal((50, 33))
    h = h.T @ h + np.eye(33)
    np.testing.assert_allclose(_obs._inverse(h.copy()), np.linalg.inv(h), rtol=1e-9, atol=1e-12)
