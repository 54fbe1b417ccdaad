"""Rounding by moments: never worse than the nearest steps, fewer bits where bits cost, zeros where they are cheap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.compression.curves import ENDS, Choice, by_bits, by_entropy, choose, narrowed
from onnxprune.compression.fitting import DAMPINGS, damping_of, rounder_of
from onnxprune.compression.rounding import Alone, Rounder, counts
from onnxprune.compression.rounding import bits_of as bits_of_counts
from onnxprune.reconstruction.least_squares import Problem


def bits_of(k: np.ndarray) -> float:
    return bits_of_counts(counts(k))


def layer(seed: int, blocks: int = 2, d: int = 12, outputs: int = 5) -> tuple[Rounder, np.ndarray]:
    """Return moments of correlated inputs, and weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((blocks, 200, d)) @ rng.standard_normal((blocks, d, d))
    h = x.transpose(0, 2, 1) @ x / 200
    h += 0.01 * np.trace(h, axis1=1, axis2=2)[:, None, None] / d * np.eye(d)
    return Rounder(h), rng.standard_normal((blocks, d, outputs))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 2.0))
def test_moments_pay(seed: int, step: float) -> None:
    rounder, w = layer(seed)
    k = rounder.steps(w, np.array(step), 0.0, ENDS)
    assert k.dtype == np.int8
    near = np.clip(np.rint(w / step), *ENDS)
    assert rounder.loss(k * step - w) <= rounder.loss(near * step - w) * (1 + 1e-9)


def test_a_price_makes_zeros_and_takes_bits() -> None:
    rounder, w = layer(1, d=30, outputs=40)
    free = rounder.steps(w, np.array(0.5), 0.0, ENDS)
    dear = rounder.steps(w, np.array(0.5), 3.0, ENDS)
    assert bits_of(dear) < 0.9 * bits_of(free)
    assert (dear == 0).sum() > (free == 0).sum()
    assert rounder.loss(dear * 0.5 - w) > rounder.loss(free * 0.5 - w)  # nothing is free
    dearest = rounder.steps(w, np.array(0.5), 1e9, ENDS)
    assert len(np.unique(dearest)) == 1


def test_ends_hold_and_blocks_are_alone() -> None:
    rounder, w = layer(2)
    k = rounder.steps(w, np.array(0.01), 0.0, (-8, 7))
    assert k.min() == -8
    assert k.max() == 7
    both = rounder.steps(w, np.array(0.3), 0.0, ENDS)
    for n in range(2):
        one = Rounder(rounder.h[n : n + 1]).steps(w[n : n + 1], np.array(0.3), 0.0, ENDS)
        assert np.array_equal(one[0], both[n])


def test_the_first_to_go_are_the_strongest_inputs() -> None:
    """With one strong input its weight is rounded as it is, and the others make up for it."""
    h = np.diag([1.0, 100.0])[None] + 0.9
    w = np.array([[[0.4], [0.4]]])
    k = Rounder(h).steps(w, np.array(1.0), 0.0, ENDS)
    assert k[0, 1, 0] == 0


def test_entropy() -> None:
    assert bits_of(np.zeros(9, np.int8)) == 0
    assert bits_of(np.arange(-8, 8, dtype=np.int8)) == pytest.approx(64)
    assert bits_of(np.array([-127, 127, -128], np.int8)) == pytest.approx(3 * np.log2(3))


def test_without_moments_each_weight_is_alone() -> None:
    w = np.random.default_rng(0).standard_normal((300, 7))
    assert np.array_equal(Alone().steps(w, np.array(0.25), 0.0, ENDS), np.rint(w / 0.25))
    dear = Alone().steps(w, np.array(0.25), 0.02, ENDS)
    assert bits_of(dear) < bits_of(np.rint(w / 0.25).astype(np.int8))


def test_curves_fall_and_the_budget_holds() -> None:
    choices = {}
    for name, seed in (("a", 3), ("b", 4)):
        rounder, w = layer(seed, blocks=1, d=40, outputs=30)
        choices[name] = by_entropy(w, rounder, 1.0 if name == "a" else 50.0, w.size)
        sizes, losses = ([getattr(c, of) for c in choices[name]] for of in ("nbytes", "loss"))
        assert sizes == sorted(sizes, reverse=True)
        assert losses == sorted(losses)
    most, least = (sum(pick(c.nbytes for c in each) for each in choices.values()) for pick in (max, min))
    for budget in np.linspace(least + 10, most, 5):
        chosen = choose(choices, float(budget))
        assert chosen is not None
        assert sum(c.nbytes for c in chosen.values()) <= budget * (1 + 1e-9)
    assert choose(choices, least - 1) is None


def test_what_matters_less_gets_fewer_bytes() -> None:
    rounder, w = layer(5, blocks=1, d=40, outputs=30)
    each = {"much": by_entropy(w, rounder, 1.0, w.size), "little": by_entropy(w, rounder, 1e3, w.size)}
    chosen = choose(each, 1.2 * sum(min(c.nbytes for c in e) for e in each.values()) + 300)
    assert chosen is not None
    assert chosen["much"].nbytes > chosen["little"].nbytes


def test_each_output_gets_the_step_that_loses_least() -> None:
    w = np.array([[[1.0, 10.0], [0.5, 0.1], [0.25, 0.12]]])
    step = narrowed(w, Alone(), (-8, 7))
    assert step.shape == (1, 1, 2)
    for o in range(2):
        losses = [
            np.square(np.clip(np.rint(w[0, :, o] / s), -8, 7) * s - w[0, :, o]).sum()
            for s in (step[0, 0, o], w[0, :, o].max() / 7)
        ]
        assert losses[0] <= losses[1]
    few = by_bits(w, Alone(), 1.0, w.size, ((8, ENDS), (4, (-8, 7))))
    assert few[0].loss < few[1].loss
    assert few[0].nbytes == few[1].nbytes + 3


def test_nothing_but_zeros_takes_nothing() -> None:
    assert by_entropy(np.zeros((4, 5)), Alone(), 1.0, 20) == [Choice(0.0, 0.0, 1.0, 0.0)]


def problem(rows: int, seed: int, width: int = 48, outputs: int = 4) -> Problem:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).standard_normal((width, width))
    x = rng.standard_normal((rows, width)) @ mix
    x -= x.mean(axis=0)
    nothing = np.zeros(outputs)
    return Problem(rows, x.T @ x / rows, np.zeros((width, outputs)), nothing, np.zeros(width), nothing)


def test_few_rows_are_damped_as_others_like_best() -> None:
    """With as many rows as inputs rounding errors hide where these rows don't look, and others do."""
    w, unseen = np.random.default_rng(2).standard_normal((1, 48, 4)), [problem(4000, 5)]
    few, many = [problem(40, 1)], [problem(4000, 3)]
    damping = damping_of(few, unseen, w)
    assert damping > DAMPINGS[0] == damping_of(many, unseen, w)
    step = float(np.std(w))

    def lost(share: float) -> float:
        rounder = rounder_of(few, share, unseen)
        return rounder.loss(rounder.steps(w, np.array(step), 0.0, ENDS) * step - w)

    assert lost(damping) < 0.9 * lost(DAMPINGS[0])
    seen = rounder_of(few, DAMPINGS[0])
    k = seen.steps(w, np.array(step), 0.0, ENDS)
    assert seen.loss(k * step - w) < 0.7 * lost(DAMPINGS[0])  # so losses are taken from what no rounding saw
