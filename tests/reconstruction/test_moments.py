"""Streamed moments against the definition."""

import numpy as np
import pytest

from onnxprune.errors import CalibrationError
from onnxprune.reconstruction.grouped import loss_of, refits
from onnxprune.reconstruction.least_squares import Fit, Problem, error_of, refit
from onnxprune.reconstruction.moments import Moments, Stack


def test_blocks_agree_with_the_definition(monkeypatch):
    monkeypatch.setattr("onnxprune.reconstruction.moments.CHUNK", 37)
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


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_moments_are_those_of_float64(mean, kind):
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((3000, 12)) @ rng.standard_normal((12, 12)) / 4 + mean
    rows = rows.astype(kind)
    exact = rows.astype(np.float64)
    alone, stack = Moments.empty(9, 3), Stack.empty(2, 4, 2)
    alone.add(rows[:, :5], rows[:, 5:])
    stack.add(rows.reshape(-1, 2, 6).transpose(1, 0, 2))
    centred = exact - exact.mean(axis=0)
    scale = np.sqrt(np.outer(*2 * [(centred**2).sum(axis=0)]))
    limit = 1e-6 if kind == np.float32 else 1e-12
    gram, square = centred.T @ centred, (centred**2).sum(axis=0)
    assert np.abs((alone.gram - gram[:9]) / scale[:9]).max() < limit
    np.testing.assert_allclose(alone.square, square[9:], rtol=limit)
    for at, part in zip((slice(6), slice(6, 12)), stack.parts, strict=True):
        assert np.abs((part.gram - gram[at, at][:4]) / scale[at, at][:4]).max() < limit
        np.testing.assert_allclose(part.square, square[at][4:], rtol=limit)
        np.testing.assert_allclose(part.mean, exact.mean(axis=0)[at], rtol=limit, atol=limit)
    np.testing.assert_allclose(alone.mean, exact.mean(axis=0), rtol=limit, atol=limit)


def test_parts_may_be_of_different_types_and_any_row_may_be_broken():
    rng = np.random.default_rng(8)
    left, right = rng.standard_normal((900, 3)), rng.integers(-5, 5, (900, 2)).astype(np.int8)
    found = Moments.empty(5)
    found.add(left, right)
    both = np.concatenate([left, right], axis=1)
    np.testing.assert_allclose(found.cov, np.cov(both.T, bias=True), rtol=1e-12)  # in float64
    for broken in (np.nan, np.inf):
        left[1, 2] = broken
        with pytest.raises(CalibrationError, match="NaN or infinity"):
            found.add(left, right)
        with pytest.raises(CalibrationError, match="NaN or infinity"):
            Stack.empty(3, 1).add(left.T[:, :, None])


def test_shards_in_a_fixed_order_give_the_same_bits():
    rows = np.random.default_rng(2).standard_normal((300, 4)).astype(np.float32)
    one, two = Moments.empty(3, 1), Moments.empty(3, 1)
    one.add(rows[:100])
    two.add(rows[100:])

    def total():
        whole = one.copy()
        whole.merge(two.copy())
        return whole

    a, b = total(), total()
    assert a.gram.tobytes() == b.gram.tobytes()
    assert a.n == 300
    exact = np.cov(rows.T, bias=True)
    np.testing.assert_allclose(a.gram / a.n, exact[:3], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(a.square / a.n, exact[3, 3], rtol=1e-5)


def test_what_is_not_finite_or_does_not_fit_is_refused():
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        Moments.empty(2).add(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="width 3"):
        Moments.empty(2).merge(Moments.empty(3))
    with pytest.raises(ValueError, match="width 2"):
        Moments.empty(2, 1).merge(Moments.empty(1, 1))


def test_a_stack_is_the_moments_of_each_block():
    rng = np.random.default_rng(5)
    rows = (rng.standard_normal((7, 300, 4)) + 5).astype(np.float32)
    stack, alone = Stack.empty(7, 3, 1), [Moments.empty(3, 1) for _ in range(7)]
    for part in (rows[:, :120], rows[:, 120:]):
        stack.add(part)
        for block, mine in enumerate(alone):
            mine.add(part[block])
    both = stack.copy()
    both.merge(stack)
    for mine, found, twice in zip(alone, stack.parts, both.parts, strict=True):
        assert mine.n == found.n == twice.n // 2
        np.testing.assert_allclose(found.mean, mine.mean, rtol=1e-8)
        np.testing.assert_allclose(found.gram, mine.gram, rtol=1e-5, atol=3e-5)
        np.testing.assert_allclose(found.square, mine.square, rtol=1e-5)
        np.testing.assert_allclose(twice.square, 2 * found.square, rtol=1e-12)
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
        moments = Moments.empty(6, 2)
        moments.add(rows)
        problems.append(Problem.of(moments))
        priors.append(rng.standard_normal((6, 2)))
    kept = [np.arange(6) if b % 2 else np.array([0, 2, 5]) if b else np.arange(0) for b in range(9)]
    for found, *given in zip(refits(problems, kept, 0.1, priors), problems, kept, priors, strict=True):
        alone = refit(given[0], given[1], 0.1, given[2])
        np.testing.assert_allclose(found.w, alone.w, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.b, alone.b, rtol=1e-12)
    fits = [Fit(rng.standard_normal((6, 2)), rng.standard_normal(2)) for _ in problems]
    alone_errors = [float(error_of(p, fit).sum()) for p, fit in zip(problems, fits, strict=True)]
    np.testing.assert_allclose(loss_of(problems, fits), sum(alone_errors), rtol=1e-10)
    np.testing.assert_allclose(loss_of(problems[:1], fits[:1]), alone_errors[0], rtol=1e-10)


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("column", [0, 2, 3])  # a regressor, the last one, a target
def test_values_whose_squares_are_not_finite_are_refused(
    blocks: int, column: int, recwarn: pytest.WarningsRecorder
) -> None:
    """Sums of them would be infinite, and what is fitted by these no number."""
    rows = np.random.default_rng(0).standard_normal((blocks, 9, 4)).astype(np.float32)
    Stack.empty(blocks, 3, 1).add(rows[..., :3], rows[..., 3:])
    rows[..., column] *= np.float32(1e30)
    with pytest.raises(CalibrationError, match="above 1e18"):
        Stack.empty(blocks, 3, 1).add(rows[..., :3], rows[..., 3:])
    assert not recwarn.list
