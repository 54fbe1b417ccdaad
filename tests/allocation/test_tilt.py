"""A search of few calls, and how far outputs are apart."""

import numpy as np
import pytest

from onnxprune.allocation.moves import moved
from onnxprune.calibration.agreement import compare, distance

TILTS = [(1.5,), (-1.5,), (0.75,), (-0.75,)]
ENDS = [(-4.5, 4.5)]


@pytest.mark.parametrize("best", [-2.3, -0.4, 0.0, 0.9, 3.1])
def test_search_comes_within_half_a_step(best: float) -> None:
    asked: list[tuple[float, ...]] = []

    def far(point: tuple[float, ...]) -> float:
        asked.append(point)
        return 0.1 + (point[0] - best) ** 2

    assert abs(moved(far, (0.0,), TILTS, ENDS, 20)[0] - best) <= 0.75
    assert len(asked) == len(set(asked)) <= 9  # nothing is tried twice


def test_search_stays_within_its_calls_and_its_ends() -> None:
    calls: list[tuple[float, ...]] = []

    def level(point: tuple[float, ...]) -> float:
        calls.append(point)
        return 1.0 - 0.001 * point[0]

    assert moved(level, (0.0,), TILTS, ENDS, 3) == (0.0,)
    assert len(calls) == 3
    assert moved(lambda point: np.inf, (0.0,), TILTS, ENDS, 5) == (0.0,)
    assert moved(lambda point: 1 / 0, (0.0,), TILTS, ENDS, 1) == (0.0,)
    assert moved(lambda point: float(np.exp(-point[0])), (0.0,), TILTS, ENDS, 20) == (4.5,)


@pytest.mark.parametrize(("gain", "found"), [(0.04, 0.0), (0.06, 1.5)])
def test_a_step_must_come_a_twentieth_nearer(gain: float, found: float) -> None:
    """Few samples judge, so what is nearer by less than they can tell is left alone."""
    assert moved(lambda point: 1.0 - gain if point[0] == 1.5 else 1.0, (0.0,), TILTS, ENDS, 8) == (found,)


def test_moves_along_one_axis_after_another() -> None:
    far = lambda point: 0.1 + (point[0] - 0.5) ** 2 + (point[1] - 1.5) ** 2  # noqa: E731
    assert moved(far, (1.0, 0.0), [(-0.5, 0.0), (0.0, 1.5)], [(0.0, 1.0), (-4.5, 4.5)], 9) == (0.5, 1.5)


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
