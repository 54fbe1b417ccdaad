"""Parts of graphs with bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

F = TensorProto.FLOAT
Weights = dict[str, np.ndarray]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def info(name: str, shape: Sequence[int | str] | None = None, kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def body(
    nodes: Sequence[NodeProto], outputs: Sequence[str], weights: Weights | None = None
) -> onnx.GraphProto:
    own = [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()]
    return helper.make_graph(list(nodes), "body", [], [info(n) for n in outputs], own)


def node(op: str, inputs: str, output: str, **attrs: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"{op}_{output}", **attrs)
