"""Samples of any source beside the user's: layers are fitted together on them, but they neither choose nor judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxprune import Options, prune
from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.model import Model
from onnxprune.reconstruction import distill
from onnxprune.reconstruction.descent import Data
from onnxprune.reconstruction.evidence import HELD
from onnxprune.runtime.session import open_session
from tests.reconstruction.test_segments import images, net

PRUNED = {"ratio": 0.5, "align": 1, "seed": 0, "recover": "distill"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "PACE", replace(distill.PACE, steps=240, passes=60))


def test_more_pictures_bring_few_samples_nearer() -> None:
    model, fresh = net(blocks=4, channels=8), {"x": images(200, 9)}
    dense = open_session(Model.load(model)).run(fresh)["out"]
    errors, told = [], []
    for more in ({}, {"extra_samples": {"x": images(300, 3)}}):
        result = prune(model, calib={"x": images(40)}, **PRUNED, **more)
        out = open_session(Model.load(result.model)).run(fresh)["out"]
        errors.append(float(np.square(out - dense).mean()))
        told.append(result.report.calibration["whole"]["samples"])
    assert errors[1] < 0.95 * errors[0]
    assert told == [36, 336]


@pytest.mark.parametrize("free", [True, False])
def test_only_the_users_samples_judge(free: bool) -> None:
    parts = [{"x": np.zeros((4, 1))} for _ in range(10)]
    whole, data = (Data(parts, [4] * 10, free, judges=judges) for judges in (None, 28))
    units = 28 if free else 7
    np.testing.assert_array_equal(data.held, np.arange(HELD - 1, units, HELD))
    assert len(whole.held) > len(data.held)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([data.held, data.train])), np.arange(40 if free else 10)
    )


def test_samples_beside_others_have_no_labels() -> None:
    one, two = (Samples([{"x": np.full((n, 1), n)}], [n], np.arange(n)) for n in (3, 2))
    both = one.beside(two)
    assert (both.counts, both.labels, both.count, both.judges) == ([3, 2], None, 5, 3)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"recover": "blocks"}, "--extra-samples is for --recover distill"),
        ({"recover": "finetune", "labels": "y"}, "--extra-samples have no labels to learn from"),
    ],
)
def test_they_are_for_distillation(more: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Options(**{**PRUNED, "calib": "s.npz", "extra_samples": "e.npz", **more})


def test_those_that_do_not_fit_are_refused_by_their_option() -> None:
    with pytest.raises(CalibrationError, match=r"^--extra-samples: "):
        prune(net(), calib={"x": images(40)}, extra_samples={"x": images(40)[:, :1]}, **PRUNED)
