"""Whether sums of products of 8-bit integers saturate on this machine, as they do on x86 without VNNI."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.runtime.session import open_session

__all__ = ["saturates"]


@cache
def saturates() -> bool:
    """Whether onnxruntime, as users have it, adds up two products of u8 and s8 in 16 bits here.

    Weights of seven bits are safe: two products are below 2^15.
    """
    weight = numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [4, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [4, 16])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = open_session(model, prepack=True, optimise=True, mode="served")
    return bool((session.run({"x": np.full((4, 64), 255, np.uint8)})["y"] != 64 * 255 * 127).any())
