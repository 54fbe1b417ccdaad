"""Fine-tuning with true labels: the same descent, with another goal at the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.model import Model
from onnxprune.reconstruction import distill as module
from onnxprune.runtime.session import open_session
from tests.reconstruction.test_segments import images, net

WAY = np.random.default_rng(7).normal(size=(3, 5))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "PACE", replace(module.PACE, steps=40, passes=5))


def classes(x: np.ndarray) -> np.ndarray:
    """Labels that the net of random weights knows nothing of."""
    return (np.square(x).mean(axis=(2, 3)) @ WAY).argmax(axis=1)


def tuned(model: onnx.ModelProto, recover: str, **more: object):
    x = images(200)
    given = {"x": x, "y": classes(x)}
    return prune(model, ratio=0.5, calib=given, labels="y", recover=recover, align=1, seed=0, **more)


def cross_entropy(model: onnx.ModelProto, x: np.ndarray) -> float:
    z = open_session(Model.load(model)).run({"x": x})["out"].astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), classes(x)]).mean())


def test_labels_are_learned():
    model, fresh = net(blocks=2, channels=8), images(200, 9)
    few = cross_entropy(tuned(model, "distill").model, fresh)
    result = tuned(model, "finetune", epochs=30, lr=0.02)
    told = result.report.calibration["whole"]
    assert told["after"] < told["before"]
    assert cross_entropy(result.model, fresh) < 0.9 * few
    same = tuned(model, "finetune", epochs=30, lr=0.02).model
    assert same.SerializeToString() == result.model.SerializeToString()


def test_where_labels_gain_nothing_it_is_distillation(monkeypatch):
    calls = []
    real = module.descend

    def descend(found, start, data, bases, pace, *more):
        calls.append(len(found.targets))
        return (start, 1.0, 1.0) if len(calls) <= 2 else real(found, start, data, bases, pace, *more)

    monkeypatch.setattr(module, "descend", descend)
    result = tuned(net(), "finetune", epochs=2)
    assert len(calls) > 2
    monkeypatch.setattr(module, "descend", real)
    assert result.model.SerializeToString() == tuned(net(), "distill", epochs=2).model.SerializeToString()


def recurrent(hidden: int = 16, classes: int = 4) -> onnx.ModelProto:
    """A classifier of the last state of a recurrent layer: the only layer that is fitted gives the logits."""
    rng = np.random.default_rng(3)
    sizes = {"w": (1, 4 * hidden, 6), "r": (1, 4 * hidden, hidden), "c": (hidden, classes)}
    weights = [
        numpy_helper.from_array((rng.normal(size=s) * 0.3).astype(np.float32), n) for n, s in sizes.items()
    ]
    weights.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["", "h"], hidden_size=hidden),
        helper.make_node("Squeeze", ["h", "first"], ["last"]),
        helper.make_node("MatMul", ["last", "c"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 6])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", classes])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("recover", ["finetune", "distill"])
def test_labels_alone_are_enough_where_no_layer_gives_anything_else(recover):
    """What gives the logits is no goal beside labels, and here it is all that is fitted."""
    x = np.random.default_rng(4).normal(size=(200, 8, 6)).astype(np.float32)
    labels = open_session(Model.load(recurrent())).run({"x": x})["z"].argmax(axis=1)
    given = {"x": x, "y": labels}
    found = prune(recurrent(), ratio=0.5, calib=given, labels="y", recover=recover, align=1)
    told = found.report.calibration["whole"]
    assert not told["why"]
    assert told["after"] < told["before"]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.arange(60) % 6, "5 classes"),
        (np.where(np.arange(60) % 7, np.arange(60) % 5, -1), "from -1 to"),
        (np.linspace(0, 4, 60), "number of no class"),
        (np.eye(4)[np.arange(60) % 4], "one number of a class"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, text):
    given = {"x": images(60), "y": labels}
    with pytest.raises(CalibrationError, match=text):
        prune(net(), ratio=0.5, calib=given, labels="y", recover="finetune", align=1)


def test_outputs_that_are_no_classes_are_refused():
    model = net()
    model.graph.node.append(helper.make_node("Unsqueeze", ["out", "at"], ["wide"], name="wide"))
    model.graph.initializer.append(helper.make_tensor("at", TensorProto.INT64, [1], [2]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["n", 5, 1]))
    given = {"x": images(60), "y": np.arange(60) % 5}
    with pytest.raises(CalibrationError, match="first output of classes"):
        prune(model, ratio=0.5, calib=given, labels="y", recover="finetune", align=1)


def test_logits_are_before_a_softmax_at_the_end():
    model = net(blocks=2, channels=8)
    model.graph.node.append(helper.make_node("Softmax", ["out"], ["shares"], name="shares", axis=1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["n", 5]))
    plain = tuned(net(blocks=2, channels=8), "finetune", epochs=4).report.calibration["whole"]
    told = tuned(model, "finetune", epochs=4).report.calibration["whole"]
    assert told["before"] == pytest.approx(plain["before"], rel=1e-3)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"recover": "finetune"}, "--labels"),
        ({"recover": "blocks", "labels": "y", "epochs": 3}, "--epochs is for --recover distill"),
        ({"recover": "finetune", "labels": "y", "epochs": 0}, "--epochs must be at least 1"),
        ({"recover": "finetune", "labels": "y", "lr": 0.0}, "--lr is a share"),
    ],
)
def test_options_that_make_no_sense_are_refused(more, text):
    with pytest.raises(UsageError, match=text):
        prune(net(), ratio=0.5, calib={"x": images(60), "y": np.arange(60) % 5}, align=1, **more)
