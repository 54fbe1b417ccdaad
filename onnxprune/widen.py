"""Half floats as fp32, to run a model on kernels that there are and to compare it without their rounding."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.model import Model
from onnxprune.trace import subgraphs

__all__ = ["HALF", "widen"]

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def widen(model: Model) -> Model:
    """Return a copy of a model in which all half floats (fp16, bf16) are fp32.

    onnxruntime's CPU kernels lack many ops in bf16, and rounding to a half float hides what a comparison is
    to find.
    """
    wide = model.fork()
    for name in wide.names():
        if wide.info(name).elem_type in HALF:
            wide.put(name, np.asarray(wide.weight(name)).astype(np.float32))
    graph = wide.proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_value(value)
    for function in wide.proto.functions:
        for node in function.node:
            _widen_node(node)
    for node in graph.node:
        _widen_node(node)
    return wide


def _widen_value(value: onnx.ValueInfoProto) -> None:
    if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in HALF:
        value.type.tensor_type.elem_type = TensorProto.FLOAT


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in HALF and tensor.data_location != TensorProto.EXTERNAL:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        )


def _widen_node(node: onnx.NodeProto) -> None:
    for attr in node.attribute:
        if attr.name in ("to", "dtype", "output_dtype") and attr.i in HALF:
            attr.i = TensorProto.FLOAT
        elif attr.HasField("t"):
            _widen_tensor(attr.t)
    for body in subgraphs(node):
        for value in (*body.input, *body.output, *body.value_info):
            _widen_value(value)
        for tensor in body.initializer:
            _widen_tensor(tensor)
        for inner in body.node:
            _widen_node(inner)
