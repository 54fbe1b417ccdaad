"""Graphs in which a weight is read in every way that is known."""

import numpy as np
import onnxruntime as ort
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng


def values(shape, seed=0):
    return (0.5 * RNG(seed).standard_normal(shape) + 0.01).astype(np.float32)


def graph(nodes, weights, given, opset=21, outputs=("y",), kind=TensorProto.FLOAT):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", kind, given)],
            [helper.make_tensor_value_info(n, kind, None) for n in outputs],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def one(op, weight, given, slot=1, **attrs):
    """One layer whose weight is ``w``."""
    inputs = ["x", "w"] if slot == 1 else ["w", "x"]
    return graph([helper.make_node(op, inputs, ["y"], name="layer", **attrs)], {"w": weight}, given)


def quantised(weight, axis, zero_point, dtype=np.int8):
    """A weight under DequantizeLinear, read by Gemm with transB."""
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    scale = np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis)) / 100
    point = np.full(scale.shape, zero_point, dtype)
    info = np.iinfo(dtype)
    q = np.clip(np.round(weight / scale.reshape(shape)) + zero_point, info.min, info.max).astype(dtype)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], axis=axis),
        helper.make_node("Gemm", ["x", "wd"], ["y"], name="layer", transB=1),
    ]
    return graph(nodes, {"w": q, "s": scale.astype(np.float32), "z": point}, ["N", weight.shape[1]])


def typed(dtype, kind):
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="layer", transB=1)]
    return graph(nodes, {"w": values((6, 16)).astype(dtype)}, ["N", 16], kind=kind)


#: name -> (model, axis of "w" that is contracted)
READ = {
    "conv": (one("Conv", values((6, 8, 3, 3)), ["N", 8, 5, 5]), 1),
    "conv grouped": (one("Conv", values((6, 4, 3, 3)), ["N", 8, 5, 5], group=2), 1),
    "conv 1d": (one("Conv", values((6, 8, 3)), ["N", 8, 5]), 1),
    "conv transpose": (one("ConvTranspose", values((8, 6, 2, 2)), ["N", 8, 5, 5]), 0),
    "gemm": (one("Gemm", values((8, 6)), ["N", 8]), 0),
    "gemm transB": (one("Gemm", values((6, 8)), ["N", 8], transB=1), 1),
    "gemm left": (one("Gemm", values((6, 8)), [8, "N"], slot=0), 1),
    "gemm left transA": (one("Gemm", values((8, 6)), [8, "N"], slot=0, transA=1), 0),
    "matmul": (one("MatMul", values((8, 6)), ["N", 8]), 0),
    "matmul left": (one("MatMul", values((6, 8)), [8, "N"], slot=0), 1),
    "matmul batched": (one("MatMul", values((3, 8, 6)), [3, "N", 8]), 1),
    "matmul batched left": (one("MatMul", values((3, 6, 8)), [3, 8, "N"], slot=0), 2),
    "transpose": (
        graph(
            [
                helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
                helper.make_node("MatMul", ["x", "t"], ["y"], name="layer"),
            ],
            {"w": values((6, 8))},
            ["N", 8],
        ),
        1,
    ),
    "reshape": (
        graph(
            [
                helper.make_node("Reshape", ["w", "to"], ["t"]),
                helper.make_node("Conv", ["x", "t"], ["y"], name="layer"),
            ],
            {"w": values((6, 8, 9)), "to": np.array([0, 0, 3, -1])},
            ["N", 8, 5, 5],
        ),
        1,
    ),
    "constant, identity, cast": (
        graph(
            [
                helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(values((8, 6)))),
                helper.make_node("Identity", ["w"], ["i"]),
                helper.make_node("Cast", ["i"], ["c"], to=TensorProto.FLOAT),
                helper.make_node("MatMul", ["x", "c"], ["y"], name="layer"),
            ],
            {},
            ["N", 8],
        ),
        0,
    ),
    "int8": (quantised(values((6, 8)), 0, 0), 1),
    "int8 zero point": (quantised(values((6, 8)), 0, 7), 1),
    "uint8": (quantised(values((6, 8)), 0, 128, np.uint8), 1),
    "int8, a scale for each input": (quantised(values((6, 8)), 1, 3), 1),
    "fp16": (typed(np.float16, TensorProto.FLOAT16), 1),
    "bf16": (typed(bfloat16, TensorProto.BFLOAT16), 1),
    "float through Q and DQ": (
        graph(
            [
                helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
                helper.make_node("MatMul", ["x", "d"], ["y"], name="layer"),
            ],
            {"w": values((8, 6)), "s": np.float32(0.02), "z": np.int8(5)},
            ["N", 8],
        ),
        0,
    ),
}


def run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})
