"""Small nets whose weights are quantised, in the forms in which they are deployed."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from small_models import Builder

WIDTH, INNER, OUT = 32, 64, 8
IR = 10


class Quantiser:
    """Adds a layer in one of the forms in which quantised models are deployed."""

    def __init__(self, b: Builder, form: str) -> None:
        self.b, self.form = b, form

    def numbers(self, name: str, w: np.ndarray, axis: int | None, kind: str = "int8") -> list[str]:
        """Return the names of integers, scales and zero points of a weight."""
        low, high = {"int8": (-127, 127), "uint8": (0, 255), "int4": (-7, 7)}[kind]
        over = None if axis is None else tuple(i for i in range(w.ndim) if i != axis)
        least, most = np.minimum(w.min(over), 0), np.maximum(w.max(over), 0)
        if kind == "uint8":
            scale = (most - least) / 255
            zero = np.rint(-least / scale)
        else:
            scale, zero = np.maximum(most, -least) / high, np.zeros_like(most)
        shape = [1] * w.ndim
        if axis is not None:
            shape[axis] = -1
        q = np.clip(np.rint(w / np.reshape(scale, shape)) + np.reshape(zero, shape), low, high)
        dtype = np.uint8 if kind == "uint8" else np.int8
        return [
            self.b.constant(f"{name}_q", q.astype(dtype)),
            self.b.constant(f"{name}_scale", np.asarray(scale, np.float32)),
            self.b.constant(f"{name}_zero", np.asarray(zero).astype(dtype)),
        ]

    def linear(self, x: str, name: str, cin: int, cout: int) -> str:
        """Add ``x W + b``."""
        w = self.b.rng.normal(size=(cin, cout)).astype(np.float32) * 0.4
        y = getattr(self, self.form)(x, name, w)
        return self.b.op("Add", [y, self.b.weight(f"{name}_b", cout)], f"{name}_add")

    def qdq(self, x: str, name: str, w: np.ndarray) -> str:
        """Per channel; the input is quantised too."""
        step, zero = (
            self.b.constant(f"{name}_xs", np.float32(0.05)),
            self.b.constant(f"{name}_xz", np.uint8(120)),
        )
        x = self.b.op("QuantizeLinear", [x, step, zero], f"{name}_xq")
        x = self.b.op("DequantizeLinear", [x, step, zero], f"{name}_xdq")
        dq = self.b.op("DequantizeLinear", self.numbers(name, w, 1), f"{name}_dq", axis=1)
        return self.b.op("MatMul", [x, dq], name)

    def transposed(self, x: str, name: str, w: np.ndarray) -> str:
        """Per tensor, asymmetric, turned behind the DequantizeLinear."""
        dq = self.b.op("DequantizeLinear", self.numbers(name, w.T.copy(), None, "uint8"), f"{name}_dq")
        return self.b.op("MatMul", [x, self.b.op("Transpose", [dq], f"{name}_turn", perm=[1, 0])], name)

    def trained(self, x: str, name: str, w: np.ndarray) -> str:
        """Floats that the graph rounds."""
        _, scale, zero = self.numbers(name, w, 1)
        q = self.b.op("QuantizeLinear", [self.b.constant(f"{name}_w", w), scale, zero], f"{name}_q", axis=1)
        dq = self.b.op("DequantizeLinear", [q, scale, zero], f"{name}_dq", axis=1)
        self.b.weights = [t for t in self.b.weights if t.name != f"{name}_q"]
        return self.b.op("MatMul", [x, dq], name)

    def dynamic(self, x: str, name: str, w: np.ndarray) -> str:
        """Dynamic int8 as onnxruntime's quantiser writes it."""
        q, scale, zero = self.numbers(name, w, 1)
        self.b.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{name}_{k}" for k in "xsz"]))
        scales = self.b.op(
            "Mul", [f"{name}_s", scale], f"{name}_scales"
        )  # in front of the layer that it scales
        y = self.b.op("MatMulInteger", [f"{name}_x", q, f"{name}_z", zero], name)
        y = self.b.op("Cast", [y], f"{name}_cast", to=TensorProto.FLOAT)
        return self.b.op("Mul", [y, scales], f"{name}_mul")

    def fused(self, x: str, name: str, w: np.ndarray) -> str:
        """DynamicQuantizeMatMul."""
        return self.b.op(
            "DynamicQuantizeMatMul", [x, *self.numbers(name, w, None, "uint8")], name, domain="com.microsoft"
        )

    def to_float(self, x: str, name: str, w: np.ndarray) -> str:
        """MatMulIntegerToFloat."""
        q, scale, zero = self.numbers(name, w, None)
        self.b.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{name}_{k}" for k in "xsz"]))
        inputs = [f"{name}_x", q, f"{name}_s", scale, f"{name}_z", zero]
        return self.b.op("MatMulIntegerToFloat", inputs, name, domain="com.microsoft")

    def blocked(self, x: str, name: str, w: np.ndarray) -> str:
        """Int4 in blocks of 16 along K."""
        blocks = w.reshape(-1, 16, w.shape[1])
        scale = np.abs(blocks).max(axis=1) / 7
        q = np.rint(blocks / scale[:, None]).reshape(w.shape).astype(np.int8)
        packed = helper.make_tensor(f"{name}_q", TensorProto.INT4, w.shape, q.ravel())
        self.b.weights.append(packed)
        scales = self.b.constant(f"{name}_scale", scale.astype(np.float32))
        dq = self.b.op("DequantizeLinear", [f"{name}_q", scales], f"{name}_dq", axis=0, block_size=16)
        return self.b.op("MatMul", [x, dq], name)

    def nbits(self, x: str, name: str, w: np.ndarray, zero: bool = False) -> str:
        """MatMulNBits, 4 bits in blocks of 16."""
        blocks = w.T.reshape(w.shape[1], -1, 16)
        scale = np.abs(blocks).max(axis=2, keepdims=True) / 7
        q = (np.rint(blocks / scale) + 8 - zero).astype(np.uint8)
        data = q[..., ::2] | (q[..., 1::2] << 4)
        inputs = [
            x,
            self.b.constant(f"{name}_q", data),
            self.b.constant(f"{name}_scale", scale[..., 0].astype(np.float32)),
        ]
        if zero:
            count = w.shape[1] * (-(-blocks.shape[1] // 2))
            inputs.append(self.b.constant(f"{name}_zero", np.full(count, 0x77, np.uint8)))
        attrs = {"K": w.shape[0], "N": w.shape[1], "bits": 4, "block_size": 16}
        return self.b.op("MatMulNBits", inputs, name, domain="com.microsoft", **attrs)

    def nbits_zero(self, x: str, name: str, w: np.ndarray) -> str:
        """The same with zero points of 7."""
        return self.nbits(x, name, w, zero=True)


FORMS = ["qdq", "transposed", "trained", "dynamic", "fused", "to_float", "blocked", "nbits", "nbits_zero"]


def net(form: str, seed: int = 0) -> onnx.ModelProto:
    """Two layers with a Relu between them, whose units are nearly sums of each other, so that a fit can make up."""
    b = Builder(seed)
    mix = b.rng.normal(size=(WIDTH, INNER // 4)) @ b.rng.normal(size=(INNER // 4, INNER)) / 8
    first = b.op("MatMul", ["x", b.constant("mix", mix.astype(np.float32))], "first")
    quantiser = Quantiser(b, form)
    y = quantiser.linear(b.op("LeakyRelu", [first], "act", alpha=0.9), "layer", INNER, OUT)
    model = b.model({"x": ["N", WIDTH]}, y, 21, "com.microsoft")
    model.ir_version = IR
    del model.graph.value_info[:]
    return model


def clipped_net() -> onnx.ModelProto:
    """A convolution whose units are nearly sums of each other, and a QLinearConv that stands for Conv and Relu."""
    b = Builder(5)
    mix = b.rng.normal(size=(16, 4)) @ b.rng.normal(size=(4, 8))
    x = b.op("Conv", ["x", b.constant("mix", mix.reshape(16, 8, 1, 1).astype(np.float32))], "first")
    step, zero = b.constant("xs", np.float32(0.1)), b.constant("xz", np.uint8(128))
    x = b.op("QuantizeLinear", [x, step, zero], "q")
    w = Quantiser(b, "").numbers("w", b.rng.normal(size=(6, 16, 3, 3)).astype(np.float32), 0)
    end = [b.constant("ys", np.float32(0.8)), b.constant("yz", np.uint8(0))]
    bias = b.constant("b", (b.rng.normal(size=6) * 900).astype(np.int32))
    y = b.op("QLinearConv", [x, step, zero, *w, *end, bias], "layer", pads=[1] * 4)
    return b.model({"x": ["N", 8, 6, 6]}, b.op("DequantizeLinear", [y, *end], "dq"))


def convolved() -> onnx.ModelProto:
    """A convolution whose units are nearly sums of each other, and one in QDQ with a bias of int32."""
    b = Builder(5)
    mix = b.rng.normal(size=(16, 4)) @ b.rng.normal(size=(4, 8))
    x = b.op("Conv", ["x", b.constant("mix", mix.reshape(16, 8, 1, 1).astype(np.float32))], "first")
    x = b.op("LeakyRelu", [x], "act", alpha=0.9)
    step, zero = b.constant("xs", np.float32(0.1)), b.constant("xz", np.uint8(128))
    x = b.op("DequantizeLinear", [b.op("QuantizeLinear", [x, step, zero], "q"), step, zero], "dq")
    q, scale, zeros = Quantiser(b, "").numbers("w", b.rng.normal(size=(6, 16, 3, 3)).astype(np.float32), 0)
    w = b.op("DequantizeLinear", [q, scale, zeros], "w_dq", axis=0)
    scales = numpy_helper.to_array(next(t for t in b.weights if t.name == scale))
    b.constant("b_q", np.rint(b.rng.normal(size=6) / (0.1 * scales)).astype(np.int32))
    bias = b.op("DequantizeLinear", ["b_q", b.constant("b_scale", np.float32(0.1) * scales)], "b_dq", axis=0)
    y = b.op("Conv", [x, w, bias], "layer", pads=[1] * 4)
    model = b.model({"x": ["N", 8, 6, 6]}, y, 21)
    del model.graph.value_info[:]
    return model


def deep(form: str) -> onnx.ModelProto:
    """Three layers with Relus between them."""
    b = Builder(2)
    quantiser = Quantiser(b, form)
    y = b.op("Relu", [quantiser.linear("x", "up", WIDTH, INNER)], "relu1")
    y = b.op("Relu", [quantiser.linear(y, "middle", INNER, INNER)], "relu2")
    model = b.model({"x": ["N", WIDTH]}, quantiser.linear(y, "down", INNER, OUT), 21, "com.microsoft")
    model.ir_version = IR
    del model.graph.value_info[:]
    return model


def attending(form: str, *, rank: int = 0, crossed: bool = False) -> onnx.ModelProto:
    """Two heads of 16 over x [N, 6, 32] and a layer behind them.

    ``rank``: of what queries and keys depend on; ``crossed``: each head asks with its queries and the other's keys.
    """
    b = Builder(4)
    quantiser, heads, units = Quantiser(b, form), 2, 16
    b.constant("split", np.array([0, 0, heads, units]))
    parts = {}
    for name in "qkv":
        if rank and name == "q":
            few = b.rng.normal(size=(WIDTH, rank)) @ b.rng.normal(size=(rank, heads * units))
            w = (few / few.std() * 0.4).astype(np.float32)
            y = b.op(
                "Add",
                [getattr(quantiser, form)("x", name, w), b.weight(f"{name}_b", heads * units)],
                f"{name}_add",
            )
        else:
            y = quantiser.linear("x", name, WIDTH, heads * units)
        y = b.op("Reshape", [y, "split"], f"{name}_split")
        parts[name] = b.op("Transpose", [y], f"{name}_heads", perm=[0, 2, 1, 3])
    keys = parts["k"]
    if crossed:
        keys = b.op("Gather", [keys, b.constant("other", np.array([1, 0]))], "cross", axis=1)
    keys = b.op("Transpose", [keys], "turned_keys", perm=[0, 1, 3, 2])
    scaled = b.op("Mul", [parts["q"], b.constant("small", np.float32(0.1))], "scaled")
    asked = b.op("Softmax", [b.op("MatMul", [scaled, keys], "asked")], "soft", axis=-1)
    given = b.op("Transpose", [b.op("MatMul", [asked, parts["v"]], "given")], "back", perm=[0, 2, 1, 3])
    joined = b.op("Reshape", [given, b.constant("join", np.array([0, 0, heads * units]))], "joined")
    model = b.model(
        {"x": ["N", 6, WIDTH]}, quantiser.linear(joined, "o", heads * units, OUT), 21, "com.microsoft"
    )
    model.ir_version = IR
    del model.graph.value_info[:]
    return model
