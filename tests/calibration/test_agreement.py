"""Figures of agreement where the outputs are numbers of classes."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from pruning.test_calibrated import images, residual

import onnxprune
from onnxprune.calibration.agreement import compare, distance, outputs, paired
from onnxprune.calibration.samples import load_samples
from onnxprune.errors import CalibrationError
from onnxprune.model import Model


def ending(op, kind, **attrs):
    """The residual net with another last node."""
    model = residual()
    graph = model.graph
    last = graph.output[0].name
    graph.node.append(helper.make_node(op, [last], ["number"], **attrs))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("number", kind, None))
    return model


def test_integers_are_numbers_of_classes():
    a = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    b = np.array([[0, 1, 2, 2], [4, 5, 6, 7]])
    found = compare(a, b, labels=b)
    assert found["agreement"] == found["cosine"] == 7 / 8
    hot = [np.eye(8)[x.ravel()] for x in (a, b)]
    assert found["relative_error"] == pytest.approx(np.linalg.norm(hot[0] - hot[1]) / np.linalg.norm(hot[0]))
    assert (found["accuracy"]["before"], found["accuracy"]["after"]) == (87.5, 100.0)
    assert distance(a, a) == 0 < distance(a, b) < distance(a, a + 1)


def test_the_interval_of_a_drop_comes_from_the_items_that_differ() -> None:
    same = paired(0, 0, 1000)
    assert same[0] == -same[1]
    assert same[1] < 0.003
    low, high = paired(30, 10, 1000)  # as Agresti and Min have it: 20.5 / 1002 about its middle
    assert (low + high) / 2 == pytest.approx(20 / 1002)
    wide = paired(130, 110, 1000)
    assert wide[0] < 0 < low
    assert wide[1] > high


def test_a_model_that_ends_in_argmax_is_pruned_with_samples():
    model = ending("ArgMax", TensorProto.INT64, axis=1, keepdims=0)
    x = images()
    result = onnxprune.prune(model, target="macs=0.7", calib={"x": x}, align=None)
    found = result.report.calibration["original"]
    assert 0.5 < found["agreement"] <= 1
    assert "kl" not in found
    result.report.show()


def test_outputs_without_numbers_are_refused():
    model = ending("SequenceConstruct", TensorProto.FLOAT)
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("number", TensorProto.FLOAT, None))
    loaded = Model.load(model)
    samples = load_samples(loaded.proto.graph, {"x": images(20)})
    with pytest.raises(CalibrationError, match="no output of numbers"):
        outputs(loaded, samples)
