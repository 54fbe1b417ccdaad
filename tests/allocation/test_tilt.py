"""How losses at different depths count in compression, and how far outputs are apart."""

import numpy as np
import pytest

from onnxprune.calibration.agreement import compare, distance
from onnxprune.compression.weigh import STEP, search


@pytest.mark.parametrize("best", [-2.3, -0.4, 0.0, 0.9, 3.1])
def test_search_comes_within_half_a_step(best: float) -> None:
    asked: list[float] = []

    def far(tilt: float) -> float:
        asked.append(tilt)
        return 0.1 + (tilt - best) ** 2

    assert abs(search(far, 20) - best) <= STEP / 2
    assert len(asked) == len(set(asked)) <= 9  # nothing is tried twice


def test_search_stays_where_nothing_is_clearly_better_and_within_its_trials() -> None:
    calls: list[float] = []

    def level(tilt: float) -> float:
        calls.append(tilt)
        return 1.0 - 0.001 * tilt

    assert search(level, 3) == 0.0
    assert len(calls) == 3
    assert search(lambda tilt: np.inf, 5) == 0.0
    assert search(lambda tilt: 1 / 0, 0) == 0.0


@pytest.mark.parametrize(("gain", "found"), [(0.04, 0.0), (0.06, STEP)])
def test_a_step_must_come_a_twentieth_nearer(gain: float, found: float) -> None:
    """Few samples judge, so what is nearer by less than they can tell is left alone."""
    assert search(lambda tilt: 1.0 - gain if tilt == STEP else 1.0, 8) == found


def test_distance_orders_candidates() -> None:
    rng = np.random.default_rng(0)
    original = rng.standard_normal((50, 10))
    near, far = (
        original + 0.01 * rng.standard_normal((50, 10)),
        original + 0.5 * rng.standard_normal((50, 10)),
    )
    assert 0 <= distance(original, near) < distance(original, far)
    wide = rng.standard_normal((1, 10))  # one row: no classes, the relative error alone
    assert distance(wide, wide * 1.1) == pytest.approx(0.01)


def test_only_one_long_axis_is_classes() -> None:
    rng = np.random.default_rng(0)
    scores, hidden = rng.standard_normal((30, 7)), rng.standard_normal((30, 4, 7))
    assert compare(scores, scores)["agreement"] == 1.0
    assert compare(scores.reshape(30, 7, 1, 1), scores.reshape(30, 7, 1, 1))["agreement"] == 1.0
    assert "agreement" not in compare(hidden, hidden)
    assert "kl" not in compare(hidden, hidden)
