"""What is said of a fit: labels, where there are some, judge it, and not how near it stays to the original."""

from typing import Any

import pytest

from onnxprune.pruning.harm import told_of
from onnxprune.reconstruction.reconstruct import SegmentReport
from onnxprune.reconstruction.recover import recovery_of


def figures(error: float, after: float | None = None, before: float = 98.0) -> dict[str, Any]:
    right = {} if after is None else {"accuracy": {"before": before, "after": after}}
    return {"samples": 60, "relative_error": error, "agreement": 0.9, **right}


@pytest.mark.parametrize("recover", ["lstsq", "distill", "finetune"])
def test_labels_say_whether_a_fit_did_harm(recover: str) -> None:
    """A fit toward labels lets scores grow, so outputs are far from the original's and right all the same."""
    recovery = recovery_of(recover)
    assert told_of(figures(2.5, 95.1), figures(0.9, 10.0), recovery) == []
    (note,) = told_of(figures(0.5, 10.0), figures(0.9, 95.1), recovery)
    assert "did harm: on the samples set aside 10.0 % are right, and without a fit 95.1 %" in note
    labelled = recover == "finetune"
    assert ("check the labels, or take --recover distill" in note) is labelled
    assert ("--recover none" in note) is not labelled
    assert told_of(figures(0.5, 93.3), figures(0.5, 95.0), recovery) == [], "one sample of 60 is chance"


def test_without_labels_outputs_judge_but_for_a_fit_toward_labels() -> None:
    """Labels that aren't one for each sample are the fit's own matter, whose aim aren't the original's outputs."""
    assert "--recover none" in told_of(figures(2.5), figures(0.9), recovery_of("lstsq"))[0]
    assert told_of(figures(0.95), figures(0.9), recovery_of("lstsq")) == []
    assert told_of(figures(2.5), figures(0.9), recovery_of("finetune")) == []
    assert told_of(None, None, recovery_of("lstsq")) == []


def test_labels_that_the_original_contradicts_are_told_where_they_are_fitted_to() -> None:
    doubtful = figures(0.5, 60.0, before=60.0)
    (note,) = told_of(doubtful, None, recovery_of("finetune"))
    assert "contradict the original's own classes on 40% of the samples set aside" in note
    assert told_of(doubtful, None, recovery_of("distill")) == []
    assert told_of(figures(0.5, 80.0, before=80.0), None, recovery_of("finetune")) == []


def test_another_fit_by_gradients_is_advised_only_where_there_are_gradients() -> None:
    far = {**figures(0.5), "agreement": 0.5}
    none, some = SegmentReport(["a"], why="no gradients"), SegmentReport(["a"], before=0.2, after=0.1)
    assert "--recover distill" in told_of(far, None, recovery_of("blocks"), [none, some])[0]
    assert told_of(far, None, recovery_of("blocks"), [none]) == []
