"""Small models for tests."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Nodes = list[onnx.NodeProto]
F = TensorProto.FLOAT


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed + sum(shape))
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:], initial=1))).astype(np.float32)


def build(
    nodes: Nodes,
    weights: dict[str, np.ndarray],
    shape: tuple[int | str, ...] = (2, 3, 8, 8),
    kind: int = F,
    outputs: dict[str, int] | None = None,
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, e, None) for n, e in (outputs or {"y": kind}).items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        values,
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if all(n.domain == "" for n in nodes):  # outputs must have a shape, says the checker
        for value, known in zip(
            graph.output, onnx.shape_inference.infer_shapes(model).graph.output, strict=True
        ):
            value.CopyFrom(known)
        model.graph.CopyFrom(graph)
    return model


def node(op: str, inputs: str, output: str, **attrs: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"{op}_{output}", **attrs)


def convs(
    last: Nodes | None = None,
    shape: tuple[int | str, ...] = (2, 3, 8, 8),
    more: dict[str, float] | None = None,
    outputs: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """Two convolutions, the second of which reads 12 channels; then ``last``, from h to y."""
    weights = {"w1": normal(12, 3, 3, 3), "b1": normal(12), "w2": normal(10, 12, 3, 3), "b2": normal(10)}
    weights |= {n: np.float32(v) for n, v in (more or {}).items()}
    nodes = [
        node("Conv", "x w1 b1", "a"),
        node("Sigmoid", "a", "r"),
        node("Conv", "r w2 b2", "h"),
        *(last if last is not None else [node("Identity", "h", "y")]),
    ]
    return build(nodes, weights, shape, outputs=outputs)


def jumping() -> onnx.ModelProto:
    """Its output is the last bit of a sum of so many terms that a cut changes its order."""
    weights = {"w1": normal(6, 4096), "w2": normal(4096, 10), "large": np.float32(1e6), "two": np.float32(2)}
    nodes = [
        node("MatMul", "x w1", "a"),
        node("Sigmoid", "a", "s"),
        node("MatMul", "s w2", "h"),
        node("Mul", "h large", "g"),
        node("Round", "g", "k"),
        node("Mod", "k two", "y", fmod=1),
    ]
    return build(nodes, weights, (50, 6))


def quantised() -> onnx.ModelProto:
    """Q, DQ around two convolutions with a quantised weight, zero points that are not zero."""
    weights = {
        "q1": np.clip(normal(12, 3, 3, 3) * 300, -127, 127).astype(np.int8),
        "w1s": np.float32(0.004),
        "w1z": np.int8(0),
        "q2": np.clip(normal(10, 12, 3, 3) * 900, -127, 127).astype(np.int8),
        "w2s": np.linspace(0.001, 0.003, 10).astype(np.float32),
        "w2z": np.zeros(10, np.int8),
        "s": np.float32(0.02),
        "z": np.uint8(117),
        "s2": np.float32(0.01),
        "z2": np.uint8(3),
    }
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("DequantizeLinear", "xq s z", "xd"),
        node("DequantizeLinear", "q1 w1s w1z", "w1"),
        node("Conv", "xd w1", "a"),
        node("Sigmoid", "a", "r"),
        node("QuantizeLinear", "r s2 z2", "rq"),
        node("DequantizeLinear", "rq s2 z2", "rd"),
        node("DequantizeLinear", "q2 w2s w2z", "w2", axis=0),
        node("Conv", "rd w2", "y"),
    ]
    return build(nodes, weights)


def qlinear() -> onnx.ModelProto:
    """Integer convolutions: a masked channel is at its zero point, not at zero."""
    weights = {
        "q1": np.clip(normal(12, 3, 3, 3) * 300, -127, 127).astype(np.int8),
        "ws": np.float32(0.004),
        "wz": np.int8(0),
        "wz2": np.int8(0),  # one of its own: onnxruntime's optimiser fails on a shared one
        "q2": np.clip(normal(10, 12, 3, 3) * 900, -127, 127).astype(np.int8),
        "s": np.float32(0.02),
        "z": np.uint8(117),
        "s2": np.float32(0.03),
        "z2": np.uint8(93),
    }
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("QLinearConv", "xq s z q1 ws wz s2 z2", "a"),
        node("QLinearConv", "a s2 z2 q2 ws wz2 s z", "h"),
        node("DequantizeLinear", "h s z", "y"),
    ]
    return build(nodes, weights)


def half_quantised(op: str) -> onnx.ModelProto:
    """A float layer between integer convolutions, whose weights onnxruntime's optimiser would quantise."""
    model = qlinear()
    w = normal(12, 10, 1, 1)
    model.graph.initializer.append(
        numpy_helper.from_array(w if op == "ConvTranspose" else w.swapaxes(0, 1), "w")
    )
    between = [
        node("DequantizeLinear", "a s2 z2", "f"),
        node(op, "f w", "g"),
        node("QuantizeLinear", "g s z", "b"),
    ]
    q = np.clip(normal(7, 10, 1, 1) * 300, -127, 127).astype(np.int8)
    model.graph.initializer.append(numpy_helper.from_array(q, "q3"))
    end = [node("QLinearConv", "b s z q3 ws wz2 s z", "h"), node("DequantizeLinear", "h s z", "y")]
    return build(
        [*model.graph.node[:2], *between, *end],
        {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name != "q2"},
    )


def normalised() -> onnx.ModelProto:
    weights = {"w1": normal(16, 6), "w2": normal(16, 5), "s": normal(16) + 1, "b": normal(16)}
    nodes = [
        node("Gemm", "x w1", "h", transB=1),
        node("LayerNormalization", "h s b", "n"),
        node("MatMul", "n w2", "y"),
    ]
    return build(nodes, weights, (4, 6))


def recurrent() -> onnx.ModelProto:
    weights = {
        "w": normal(1, 32, 6),
        "r": normal(1, 32, 8),
        "b": normal(1, 64),
        "axes": np.array([1]),
        "v": normal(8, 5),
    }
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["h"], hidden_size=8, name="lstm"),
        node("Squeeze", "h axes", "q"),
        node("MatMul", "q v", "y"),
    ]
    return build(nodes, weights, (7, 2, 6))


def grouped() -> onnx.ModelProto:
    weights = {
        "w1": normal(12, 3, 1, 1),
        "w2": normal(12, 1, 3, 3),
        "w3": normal(24, 3, 3, 3),
        "w4": normal(5, 24, 1, 1),
    }
    nodes = [
        node("Conv", "x w1", "a"),
        node("Conv", "a w2", "b", group=12),
        node("Relu", "b", "c"),
        node("Conv", "c w3", "d", group=4),
        node("Relu", "d", "e"),
        node("Conv", "e w4", "y"),
    ]
    return build(nodes, weights)


def attention() -> onnx.ModelProto:
    weights = {n: normal(16, 16, seed=i) for i, n in enumerate(["q", "k", "v", "o"])}
    weights |= {"split": np.array([0, 0, 4, 4]), "join": np.array([0, 0, 16])}
    nodes: Nodes = []
    for n, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", f"x {n}", f"{n}1"),
            node("Reshape", f"{n}1 split", f"{n}2"),
            node("Transpose", f"{n}2", f"{n}3", perm=perm),
        ]
    nodes += [
        node("MatMul", "q3 k3", "l"),
        node("Softmax", "l", "p"),
        node("MatMul", "p v3", "c"),
        node("Transpose", "c", "c2", perm=[0, 2, 1, 3]),
        node("Reshape", "c2 join", "c3"),
        node("MatMul", "c3 o", "y"),
    ]
    return build(nodes, weights, (2, 5, 16))


def retyped(proto: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        if tensor.data_type == F:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(helper.make_tensor(tensor.name, kind, array.shape, array.ravel()))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = kind
    return proto
