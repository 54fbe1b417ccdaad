"""Small nets of the kinds that people deploy, with weights of a sane size: an encoder of words, a decoder with a cache
(its layers in float or in four bits), and a detector with two outputs.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS, WIDTH, HEADS, DIM, INNER, POSITIONS = 300, 64, 4, 16, 128, 64


class Deployed:
    """Nodes and weights; each op returns the name of its output."""

    def __init__(self, seed: int, bits: int = 32) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.bits = bits
        self.first = False

    def put(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def random(self, name: str, *shape: int, scale: float = 1.0) -> str:
        return self.put(name, (self.rng.standard_normal(shape) * scale).astype(np.float32))

    def op(self, kind: str, inputs: list[str], name: str, domain: str = "", **attrs: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}_node", domain=domain, **attrs))
        return name

    def linear(self, x: str, name: str, wide: int, out: int, bias: bool = True) -> str:
        """A layer of floats, or of four bits in blocks of 16."""
        if self.bits == 4:
            packed = self.rng.integers(0, 256, (out, wide // 16, 8)).astype(np.uint8)
            scales = self.put(f"{name}.scales", np.full((out, wide // 16), 0.25 / wide**0.5, np.float32))
            inputs = [x, self.put(f"{name}.packed", packed), scales]
            sizes = {"K": wide, "N": out, "bits": 4, "block_size": 16}
            return self.op("MatMulNBits", inputs, f"{name}.y", "com.microsoft", **sizes)
        y = self.op("MatMul", [x, self.random(f"{name}.weight", wide, out, scale=wide**-0.5)], f"{name}.y")
        return self.op("Add", [y, self.random(f"{name}.bias", out, scale=0.1)], f"{name}.z") if bias else y

    def norm(self, x: str, name: str) -> str:
        scale = self.put(f"{name}.scale", self.rng.uniform(0.8, 1.2, WIDTH).astype(np.float32))
        return self.op("LayerNormalization", [x, scale, self.random(f"{name}.bias", WIDTH, scale=0.1)], name)

    def heads(self, x: str, name: str) -> str:
        shape = self.put(f"{name}.shape", np.array([0, 0, HEADS, DIM]))
        return self.op(
            "Transpose", [self.op("Reshape", [x, shape], f"{name}.r")], f"{name}.t", perm=[0, 2, 1, 3]
        )

    def block(self, x: str, name: str, mask: str = "", cache: bool = False) -> str:
        """Attention and a feed-forward part, each behind a norm; what is cached is an input and an output."""
        y = self.norm(x, f"{name}.norm1")
        q, k, v = (self.heads(self.linear(y, f"{name}.{p}", WIDTH, WIDTH), f"{name}.{p}") for p in "qkv")
        if cache:
            k = self.op("Concat", [f"past.{name}.key", k], f"present.{name}.key", axis=2)
            v = self.op("Concat", [f"past.{name}.value", v], f"present.{name}.value", axis=2)
        elif self.first:
            k, v = (self.op("Identity", [x], f"present.{name}.{p}") for p, x in (("key", k), ("value", v)))
        turned = self.op("Transpose", [k], f"{name}.kt", perm=[0, 1, 3, 2])
        scores = self.op("MatMul", [q, turned], f"{name}.scores")
        scores = self.op("Mul", [scores, self.put(f"{name}.root", np.float32(DIM**-0.5))], f"{name}.scaled")
        if mask:
            scores = self.op("Add", [scores, mask], f"{name}.masked")
        y = self.op("MatMul", [self.op("Softmax", [scores], f"{name}.softmax", axis=-1), v], f"{name}.mixed")
        y = self.op("Transpose", [y], f"{name}.back", perm=[0, 2, 1, 3])
        y = self.op("Reshape", [y, self.put(f"{name}.join", np.array([0, 0, -1]))], f"{name}.joined")
        x = self.op("Add", [x, self.linear(y, f"{name}.out", WIDTH, WIDTH)], f"{name}.sum1")
        y = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.up", WIDTH, INNER)
        y = self.linear(self.op("Relu", [y], f"{name}.relu"), f"{name}.down", INNER, WIDTH)
        return self.op("Add", [x, y], f"{name}.sum2")

    def model(self, inputs: dict[str, tuple[int, list]], outputs: dict[str, list]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "deployed",
            [helper.make_tensor_value_info(name, *typed) for name, typed in inputs.items()],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in outputs.items()
            ],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def encoder(layers: int = 2) -> onnx.ModelProto:
    """Words with a mask of padding, positions, blocks, and three classes of a text."""
    net = Deployed(1)
    x = net.op("Gather", [net.random("words", WORDS, WIDTH), "input_ids"], "looked")
    one = net.put("one", np.array(1))
    length = net.op("Gather", [net.op("Shape", ["input_ids"], "sizes"), one], "length")
    places = net.op("Range", [net.put("zero", np.array(0)), length, one], "places")
    x = net.op(
        "Add", [x, net.op("Gather", [net.random("positions", POSITIONS, WIDTH), places], "placed")], "x"
    )
    kept = net.op("Cast", ["attention_mask"], "kept", to=TensorProto.FLOAT)
    hidden = net.op("Sub", [net.put("whole", np.float32(1)), kept], "hidden")
    mask = net.op("Mul", [hidden, net.put("far", np.float32(-1e4))], "away")
    mask = net.op("Unsqueeze", [mask, net.put("axes", np.array([1, 2]))], "mask")
    for n in range(layers):
        x = net.block(x, f"layer{n}", mask)
    x = net.op("Gather", [net.norm(x, "last"), net.put("first", np.array([0]))], "token", axis=1)
    x = net.op("Squeeze", [x, net.put("second", np.array([1]))], "cls")
    logits = net.linear(x, "classifier", WIDTH, 3)
    ids = TensorProto.INT64, ["batch", "sequence"]
    return net.model({"input_ids": ids, "attention_mask": ids}, {logits: ["batch", 3]})


def decoder(bits: int = 32, layers: int = 2, first: bool = False) -> onnx.ModelProto:
    """Words, blocks that keep their keys and values, and a head over the words; the first token's has none to read."""
    net = Deployed(2, bits)
    net.first = first
    x = net.op("Gather", [net.random("words", WORDS, WIDTH), "input_ids"], "looked")
    for n in range(layers):
        x = net.block(x, f"{n}", cache=not first)
    net.linear(net.norm(x, "last"), "logits", WIDTH, WORDS, bias=False)
    inputs: dict[str, tuple[int, list]] = {"input_ids": (TensorProto.INT64, ["batch", "sequence"])}
    outputs: dict[str, list] = {"logits.y": ["batch", "sequence", WORDS]}
    for n in range(layers):
        for part in ("key", "value"):
            if not first:
                inputs[f"past.{n}.{part}"] = TensorProto.FLOAT, ["batch", HEADS, "past_sequence", DIM]
            outputs[f"present.{n}.{part}"] = ["batch", HEADS, "total_sequence", DIM]
    return net.model(inputs, outputs)


def detector() -> onnx.ModelProto:
    """A backbone with a residual block and two scales, each with boxes and scores."""
    net = Deployed(3)

    def conv(x: str, name: str, cin: int, cout: int, stride: int = 1, k: int = 3) -> str:
        weight = net.random(f"{name}.weight", cout, cin, k, k, scale=(2 / (cin * k * k)) ** 0.5)
        inputs = [x, weight, net.random(f"{name}.bias", cout, scale=0.1)]
        return net.op("Conv", inputs, name, kernel_shape=[k, k], pads=[k // 2] * 4, strides=[stride, stride])

    x = net.op("Relu", [conv("image", "stem", 3, 16, 2)], "stem.relu")
    y = net.op("Relu", [conv(x, "res1", 16, 16)], "res1.relu")
    x = net.op("Relu", [net.op("Add", [x, conv(y, "res2", 16, 16)], "res")], "res.relu")
    fine = net.op("Relu", [conv(x, "fine", 16, 32, 2)], "fine.relu")
    coarse = net.op("Relu", [conv(fine, "coarse", 32, 32, 2)], "coarse.relu")
    parts: dict[str, list[str]] = {"boxes": [], "scores": []}
    for scale, level in (("fine", fine), ("coarse", coarse)):
        for kind, count in (("boxes", 4), ("scores", 6)):
            head = conv(level, f"{kind}.{scale}", 32, count, k=1)
            flat = net.op(
                "Reshape", [head, net.put(f"{head}.shape", np.array([0, count, -1]))], f"{head}.flat"
            )
            parts[kind].append(net.op("Transpose", [flat], f"{head}.rows", perm=[0, 2, 1]))
    for kind, levels in parts.items():
        net.op("Concat", levels, kind, axis=1)
    shape = TensorProto.FLOAT, ["batch", 3, 32, 32]
    return net.model({"image": shape}, {"boxes": ["batch", 80, 4], "scores": ["batch", 80, 6]})
