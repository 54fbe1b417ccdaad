"""Loss curves from few rows."""

import numpy as np
import pytest

from onnxprune.calibrate.algebra import Consumer, Problem, error_of, refit
from onnxprune.calibrate.moments import Moments
from onnxprune.calibrate.steady import ENOUGH, steadied
from onnxprune.criteria import obs

UNITS, OUTPUTS = 60, 8
ROWS = [np.array([u]) for u in range(UNITS)]


def problem(n, w, seed):
    x = np.random.default_rng(seed).standard_normal((n, UNITS)) + 0.5
    moments = Moments.empty(UNITS + OUTPUTS)
    moments.add(np.concatenate([x, x @ w], axis=1))
    return Problem.of(moments, UNITS)


def half(found, factor, w):
    curve = obs.curve([Consumer(found, ROWS, w, 1.0 / factor)], 1)
    return curve.error[UNITS // 2], np.sort(curve.order[UNITS // 2 :])


@pytest.mark.parametrize("seed", range(4))
def test_a_curve_from_few_rows_promises_no_more_than_others_will_see(seed):
    w = np.random.default_rng(seed).standard_normal((UNITS, OUTPUTS))
    train, held, whole = problem(40, w, 10 + seed), problem(10, w, 20 + seed), problem(50, w, 30 + seed)
    fresh = problem(5000, w, 99)
    told, kept = half(*steadied(train, held, whole, ROWS, w), w)
    prior = np.where(np.isin(np.arange(UNITS), kept)[:, None], w, 0.0)
    seen = min(float(error_of(fresh, refit(whole, kept, s, prior)).sum()) for s in (0.1, 1.0, 10.0))
    assert told > 0.9 * seen
    blind, _ = half(whole, 1.0, w)
    assert blind < 0.4 * seen  # as it was without


def test_enough_rows_are_left_alone():
    w = np.random.default_rng(0).standard_normal((UNITS, OUTPUTS))
    train, held = problem(ENOUGH * UNITS, w, 1), problem(200, w, 2)
    found, factor = steadied(train, held, train, ROWS, w)
    assert found is train
    assert factor == 1.0
