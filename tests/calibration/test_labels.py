"""Labels that aren't the model's classes are refused or named, and right ones aren't."""

import numpy as np
import pytest

from onnxprune.calibration.labels import check_labels
from onnxprune.errors import CalibrationError

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(1, 9, 200)
SCORES = np.eye(10)[CLASSES] + 0.1 * RNG.standard_normal((200, 10))


def test_right_labels_pass() -> None:
    wrong = CLASSES.copy()
    wrong[:60] = 0
    assert check_labels(SCORES, CLASSES) == check_labels(SCORES, wrong) == []


@pytest.mark.parametrize(("by", "where"), [(1, "above"), (-1, "below")])
def test_labels_that_are_off_by_one_are_refused(by: int, where: str) -> None:
    with pytest.raises(CalibrationError, match=f"one {where} the model's classes"):
        check_labels(SCORES, CLASSES + by)


def test_numbers_beyond_the_classes_are_refused() -> None:
    with pytest.raises(CalibrationError, match="0 to 9"):
        check_labels(SCORES, np.where(CLASSES == 3, 11, CLASSES))


def test_labels_of_something_else_are_named() -> None:
    (note,) = check_labels(SCORES, (CLASSES + 5) % 10)
    assert "labels of something else" in note
    assert check_labels(SCORES, RNG.permutation(CLASSES)) == []  # a guess is as good as that


@pytest.mark.parametrize("scores", [RNG.standard_normal((200, 4, 10)), SCORES[:100]])
def test_labels_of_another_shape_are_named(scores: np.ndarray) -> None:
    (note,) = check_labels(scores, CLASSES)
    assert "no accuracy was measured" in note
