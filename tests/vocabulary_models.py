"""Small language models: a table of words, one of positions, a layer, and a head."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Ids, width, positions.
WORDS, WIDTH, POSITIONS = 40, 8, 16


class Net:
    """Nodes and weights, and what they take."""

    def __init__(self, kind: int = TensorProto.INT64) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.kind = kind

    def put(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        return self.put(name, self.rng.standard_normal(shape).astype(np.float32))

    def op(self, kind: str, inputs: list[str], name: str, domain: str = "", **attrs: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}_node", domain=domain, **attrs))
        return name

    def model(self, outputs: dict[str, tuple[int, list[object]]]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "language",
            [helper.make_tensor_value_info("ids", self.kind, ["N", "T"])],
            [helper.make_tensor_value_info(name, *typed) for name, typed in outputs.items()],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def table_of(net: Net, form: str) -> str:
    """Look words up in a table of this form."""
    if form == "float":
        return net.op("Gather", [net.weight("words", WORDS, WIDTH), "ids"], "looked")
    quantised = net.rng.integers(-90, 90, (WORDS, WIDTH)).astype(np.int8)
    scales = net.put("scales", net.rng.uniform(0.01, 0.02, WORDS).astype(np.float32))
    if form == "rows":  # a scale for each word, unpacked before the lookup
        words = net.op("DequantizeLinear", [net.put("words", quantised), scales], "unpacked", axis=0)
        return net.op("Gather", [words, "ids"], "looked")
    if form == "behind":  # one scale, unpacked behind the lookup
        scale = net.put("scale", np.float32(0.02))
        return net.op(
            "DequantizeLinear",
            [net.op("Gather", [net.put("words", quantised), "ids"], "picked"), scale],
            "looked",
        )
    assert form == "blocks"
    table = net.put("words", net.rng.integers(0, 255, (WORDS, 32)).astype(np.uint8))
    scales = net.put("block_scales", net.rng.uniform(0.001, 0.002, (WORDS, 2)).astype(np.float32))
    zeros = net.put("block_zeros", net.rng.integers(100, 140, (WORDS, 2)).astype(np.uint8))
    looked = net.op(
        "GatherBlockQuantized", [table, "ids", scales, zeros], "wide", "com.microsoft",
        bits=8, block_size=16, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    return net.op("MatMul", [looked, net.weight("narrow", 32, WIDTH)], "looked")


def language(
    *,
    table: str = "float",
    head: str = "tied",
    pad: bool = False,
    start: bool = False,
    kind: int = TensorProto.INT64,
) -> onnx.ModelProto:
    """Words and positions, a layer, and a head.

    Parameters
    ----------
    table : str
        ``float``, ``rows`` (a scale for each word), ``behind`` (a scale behind the lookup) or ``blocks``.
    head : str
        ``tied`` to the table, ``own``, ``softmax`` (tied), ``argmax`` (own, and the choice is given) or ``none``.
    pad : bool
        Whether the graph compares ids with a number itself, and gives what isn't that.
    start : bool
        Whether the graph looks a word of its own up, number 7.
    kind : int
        Element type of the ids.
    """
    net = Net(kind)
    x = table_of(net, table)
    if start:
        word = net.op("Gather", ["words", net.put("start", np.array([7]))], "first")
        x = net.op("Add", [x, word], "started")
    zero, one = net.put("zero", np.array(0)), net.put("one", np.array(1))
    length = net.op("Gather", [net.op("Shape", ["ids"], "sizes"), one], "length")
    places = net.op("Range", [zero, length, one], "places")
    position = net.op("Gather", [net.weight("positions", POSITIONS, WIDTH), places], "placed")
    x = net.op("Add", [x, position], "input")
    up = net.op("Relu", [net.op("MatMul", [x, net.weight("up", WIDTH, 16)], "wide_up")], "relu")
    y = net.op("Add", [x, net.op("MatMul", [up, net.weight("down", 16, WIDTH)], "back")], "y")
    outputs: dict[str, tuple[int, list[object]]] = {}
    if head == "none":
        y = net.op("MatMul", [y, net.weight("last", WIDTH, 5)], "out")
        outputs["out"] = TensorProto.FLOAT, ["N", "T", 5]
    else:
        weight = net.weight("head", WIDTH, WORDS) if head in ("own", "argmax") else ""
        weight = weight or net.op(
            "Transpose", ["unpacked" if table == "rows" else "words"], "head", perm=[1, 0]
        )
        logits = net.op("Add", [net.op("MatMul", [y, weight], "scored"), net.weight("bias", WORDS)], "logits")
        if head == "softmax":
            logits = net.op("Softmax", [logits], "chances")
        if head == "argmax":
            net.op("ArgMax", [logits], "choice", axis=-1, keepdims=0)
            net.op("MatMul", [y, net.weight("last", WIDTH, 5)], "out")
            outputs["choice"] = TensorProto.INT64, ["N", "T"]
            outputs["out"] = TensorProto.FLOAT, ["N", "T", 5]
        else:
            outputs[logits] = TensorProto.FLOAT, ["N", "T", WORDS]
    if pad:
        net.op(
            "Cast",
            [net.op("Equal", ["ids", net.put("pad", np.array(3))], "is_pad")],
            "mask",
            to=TensorProto.FLOAT,
        )
        outputs["mask"] = TensorProto.FLOAT, ["N", "T"]
    return net.model(outputs)
