"""Models of images that take few heights, widths and numbers of channels only; they join those of ``demanding``."""

import numpy as np
import onnx
from demanding import Shape, demands, ints, mlp, model
from nets import Nodes, node, normal


def convs(
    x: str, y: str, channels: int, stride: int = 1, out: int = 6
) -> tuple[Nodes, dict[str, np.ndarray]]:
    """Return two convolutions from x to y, the first with a stride."""
    weights = {f"{y}_k": normal(12, channels, 3, 3), f"{y}_l": normal(out, 12, 3, 3)}
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    return [
        node("Conv", f"{x} {y}_k", f"{y}_a", strides=[stride, stride], **same),
        node("Relu", f"{y}_a", f"{y}_r"),
        node("Conv", f"{y}_r {y}_l", y, **same),
    ], weights


@demands(N=1, H=14, W=10)
def baked_image() -> onnx.ModelProto:
    nodes, weights = convs("x", "c", 1, out=4)
    weights |= {"to": ints(1, 1, 2, 2, 14, 10), "flat": ints(1, 1, 28, 20)}
    shuffle = [
        node("Reshape", "c to", "r"),
        node("Transpose", "r", "t", perm=[0, 1, 4, 2, 5, 3]),
        node("Reshape", "t flat", "y"),
    ]
    return model([*nodes, *shuffle], weights, {"x": ("N", 1, "H", "W")})


@demands(H=28, W=36)
def baked_behind_strides() -> onnx.ModelProto:
    """Two strides of two before a map of 7 x 9 is taken."""
    first, weights = convs("x", "c", 3, stride=2)
    second, more = convs("c", "d", 6, stride=2)
    head, last = mlp("t", 6)
    weights |= more | last | {"to": ints(-1, 6, 63), "map": normal(1, 6, 7, 9)}
    nodes = [*first, *second, node("Add", "d map", "e"), node("Reshape", "e to", "f")]
    return model(
        [*nodes, node("Transpose", "f", "t", perm=[0, 2, 1]), *head], weights, {"x": ("N", 3, "H", "W")}
    )


@demands()
def flattened() -> onnx.ModelProto:
    """A classifier that knows how many pixels there are."""
    nodes, weights = convs("x", "c", 3, stride=2)
    head, more = mlp("f", 6 * 11 * 11)
    return model(
        [*nodes, node("Flatten", "c", "f", axis=1), *head], weights | more, {"x": ("N", 3, "H", "W")}
    )


def _patches(
    side: int, size: int, cls: bool, axes: Shape = ("batch", 3, "height", "width")
) -> onnx.ModelProto:
    """Return a patch embedding with a table of positions for side x side patches."""
    head, weights = mlp("z", 8)
    weights |= {"k": normal(8, 3, size, size), "to": ints(0, 8, -1), "pos": normal(1, side * side + cls, 8)}
    nodes = [
        node("Conv", "x k", "p", kernel_shape=[size, size], strides=[size, size]),
        node("Reshape", "p to", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
    ]
    if cls:
        weights |= {"token": normal(1, 1, 8), "n": ints(0), "ends": ints(1, 8)}
        nodes += [
            node("Shape", "t", "s"),
            node("Gather", "s n", "b"),
            node("Concat", "b ends", "shape", axis=0),
            node("Expand", "token shape", "first"),
            node("Concat", "first t", "u", axis=1),
        ]
    return model([*nodes, node("Add", f"{'u' if cls else 't'} pos", "z"), *head], weights, {"x": axes})


@demands()
def patches_of_16() -> onnx.ModelProto:
    return _patches(9, 16, cls=True)


@demands()
def patches_of_14() -> onnx.ModelProto:
    return _patches(11, 14, cls=False)


@demands(N=1)
def patches_of_a_whole_batch() -> onnx.ModelProto:
    """The class token isn't expanded: the batch is one."""
    head, weights = mlp("z", 8)
    weights |= {
        "k": normal(8, 3, 8, 8),
        "to": ints(0, 8, -1),
        "pos": normal(1, 26, 8),
        "token": normal(1, 1, 8),
    }
    nodes = [
        node("Conv", "x k", "p", kernel_shape=[8, 8], strides=[8, 8]),
        node("Reshape", "p to", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        node("Concat", "token t", "u", axis=1),
        node("Add", "u pos", "z"),
        *head,
    ]
    return model(nodes, weights, {"x": ("N", 3, "H", "W")})


@demands()
def unet() -> onnx.ModelProto:
    """Two levels down and up again with a Concat: heights and widths are multiples of four."""
    down, weights = convs("x", "a", 3, stride=2)
    deeper, more = convs("a", "b", 6, stride=2)
    weights |= more | {"u": normal(6, 6, 2, 2), "v": normal(12, 6, 2, 2), "last": normal(4, 9, 1, 1)}
    up = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        *down,
        *deeper,
        node("ConvTranspose", "b u", "c", **up),
        node("Concat", "a c", "d", axis=1),
        node("ConvTranspose", "d v", "e", **up),
        node("Concat", "x e", "f", axis=1),
        node("Conv", "f last", "y", kernel_shape=[1, 1]),
    ]
    return model(nodes, weights, {"x": ("N", 3, "H", "W")})


@demands(num_channels=3)
def channels_of_a_kernel() -> onnx.ModelProto:
    nodes, weights = convs("x", "y", 3)
    return model(nodes, weights, {"x": ("batch_size", "num_channels", "height", "width")})


@demands(C=5)
def channels_of_a_norm() -> onnx.ModelProto:
    nodes, weights = convs("b", "y", 5)
    weights |= {n: np.abs(normal(5, seed=i)) + 0.5 for i, n in enumerate(("scale", "bias", "mean", "var"))}
    return model(
        [node("BatchNormalization", "x scale bias mean var", "b"), *nodes],
        weights,
        {"x": ("N", "C", "H", "W")},
    )


@demands(C=4)
def channels_in_groups() -> onnx.ModelProto:
    weights = {"d": normal(4, 1, 3, 3)}
    nodes, more = convs("g", "y", 4)
    depthwise = node("Conv", "x d", "g", kernel_shape=[3, 3], group=4)
    return model([depthwise, *nodes], weights | more, {"x": ("N", "C", "H", "W")})


@demands(depth=2)
def concat_of_two_inputs() -> onnx.ModelProto:
    """Heights and widths that must agree; the second image has its channels named."""
    nodes, weights = convs("c", "y", 5)
    inputs = {"x": ("N", 3, "H", "W"), "z": ("M", "depth", "H2", "W2")}
    return model([node("Concat", "x z", "c", axis=1), *nodes], weights, inputs)


@demands()
def windows_of_seven() -> onnx.ModelProto:
    """Windows of 7 x 7 as in Swin: heights and widths are multiples of seven."""
    first, weights = convs("x", "c", 3)
    head, more = mlp("w", 6)
    weights |= more | {"i0": ints(0), "i2": ints(2), "i3": ints(3), "seven": ints(7), "six": ints(6)}
    nodes = [
        *first,
        node("Shape", "c", "s"),
        *(node("Gather", f"s i{i}", f"s{i}") for i in (0, 2, 3)),
        node("Div", "s2 seven", "rows"),
        node("Div", "s3 seven", "columns"),
        node("Concat", "s0 six rows seven columns seven", "to", axis=0),
        node("Reshape", "c to", "r"),
        node("Transpose", "r", "w", perm=[0, 2, 4, 3, 5, 1]),
        *head,
    ]
    return model(nodes, weights, {"x": ("N", 3, "H", "W")})
