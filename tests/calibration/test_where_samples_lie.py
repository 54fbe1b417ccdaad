"""Along which axis of each input samples lie: a recurrent state has its batch behind its layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune.calibration.feeds import count_of, sample_axes, taken
from onnxprune.calibration.samples import load_samples
from onnxprune.errors import CalibrationError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.interface import interface
from onnxprune.model import Model
from onnxprune.runtime.inputs import Trial

from .input_models import rows, streaming

COUNT = 40
X, STATE = rows(COUNT), rows(2 * COUNT).reshape(2, COUNT, 16)
RATE = np.array(16000, np.int64)


def inputs(**shapes: list[Any]) -> dict[str, Any]:
    return {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "along"),
    [
        ({"x": ["T", "batch", 8], "h": [1, "batch", 8]}, {"x": 1, "h": 1}),
        ({"x": ["batch", "T", 8], "h": [2, "batch", 8], "t": []}, {"x": 0, "h": 1}),
        ({"x": ["T", "B", 8], "h": ["B", 8]}, {"x": 1, "h": 0}),
        ({"x": ["batch", 8], "mask": ["batch", "T"]}, {"x": 0, "mask": 0}),
        ({"x": ["N", 8], "y": ["M", 8]}, {"x": 0, "y": 0}),
        ({"x": [1, "T", 8], "mask": [1, "T"]}, None),  # time steps are no samples
        ({"x": [1, "N", 3]}, None),  # nor points
        ({"x": ["batch", "T"], "table": [5, 8]}, None),
        ({"x": ["T", "batch", 8], "y": ["batch", "batch"]}, None),
        ({"t": []}, None),
    ],
)  # fmt: skip
def test_axes_are_read_off_names(shapes: dict[str, list[Any]], along: dict[str, int] | None) -> None:
    assert sample_axes(inputs(**shapes)) == along


def test_a_batch_is_cut_along_the_axis_of_each_input() -> None:
    batch, along = {"x": X, "state": STATE, "rate": RATE}, {"x": 0, "state": 1}
    some = taken(batch, slice(3, 5), along)
    assert np.array_equal(some["x"], X[3:5])
    assert np.array_equal(some["state"], STATE[:, 3:5])
    assert some["rate"] is RATE
    assert (count_of(batch, along), count_of(some, along)) == (COUNT, 2)


def test_axes_without_names_that_go_together_are_one() -> None:
    loaded = Model.load(streaming())
    analysis = analyse(loaded, runs=Trial(loaded))
    declared = {v.name: v for v in interface(analysis).input}
    assert sample_axes(declared) == {"x": 0, "state": 1}
    assert not any(d.dim_param for v in loaded.proto.graph.input for d in v.type.tensor_type.shape.dim)


@pytest.mark.parametrize(
    "feed",
    [
        {"x": X, "state": STATE, "rate": RATE},
        {"x": X, "state": STATE.transpose(1, 0, 2)[:, :, None], "rate": RATE},  # a batch, and states one by one
        {"x": X[:, None], "state": STATE.transpose(1, 0, 2)[:, :, None], "rate": RATE},
        {"x": X[:, None], "state": STATE.transpose(1, 0, 2)[:, :, None], "rate": np.full(COUNT, RATE)},
    ],
    ids=["batch", "states", "stacked", "all"],
)  # fmt: skip
def test_frames_with_states_calibrate_in_every_form(feed: dict[str, np.ndarray]) -> None:
    result = onnxprune.prune(streaming(), ratio=0.5, align="none", calib=feed, recover="lstsq")
    told = result.report.to_json()["calibration"]
    assert told["samples"] + told["original"]["samples"] == COUNT
    assert told["layers"][0]["rows"] == told["samples"]
    law = result.report.law1
    assert law["max_relative_error"] <= 1e-5
    wrong = {**feed, "state": feed["state"][..., :8]}
    with pytest.raises(CalibrationError, match="'state' have the shape"):
        onnxprune.prune(streaming(), ratio=0.5, align="none", calib=wrong)


def test_numbers_of_samples_that_differ_are_refused() -> None:
    feed = {"x": X, "state": STATE[:, :7], "rate": RATE}
    with pytest.raises(CalibrationError, match="40 samples of 'x', but 7 of 'state'"):
        onnxprune.prune(streaming(), ratio=0.5, align="none", calib=feed)


def test_many_samples_of_states_are_set_aside_and_cut() -> None:
    loaded = Model.load(streaming())
    declared = interface(analyse(loaded, runs=Trial(loaded)))
    samples = load_samples(declared, {"x": rows(150), "state": rows(300).reshape(2, 150, 16), "rate": RATE})
    assert samples.counts == [64, 64, 22]
    fit, aside = samples.set_aside()
    assert aside is not None
    assert (fit.count, aside.count) == (135, 15)
    cut = fit.cut_into(30)
    assert (max(cut.counts), sum(cut.counts)) == (30, 135)
    assert [b["state"].shape for b in cut.batches] == [(2, n, 16) for n in cut.counts]
    assert not samples.free
