"""Comparisons measure differences, and refuse to say anything about nothing."""

import numpy as np
import pytest

from onnxprune.proof.compare import compare, worst
from onnxprune.proof.interior import compare_any

A = np.array([1.0, -2.0, 3.0], np.float32)


def test_comparison_measures() -> None:
    assert compare(A, A).error == 0
    assert not compare(A, A).void
    assert compare(A, A + np.float32(0.3)).error == pytest.approx(0.1, rel=1e-5)
    assert compare(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])).error == 0.25
    assert worst([compare(A, A), compare(A, 2 * A)]).error == 1


def test_an_output_that_is_not_computed_equals_only_one_that_is_not() -> None:
    assert (compare_any(None, None).error, compare_any(None, None).void) == (0, "without a value")
    assert compare_any(A, None).error == compare_any(None, A).error == np.inf


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (A, A[:2]),
        (A, A.astype(np.float64)),
        (A, A * np.nan),
        (A, np.array([1, -2, np.inf], np.float32)),
        (0 * A, A),
        (np.array([np.inf, 1, 2]), np.array([-np.inf, 1, 2])),
        (np.array([np.nan, 1]), np.array([1, np.nan])),
    ],
)
def test_comparison_is_infinitely_wrong(a: np.ndarray, b: np.ndarray) -> None:
    assert compare(a, b).error == np.inf


@pytest.mark.parametrize(
    ("a", "says"),
    [
        (A[:0], "empty"),
        (A * 0, "constant"),
        (A * 0 + 4, "constant"),
        (A * np.nan, "NaN"),
        (A * 0 + np.inf, "nothing finite"),
        (np.array([1, np.nan, 2]), "NaN"),
        (np.zeros(5, np.int64), "constant"),
        (np.zeros(()), "constant"),
    ],
)
def test_comparison_refuses_to_pass_on_nothing(a: np.ndarray, says: str) -> None:
    found = compare(a, a)
    assert found.error == 0
    assert found.void == says
    assert worst([found]).void == says
    assert worst([found, compare(A, A)]).void == ""
    assert worst([]).void
