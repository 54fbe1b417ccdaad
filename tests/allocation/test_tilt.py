"""How errors at different depths weigh."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from onnxprune.calibration.agreement import compare, distance
from onnxprune.pruning import weighing as tilt
from onnxprune.pruning.on_samples import FromSamples
from onnxprune.pruning.weighing import Weighing
from onnxprune.reconstruction.least_squares import Curve


def test_weights_grow_with_depth_and_with_many_readers() -> None:
    readers = {"first": [3], "last": [9], "stream": [3, 9]}
    found = tilt.weights(readers, [3, 5, 9], Weighing(2.0))
    assert found["first"] == pytest.approx(1.0)
    assert found["last"] == pytest.approx(np.exp(2.0))
    assert found["stream"] == pytest.approx(tilt.SHARED * np.exp(1.0))
    assert tilt.weights(readers, [3, 5, 9], Weighing(0.0, 0.25)) == {
        "first": 1.0,
        "last": 1.0,
        "stream": 0.25,
    }
    assert set(tilt.weights({"a": [3], "b": [9]}, [3, 9], Weighing()).values()) == {1.0}


def test_what_nobody_could_measure_weighs_as_the_dearest() -> None:
    """Else a tilt that makes late errors dear lets all go that is known from norms alone."""
    curve = Curve(np.arange(3), np.array([0.0, 1.0, 2.0, np.inf]))
    made = SimpleNamespace(
        places={"first": [0], "last": [1]},
        sites=[SimpleNamespace(number=0), SimpleNamespace(number=1)],
        curves=dict.fromkeys(("first", "last", "norm"), curve),
    )
    rankings = FromSamples._weighed(SimpleNamespace(calibration=made, worth=None), Weighing(2.0))  # type: ignore[arg-type]
    assert rankings["norm"].error[1] == pytest.approx(rankings["last"].error[1])
    assert rankings["last"].error[1] == pytest.approx(np.exp(2.0) * rankings["first"].error[1])


@pytest.mark.parametrize("best", [-2.3, -0.4, 0.0, 0.9, 3.1])
def test_search_comes_within_half_a_step(best: float) -> None:
    asked: list[Weighing] = []

    def far(weighing: Weighing) -> float:
        asked.append(weighing)
        return 0.1 + (weighing.tilt - best) ** 2

    found = tilt.search(far, 20, many=False)
    assert abs(found.tilt - best) <= tilt.STEP / 2
    assert len(asked) == len(set(asked)) <= 9  # nothing is tried twice


@pytest.mark.parametrize(("best", "found"), [(9.0, 4.0), (4.0, 4.0), (1.0, 1.0), (0.02, 0.0625)])
def test_what_is_shared_weighs_less_where_that_is_better(best: float, found: float) -> None:
    asked: list[Weighing] = []

    def far(weighing: Weighing) -> float:
        asked.append(weighing)
        return 1.0 + abs(np.log(weighing.shared / best)) + weighing.tilt**2

    assert tilt.search(far, 4, many=True) == Weighing(0.0, found)
    assert len(asked) == len(set(asked)) <= 7
    assert tilt.search(far, 4, many=False) == Weighing()


def test_search_stays_where_nothing_is_clearly_better_and_within_its_trials() -> None:
    calls: list[Weighing] = []

    def level(weighing: Weighing) -> float:
        calls.append(weighing)
        return 1.0 - 0.001 * weighing.tilt

    assert tilt.search(level, 3, many=False) == Weighing()
    assert len(calls) == 3
    assert tilt.search(lambda w: np.inf, 5, many=True) == Weighing()
    assert tilt.search(lambda w: 1 / 0, 0, many=True) == Weighing()


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


@pytest.mark.parametrize(("gain", "taken"), [(0.04, False), (0.06, True)])
@pytest.mark.parametrize("what", ["tilt", "shared"])
def test_a_step_must_come_a_twentieth_nearer(what: str, gain: float, taken: bool) -> None:
    """Few samples judge, so what is nearer by less than they can tell is left alone."""

    def far(weighing: Weighing) -> float:
        moved = weighing.tilt == 1.5 if what == "tilt" else weighing.shared == 1.0
        return 1.0 - gain if moved and replace(weighing, **{what: getattr(still, what)}) == still else 1.0

    still = Weighing()
    found = tilt.search(far, 8, many=what == "shared")
    assert found == (replace(still, **{what: 1.5 if what == "tilt" else 1.0}) if taken else still)
