"""Graphs with shared weights, weights with both axes in one group, and groups that are read by what can't be fitted."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper
from small_models import FLOAT, Builder

SHAPES: dict[str, dict[str, Sequence[int | str]]] = {}
MAKERS: dict[str, Callable[[Builder], str | list[str]]] = {}

IMAGE: dict[str, Sequence[int | str]] = {"x": ["N", 3, 12, 12]}
TEXT: dict[str, Sequence[int | str]] = {"x": ["N", "T", 12]}
Maker = Callable[[Builder], str | list[str]]


def maker(inputs: dict[str, Sequence[int | str]]) -> Callable[[Maker], Maker]:
    def add(function: Maker) -> Maker:
        MAKERS[function.__name__], SHAPES[function.__name__] = function, inputs
        return function

    return add


def made(name: str, opset: int = 17) -> onnx.ModelProto:
    """Return one of the graphs."""
    b = Builder()
    outputs = MAKERS[name](b)
    names = [outputs] if isinstance(outputs, str) else outputs
    model = b.model(SHAPES[name], names[0], opset)
    if len(names) > 1:
        del model.graph.output[:]
        model.graph.output.extend(helper.make_tensor_value_info(n, FLOAT, None) for n in names)
    inferred = onnx.shape_inference.infer_shapes(model)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    onnx.checker.check_model(model, full_check=True)
    return model


def use(b: Builder, x: str, name: str, w: str, bias: str = "", stride: int = 1) -> str:
    return b.op("Conv", [x, w, *([bias] if bias else [])], name, pads=[1] * 4, strides=[stride] * 2)


def ints(b: Builder, name: str, *value: int) -> str:
    return b.constant(name, np.array(value, np.int64))


def pooled(b: Builder, x: str, name: str, c: int, out: int = 5) -> str:
    y = b.op("Flatten", [b.op("GlobalAveragePool", [x], f"{name}.pool")], f"{name}.flat")
    return b.linear(y, name, c, out)


@maker({"x": ["N", 1, 12, 12], "z": ["N", 1, 12, 12]})
def siamese(b: Builder) -> str:
    """Two branches with the same weights and biases."""
    ws = [b.weight("w0", 8, 1, 3, 3), b.weight("b0", 8), b.weight("w1", 8, 8, 3, 3), b.weight("b1", 8)]
    wf, found = b.weight("wf", 8, 12), []
    for side in "xz":
        y = b.op("Relu", [use(b, side, f"{side}0", ws[0], ws[1])], f"{side}0r")
        y = b.op("Relu", [use(b, y, f"{side}1", ws[2], ws[3])], f"{side}1r")
        y = b.op("Flatten", [b.op("GlobalAveragePool", [y], f"{side}p")], f"{side}f")
        found.append(b.op("MatMul", [y, wf], f"{side}m"))
    apart = b.op("Abs", [b.op("Sub", found, "sub")], "abs")
    return b.linear(apart, "last", 12, 3)


@maker({"x": ["N", 3, 16, 16]})
def pyramid(b: Builder) -> str:
    """A head without biases on three levels, a BatchNormalization of its own behind each use."""
    x, levels = "x", []
    for n, c in enumerate([3, 8, 8]):
        x = b.op("Relu", [b.bn(b.conv(x, f"c{n}", c, 8), f"n{n}", 8)], f"r{n}")
        levels.append(x)
        x = b.op("MaxPool", [x], f"p{n}", kernel_shape=[2, 2], strides=[2, 2])
    tower, last, bias = b.weight("tower", 8, 8, 3, 3), b.weight("last", 6, 8, 3, 3), b.weight("last.bias", 6)
    found = []
    for n, level in enumerate(levels):
        y = b.op("Relu", [b.bn(use(b, level, f"t{n}", tower), f"tn{n}", 8)], f"tr{n}")
        y = b.op("Transpose", [use(b, y, f"l{n}", last, bias)], f"lt{n}", perm=[0, 2, 3, 1])
        found.append(b.op("Reshape", [y, ints(b, f"s{n}", 0, -1, 6)], f"ls{n}"))
    return b.op("Concat", found, "y", axis=1)


@maker(IMAGE)
def levels(b: Builder) -> str:
    """A convolution on three levels, with a bias of its own on each."""
    x = b.conv("x", "stem", 3, 8)
    w, last, found = b.weight("w", 8, 8, 3, 3), b.weight("last", 4, 8, 3, 3), []
    for n in range(3):
        y = b.op("Relu", [use(b, x, f"u{n}", w, b.weight(f"ub{n}", 8))], f"ur{n}")
        y = b.op("GlobalAveragePool", [use(b, y, f"v{n}", last)], f"g{n}")
        found.append(b.op("Flatten", [y], f"f{n}"))
        x = b.op("MaxPool", [x], f"p{n}", kernel_shape=[2, 2], strides=[2, 2])
    return b.op("Concat", found, "y", axis=1)


@maker(IMAGE)
def residual(b: Builder) -> str:
    """``x + conv(relu(x))``: both axes of a weight are in one group."""
    x = b.conv("x", "stem", 3, 12)
    for n in range(3):
        x = b.op("Add", [x, b.conv(b.op("Relu", [x], f"r{n}"), f"c{n}", 12, 12)], f"a{n}")
    return pooled(b, x, "last", 12)


@maker(TEXT)
def linear_residual(b: Builder) -> str:
    """``x + x W``, with nothing else in between."""
    x = b.op("MatMul", ["x", b.weight("in", 12, 16)], "in")
    for n in range(2):
        x = b.op("Add", [x, b.op("MatMul", [x, b.weight(f"w{n}", 16, 16)], f"m{n}")], f"a{n}")
    return b.op("MatMul", [x, b.weight("out", 16, 4)], "y")


@maker(IMAGE)
def repvgg(b: Builder) -> str:
    """Branches 3 x 3, 1 x 1 and identity, each with statistics, summed."""
    x = b.op("Relu", [b.conv("x", "stem", 3, 8)], "stem.relu")
    for n in range(2):
        three, one = (
            b.bn(b.conv(x, f"t{n}", 8, 8), f"tn{n}", 8),
            b.bn(b.conv(x, f"o{n}", 8, 8, 1), f"on{n}", 8),
        )
        both = b.op("Add", [three, one], f"a{n}")
        x = b.op("Relu", [b.op("Add", [both, b.bn(x, f"in{n}", 8)], f"s{n}")], f"r{n}")
    return pooled(b, x, "last", 8)


@maker(IMAGE)
def depthwise(b: Builder) -> str:
    """A depthwise convolution and a pointwise one with both axes in one group."""
    x = b.conv("x", "stem", 3, 8)
    w = b.weight("dw", 8, 1, 3, 3)
    y = b.op("Relu", [b.op("Conv", [x, w], "dw", group=8, pads=[1] * 4)], "dw.relu")
    return pooled(b, b.op("Add", [x, b.conv(y, "pw", 8, 8, 1)], "sum"), "last", 8)


@maker(IMAGE)
def updates(b: Builder) -> str:
    """A shared update, four times over: ``h + conv(tanh(conv(h)))`` with the same weights."""
    h = b.conv("x", "stem", 3, 8)
    w = [
        b.weight("u0", 10, 8, 3, 3),
        b.weight("u0.bias", 10),
        b.weight("u1", 8, 10, 3, 3),
        b.weight("u1.bias", 8),
    ]
    for n in range(4):
        y = b.op("Tanh", [use(b, h, f"a{n}", w[0], w[1])], f"t{n}")
        h = b.op("Add", [h, use(b, y, f"b{n}", w[2], w[3])], f"s{n}")
    return pooled(b, h, "last", 8)


@maker({"x": ["N", 10, 12], "adj": ["N", 10, 10]})
def graph_net(b: Builder) -> str:
    """Layers of a graph net: ``relu(adj @ (x W) + x V)``, with a residual sum."""
    x = b.linear("x", "in", 12, 16)
    for n in range(2):
        far = b.op("MatMul", ["adj", b.op("MatMul", [x, b.weight(f"w{n}", 16, 16)], f"w{n}m")], f"m{n}")
        y = b.op("Relu", [b.op("Add", [far, b.linear(x, f"v{n}", 16, 16)], f"a{n}")], f"r{n}")
        x = b.op("Add", [x, y], f"s{n}")
    return b.linear(x, "last", 16, 4)


@maker(TEXT)
def tied(b: Builder) -> str:
    """A weight that one node reads as it is and another one transposed."""
    w = b.weight("w", 16, 12)
    h = b.op("Relu", [b.linear("x", "in", 12, 12)], "r")
    code = b.op("Relu", [b.op("MatMul", [h, b.op("Transpose", [w], "wt", perm=[1, 0])], "code")], "cr")
    return b.linear(b.op("MatMul", [code, w], "back"), "last", 12, 4)


@maker({"x": ["N", "T", 12], "z": ["N", 12]})
def two_ranks(b: Builder) -> list[str]:
    """A MatMul with one weight on sequences and on vectors, a bias of its own at each."""
    w, v = b.weight("w", 12, 16), b.weight("v", 16, 4)
    found = []
    for side in "xz":
        y = b.op("Add", [b.op("MatMul", [side, w], f"{side}w"), b.weight(f"{side}b", 16)], f"{side}a")
        y = b.op("Relu", [y], f"{side}r")
        found.append(b.op("Add", [b.op("MatMul", [y, v], f"{side}v"), b.weight(f"{side}c", 4)], f"{side}o"))
    return found


@maker({"x": ["N", 2, 12, 12], "z": ["N", 2, 12, 12]})
def complex_convs(b: Builder) -> list[str]:
    """Complex convolutions as four real ones, with two weights used twice each."""
    re, im = "x", "z"
    for n, (cin, cout) in enumerate([(2, 8), (8, 8), (8, 3)]):
        wr, wi = b.weight(f"wr{n}", cout, cin, 3, 3), b.weight(f"wi{n}", cout, cin, 3, 3)
        pairs = {"rr": (re, wr), "ri": (re, wi), "ir": (im, wr), "ii": (im, wi)}
        parts = {key: use(b, x, f"c{n}{key}", w) for key, (x, w) in pairs.items()}
        re = b.op("Sub", [parts["rr"], parts["ii"]], f"re{n}")
        im = b.op("Add", [parts["ri"], parts["ir"]], f"im{n}")
        if n < 2:
            re, im = b.op("Relu", [re], f"rr{n}"), b.op("Relu", [im], f"ri{n}")
    return [re, im]


def recurrent(b: Builder, op: str, x: str, name: str, cin: int, hidden: int, both: bool) -> str:
    gates, dirs = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 1 + both
    w, r = (
        b.weight(f"{name}.w", dirs, gates * hidden, cin),
        b.weight(f"{name}.r", dirs, gates * hidden, hidden),
    )
    bias = b.weight(f"{name}.b", dirs, 2 * gates * hidden)
    more = {"direction": "bidirectional"} if both else {}
    y = b.op(op, [x, w, r, bias], name, outputs=2, hidden_size=hidden, **more)
    turned = b.op("Transpose", [y], f"{name}.t", perm=[0, 2, 1, 3])
    return b.op("Reshape", [turned, ints(b, f"{name}.s", 0, 0, -1)], f"{name}.flat")


@maker({"x": ["T", "N", 12]})
def gru_both_ways(b: Builder) -> str:
    """A bidirectional GRU between two layers: what it reads can't be fitted."""
    x = b.op("Relu", [b.linear("x", "in", 12, 16)], "r")
    return b.linear(recurrent(b, "GRU", x, "gru", 16, 8, True), "last", 16, 4)


@maker({"x": ["T", "N", 12]})
def two_readers(b: Builder) -> list[str]:
    """A group that an LSTM and a layer read."""
    x = b.op("Relu", [b.linear("x", "in", 12, 16)], "r")
    return [
        b.linear(recurrent(b, "LSTM", x, "lstm", 16, 8, False), "last", 8, 4),
        b.linear(x, "other", 16, 4),
    ]


@maker(TEXT)
def einsums(b: Builder) -> str:
    """Linear layers written as Einsum: heads apart, and a feed-forward part."""
    wide = b.op("Einsum", ["x", b.weight("w0", 12, 4, 6)], "e0", equation="bte,ehd->bthd")
    wide = b.op("Relu", [b.op("Add", [wide, b.weight("b0", 4, 6)], "a0")], "r0")
    y = b.op("Einsum", [wide, b.weight("w1", 4, 6, 12)], "e1", equation="bthd,hde->bte")
    y = b.op("Einsum", [b.op("Add", ["x", y], "s"), b.weight("w2", 12, 20)], "e2", equation="...e,ef->...f")
    y = b.op("Relu", [y], "r2")
    return b.op("Einsum", [y, b.weight("w3", 20, 5)], "e3", equation="btf,fe->bte")


@maker({"x": ["N", "T", 12], "z": ["N", 16, 6]})
def run_time_weights(b: Builder) -> str:
    """A product with a matrix that is an input: its row axis is the input's, so only what is before it goes."""
    h = b.op("Relu", [b.linear("x", "in", 12, 20)], "r")
    return b.op("MatMul", [b.linear(h, "mid", 20, 16), "z"], "y")
