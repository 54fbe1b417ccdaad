"""Small tensors that shapes are computed from have the values that ONNX gives them."""

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxprune.graph.values import MAX_ELEMENTS, evaluate


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    """Exporters make counts of repeats with it."""
    inputs = [np.array([2, -1, 0], np.int64), np.array(4, np.int64), np.array([1, 5], np.int64)]
    node = helper.make_node("OneHot", ["i", "d", "v"], ["y"], axis=axis)
    (wanted,) = ReferenceEvaluator(node).run(None, dict(zip("idv", inputs, strict=True)))
    value = evaluate("OneHot", {"axis": axis}, inputs, [True] * 3)
    assert value is not None
    np.testing.assert_array_equal(value, wanted)
    assert value.dtype == np.int64
    assert (value == 5).sum() == 3
    many = np.array(MAX_ELEMENTS, np.int64)
    assert evaluate("OneHot", {"axis": axis}, [inputs[0], many, inputs[2]], [True] * 3) is None
