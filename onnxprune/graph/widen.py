"""Half floats (or doubles) as fp32, to run a model on kernels that there are and to compare without their rounding."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.files.protowalk import subgraphs
from onnxprune.model import Model

__all__ = ["DOUBLE", "HALF", "MOST", "has_halves", "too_large", "widen"]

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
DOUBLE = (TensorProto.DOUBLE,)
#: Models with more bytes of weights than this are not widened.
MOST = 1_000_000_000


def has_halves(types: Iterable[int]) -> bool:
    """Whether any of these element types is a half float."""
    return not set(HALF).isdisjoint(types)


def too_large(model: Model) -> bool:
    """Whether a model has more weights than are widened."""
    return sum(model.info(n).nbytes for n in model.names()) > MOST


def widen(model: Model, kinds: Collection[int] = HALF) -> Model:
    """Return a copy of a model in which all floats of some types, half floats by default, are fp32.

    onnxruntime's CPU kernels lack many ops in bf16, and rounding to a half float hides what a comparison is
    to find.
    """
    wide = model.fork()
    for name in wide.names():
        if wide.info(name).elem_type in kinds:
            wide.put(name, np.asarray(wide.weight(name)).astype(np.float32))
    graph = wide.proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_value(value, kinds)
    for function in wide.proto.functions:
        for node in function.node:
            _widen_node(node, kinds)
    for node in graph.node:
        _widen_node(node, kinds)
    return wide


def _widen_value(value: onnx.ValueInfoProto, kinds: Collection[int]) -> None:
    if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in kinds:
        value.type.tensor_type.elem_type = TensorProto.FLOAT


def _widen_tensor(tensor: TensorProto, kinds: Collection[int]) -> None:
    if tensor.data_type in kinds and tensor.data_location != TensorProto.EXTERNAL:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        )


def _widen_node(node: onnx.NodeProto, kinds: Collection[int]) -> None:
    for attr in node.attribute:
        if attr.name in ("to", "dtype", "output_dtype") and attr.i in kinds:
            attr.i = TensorProto.FLOAT
        elif attr.HasField("t"):
            _widen_tensor(attr.t, kinds)
    for body in subgraphs(node):
        for value in (*body.input, *body.output, *body.value_info):
            _widen_value(value, kinds)
        for tensor in body.initializer:
            _widen_tensor(tensor, kinds)
        for inner in body.node:
            _widen_node(inner, kinds)
