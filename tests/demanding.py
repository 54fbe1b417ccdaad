"""Models with dynamic axes that take few sizes only, and of them none that is a likely guess."""

from collections.abc import Callable

import numpy as np
import onnx
from nets import F, Nodes, node, normal
from onnx import TensorProto, helper, numpy_helper

I64 = TensorProto.INT64

#: Name -> (function, sizes that the axes must have; an axis that isn't named is free)
MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, int]]] = {}

Shape = tuple[int | str, ...]


def demands(**sizes: int) -> Callable[[Callable[[], onnx.ModelProto]], Callable[[], onnx.ModelProto]]:
    """List a model, and the sizes that it demands."""

    def add(function: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
        MODELS[function.__name__] = function, sizes
        return function

    return add


def model(
    nodes: Nodes,
    weights: dict[str, np.ndarray],
    inputs: dict[str, Shape | tuple[int, Shape]],
    outputs: str = "y",
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a model; an input's value is its shape, or its type and its shape."""
    ins = []
    for name, axes in inputs.items():
        typed = len(axes) == 2 and isinstance(axes[1], tuple)
        kind, shape = axes if typed else (F, axes)  # type: ignore[misc]
        ins.append(helper.make_tensor_value_info(name, kind, shape))
    outs = [onnx.ValueInfoProto(name=name) for name in outputs.split()]
    ends = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", ins, outs, ends)
    found = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    known = {v.name: v for v in onnx.shape_inference.infer_shapes(found).graph.output}
    for value in graph.output:
        value.CopyFrom(known[value.name])
        if not value.type.tensor_type.HasField("shape") or not value.type.tensor_type.elem_type:
            value.CopyFrom(helper.make_tensor_value_info(value.name, F, None))
    found.graph.CopyFrom(graph)
    return found


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def mlp(x: str, width: int, out: str = "y") -> tuple[Nodes, dict[str, np.ndarray]]:
    """Return two layers behind x; the 12 channels between them can be cut."""
    weights = {f"{out}_in": normal(width, 12), f"{out}_out": normal(12, 5)}
    return [
        node("MatMul", f"{x} {out}_in", f"{out}_a"),
        node("Relu", f"{out}_a", f"{out}_r"),
        node("MatMul", f"{out}_r {out}_out", out),
    ], weights


def _recurrent(op: str, gates: int, layout: Shape, states: dict[str, np.ndarray]) -> onnx.ModelProto:
    head, weights = mlp("s", 8)
    weights |= {"w": normal(1, gates * 8, 6), "r": normal(1, gates * 8, 8), "axis": ints(1), **states}
    cell = helper.make_node(op, ["x", "w", "r", "", "", *states], ["all"], name="cell", hidden_size=8)
    return model([cell, node("Squeeze", "all axis", "s"), *head], weights, {"x": layout})


@demands(N=1)
def lstm_states() -> onnx.ModelProto:
    """Initial states for a batch of one, as exporters write them."""
    zeros = {"h0": np.zeros((1, 1, 8), np.float32), "c0": np.zeros((1, 1, 8), np.float32)}
    return _recurrent("LSTM", 4, ("T", "N", 6), zeros)


@demands(N=3)
def gru_states() -> onnx.ModelProto:
    return _recurrent("GRU", 3, ("T", "N", 6), {"h0": normal(1, 3, 8)})


@demands(N=4)
def rnn_states() -> onnx.ModelProto:
    return _recurrent("RNN", 1, ("T", "N", 6), {"h0": normal(1, 4, 8)})


@demands(batch_size=1)
def lstm_from_batch_first() -> onnx.ModelProto:
    head, weights = mlp("s", 8)
    weights |= {"w": normal(1, 32, 6), "r": normal(1, 32, 8), "axis": ints(1)}
    weights |= {"h0": np.zeros((1, 1, 8), np.float32), "c0": np.zeros((1, 1, 8), np.float32)}
    cell = helper.make_node("LSTM", ["t", "w", "r", "", "", "h0", "c0"], ["all"], name="cell", hidden_size=8)
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), cell, node("Squeeze", "all axis", "s"), *head]
    return model(nodes, weights, {"x": ("batch_size", "sequence_length", 6)})


@demands()
def stft_window() -> onnx.ModelProto:
    """A window that is longer than a guess."""
    head, weights = mlp("re", 101)
    weights |= {"step": np.int64(50), "window": np.hanning(200).astype(np.float32), "axis": ints(-1)}
    weights |= {"first": np.array(0, np.int64)}
    nodes = [
        node("Unsqueeze", "x axis", "x3"),
        node("STFT", "x3 step window", "f", onesided=1),
        node("Gather", "f first", "re", axis=3),
        *head,
    ]
    return model(nodes, weights, {"x": ("N", "samples")})


@demands()
def stft_frame_length() -> onnx.ModelProto:
    head, weights = mlp("re", 129)
    weights |= {"step": np.int64(64), "length": np.int64(256), "first": np.array(0, np.int64)}
    stft = helper.make_node("STFT", ["x", "step", "", "length"], ["f"], name="stft", onesided=1)
    nodes = [stft, node("Gather", "f first", "re", axis=3), *head]
    return model(nodes, weights, {"x": ("N", "samples", 1)})


@demands(T=9)
def baked_length() -> onnx.ModelProto:
    """A length that is baked into a Reshape behind a Transpose; the batch isn't."""
    head, weights = mlp("b", 8)
    weights |= {"w": normal(6, 8), "one": ints(1), "two": ints(2), "nine": ints(9), "four": ints(4)}
    nodes = [
        node("MatMul", "x w", "a"),
        node("Transpose", "a", "t", perm=[1, 0, 2]),
        node("Shape", "t", "s"),
        node("Gather", "s one", "n"),
        node("Mul", "n two", "n2"),
        node("Concat", "nine n2 four", "to", axis=0),
        node("Reshape", "t to", "c"),
        node("Softmax", "c", "d", axis=0),
        node("Concat", "nine n eight", "back", axis=0),
        node("Reshape", "d back", "b"),
        *head,
    ]
    return model(nodes, weights | {"eight": ints(8)}, {"x": ("N", "T", 6)})


def _cached(mask: str, mask_first: bool, total: str = "") -> onnx.ModelProto:
    """Return attention over past and present keys with a mask over both."""
    head, weights = mlp("o", 8)
    weights |= {"table": normal(40, 8), "axis": ints(1)} | {n: normal(8, 8) for n in ("q", "k", "v")}
    inputs: dict[str, Shape | tuple[int, Shape]] = {"ids": (I64, ("batch_size", "sequence_length"))}
    past = dict.fromkeys(("past_k", "past_v"), ("batch_size", "past_sequence_length", 8))
    masks = {"attention_mask": ("batch_size", mask)}
    inputs |= {**masks, **past} if mask_first else {**past, **masks}
    nodes = [node("Gather", "table ids", "x"), *(node("MatMul", f"x {n}", f"x{n}") for n in "qkv")]
    nodes += [
        node("Concat", "past_k xk", "keys", axis=1),
        node("Concat", "past_v xv", "values", axis=1),
        node("Transpose", "keys", "kt", perm=[0, 2, 1]),
        node("MatMul", "xq kt", "s"),
        node("Unsqueeze", "attention_mask axis", "m"),
        node("Add", "s m", "sm"),
        node("Softmax", "sm", "p", axis=-1),
        node("MatMul", "p values", "o"),
    ]
    return model([*nodes, *head], weights, inputs)


@demands()
def mask_of_a_sum_first() -> onnx.ModelProto:
    return _cached("past_sequence_length + sequence_length", mask_first=True)


@demands()
def mask_of_a_sum_last() -> onnx.ModelProto:
    return _cached("past_sequence_length + sequence_length", mask_first=False)


@demands()
def mask_of_an_opaque_name() -> onnx.ModelProto:
    """Nothing says that it is a sum."""
    return _cached("total_sequence_length", mask_first=True)


@demands(features=6)
def features_of_a_matmul() -> onnx.ModelProto:
    nodes, weights = mlp("x", 6)
    return model(nodes, weights, {"x": ("N", "T", "features")})


@demands(features=7)
def features_of_a_gemm() -> onnx.ModelProto:
    weights = {"w": normal(12, 7), "v": normal(5, 12)}
    nodes = [node("Gemm", "x w", "a", transB=1), node("Relu", "a", "r"), node("Gemm", "r v", "y", transB=1)]
    return model(nodes, weights, {"x": ("N", "features")})


@demands()
def products_of_two_inputs() -> onnx.ModelProto:
    """One input is twice as long as the other."""
    head, weights = mlp("h", 6)
    weights |= {"to": ints(0, -1, 12), "w": normal(12, 6)}
    nodes = [node("Reshape", "x to", "a"), node("MatMul", "a w", "b"), node("Add", "b z", "h"), *head]
    return model(nodes, weights, {"x": ("N", "T", 6), "z": ("N", "U", 6)})


@demands(batch=6)
def batch_of_a_table() -> onnx.ModelProto:
    """A batch that is one by name only."""
    head, weights = mlp("h", 8)
    weights |= {"w": normal(6, 8), "each": normal(6, 1, 8)}
    nodes = [node("MatMul", "x w", "a"), node("Concat", "a each", "h", axis=1), *head]
    return model(nodes, weights, {"x": ("batch", "T", 6)})


@demands()
def short_table() -> onnx.ModelProto:
    """Positions end before a guess does."""
    head, weights = mlp("h", 8)
    weights |= {"w": normal(6, 8), "pos": normal(5, 8), "one": np.int64(1), "zero": np.int64(0)}
    nodes = [
        node("MatMul", "x w", "a"),
        node("Shape", "x", "s"),
        node("Gather", "s one", "t"),
        node("Range", "zero t one", "ids"),
        node("Gather", "pos ids", "p"),
        node("Add", "a p", "h"),
        *head,
    ]
    return model(nodes, weights, {"x": ("N", "T", 6)})


@demands(batch_size=1)
def lengths_in_values() -> onnx.ModelProto:
    """An attention of onnxruntime's own that reads from integer inputs how long past and present are together."""
    head, weights = mlp("o", 16)
    weights |= {"table": normal(40, 16)} | {n: normal(16, 16) for n in "qkv"}
    i32 = TensorProto.INT32
    past = dict.fromkeys(("past_k", "past_v"), ("batch_size", 2, "past_sequence_length", 8))
    inputs: dict[str, Shape | tuple[int, Shape]] = {"ids": (I64, ("batch_size", "sequence_length")), **past}
    inputs |= {"seqlens_k": (i32, ("batch_size",)), "total_sequence_length": (i32, ())}
    attention = helper.make_node(
        "GroupQueryAttention",
        ["xq", "xk", "xv", "past_k", "past_v", "seqlens_k", "total_sequence_length"],
        ["o", "new_k", "new_v"],
        name="attention",
        domain="com.microsoft",
        num_heads=2,
        kv_num_heads=2,
    )
    nodes = [node("Gather", "table ids", "x"), *(node("MatMul", f"x {n}", f"x{n}") for n in "qkv")]
    return model([*nodes, attention, *head], weights, inputs)


@demands()
def length_of_a_range() -> onnx.ModelProto:
    """An integer input, called like an axis, that counts the positions."""
    head, weights = mlp("h", 8)
    weights |= {"w": normal(6, 8), "pos": normal(40, 8), "zero": np.int64(0), "one": np.int64(1)}
    nodes = [
        node("MatMul", "x w", "a"),
        node("Range", "zero sequence_length one", "ids"),
        node("Gather", "pos ids", "p"),
        node("Concat", "a a", "b", axis=2),
        node("Concat", "p p", "q", axis=1),
        node("Sub", "b q", "c"),
        node("Slice", "c starts ends last", "h"),
        *head,
    ]
    weights |= {"starts": ints(0), "ends": ints(8), "last": ints(2)}
    return model(nodes, weights, {"x": ("N", "sequence_length", 6), "sequence_length": (I64, ())})
