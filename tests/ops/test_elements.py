"""Types and shapes that rows give for onnxruntime's own ops are those that onnxruntime gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from onnxprune.graph.trace import Tracer

from .contrib_cases import Case, case, cases, f, scale, u8, zero

OPSETS = {"": 17, "com.microsoft": 1}


def half(*shape: int) -> np.ndarray:
    return f(*shape).astype(np.float16)


def more() -> Iterator[Case]:
    """What isn't cut, but whose results other layers read."""
    ids, segments = np.zeros((2, 5), np.int32), np.ones((2, 5), np.int32)
    tables = f(20, 8), f(12, 8), f(2, 8), f(8), f(8)
    yield case("EmbedLayerNormalization", ids, segments, *tables, outputs=3)
    yield case("EmbedLayerNormalization masked", ids, segments, *tables, np.ones((2, 5), np.int32), outputs=2)
    yield case(
        "EmbedLayerNormalization of ids alone",
        ids,
        None,
        tables[0],
        tables[1],
        None,
        *tables[3:],
        outputs=2,
    )
    yield case("SkipLayerNormalization all", f(2, 5, 8), f(2, 5, 8), f(8), f(8), f(8), outputs=4)
    yield case("SkipLayerNormalization half", half(2, 5, 8), half(2, 5, 8), half(8), half(8), outputs=4)
    yield case("SkipSimplifiedLayerNormalization half", half(2, 5, 8), half(2, 5, 8), half(8), outputs=4)
    yield case("BiasGelu", f(2, 8), f(8))
    yield case("FastGelu", f(2, 8), f(8))
    yield case("BiasSoftmax", f(2, 8), f(2, 8), axis=1, is_inner_broadcast=0)
    yield case("DequantizeLinear half", u8(3, 4), np.array(0.1, np.float16), zero(3))
    yield case("QuantizeLinear", f(3, 4), scale(), np.array(0, np.int8))
    yield case("MatMulIntegerToFloat", u8(3, 8), u8(8, 4), scale(), scale(), zero(3), zero(4))
    yield case("DynamicQuantizeMatMul", f(3, 8), u8(8, 4), scale(), zero(4))
    tables = u8(20, 8), u8(12, 8), u8(2, 8), u8(8), u8(8)
    own = [*(scale() for _ in range(5)), *(zero(120) for _ in range(5))]
    yield case("QEmbedLayerNormalization", ids, segments, *tables, None, *own, outputs=2)
    table = u8(20, 16)  # two values of 4 bits a byte, or one of 8
    yield case("GatherBlockQuantized", table, ids, scale(20, 2), block_size=16)
    yield case("GatherBlockQuantized with zeros", table, ids, scale(20, 2), u8(20, 1), block_size=16)
    yield case("GatherBlockQuantized half", table, ids, half(20, 1), block_size=16, bits=8)
    yield case("GatherBlockQuantized of 8 bits", table, ids, scale(20, 1), block_size=16, bits=8)


def elem(array: np.ndarray) -> int:
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def run(node: onnx.NodeProto, feeds: dict[str, np.ndarray], constants: list[str]) -> list[np.ndarray]:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, elem(a), a.shape) for n, a in feeds.items() if n not in constants],
        [onnx.ValueInfoProto(name=name) for name in node.output],
        [numpy_helper.from_array(feeds[n], n) for n in constants],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    return session.run(None, {n: a for n, a in feeds.items() if n not in constants})


def given(node: onnx.NodeProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """Return what onnxruntime gives; None where this one can't run the node."""
    for constants in ([], list(feeds)[1:]):  # some want their scales at rest
        try:
            return run(node, feeds, constants)
        except Exception:  # onnxruntime's errors have no common base but this
            continue
    return None


def wrong(node: onnx.NodeProto, feeds: dict[str, np.ndarray], results: list[np.ndarray | None]) -> list[str]:
    """Return outputs of which something untrue is said."""
    tracer = Tracer(OPSETS, {})
    tracer.types.update({n: (elem(a), a.shape) for n, a in feeds.items()})
    tracer.visit(node)
    found = []
    for name, result in zip(node.output, results, strict=True):
        if result is None:  # an optional output that this onnxruntime doesn't compute
            continue
        kind, shape = tracer.types[name]
        if kind not in (0, elem(result)) or shape not in (None, result.shape):
            found.append(f"{name}: {(kind, shape)} instead of {(elem(result), result.shape)}")
        elif shape is not None and kind == 0:
            found.append(f"{name}: a shape without a type")
    return found


@pytest.mark.parametrize("fused", [*cases(), *more()], ids=lambda fused: fused[0])
def test_types_and_shapes_are_true(fused: Case) -> None:
    _, node, feeds = fused
    results = given(node, feeds)
    if results is None:
        pytest.skip("this onnxruntime doesn't run it on the CPU")
    assert results[0] is not None
    assert not wrong(node, feeds, results)


def test_what_is_wrong_is_seen() -> None:
    _, node, feeds = next(c for c in more() if c[0] == "EmbedLayerNormalization")
    results = given(node, feeds)
    assert results is not None
    assert results[0].dtype == np.float32 != feeds["i0"].dtype
    assert wrong(node, feeds, [results[0].astype(np.int32), *results[1:]])


def test_most_run() -> None:
    ran = [given(node, feeds) is not None for _, node, feeds in (*cases(), *more())]
    assert np.mean(ran) > 0.9
