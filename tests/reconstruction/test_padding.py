"""Positions that a mask marks as padding are no rows of a layer's regression."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.calibration.samples import Samples, load_samples
from onnxprune.reconstruction.evidence import positions_of

WIDTH, HIDDEN, LENGTH = 6, 16, 12


def encoder(mask="attention_mask"):
    """Two products over [batch, sequence, width] that look at no mask, and a mean over the real positions."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((WIDTH, HIDDEN)), "b1": rng.standard_normal(HIDDEN),
               "w2": rng.standard_normal((HIDDEN, WIDTH)), "b2": rng.standard_normal(WIDTH)}  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]), helper.make_node("MatMul", ["c", "w2"], ["d"]),
        helper.make_node("Add", ["d", "b2"], ["e"]),
        helper.make_node("Cast", [mask], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["m3"]), helper.make_node("Mul", ["e", "m3"], ["f"]),
        helper.make_node("ReduceSum", ["f", "one"], ["y"], keepdims=0),
    ]  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "S", WIDTH]),
        helper.make_tensor_value_info(mask, TensorProto.INT64, ["N", "S"]),
    ]
    initializers = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    initializers += [
        numpy_helper.from_array(np.array([v], np.int64), n) for n, v in (("last", 2), ("one", 1))
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])
    graph = helper.make_graph(nodes, "g", inputs, [out], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sequences(count=200):
    """Real positions are drawn from one distribution, padding holds large values from another."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, LENGTH, count)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    x = rng.standard_normal((count, LENGTH, WIDTH))
    x[mask == 0] = 10 * rng.standard_normal((int((mask == 0).sum()), WIDTH)) + 5
    return x.astype(np.float32), mask


@pytest.mark.parametrize(("name", "real"), [("attention_mask", True), ("lengths", False)])
def test_padding_is_no_row(name, real):
    x, mask = sequences()
    result = onnxprune.prune(encoder(name), ratio=0.4, align=None, calib={"x": x, name: mask})
    rows = result.report.calibration["layers"][-1]["rows"]
    fit, _ = load_samples(encoder(name).graph, {"x": x, name: mask}).set_aside()
    assert fit.count == result.report.calibration["samples"]
    fitted = np.concatenate([batch[name] for batch in fit.batches])
    assert rows == (fitted.sum() if real else fitted.size)


def test_what_is_padding_does_not_change_the_result():
    x, mask = sequences()
    other = x.copy()
    other[mask == 0] = 3.0
    one, two = (
        onnxprune.prune(encoder(), ratio=0.4, align=None, calib={"x": v, "attention_mask": mask}).model
        for v in (x, other)
    )
    assert one.SerializeToString() == two.SerializeToString()
    blind = onnxprune.prune(encoder("lengths"), ratio=0.4, align=None, calib={"x": x, "lengths": mask}).model
    weights = [numpy_helper.to_array(m.graph.initializer[2]) for m in (one, blind)]
    assert weights[0].shape == weights[1].shape
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


def test_zeros_are_chosen_without_the_padding():
    x, mask = sequences()
    other = x.copy()
    other[mask == 0] = 3.0

    def sparse(values, name):
        asked = {"pattern": "2:4", "method": "sparsegpt", "calib": {"x": values, name: mask}}
        return onnxprune.sparsify(encoder(name), **asked).model.SerializeToString()

    assert sparse(x, "attention_mask") == sparse(other, "attention_mask")
    assert sparse(x, "lengths") != sparse(other, "lengths")


def test_a_mask_is_heeded_only_where_the_positions_are_its_own():
    valid = np.array([[True, False], [True, True], [False, False]])
    rows = np.zeros((6, 4))
    for x in (np.zeros((3, 2, 5)), np.zeros((6, 5))):
        np.testing.assert_array_equal(positions_of(x, len(rows), valid), [0, 2, 3])
    for x, y in ((np.zeros((2, 3, 5)), rows), (np.zeros((3, 5)), rows[:3]), (np.zeros((3, 2, 5)), rows[:3])):
        np.testing.assert_array_equal(positions_of(x, len(y), valid), np.arange(len(y)))
    np.testing.assert_array_equal(positions_of(rows, len(rows), None), np.arange(6))


def test_only_flags_are_a_mask():
    def valid(**batch):
        return Samples([batch], [2]).valid[0]

    flags = np.array([[1, 0], [1, 1]])
    np.testing.assert_array_equal(valid(x=flags, attention_mask=flags), flags.astype(bool))
    assert valid(x=flags) is None
    assert valid(attention_mask=flags * 2) is None
    assert valid(attention_mask=flags * 0) is None
    assert valid(attention_mask=flags.astype(np.float32)) is None
    assert valid(attention_mask=flags[:, None]) is None
