"""Small handmade graphs, with distinct weights, biases and statistics."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Builder:
    """Collects nodes and weights; each op returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def weight(self, name: str, *shape: int, low: float | None = None) -> str:
        array = self.rng.normal(size=shape) * 0.4 if low is None else self.rng.uniform(low, low + 1, shape)
        return self.constant(name, array.astype(np.float32))

    def constant(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op: str, inputs: Sequence[str], name: str, outputs: int = 1, **attrs: object) -> str:
        outs = [f"{name}_out"] if outputs == 1 else [f"{name}_out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), outs, name=name, **attrs))
        return outs[0]

    def conv(self, x: str, name: str, cin: int, cout: int, k: int = 3) -> str:
        w, b = self.weight(f"{name}.weight", cout, cin, k, k), self.weight(f"{name}.bias", cout)
        return self.op("Conv", [x, w, b], name, kernel_shape=[k, k], pads=[k // 2] * 4)

    def bn(self, x: str, name: str, c: int) -> str:
        parts = [
            self.weight(f"{name}.scale", c, low=0.5),
            self.weight(f"{name}.bias", c),
            self.weight(f"{name}.mean", c),
        ]
        return self.op("BatchNormalization", [x, *parts, self.weight(f"{name}.var", c, low=0.5)], name)

    def linear(self, x: str, name: str, cin: int, cout: int) -> str:
        y = self.op("MatMul", [x, self.weight(f"{name}.weight", cin, cout)], f"{name}.matmul")
        return self.op("Add", [y, self.weight(f"{name}.bias", cout)], f"{name}.add")

    def model(
        self, inputs: dict[str, Sequence[int | str]], output: str, opset: int = 17, domain: str = ""
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(output, FLOAT, None)],
            self.weights,
        )
        opsets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(domain, 1)] * bool(domain)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def chain(width: int = 8, opset: int = 17) -> onnx.ModelProto:
    """Conv, BatchNorm, Relu, twice, then a classifier."""
    b = Builder(1)
    x = "x"
    for name, cin in (("conv1", 3), ("conv2", width)):
        x = b.op("Relu", [b.bn(b.conv(x, name, cin, width), f"{name}.bn", width)], f"{name}.relu")
    x = b.op("Flatten", [b.op("GlobalAveragePool", [x], "pool")], "flatten", axis=1)
    y = b.op("Gemm", [x, b.weight("fc.weight", 10, width), b.weight("fc.bias", 10)], "fc", transB=1)
    return b.model({"x": [1, 3, 8, 8]}, y, opset)


def residual(width: int = 8) -> onnx.ModelProto:
    """A stem, two residual blocks, and a classifier behind a Flatten of several positions."""
    b = Builder(2)
    x = b.op("Relu", [b.conv("x", "stem", 3, width)], "stem.relu")
    for n in (1, 2):
        y = b.op("Relu", [b.conv(x, f"block{n}.conv1", width, 2 * width)], f"block{n}.relu1")
        x = b.op(
            "Relu",
            [b.op("Add", [b.conv(y, f"block{n}.conv2", 2 * width, width), x], f"block{n}.add")],
            f"block{n}.relu2",
        )
    x = b.op(
        "Reshape",
        [
            b.op("MaxPool", [x], "pool", kernel_shape=[4, 4], strides=[4, 4]),
            b.constant("flat", np.array([1, width * 4], np.int64)),
        ],
        "reshape",
    )
    y = b.op("Gemm", [x, b.weight("fc.weight", 5, width * 4), b.weight("fc.bias", 5)], "fc", transB=1)
    return b.model({"x": [1, 3, 8, 8]}, y)


def attention(heads: int = 4, dim: int = 6, seq: int | str = "seq") -> onnx.ModelProto:
    """Embedding, self-attention with separate projections, residual sums, LayerNorm, feed-forward, head; opset 17."""
    b, width, inner = Builder(3), 20, heads * dim
    x = b.linear("x", "embed", 16, width)
    shape = b.constant("split", np.array([0, -1, heads, dim], np.int64))
    parts = {}
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        y = b.op("Reshape", [b.linear(x, f"attn.{name}", width, inner), shape], f"{name}.reshape")
        parts[name] = b.op("Transpose", [y], f"{name}.transpose", perm=perm)
    scores = b.op("Softmax", [b.op("MatMul", [parts["q"], parts["k"]], "scores")], "softmax", axis=-1)
    y = b.op("Transpose", [b.op("MatMul", [scores, parts["v"]], "mix")], "merge", perm=[0, 2, 1, 3])
    y = b.op("Reshape", [y, b.constant("join", np.array([0, -1, inner], np.int64))], "join_reshape")
    x = b.op("Add", [b.linear(y, "attn.out", inner, width), x], "attn.add")
    norm = [x, b.weight("ln.scale", width, low=0.5), b.weight("ln.bias", width)]
    y = b.op("Relu", [b.linear(b.op("LayerNormalization", norm, "ln"), "ffn.up", width, 32)], "ffn.relu")
    x = b.op("Add", [b.linear(y, "ffn.down", 32, width), x], "ffn.add")
    return b.model({"x": [1, seq, 16]}, b.linear(x, "head", width, 5))


MODELS = {"chain": chain, "residual": residual, "attention": attention}
