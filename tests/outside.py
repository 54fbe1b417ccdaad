"""Law 1 from outside: a pruned model against the original with the slices of its weights zeroed, by code of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.pruning.journey import Result

Array = np.ndarray


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return [np.asarray(a) for a in session.run(None, feeds)]


def weights_of(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield the initializers of a graph and of the bodies in it."""
    yield from ((t.name, t) for t in graph.initializer)
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                yield from weights_of(attr.g)


def masked(model: onnx.ModelProto, result: Result) -> onnx.ModelProto:
    """Return the original with the removed slices of its weights zeroed; a computed weight is multiplied by a mask.

    Integer weights get no zeros where they are indices: only floats and int8 weights with a zero point of zero do.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    weights = dict(weights_of(twin.graph))
    for number, cut in enumerate(result.report.cuts):
        tensor = weights.get(cut.tensor)
        where: list[Any] = [slice(None)] * (cut.axis + 1)
        where[cut.axis] = list(cut.removed)
        if tensor is None:
            node = next(n for n in twin.graph.node if cut.tensor in n.output)
            readers = [n for n in twin.graph.node if cut.tensor in n.input]
            known = onnx.shape_inference.infer_shapes(model)
            value = next(v for v in known.graph.value_info if v.name == cut.tensor)
            mask = np.ones([d.dim_value for d in value.type.tensor_type.shape.dim], np.float32)
            mask[tuple(where)] = 0
            twin.graph.initializer.append(numpy_helper.from_array(mask, f"mask{number}"))
            for reader in readers:
                for slot, name in enumerate(reader.input):
                    if name == cut.tensor:
                        reader.input[slot] = f"masked{number}"
            at = list(twin.graph.node).index(node) + 1
            new = helper.make_node("Mul", [cut.tensor, f"mask{number}"], [f"masked{number}"])
            twin.graph.node.insert(at, new)
            continue
        if tensor.data_type in (TensorProto.INT64, TensorProto.INT32):
            continue
        array = numpy_helper.to_array(tensor).copy()
        array[tuple(where)] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, cut.tensor))
    return twin


def feeds_of(model: onnx.ModelProto, batch: int = 2, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [d.dim_value or batch for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        data = rng.standard_normal(shape) if dtype == np.float32 else rng.integers(0, 255, shape)
        found[value.name] = data.astype(dtype)
    return found


def exact(model: onnx.ModelProto, result: Result, tolerance: float = 1e-5) -> float:
    """Check that the pruned model equals the masked original and not the original; return parameters left."""
    small, twin = result.model, masked(model, result)
    for seed, batch in enumerate((2, 1)):
        feeds = feeds_of(model, batch, seed)
        for want, have, whole in zip(run(twin, feeds), run(small, feeds), run(model, feeds), strict=True):
            assert want.shape == have.shape
            scale = np.abs(want).max()
            assert scale > 0
            assert np.isfinite(want).all()
            assert np.abs(want.astype(np.float64) - have).max() <= tolerance * scale
            assert np.abs(whole.astype(np.float64) - have).max() > tolerance * scale, (
                "the cut changed nothing"
            )
    return result.report.after.parameters / result.report.before.parameters


def half(model: onnx.ModelProto, **options: Any) -> Result:
    return onnxprune.prune(model, ratio=0.5, align=None, **options)
