"""The algebra of recovery against brute force."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from onnxprune.allocation.knapsack import allocate
from onnxprune.errors import UsageError
from onnxprune.options.pruning import Options
from onnxprune.reconstruction.least_squares import Problem, error_of, refit
from onnxprune.reconstruction.moments import Moments
from onnxprune.reconstruction.obs import keep_best, obs
from onnxprune.reconstruction.recover import RECOVERIES, recovery_of


def make(units=6, taps=3, outputs=4, n=400, seed=0):
    rng = np.random.default_rng(seed)
    d = units * taps
    x = rng.standard_normal((n, d)) @ (np.eye(d) + 0.4 * rng.standard_normal((d, d))) + rng.standard_normal(d)
    y = x @ rng.standard_normal((d, outputs)) + 0.3 * rng.standard_normal((n, outputs)) + 2
    moments = Moments.empty(d, outputs)
    moments.add(np.hstack([x, y]))
    rows = [np.arange(u * taps, (u + 1) * taps) for u in range(units)]
    return x, y, Problem.of(moments), rows


def test_refit_is_least_squares_with_an_intercept():
    x, y, problem, rows = make()
    keep = np.concatenate([rows[0], rows[2], rows[5]])
    fit = refit(problem, keep, 0.0)
    design = np.hstack([x[:, keep], np.ones((len(x), 1))])
    exact = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(fit.w[keep], exact[:-1], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(fit.b, exact[-1], rtol=1e-9)
    np.testing.assert_allclose(error_of(problem, fit), ((y - design @ exact) ** 2).mean(axis=0), rtol=1e-9)


def test_a_bias_that_is_off_counts():
    """Held-out samples have other means than those of the fit: what that costs is part of the error."""
    _, _, problem, rows = make()
    other, target, moved, _ = make(seed=3)
    fit = refit(problem, np.concatenate(rows[:3]), 0.0)
    seen = ((target - other @ fit.w - fit.b) ** 2).mean(axis=0)
    np.testing.assert_allclose(error_of(moved, fit), seen, rtol=1e-9)


def test_ridge_pulls_to_the_prior_and_dead_inputs_get_zero():
    _, _, problem, rows = make()
    prior = np.random.default_rng(1).standard_normal(problem.g.shape)
    keep = np.concatenate(rows[:4])
    np.testing.assert_allclose(refit(problem, keep, 1e9, prior).w[keep], prior[keep], rtol=1e-6)
    h, g = problem.h.copy(), problem.g.copy()
    h[2] = h[:, 2] = g[2] = 0
    dead = Problem(problem.n, h, g, problem.v, problem.mx, problem.my)
    fit = refit(dead, keep, 1e-3)
    assert (fit.w[2] == 0).all()
    assert np.isfinite(fit.w).all()


def test_the_whole_loss_curve_is_that_of_refits_from_scratch():
    _, _, problem, rows = make()
    curve = obs([(problem, rows)], [1.0], share=0.0, least=1)
    base = error_of(problem, refit(problem, np.arange(len(problem.h)), 0.0)).sum()
    for gone in range(6):
        keep = np.concatenate([rows[u] for u in np.sort(curve.order[gone:])])
        rise = error_of(problem, refit(problem, keep, 0.0)).sum() - base
        np.testing.assert_allclose(curve.error[gone], rise, rtol=1e-9, atol=1e-10)
    assert np.isinf(curve.error[6])


def test_each_step_drops_the_unit_that_costs_least_over_all_consumers():
    _, _, one, rows = make(seed=1)
    _, _, two, _ = make(seed=2)
    weights = [1 / one.variance, 1 / two.variance]
    curve = obs([(one, rows), (two, rows)], weights, share=0.0)
    alive = list(range(6))

    def error(kept):
        flat = np.concatenate([rows[u] for u in kept])
        return sum(
            w * error_of(p, refit(p, flat, 0.0)).sum() for p, w in zip((one, two), weights, strict=True)
        )

    for unit in curve.order[:-1]:
        trials = {u: error([k for k in alive if k != u]) for u in alive}
        assert min(trials, key=trials.get) == unit
        alive.remove(unit)


@pytest.mark.parametrize("seed", range(5))
def test_local_search_never_gets_worse_and_nears_the_best_subset(seed):
    _, _, problem, rows = make(units=7, taps=2, seed=seed)

    def error(kept):
        return error_of(problem, refit(problem, np.concatenate([rows[u] for u in kept]), 1e-3)).sum()

    start = np.array([0, 1, 2])
    found = keep_best(problem, rows, start, rounds=10)
    assert error(found) <= error(start)
    best = min(itertools.combinations(range(7), 3), key=error)
    assert error(found) <= 1.3 * error(best)


@pytest.mark.parametrize("seed", range(4))
def test_the_allocation_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    costs = [np.sort(rng.integers(1, 30, 5)).astype(float)[::-1] for _ in range(4)]
    errors = [np.sort(rng.random(5)) for _ in range(4)]
    for budget in (40.0, 60.0, 200.0):
        brute = [
            (sum(e[i] for e, i in zip(errors, pick, strict=True)), pick)
            for pick in itertools.product(range(5), repeat=4)
            if sum(c[i] for c, i in zip(costs, pick, strict=True)) <= budget
        ]
        # whole costs and a whole room: with room as the number of buckets nothing is rounded
        room = int(budget - sum(c.min() for c in costs))
        found = allocate(costs, errors, budget, buckets=max(room, 1))
        if not brute:
            assert found is None
            continue
        assert sum(c[i] for c, i in zip(costs, found, strict=True)) <= budget
        assert sum(e[i] for e, i in zip(errors, found, strict=True)) == pytest.approx(min(brute)[0])


def test_an_exact_budget_is_met_and_an_impossible_one_refused():
    costs, errors = [np.array([4.0, 2.0])] * 2, [np.array([0.0, 1.0])] * 2
    assert allocate(costs, errors, 4.0) == [1, 1]
    assert allocate(costs, errors, 8.0) == [0, 0]
    assert allocate(costs, errors, 3.9) is None


def test_statistics_are_restored_in_every_output():
    """Means exactly, variances up to the little that protects channels that hardly vary; least squares does neither."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal(6)
    w = rng.standard_normal((6, 5))
    y = np.maximum(x @ w + 0.3, -1)
    moments = Moments.empty(6, 5)
    moments.add(np.concatenate([x, y], axis=1))
    problem, kept = Problem.of(moments), np.array([0, 1, 4])
    prior = np.zeros_like(w)
    prior[kept] = w[kept]
    found = RECOVERIES["stats"].alone(problem, kept, prior)
    out = x @ found.w + found.b
    np.testing.assert_allclose(out.mean(axis=0), y.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(out.var(axis=0), y.var(axis=0), rtol=0.05)
    assert (found.w[[2, 3, 5]] == 0).all()
    assert (np.abs((x @ prior).var(axis=0) / y.var(axis=0) - 1) > 0.1).any()
    lstsq = refit(problem, kept, 1e-4)
    assert ((x @ lstsq.w).var(axis=0) < 0.98 * y.var(axis=0)).any()


def test_the_help_names_the_recoveries_of_the_table():
    (spec,) = [spec for spec in dataclasses.fields(Options) if spec.name == "recover"]
    names = re.sub(r"\([^)]*\)", "", spec.metadata["help"].rpartition(": ")[2])
    assert sorted(name.strip() for name in names.split(",")) == sorted(RECOVERIES)
    assert spec.default in RECOVERIES


def test_an_unknown_recovery_is_refused_with_the_names_of_the_table():
    known = r"known are: bias, blocks, distill, finetune, lstsq, none, stats\. Did you mean 'lstsq'\?"
    with pytest.raises(UsageError, match=known):
        recovery_of("lsq")
