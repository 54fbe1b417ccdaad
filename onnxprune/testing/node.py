"""One node by itself: what a rule sees of it, what it computes, and whether two results agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from onnxprune.graph.trace import attributes, is_small
from onnxprune.ops import Node

__all__ = ["differ", "node_of", "run_node"]

Array = NDArray[Any]


def node_of(
    proto: NodeProto,
    inputs: Sequence[Array | None],
    outputs: Sequence[Array | None],
    opset: int,
    known: bool = True,
) -> Node:
    """Return what a rule may see of a node with these inputs and outputs; ``known``: small values are seen, too."""

    def value(array: Array | None) -> Array | None:
        if (
            not known
            or array is None
            or not is_small(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        ):
            return None
        return array

    return Node(
        op=proto.op_type,
        domain="" if proto.domain == "ai.onnx" else proto.domain,
        opset=opset,
        name=proto.name or proto.op_type,
        attrs=attributes(proto),
        shapes=tuple(None if array is None else array.shape for array in inputs),
        out_shapes=tuple(None if array is None else array.shape for array in outputs),
        values=tuple(map(value, inputs)),
        constant=tuple(known and array is not None for array in inputs),
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        elems=tuple(0 if array is None else helper.np_dtype_to_tensor_dtype(array.dtype) for array in inputs),
    )


def run_node(
    proto: NodeProto, inputs: Sequence[Array | None], opsets: Mapping[str, int], reference: bool = False
) -> list[Array]:
    """Run one node, in onnxruntime or in ONNX's reference evaluator; absent outputs are left out.

    Raises
    ------
    Exception
        Whatever the engine raises.
    """
    weights = [
        numpy_helper.from_array(array, name)
        for name, array in zip(proto.input, inputs, strict=True)
        if name and array is not None
    ]
    unique = {weight.name: weight for weight in weights}
    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = helper.make_graph([proto], "node", [], outputs, list(unique.values()))
    model = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()]
    )
    if reference:
        from onnx.reference import ReferenceEvaluator

        return list(ReferenceEvaluator(model).run(None, {}))
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {}))


def differ(result: Any, wanted: Any, quantized: bool = False) -> str:
    """Return how two results differ, or nothing; integers of quantized ops may differ by one."""
    if not isinstance(result, np.ndarray) or not isinstance(wanted, np.ndarray):
        return "no tensor"
    if result.shape != wanted.shape or result.dtype != wanted.dtype:
        return f"{result.dtype}{list(result.shape)} instead of {wanted.dtype}{list(wanted.shape)}"
    if result.dtype.kind in "OUSb" or not result.size:
        return "" if np.array_equal(result, wanted) else "other elements"
    kind = result.dtype.kind
    if kind in "iu" and not (quantized and result.dtype.itemsize == 1):
        return "" if np.array_equal(result, wanted) else "other integers"
    exact = kind == "f" and result.dtype.itemsize >= 4
    left, right = (np.asarray(a, np.complex128 if kind == "c" else np.float64) for a in (result, wanted))
    finite = right[np.isfinite(right)]
    scale = float(np.abs(finite).max()) if finite.size else 1.0
    tolerance = 1.0 if kind in "iu" else (1e-5 if exact else 2e-2) * max(scale, 1e-6)
    if np.allclose(left, right, rtol=1e-4 if exact else 2e-2, atol=tolerance, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        return f"differs by {np.nanmax(np.abs(left - right)):.3g} of {scale:.3g}"
