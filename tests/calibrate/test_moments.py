"""Streamed moments against the definition."""

import numpy as np
import pytest

from onnxprune.calibrate.algebra import Problem, refit
from onnxprune.calibrate.blocks import refits
from onnxprune.calibrate.moments import Moments, Stack
from onnxprune.errors import CalibrationError


def test_blocks_agree_with_the_definition(monkeypatch):
    monkeypatch.setattr("onnxprune.calibrate.moments.BLOCK", 37)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 3
    found = Moments.empty(6)
    for part in np.array_split(rows, 7):
        found.add(part)
    assert found.n == 500
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(rows.T, bias=True), rtol=1e-12, atol=1e-12)


def test_a_large_mean_costs_no_digits_in_float32():
    rng = np.random.default_rng(1)
    rows = (1000 + 0.1 * rng.standard_normal((20000, 3))).astype(np.float32)
    found = Moments.empty(3)
    found.add(rows)
    exact = np.cov(rows.astype(np.float64).T, bias=True)
    np.testing.assert_allclose(found.cov, exact, rtol=1e-4, atol=1e-6)


def test_shards_in_a_fixed_order_give_the_same_bits(tmp_path):
    rows = np.random.default_rng(2).standard_normal((300, 4)).astype(np.float32)
    one, two = Moments.empty(4), Moments.empty(4)
    one.add(rows[:100])
    two.add(rows[100:])
    two.save(tmp_path / "two.npz")

    def total():
        whole = one.copy()
        whole.merge(Moments.load(tmp_path / "two.npz"))
        return whole

    a, b = total(), total()
    assert a.gram.tobytes() == b.gram.tobytes()
    assert a.n == 300
    np.testing.assert_allclose(a.cov, np.cov(rows.T, bias=True), rtol=1e-5, atol=1e-7)


def test_what_is_not_finite_or_no_moments_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        Moments.empty(2).add(np.array([[1.0, np.nan]]))
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(CalibrationError, match="no saved moments"):
        Moments.load(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="width 3"):
        Moments.empty(2).merge(Moments.empty(3))


def test_a_stack_is_the_moments_of_each_block():
    rng = np.random.default_rng(5)
    rows = (rng.standard_normal((7, 300, 4)) + 5).astype(np.float32)
    stack, alone = Stack.empty(7, 4), [Moments.empty(4) for _ in range(7)]
    for part in (rows[:, :120], rows[:, 120:]):
        stack.add(part)
        for block, mine in enumerate(alone):
            mine.add(part[block])
    both = stack.copy()
    both.merge(stack)
    for mine, found, twice in zip(alone, stack.parts, both.parts, strict=True):
        assert mine.n == found.n == twice.n // 2
        np.testing.assert_allclose(found.mean, mine.mean, rtol=1e-8)
        np.testing.assert_allclose(found.gram, mine.gram, rtol=1e-5)
        np.testing.assert_allclose(twice.cov, found.cov, rtol=1e-12)
    with pytest.raises(CalibrationError, match="NaN"):
        stack.add(np.full((7, 2, 4), np.nan))


def test_refits_of_blocks_are_those_of_each():
    rng = np.random.default_rng(6)
    problems, priors = [], []
    for block in range(9):
        rows = rng.standard_normal((80, 8))
        rows[:, 2] *= block % 3 > 0  # without variance
        rows[:, 6:] += rows[:, :6] @ rng.standard_normal((6, 2))
        moments = Moments.empty(8)
        moments.add(rows)
        problems.append(Problem.of(moments, 6))
        priors.append(rng.standard_normal((6, 2)))
    kept = [np.arange(6) if b % 2 else np.array([0, 2, 5]) if b else np.arange(0) for b in range(9)]
    for found, *given in zip(refits(problems, kept, 0.1, priors), problems, kept, priors, strict=True):
        alone = refit(given[0], given[1], 0.1, given[2])
        np.testing.assert_allclose(found.w, alone.w, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.b, alone.b, rtol=1e-12)
