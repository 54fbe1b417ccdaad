"""Small tensors that shapes are computed from have the values that ONNX gives them."""

import numpy as np
import pytest
from onnx import TensorProto, helper
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


@pytest.mark.parametrize(("low", "high"), [(0.0, None), (None, 2.0), (-1.0, 1.0), (3.0, 1.0), (None, None)])
@pytest.mark.parametrize("version", [6, 17])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_clip(low: float | None, high: float | None, version: int, kind: type) -> None:
    """Bounds are attributes up to version 10, inputs after it; where the lower one is higher, all are the upper one."""
    if version == 6 and (kind is np.int64 or low == 3.0):
        return  # version 6 is of floats, and says nothing of bounds that cross
    x = np.array([-2, 0, 1, 7], kind)
    ends = [None if end is None else np.array(end, kind) for end in (low, high)]
    given = [x, *ends] if version > 6 else [x]
    names = [n if v is not None else "" for n, v in zip("xlh", given, strict=False)]
    attrs = {n: v for n, v in (("min", low), ("max", high)) if v is not None and version == 6}
    node = helper.make_node("Clip", names, ["y"], **attrs)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in zip(names, given, strict=True)
            if n and v is not None
        ],
        [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    feeds = {n: v for n, v in zip(names, given, strict=True) if n}
    (wanted,) = ReferenceEvaluator(model).run(None, feeds)
    value = evaluate("Clip", attrs, given, [bool(n) for n in names])
    assert value is not None
    np.testing.assert_array_equal(value, wanted)
    assert value.dtype == kind


@pytest.mark.parametrize("op", ["Relu", "Round", "Sign"])
def test_what_looks_at_one_entry(op: str) -> None:
    x = np.array([-1.5, -0.5, 0.0, 0.5, 2.5], np.float32)
    (wanted,) = ReferenceEvaluator(helper.make_node(op, ["x"], ["y"])).run(None, {"x": x})
    value = evaluate(op, {}, [x], [True])
    assert value is not None
    np.testing.assert_array_equal(value, wanted)
    assert value.dtype == np.float32
