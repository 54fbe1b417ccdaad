"""What is known of accuracy is said first, and isn't called good without cause."""

import io
from typing import Any

import numpy as np
import pytest
from small_models import chain

import onnxprune
from onnxprune.report.known import known


def figures(**given: Any) -> dict[str, Any]:
    return {"original": {"samples": 100, "relative_error": 0.2, "cosine": 0.9, **given}}


def accuracy(after: float, low: float, high: float) -> dict[str, Any]:
    pair = {"before": 90.0, "after": after, "drop_interval": [low, high]}
    return figures(agreement=0.9, agreement_interval=[0.8, 0.95], accuracy=pair)


@pytest.mark.parametrize(
    ("calibration", "level", "word"),
    [
        (None, "warn", "Accuracy unknown"),
        ({"original": None}, "warn", "Accuracy unknown"),
        (accuracy(89.5, -1.0, 2.0), "good", "Accuracy measured"),
        (accuracy(89.5, -7.0, 8.0), "warn", "Accuracy measured"),
        (accuracy(86.0, 1.0, 7.0), "warn", "Accuracy measured"),
        (accuracy(12.0, 70.0, 85.0), "bad", "Accuracy measured"),
        (figures(agreement=0.99, agreement_interval=[0.97, 1.0]), "good", "Agreement measured"),
        (figures(agreement=0.99, agreement_interval=[0.8, 1.0]), "warn", "Agreement measured"),
        (figures(agreement=0.3, agreement_interval=[0.2, 0.4]), "bad", "Agreement measured"),
        (figures(relative_error=0.01), "good", "Agreement measured"),
        (figures(relative_error=0.7), "bad", "Agreement measured"),
    ],
)
def test_how_good_a_result_is(calibration: dict[str, Any] | None, level: str, word: str) -> None:
    told = known(calibration, "prune")
    assert (told.level, told.word) == (level, word)


def shown(report: Any) -> str:
    stream = io.StringIO()
    report.show(stream)
    return stream.getvalue()


def test_without_samples_nothing_is_known_and_that_comes_before_the_proof() -> None:
    for report in (
        onnxprune.prune(chain(), ratio=0.5, align=None).report,
        onnxprune.sparsify(chain(), pattern="unstructured", sparsity=0.5).report,
    ):
        text, page = shown(report), report.page()
        assert "accuracy unknown: no samples were given" in text
        assert "--calib samples.npz" in text
        assert 'class="warn"><b>Accuracy unknown</b>' in page
        if "law 1" in text:
            assert text.index("accuracy unknown") < text.index("law 1")
            assert page.index("Accuracy unknown") < page.index("<b>Proved</b>")


def test_with_samples_what_was_measured_is_said() -> None:
    samples = {"x": np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    text = shown(onnxprune.prune(model, ratio=0.5, align=None, calib=samples).report)
    assert "agreement measured: on 6 samples set aside" in text
    assert "unknown" not in text
