"""Models of half floats: descent and gradients run in 32 bits, and what is judged and written is rounded to half."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxprune import prune
from onnxprune.calibration.samples import load_samples
from onnxprune.graph import widen
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import distill as _distill
from onnxprune.reconstruction.beside import Beside
from onnxprune.runtime.session import open_session
from tests.reconstruction.test_segments import images, net


def half(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": images(count, seed).astype(np.float16)}


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in half floats."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize("recover", ["blocks", "distill"])
def test_half_floats_go_down_together(recover, monkeypatch):
    monkeypatch.setattr(_distill, "PACE", replace(_distill.PACE, steps=240, passes=15))
    model, fresh, errors = halved(net()), half(200, 9), {}
    dense = open_session(Model.load(model)).run(fresh)["out"].astype(np.float32)
    for how in ("lstsq", recover):
        result = prune(model, ratio=0.5, calib=half(250), recover=how, align=1)
        assert {t.data_type for t in result.model.graph.initializer} == {TensorProto.FLOAT16}
        out = open_session(Model.load(result.model)).run(fresh)["out"]
        assert out.dtype == np.float16
        errors[how] = np.square(out.astype(np.float32) - dense).mean()
    told = result.report.calibration
    assert not any(part["why"] for part in told["segments"])
    assert errors[recover] < 0.9 * errors["lstsq"]


def test_losses_are_taken_at_weights_of_half_floats():
    analysis = analyse(Model.load(halved(net())), input_shapes={"x": (2, 3, 8, 8)})
    samples = load_samples(analysis.model.proto.graph, half(8))
    beside = Beside.of(analysis, analysis, {}, samples)
    floats = beside.floats
    assert {a.dtype for batch in floats.samples.batches for a in batch.values()} == {np.dtype(np.float32)}
    given = {"fc_w": np.full((6, 5), 1 / 3, np.float32)}
    settled = floats.settle(given)["fc_w"]
    assert settled.dtype == np.float32
    assert np.array_equal(settled, given["fc_w"].astype(np.float16))
    floats.cut.put("fc_w", given["fc_w"])
    beside.take(floats, "fc_w")
    assert beside.cut.weight("fc_w").dtype == np.float16
    assert np.array_equal(beside.cut.weight("fc_w"), settled)


def test_half_floats_that_are_too_many_to_be_widened_are_left_and_that_is_said(monkeypatch):
    monkeypatch.setattr(widen, "MOST", 10)
    told = prune(halved(net()), ratio=0.5, calib=half(60), recover="distill", align=1).report.calibration
    for part in (*told["segments"], told["whole"]):
        assert part["why"] == (
            "gradients of half floats are taken in 32 bits, and the model has too many weights for that"
        )


@pytest.mark.parametrize("criterion", ["taylor", "apoz"])
def test_criteria_choose_of_half_floats_what_they_choose_of_floats(criterion):
    given, left = half(60), []
    wide = widen.widen(Model.load(halved(net()))).to_proto()
    for model, samples in ((wide, {"x": given["x"].astype(np.float32)}), (halved(net()), given)):
        cuts = prune(
            model, ratio=0.5, calib=samples, criterion=criterion, recover="none", align=1
        ).report.cuts
        left.append({(cut.tensor, cut.axis): list(cut.removed) for cut in cuts})
    assert left[0] == left[1]
