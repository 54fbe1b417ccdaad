"""A fit of layers together is held against the state that it began with, on samples that no fit sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxprune import prune
from onnxprune.graph.analysis import Analysis
from onnxprune.pruning import on_samples
from onnxprune.pruning.harm import farther, noted
from onnxprune.reconstruction import distill as whole
from onnxprune.reconstruction.reconstruct import SegmentReport
from tests.reconstruction.test_segments import images, net

KEPT = "keep the weights that they had before they were fitted together"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "PACE", replace(whole.PACE, steps=40, passes=5))


def cut(recover: str, count: int = 100, **more: Any) -> Any:
    x = images(count)
    given = {"x": x, "y": np.arange(count) % 5}
    return prune(net(), ratio=0.5, calib=given, labels="y", recover=recover, align=1, seed=0, **more)


def spoil(fitted: Analysis) -> SegmentReport:
    """Change a layer that stays, and say that it came nearer, as a segment may by its own goal."""
    fitted.model.put("fc_w", 1.5 * fitted.model.weight("fc_w"))
    return SegmentReport(["fc"], 90, 0.4, 0.1)


def spoiled_blocks(fitted: Analysis, *_: object, **__: object) -> list[SegmentReport]:
    return [spoil(fitted)]


def spoiled(fitted: Analysis, *_: object, **__: object) -> SegmentReport:
    return spoil(fitted)


def same(one: Any, two: Any) -> bool:
    return bool(one.model.SerializeToString() == two.model.SerializeToString())


def test_blocks_that_end_farther_than_they_began_are_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_samples, "reconstruct", spoiled_blocks)
    least, blocks = cut("lstsq"), cut("blocks")
    assert same(least, blocks)
    assert any(f"blocks of layers {KEPT}" in note for note in blocks.report.notes)
    (told,) = blocks.report.calibration["segments"]
    assert told["after"] == told["before"]
    figures = blocks.report.calibration["original"], least.report.calibration["original"]
    assert figures[0]["relative_error"] == figures[1]["relative_error"]


def test_blocks_that_end_nearer_are_kept() -> None:
    least, blocks = cut("lstsq", 300), cut("blocks", 300)
    assert not same(least, blocks)
    assert any(told["after"] < told["before"] for told in blocks.report.calibration["segments"])
    assert not any(KEPT in note for note in blocks.report.notes)


def test_where_no_samples_are_set_aside_nothing_says_what_is_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_samples, "reconstruct", spoiled_blocks)
    monkeypatch.setattr("onnxprune.calibration.samples.Samples.set_aside", lambda self: (self, None))
    blocks = cut("blocks")
    assert not same(cut("lstsq"), blocks)
    assert not any(KEPT in note for note in blocks.report.notes)


def test_errors_of_samples_are_kept_on_the_way() -> None:
    """What both rule out is no error, of numbers of classes each other one is; boxes have none."""
    floats = np.array([[1.0, -np.inf], [2.0, 3.0]], np.float32)
    others = np.array([[1.5, -np.inf], [2.0, 1.0]], np.float32)
    each: list[np.ndarray] = []
    assert [a.tolist() for a in noted([floats], [others], each)] == [others.tolist()]
    assert each[0].tolist() == [0.25, 4.0]
    list(noted([np.array([[3], [4]])], [np.array([[3], [9]])], each))
    assert each[1].tolist() == [0.0, 1.0]
    assert not farther(each, each)
    assert farther([each[0] * np.nan], each[:1])
    boxes: list[np.ndarray] = []
    one, two = (np.zeros((1, n, 4), np.float32) for n in (2, 3))
    assert len(list(noted([one, one, one], [one, two, one], boxes))) == 3
    assert not boxes
    assert not farther(boxes, each)


@pytest.mark.parametrize(("recover", "back"), [("distill", True), ("finetune", False)])
def test_all_layers_are_set_back_to_their_blocks_but_for_a_fit_toward_labels(
    monkeypatch: pytest.MonkeyPatch, recover: str, back: bool
) -> None:
    """Labels lead away from the original's outputs on purpose."""
    monkeypatch.setattr(on_samples, recover, spoiled)
    blocks, deeper = cut("blocks"), cut(recover)
    assert same(blocks, deeper) is back
    assert any(f"all layers {KEPT}" in note for note in deeper.report.notes) is back
