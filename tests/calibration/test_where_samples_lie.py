"""Along which axis of each input samples lie: a recurrent state has its batch behind its layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune.calibration.feeds import count_of, counted_axes, sample_axes, taken
from onnxprune.calibration.inputs import MOST, feeds
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
        ({"x": [1, "N", 3], "f": [1, "N", 6]}, None),
        ({"x": ["N", "T", 8], "h": [2, "N", 8]}, {"x": 0, "h": 1}),
        ({"x": ["T", "N", 8], "h": [2, "N", 8], "c": [2, "N", 8]}, {"x": 1, "h": 1, "c": 1}),
        ({"x": ["batch", "T"], "table": [5, 8]}, None),
        ({"x": ["T", "batch", 8], "y": ["batch", "batch"]}, None),
        ({"t": []}, None),
    ],
)  # fmt: skip
def test_axes_are_read_off_names(shapes: dict[str, list[Any]], along: dict[str, int] | None) -> None:
    assert sample_axes(inputs(**shapes)) == along


@pytest.mark.parametrize(
    ("shapes", "counted"),
    [
        ({"x": ["T", "batch", 8], "h": [1, "batch", 8]}, {"x": 1, "h": 1}),
        ({"x": [1, 5, 8], "h": [2, 1, 8], "t": []}, {"x": 0, "h": 1}),
        ({"x": [1, "T", 8], "h": [2, 1, 8]}, {"x": 0, "h": 1}),
        ({"x": [1, 257, 1, 2], "c": [2, 1, 16, 3], "h": [2, 3, 1, 1, 6]}, {"x": 0, "c": 1, "h": 2}),
        ({"x": ["T", "Q", 8], "h": [2, "Q", 8]}, {"x": 1, "h": 1}),
        ({"x": ["T", 8], "h": [2, 8]}, None),  # widths are no samples
        ({"x": ["T", 5], "h": ["T", "T"]}, {"x": 0, "h": 0}),
        ({"t": []}, None),
    ],
)  # fmt: skip
def test_samples_of_a_run_are_counted_along_what_inputs_share(
    shapes: dict[str, list[Any]], counted: dict[str, int] | None
) -> None:
    assert counted_axes(inputs(**shapes)) == counted


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


def recurrent() -> onnx.ModelProto:
    """Frames one by one, with a state of two layers: the batch is one, and lies behind the layers."""
    model = streaming()
    x, state, _ = model.graph.input
    for value, at in ((x, 0), (state, 1)):
        value.type.tensor_type.shape.dim[at].dim_value = 1
    x.type.tensor_type.shape.dim[1].dim_value = 16
    return model


@pytest.mark.parametrize(
    "given",
    [
        {"x": X, "state": STATE, "rate": RATE},
        {"x": X[:, None], "state": STATE.transpose(1, 0, 2)[:, :, None], "rate": RATE},
        [{"x": X[i : i + 1], "state": STATE[:, i : i + 1], "rate": RATE} for i in range(COUNT)],
    ],
    ids=["batch", "stacked", "one by one"],
)
def test_a_run_of_one_sample_is_one_whatever_its_state_has(given: Any) -> None:
    samples = load_samples(recurrent().graph, given)
    assert samples.counts == [1] * COUNT
    assert [b["state"].shape for b in samples.batches] == [(2, 1, 16)] * COUNT
    assert all(np.array_equal(b["state"][:, 0], STATE[:, i]) for i, b in enumerate(samples.batches))
    runs = feeds(recurrent().graph, given)
    assert len(runs) == MOST
    assert all(np.array_equal(run["state"][:, 0], STATE[:, i]) for i, run in enumerate(runs))
    told = onnxprune.prune(
        recurrent(), ratio=0.5, align="none", calib=given, recover="lstsq", inputs=given
    ).report.to_json()
    assert told["law1"]["inputs"] >= MOST
    assert told["calibration"]["samples"] + told["calibration"]["original"]["samples"] == COUNT


@pytest.mark.parametrize("shape", [(4, 3, 9, 8), (1, 3, 9, 8), (1, 3, 16, 8), (1, 3, 8, 9)])
def test_pictures_of_another_size_are_no_batches(shape: tuple[int, ...]) -> None:
    declared = inputs(x=[1, 3, 8, 8])
    graph = helper.make_graph([], "g", list(declared.values()), [])
    for read in (load_samples, feeds):
        with pytest.raises(CalibrationError, match="have the shape"):
            read(graph, {"x": np.zeros(shape, np.float32) + 1})


def test_colours_are_no_batch() -> None:
    two = list(inputs(left=[1, 1, 8, 8], right=[1, 1, 8, 8]).values())
    one = np.ones((1, 3, 8, 8), np.float32)
    with pytest.raises(CalibrationError, match="have the shape"):
        load_samples(helper.make_graph([], "g", two, []), {"left": one, "right": one})
    late = helper.make_graph([], "g", list(inputs(x=[5, 1, 8], h=[1, 1, 8]).values()), [])
    frames = {"x": np.ones((5, 7, 8), np.float32), "h": np.ones((1, 7, 8), np.float32)}
    assert load_samples(late, frames).count == 7


def test_widths_are_no_runs() -> None:
    """A picture of three colours for a model of one, told by the shape that the file has."""
    graph = helper.make_graph([], "g", list(inputs(x=["N", 9, 9, 1]).values()), [])
    pictures = np.ones((100, 9, 9, 3), np.float32)
    for read in (load_samples, feeds):
        with pytest.raises(CalibrationError, match=r"the shape \(100, 9, 9, 3\), .* has \(N,9,9,1\)\.$"):
            read(graph, {"x": pictures})


def test_runs_that_do_not_go_together_are_refused_with_what_to_do() -> None:
    alone = {"x": X, "state": STATE[:, :1], "rate": RATE}
    with pytest.raises(CalibrationError, match="an axis in front, an entry for each"):
        load_samples(recurrent().graph, alone)
    with pytest.raises(
        CalibrationError, match=r"'state' for each of them, as by np.repeat\(array, 40, axis=1\)"
    ):
        onnxprune.prune(streaming(), ratio=0.5, align="none", calib=alone)


def test_labels_of_sequences_one_by_one_are_as_many_as_there_are() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "batch", 16])
    graph = helper.make_graph([], "g", [x], [])
    feed = {"x": rows(7 * COUNT).reshape(COUNT, 7, 1, 16), "y": np.arange(COUNT) % 3}
    samples = load_samples(graph, feed, labels="y")
    assert samples.counts == [1] * COUNT
    assert samples.labels is not None
    assert samples.labels.tolist() == feed["y"].tolist()


@pytest.mark.parametrize("given", ["stacked", "one by one"])
def test_a_picture_without_a_batch_is_one_sample(given: str) -> None:
    """Its first axis is that of colours."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [6])
    graph = helper.make_graph([], "g", [x], [y])
    pictures, labels = rows(30 * 3 * 4).reshape(30, 3, 4, 16), np.arange(30) % 6
    feed = [{"x": p, "y": c} for p, c in zip(pictures, labels, strict=True)]
    samples = load_samples(graph, {"x": pictures, "y": labels} if given == "stacked" else feed, labels="y")
    assert samples.counts == [1] * 30
    assert samples.labels is not None
    assert samples.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("axes", "states", "lie"),
    [
        (["t", "n", 4], {"o": ["t", "n", 6], "h": [1, "n", 6]}, 1),
        (["t", "n", 4], {"o": ["t", "n", 6]}, 0),  # nothing says so
        (["n", "t", 4], {"o": ["n", "t", 6], "mask": [1, "t", 6]}, 0),  # the first is called so
        (["p", "q", 4], {"o": ["p", 6], "h": [1, "q", 6]}, 0),  # one output lacks it
    ],
)
def test_a_state_among_the_outputs_tells_time_from_samples(
    axes: list[str | int], states: dict[str, list[str | int]], lie: int
) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in states.items()]
    assert sample_axes(inputs(x=axes), ends) == {"x": lie}


@pytest.mark.parametrize(
    ("axes", "shape", "way"),
    [
        (["N", 4, 5, 1], (30, 4, 5), r"array\[\.\.\., None\] adds"),
        (["N", 1, 4, 5], (30, 4, 5), r"array\[:, None\] adds"),
        (["N", 4, 5, 1], (4, 5, 1), r"one sample, give it an axis in front, array\[None\]"),
    ],
)
def test_a_missing_axis_is_named(axes: list[str | int], shape: tuple[int, ...], way: str) -> None:
    graph = helper.make_graph([], "g", list(inputs(p=axes).values()), [])
    with pytest.raises(CalibrationError, match=way):
        load_samples(graph, {"p": np.zeros(shape, np.float32)})


def test_a_sample_without_its_batch_is_refused_with_what_to_do() -> None:
    with pytest.raises(CalibrationError, match=r"\(25, 3\) is one sample, give it an axis in front"):
        load_samples(
            helper.make_graph([], "g", list(inputs(p=[1, "N", 3]).values()), []),
            {"p": rows(5)[:, :15].reshape(25, 3)},
        )


def test_as_many_samples_are_made_up_as_are_asked_for() -> None:
    shapes = {"x": (1, 16), "state": (2, 1, 16), "rate": ()}
    samples = load_samples(recurrent().graph, "synthetic", most=30, types=shapes)
    assert samples.counts == [1] * 30


def test_samples_are_made_up_along_the_axis_of_the_batch() -> None:
    declared = inputs(x=["T", "N", 16], h=[1, "N", 8])
    graph = helper.make_graph([], "g", list(declared.values()), [])
    samples = load_samples(graph, "synthetic", most=70, types={"x": (2, 2, 16), "h": (1, 2, 8)})
    assert samples.counts == [64, 6]
    assert [(b["x"].shape, b["h"].shape) for b in samples.batches][1] == ((2, 6, 16), (1, 6, 8))
