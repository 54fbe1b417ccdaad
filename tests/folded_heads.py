"""Attention whose heads are folded into the batch axis, with the arithmetic of several exporters."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Folded:
    """One attention over ``x [b, t, 16]``, four heads of width 4.

    Parameters
    ----------
    heads : {"constant", "divided"}
        Where the number of heads in the first target comes from: a constant, or the width divided by that of a head.
    fold : {"product", "rest"}
        The folded axis of the target: ``batch * heads``, or -1.
    unfold : {"divided", "float", "shape", "rest"}
        Where the batch comes from when heads are unfolded: the folded size by the heads (whole, or in floats and
        rounded down), the shape of x, or -1.
    mask : {"", "expand", "tile"}
        A mask ``[b, t]`` that is spread over the heads and folded too: by Expand, or by Tile along the batch axis.
    """

    def __init__(
        self, heads: str = "constant", fold: str = "product", unfold: str = "divided", mask: str = ""
    ) -> None:
        self.heads, self.fold, self.unfold, self.mask = heads, fold, unfold, mask
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def op(self, op: str, inputs: Sequence[str], **attrs: object) -> str:
        out = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=out, **attrs))
        return out

    def const(self, *value: int) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = np.array(value, np.int64)
        return name

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (self.rng.standard_normal(shape) * 0.5).astype(np.float32)
        return name

    def size(self, x: str, axis: int) -> str:
        """One entry of a shape, as a list of one."""
        return self.op("Gather", [self.op("Shape", [x]), self.const(axis)], axis=0)

    def target(self, *parts: str) -> str:
        return self.op("Concat", parts, axis=0)

    def fold_in(self, x: str) -> str:
        y = self.op("Add", [self.op("MatMul", [x, self.weight(16, 16)]), self.weight(16)])
        count = self.const(4)
        if self.heads == "divided":
            count = self.op("Div", [self.size(y, 2), self.const(4)])
        split = self.op("Reshape", [y, self.target(self.size(y, 0), self.size(y, 1), count, self.const(4))])
        turned = self.op("Transpose", [split], perm=[0, 2, 1, 3])
        folded = self.const(-1) if self.fold == "rest" else self.op("Mul", [self.size(y, 0), self.const(4)])
        return self.op("Reshape", [turned, self.target(folded, self.size(y, 1), self.const(4))])

    def batch_of(self, folded: str) -> str:
        if self.unfold == "rest":
            return self.const(-1)
        if self.unfold == "shape":
            return self.size("x", 0)
        whole = self.size(folded, 0)
        if self.unfold == "divided":
            return self.op("Div", [whole, self.const(4)])
        self.weights.setdefault("four", np.array([4], np.float32))
        share = self.op("Div", [self.op("Cast", [whole], to=FLOAT), "four"])
        return self.op("Cast", [self.op("Floor", [share])], to=INT64)

    def masked(self, scores: str, folded: str) -> str:
        if self.mask == "expand":
            wide = self.op("Unsqueeze", ["mask", self.const(1, 2)])
            b, t = self.size("mask", 0), self.size("mask", 1)
            wide = self.op("Expand", [wide, self.target(b, self.const(4), self.const(1), t)])
            many = self.op("Mul", [b, self.const(4)])
            spread = self.op("Reshape", [wide, self.target(many, self.const(1), t)])
        else:  # a table of one entry for each head, repeated for each sample
            table = self.weight(4, 1, 1)
            times = self.op("Div", [self.size(folded, 0), self.const(4)])
            spread = self.op("Tile", [table, self.target(times, self.const(1, 1))])
        return self.op("Add", [scores, spread])

    def model(self, batch: int | str = "b", length: int | str = "t") -> onnx.ModelProto:
        q, k, v = (self.fold_in("x") for _ in range(3))
        scores = self.op("MatMul", [q, self.op("Transpose", [k], perm=[0, 2, 1])])
        if self.mask:
            scores = self.masked(scores, scores)
        z = self.op("MatMul", [self.op("Softmax", [scores], axis=-1), v])
        t = self.size(z, 1)
        b = self.batch_of(z)
        split = self.op("Reshape", [z, self.target(b, self.const(4), t, self.const(4))])
        width = self.op("Mul", [self.size(z, 2), self.const(4)])
        turned = self.op("Transpose", [split], perm=[0, 2, 1, 3])
        joined = self.op("Reshape", [turned, self.target(self.batch_of(z), t, width)])
        last = self.op("MatMul", [joined, self.weight(16, 16)])
        self.nodes[-1].output[0] = "y"
        assert last
        given = [helper.make_tensor_value_info("x", FLOAT, [batch, length, 16])]
        if self.mask == "expand":
            given.append(helper.make_tensor_value_info("mask", FLOAT, [batch, length]))
        graph = helper.make_graph(
            self.nodes,
            "graph",
            given,
            [helper.make_tensor_value_info("y", FLOAT, [batch, length, 16])],
            [numpy_helper.from_array(a, n) for n, a in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model
