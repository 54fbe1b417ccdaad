"""Gradients of a convolution's weight: by products, by sums over planes, and all taps at once."""

from __future__ import annotations

import pytest

from onnxprune.gradient.taps import FEWEST_INPUTS, MOST_TAPS
from tests.gradient.finite import disagreement, gradients, model, node, normal

CLOSE = 2e-4
PRODUCTS = {"inputs": FEWEST_INPUTS, "outputs": 4, "group": 1}
PLANES = {"inputs": 4, "outputs": 4, "group": 4}
SWAPPED = {"inputs": 3, "outputs": 4, "group": 1}


@pytest.mark.parametrize("kind", [PRODUCTS, PLANES, SWAPPED], ids=["products", "planes", "swapped"])
@pytest.mark.parametrize(
    "attrs",
    [
        {"pads": [1, 0, 2, 1]},
        {"pads": [0, 1, 0, 1], "dilations": [2, 1]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [3, 1]},
    ],
)
def test_all_ways_agree_with_differences(kind, attrs):
    weights = {"w": normal(kind["outputs"], kind["inputs"] // kind["group"], 3, 2)}
    feeds = {"x": normal(2, kind["inputs"], 8, 7)}
    proto = model([node("Conv", "x", "w", group=kind["group"], **attrs)], feeds, weights)
    assert disagreement(proto, feeds, ["x", "w"]) < CLOSE


@pytest.mark.parametrize("taps", [MOST_TAPS, MOST_TAPS + 1])
def test_a_signal_of_many_taps(taps):
    weights = {"w": normal(2, FEWEST_INPUTS, taps)}
    feeds = {"x": normal(2, FEWEST_INPUTS, taps + 3)}
    proto = model([node("Conv", "x", "w", pads=[1, 2])], feeds, weights)
    assert disagreement(proto, feeds, ["w"]) < CLOSE
    assert gradients(proto, feeds, ["w"], normal(2, 2, 7))["w"].shape == weights["w"].shape
