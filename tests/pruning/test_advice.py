"""What a run says that lost much: how more of it may be won back."""

from typing import Any

import numpy as np
import pytest
from small_models import Builder

import onnxprune

ADVICE = "--recover distill, which fits all layers together, may win back"


@pytest.mark.parametrize(
    ("ratio", "options", "advised"),
    [
        (0.8, {}, True),
        (0.05, {}, False),  # as good as nothing is lost
        (0.8, {"recover": "distill", "epochs": 1}, False),
        (0.8, {"recover": "bias"}, False),  # chosen by somebody who knows
    ],
)
def test_a_lossy_cut_names_the_dearer_fit(ratio: float, options: dict[str, Any], advised: bool) -> None:
    b = Builder(3)
    h = b.op("Relu", [b.linear("x", "first", 24, 40)], "relu")
    h = b.op("Relu", [b.linear(h, "second", 40, 40)], "relu2")
    model = b.model({"x": ["N", 24]}, b.linear(h, "head", 40, 10))
    x = np.random.default_rng(0).standard_normal((400, 24)).astype(np.float32)
    report = onnxprune.prune(model, ratio=ratio, align="none", calib={"x": x}, **options).report
    same = report.to_json()["calibration"]["original"]["agreement"]
    assert (same < 0.85) is (ratio == 0.8)
    assert any(ADVICE in note for note in report.notes) is advised
