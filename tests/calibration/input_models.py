"""Small nets whose inputs are unusual: texts, numbers without axes, empty axes, time first, booleans, half floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

T = TensorProto
Feed = dict[str, Any]
RNG = np.random.default_rng


class Net:
    """Nodes that end in two products: 16 inputs, 24 neurons, 4 outputs."""

    def __init__(self, kind: int = T.FLOAT) -> None:
        self.nodes: list[NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.kind, self.rng = kind, RNG(0)

    def input(self, name: str, kind: int, shape: Any) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        dtype = helper.tensor_dtype_to_np_dtype(self.kind)
        self.weights[name] = (self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype)
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def op(self, op: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], domain=domain, **attrs))
        return name

    def layers(self, x: str, width: int = 16, rank: int = 2) -> onnx.ModelProto:
        h = self.op("Relu", self.op("MatMul", x, self.weight(width, 24)))
        y = self.op("MatMul", h, self.weight(24, 4))
        self.nodes[-1].output[0] = "y"
        assert y
        graph = helper.make_graph(
            self.nodes,
            "g",
            self.inputs,
            [onnx.ValueInfoProto(name="y", type=helper.make_tensor_type_proto(self.kind, [None] * rank))],
            [numpy_helper.from_array(w, n) for n, w in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", 19), helper.make_opsetid("ai.onnx.ml", 2)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def rows(n: int, width: int = 16, dtype: Any = np.float32) -> np.ndarray:
    return RNG(n).standard_normal((n, width)).astype(dtype)


def texts() -> onnx.ModelProto:
    """A category beside features."""
    net = Net()
    s, x = net.input("s", T.STRING, ["N", 1]), net.input("x", T.FLOAT, ["N", 16])
    ids = net.op(
        "LabelEncoder", s, domain="ai.onnx.ml", keys_strings=["red", "grün", "蓝"], values_int64s=[0, 1, 2],
        default_int64=3,
    )  # fmt: skip
    rows_ = net.op("Gather", net.weight(4, 8), net.op("Squeeze", ids, net.constant([1])))
    return net.layers(net.op("Concat", rows_, x, axis=1), 24)


def one_hot() -> onnx.ModelProto:
    """Texts behind a Reshape, one-hot."""
    net = Net()
    s, x = net.input("s", T.STRING, ["N"]), net.input("x", T.FLOAT, ["N", 16])
    flat = net.op("Reshape", s, net.constant([-1, 1]))
    hot = net.op("OneHotEncoder", flat, domain="ai.onnx.ml", cats_strings=["a", "b", "c", "d"], zeros=1)
    hot = net.op("Squeeze", hot, net.constant([1]))
    return net.layers(net.op("Concat", hot, x, axis=1), 20)


def unlisted() -> onnx.ModelProto:
    """Texts that are only compared with each other, so the model lists none."""
    net = Net()
    s, r = net.input("s", T.STRING, ["N", 1]), net.input("r", T.STRING, ["N", 1])
    x = net.input("x", T.FLOAT, ["N", 16])
    same = net.op("Cast", net.op("Equal", s, r), to=T.FLOAT)
    return net.layers(net.op("Mul", x, same))


def scalars() -> onnx.ModelProto:
    """A temperature, and a step that a table is looked up with."""
    net = Net()
    x, t = net.input("x", T.FLOAT, ["N", 16]), net.input("temperature", T.FLOAT, [])
    row = net.op("Gather", net.weight(10, 16), net.input("step", T.INT64, []))
    scaled = net.op(
        "Div", net.op("Add", x, row), net.op("Add", net.op("Abs", t), net.constant(1.0, np.float32))
    )
    return net.layers(scaled)


def past() -> onnx.ModelProto:
    """What came before is joined in front; it may be nothing."""
    net = Net()
    p, x = net.input("past", T.FLOAT, ["N", "P", 16]), net.input("x", T.FLOAT, ["N", "S", 16])
    return net.layers(net.op("Concat", p, x, axis=1), rank=3)


def time_first() -> onnx.ModelProto:
    """A sequence with time in front and a state with the batch in front."""
    net = Net()
    x, h = net.input("x", T.FLOAT, ["T", "B", 16]), net.input("h", T.FLOAT, ["B", 16])
    return net.layers(net.op("Add", x, h), rank=3)


def streaming() -> onnx.ModelProto:
    """Frames, a recurrent state ``[layers, batch, width]`` and a rate; no axis has a name."""
    net = Net()
    x, h = net.input("x", T.FLOAT, [None, None]), net.input("state", T.FLOAT, [2, None, 16])
    net.input("rate", T.INT64, [])
    last = net.op("Squeeze", net.op("Slice", h, *map(net.constant, ([1], [2], [0]))), net.constant([0]))
    return net.layers(net.op("Add", x, last))


def flags() -> onnx.ModelProto:
    net = Net()
    keep, x = net.input("keep", T.BOOL, ["N", 16]), net.input("x", T.FLOAT, ["N", 16])
    return net.layers(net.op("Where", keep, x, net.constant(0.0, np.float32)))


def halves() -> onnx.ModelProto:
    net = Net(T.FLOAT16)
    return net.layers(net.input("x", T.FLOAT16, ["N", 16]))


def bytes_() -> onnx.ModelProto:
    net = Net()
    return net.layers(net.op("Cast", net.input("x", T.UINT8, ["N", 16]), to=T.FLOAT))


def fixed_scalar() -> onnx.ModelProto:
    """One sample at a time, and a number beside it."""
    net = Net()
    x, t = net.input("x", T.FLOAT, [1, 16]), net.input("t", T.FLOAT, [])
    return net.layers(net.op("Mul", x, t))


#: Name -> (model, samples as one dictionary of arrays).
MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[int], Feed]]] = {
    "texts": (texts, lambda n: {"s": np.array(["red", "grün", "蓝", "?"] * n)[:n, None], "x": rows(n)}),
    "one_hot": (one_hot, lambda n: {"s": np.array(["a", "b", "zz"] * n)[:n], "x": rows(n)}),
    "unlisted": (
        unlisted,
        lambda n: {"s": np.full((n, 1), "a"), "r": np.array(["a", "b"] * n)[:n, None], "x": rows(n)},
    ),
    "scalars": (
        scalars,
        lambda n: {"x": rows(n), "temperature": np.float32(0.5), "step": np.array(3, np.int64)},
    ),
    "past": (
        past,
        lambda n: {"past": np.zeros((n, 0, 16), np.float32), "x": rows(5 * n).reshape(n, 5, 16)},
    ),
    "flags": (flags, lambda n: {"keep": rows(n) > 0, "x": rows(n)}),
    "halves": (halves, lambda n: {"x": rows(n, dtype=np.float16)}),
    "bytes": (bytes_, lambda n: {"x": RNG(0).integers(0, 255, (n, 16)).astype(np.uint8)}),
    "fixed_scalar": (fixed_scalar, lambda n: {"x": rows(n), "t": np.float32(2.0)}),
}
