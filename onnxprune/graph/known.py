"""What rules may know of a model before it is traced: its weights and its opsets."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.graph.trace import Weight, is_small
from onnxprune.model import Model

__all__ = ["opsets_of", "weights_of"]


def opsets_of(model: Model) -> dict[str, int]:
    """Return domain -> version; ONNX's own domain is empty."""
    return {
        o.domain.replace("ai.onnx", "") if o.domain == "ai.onnx" else o.domain: o.version
        for o in model.proto.opset_import
    }


def weights_of(model: Model) -> dict[str, Weight]:
    """Return what rules may know of a model's weights."""
    weights: dict[str, Weight] = {}
    for name in model.names():
        info = model.info(name)
        shape = tuple(info.dims)
        value = None
        if is_small(info.elem_type, shape) and info.elem_type in _READABLE:
            value = np.asarray(model.weight(name)).reshape(shape)
        weights[name] = Weight(info.elem_type, shape, value)
    return weights


_READABLE = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("FLOAT", "DOUBLE", "INT64", "INT32", "BOOL", "FLOAT16", "UINT8", "INT8")
)
