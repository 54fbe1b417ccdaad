"""The methods and the refit against slow and plain mathematics."""

import itertools

import numpy as np
import pytest

from onnxprune import registry
from onnxprune.options.pattern import parse_pattern
from onnxprune.reconstruction.least_squares import Problem, error_of, refit
from onnxprune.reconstruction.moments import Moments
from onnxprune.sparsity import refit as refits
from onnxprune.sparsity.masks import holds
from onnxprune.sparsity.refit import masked_refit
from onnxprune.sparsity.sequential import solver_of
from onnxprune.sparsity.task import Task
from onnxprune.sparsity.triangular import factor_of_inverse

RNG = np.random.default_rng
METHODS = ("magnitude", "wanda", "sparsegpt", "obs")


def task(pattern="2:4", channels=8, taps=1, outputs=6, seed=0, noise=0.1):
    """Correlated inputs, and targets that are nearly linear in them."""
    rng, d = RNG(seed), channels * taps
    mix = rng.standard_normal((d, d)) / np.sqrt(d) + 0.3 * np.eye(d)
    x = rng.standard_normal((4000, d)) @ mix + rng.standard_normal(d)
    w = rng.standard_normal((d, outputs))
    y = x @ w + 0.5 + noise * rng.standard_normal((4000, outputs))
    moments = Moments.empty(d, outputs)
    moments.add(np.hstack([x, y]))
    return Task(Problem.of(moments), w, channels, taps, parse_pattern(pattern), share=1e-6)


def solver(name, one):
    return registry.load("onnxprune.sparsity.methods", name).solve(one)


@pytest.mark.parametrize("size", [1, 5, 97, 300])
def test_factor_of_inverse(size):
    a = RNG(0).standard_normal((size, 2 * size))
    h = a @ a.T + np.eye(size)
    u = factor_of_inverse(h)
    assert np.array_equal(u, np.triu(u))
    assert np.allclose(u.T @ u, np.linalg.inv(h), rtol=1e-8, atol=1e-10)


def test_the_refit_is_the_one_of_each_output_alone():
    one = task(channels=12, taps=2, outputs=9)
    keep = RNG(1).random((24, 9)) < np.linspace(0.02, 0.98, 9)
    keep[:, 4] = False
    found = masked_refit(one.problem, keep, 1e-3, one.prior)
    for output in range(9):
        mine = Problem(one.problem.n, one.problem.h, one.problem.g[:, [output]], one.problem.v[[output]],
                       one.problem.mx, one.problem.my[[output]])  # fmt: skip
        want = refit(mine, np.flatnonzero(keep[:, output]), 1e-3, one.prior[:, [output]])
        # the ridge of `refit` is a share of the mean over the rows that stay, ours over all: compare without
        free = masked_refit(mine, keep[:, [output]], 0.0, one.prior[:, [output]])
        plain = refit(mine, np.flatnonzero(keep[:, output]), 0.0, one.prior[:, [output]])
        assert np.allclose(free.w, plain.w, atol=1e-8)
        assert np.allclose(found.w[:, output], want.w[:, 0], atol=2e-2)
    assert not found.w[~keep].any()
    assert np.allclose(found.b, one.problem.my - one.problem.mx @ found.w)


def test_gradients_come_to_the_same(monkeypatch):
    one = task(channels=16, taps=2, outputs=12)
    keep = RNG(1).random((32, 12)) < 0.5
    exact = masked_refit(one.problem, keep, 1e-2, one.prior)
    monkeypatch.setattr(refits, "EXACT", 0.0)
    near = masked_refit(one.problem, keep, 1e-2, one.prior)
    assert not np.array_equal(near.w, exact.w), "the other way must have been taken"
    assert np.allclose(near.w, exact.w, atol=1e-3)
    assert not near.w[~keep].any()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("pattern", "channels", "taps"), [("2:4", 8, 3), ("1:4", 10, 2), ("4:8", 16, 1), ("0:4", 4, 2)]
)
def test_n_of_m_lies_along_the_inputs_at_each_tap(name, pattern, channels, taps):
    one = task(pattern, channels, taps)
    keep, w = solver(name, one).at(0.0)
    canonical = keep.T.reshape(1, -1, channels, taps)
    full = channels // one.pattern.of * one.pattern.of
    assert holds(one.pattern, ~canonical)
    assert canonical[:, :, :full].mean() == one.pattern.keep / one.pattern.of
    assert canonical[:, :, full:].all()
    assert not w[~keep].any()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pattern", ["unstructured", "block:2x2", "kernel", "vector"])
def test_shares_and_tiles(name, pattern):
    one = task(pattern, channels=8, taps=3)
    solved = solver(name, one)
    for sparsity in (0.0, 0.25, 0.5, 1.0):
        keep, w = solved.at(sparsity)
        assert abs((~keep).mean() - sparsity) < 0.03
        assert not w[~keep].any()
    tiles = solved.at(0.5)[0].T.reshape(6, 8, 3)
    if pattern == "kernel":
        assert (tiles.all(2) | ~tiles.any(2)).all()
    if pattern == "vector":
        assert (tiles.all(0) | ~tiles.any(0)).all()
    if pattern == "block:2x2":
        blocks = tiles.reshape(3, 2, 4, 2, 3)
        assert (blocks.all((1, 3)) | ~blocks.any((1, 3))).all()


def total(one, keep):
    return float(error_of(one.problem, masked_refit(one.problem, keep, one.share, one.prior)).sum())


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_data_helps_and_obs_helps_most(pattern):
    """Over several problems: SparseGPT beats what doesn't refit; after the same exact refit, obs beats all."""
    alone, after = dict.fromkeys(METHODS, 0.0), dict.fromkeys(METHODS, 0.0)
    for seed in range(4):
        one = task(pattern, channels=64, outputs=8, seed=seed)
        for name in METHODS:
            keep, w = solver(name, one).at(0.5)
            alone[name] += one.rise(w)
            after[name] += total(one, keep)
    assert alone["obs"] < alone["sparsegpt"] < 0.8 * min(alone["magnitude"], alone["wanda"])
    assert after["obs"] < 0.98 * min(after[n] for n in METHODS if n != "obs")


def plain_obs(one, output, count, quota=None):
    """Every time try all, refit, and drop the cheapest."""
    kept = list(range(len(one.prior)))
    left = dict(quota or {})
    for _ in range(count):
        best = None
        for weight in kept:
            if quota is not None and not left[weight // one.pattern.of]:
                continue
            keep = np.zeros(len(one.prior), bool)
            keep[[k for k in kept if k != weight]] = True
            h, g = one.h[np.ix_(keep, keep)], one.problem.g[keep, output] + 0 * one.prior[keep, output]
            error = -float(g @ np.linalg.solve(h, g))
            if best is None or error < best[0]:
                best = error, weight
        kept.remove(best[1])
        if quota is not None:
            left[best[1] // one.pattern.of] -= 1
    return kept


def test_obs_is_the_exact_one():
    """Its order is that of trying everything, and its curve is the rise of the error."""
    one = task("unstructured", channels=10, outputs=3)
    one.prior = np.zeros_like(one.prior)  # so that the ridge pulls to nothing
    solved = solver("obs", one)
    for output, count in itertools.product(range(3), (1, 4, 8)):
        gone = set(solved.order[output, :count].tolist())
        assert sorted(set(range(10)) - gone) == plain_obs(one, output, count)
    for sparsity in (0.2, 0.5, 0.8):
        keep, _ = solved.at(sparsity)
        want = sum(
            float(one.problem.g[:, o] @ one.best[:, o]) - float(g @ np.linalg.solve(one.h[np.ix_(k, k)], g))
            for o in range(3)
            for k in [keep[:, o]]
            for g in [one.problem.g[k, o]]
        )
        assert np.isclose(solved.curve(np.array([sparsity]))[0], want, rtol=1e-6)


def test_obs_with_groups_is_the_exact_one():
    one = task("2:4", channels=8, outputs=2)
    one.prior = np.zeros_like(one.prior)
    keep, _ = solver("obs", one).at(0.0)
    for output in range(2):
        assert np.flatnonzero(keep[:, output]).tolist() == plain_obs(one, output, 4, {0: 2, 1: 2})


def test_wide_layers_go_to_sparsegpt(monkeypatch):
    leaf = registry.load("onnxprune.sparsity.methods", "obs")
    monkeypatch.setattr(leaf, "LARGEST", 7)
    assert leaf.solve(task()) is None
    assert type(solver_of(leaf, task())).__name__ == "_SparseGPT"
    monkeypatch.setattr(leaf, "LARGEST", 8)
    assert type(solver_of(leaf, task())).__name__ == "_Obs"


@pytest.mark.parametrize("name", METHODS)
def test_curves_rise(name):
    levels = np.linspace(0, 0.95, 20)
    curve = solver(name, task("unstructured", channels=24)).curve(levels)
    assert curve.shape == levels.shape
    assert (np.diff(curve) >= -1e-12).all()
    assert curve[-1] > curve[0]


def test_dead_inputs_are_no_trouble():
    one = task("unstructured", channels=12)
    one.problem.h[3] = one.problem.h[:, 3] = 0.0
    one.problem.g[3] = 0.0
    for name in METHODS:
        keep, w = solver(name, one).at(0.5)
        assert np.isfinite(w).all()
        assert np.isfinite(masked_refit(one.problem, keep, 1e-3, one.prior).w).all()
