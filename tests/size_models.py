"""Graphs in which a constant is picked, sliced, counted or compared by what follows from the sizes of the inputs.

Each is written as exporters write it, and has a table ``pos`` of which one axis must stay whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

from small_models import Builder  # isort: skip

INTEGER = TensorProto.INT64


class Sized(Builder):
    """A builder with the idioms of shape arithmetic."""

    def __init__(self) -> None:
        super().__init__(3)
        self.count = 0

    def do(self, op: str, *inputs: str | int | list, **attrs: object) -> str:
        """Add a node; numbers and lists among its inputs are integer constants."""
        self.count += 1
        names = [i if isinstance(i, str) else self.number(i) for i in inputs]
        return self.op(op, names, f"{op}_{self.count}", **attrs)

    def number(self, value: int | list) -> str:
        self.count += 1
        return self.constant(f"c{self.count}", np.array(value, np.int64))

    def size(self, x: str, axis: int) -> str:
        """Size of an axis, as a scalar."""
        return self.do("Gather", self.do("Shape", x), axis)

    def sizes(self, x: str, axis: int) -> str:
        """Size of an axis, as a vector of one."""
        return self.do("Gather", self.do("Shape", x), [axis])

    def table(self, *shape: int) -> str:
        return self.weight("pos", *shape)

    def steps(self, x: str = "x", axis: int = 1) -> str:
        """The numbers of the positions."""
        return self.do("Range", 0, self.size(x, axis), 1)

    def floats(self, x: str) -> str:
        return self.do("Cast", x, to=TensorProto.FLOAT)

    def heads(self, h: str, name: str, count: int = 4, width: int = 8) -> str:
        """Project to heads: (batch, heads, time, width), with a target that is computed."""
        y = self.op("MatMul", [h, self.weight(name, 32, count * width)], f"{name}_matmul")
        target = self.do("Concat", self.sizes(y, 0), self.sizes(y, 1), [count], [width], axis=0)
        return self.do("Transpose", self.do("Reshape", y, target), perm=[0, 2, 1, 3])

    def attend(self, h: str, change: Callable[[str], str], rotate: Callable[[str], str] = str) -> str:
        """Attention with something done to the scores, and to queries and keys."""
        q, k, v = (self.heads(h, name) for name in ("wq", "wk", "wv"))
        scores = self.do("MatMul", rotate(q), self.do("Transpose", rotate(k), perm=[0, 1, 3, 2]))
        y = self.do("MatMul", self.do("Softmax", change(scores), axis=-1), v)
        y = self.do("Transpose", y, perm=[0, 2, 1, 3])
        y = self.do("Reshape", y, self.do("Concat", self.sizes(y, 0), self.sizes(y, 1), [-1], axis=0))
        return self.do("Add", h, self.do("MatMul", y, self.weight("wo", 32, 32)))


@dataclass
class Case:
    """A model, the axis of its table that must stay, the sizes it is analysed with, and others that it runs with."""

    build: Callable[[Sized, str], str]
    axis: int = 0
    at: tuple[int, int] = (2, 12)
    runs: tuple[tuple[int, int], ...] = ((1, 5), (3, 13), (2, 20), (1, 37), (2, 64))
    inputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    cut: frozenset[tuple[str, int]] = frozenset({("w0", 1), ("w1", 1)})  # what is cut as ever

    def model(self, time: int | str = "T") -> onnx.ModelProto:
        """The table's part in the middle, two layers around it."""
        b = Sized()
        h = b.op("MatMul", ["x", b.weight("w0", 16, 32)], "first")
        h = self.build(b, h)
        h = b.do("Relu", b.op("MatMul", [h, b.weight("w1", 32, 64)], "second"))
        return b.model(
            {"x": ("N", time, 16), **self.inputs}, b.op("MatMul", [h, b.weight("w2", 64, 5)], "last")
        )


def _sliced(b: Sized, h: str) -> str:
    return b.do("Add", h, b.do("Slice", b.table(1, 64, 32), [0], b.sizes("x", 1), [1]))


def _range(b: Sized, h: str) -> str:
    return b.do("Add", h, b.do("Gather", b.table(64, 32), b.steps()))


def _range_of_vectors(b: Sized, h: str) -> str:
    """Bounds are vectors of one number, which runtimes take for scalars."""
    ids = b.do("Sub", 63, b.do("Range", [0], b.sizes("x", 1), [1]))
    return b.do("Add", h, b.do("Gather", b.table(64, 32), ids))


def _position_ids(b: Sized, h: str) -> str:
    ids = b.do("Slice", b.constant("ids", np.arange(64)[None]), [0], b.sizes("x", 1), [1], [1])
    return b.do("Add", h, b.do("Gather", b.table(64, 32), ids))


def _offset(b: Sized, h: str) -> str:
    past = b.size("past", 1)
    ids = b.do("Range", past, b.do("Add", past, b.size("x", 1)), 1)
    return b.do("Add", h, b.do("Gather", b.table(96, 32), ids))


def _window(b: Sized, h: str) -> str:
    past = b.sizes("past", 1)
    end = b.do("Add", past, b.sizes("x", 1))
    return b.do("Add", h, b.do("Slice", b.table(96, 32), past, end, [0]))


def _from_the_end(b: Sized, h: str) -> str:
    return b.do("Add", h, b.do("Slice", b.table(64, 32), b.do("Sub", [64], b.sizes("x", 1)), [64], [0]))


def _negative(b: Sized, h: str) -> str:
    return b.do("Add", h, b.do("Gather", b.table(64, 32), b.do("Sub", b.steps(), b.size("x", 1))))


def _last(b: Sized, h: str) -> str:
    return b.do("Add", h, b.do("Gather", b.table(64, 32), b.do("Sub", b.size("x", 1), 1)))


def _clamped(b: Sized, h: str) -> str:
    return b.do("Add", h, b.do("Gather", b.table(16, 32), b.do("Min", b.steps(), 15)))


def _causal(b: Sized, h: str) -> str:
    """The buffer of GPT-2: ``bias[:, :, ns - nd : ns, :ns]``."""
    b.constant("pos", np.tril(np.ones((1, 1, 64, 64), np.float32)) + 0.5)

    def change(scores: str) -> str:
        rows, columns = b.sizes(scores, 2), b.sizes(scores, 3)
        mask = b.do("Slice", "pos", b.do("Sub", columns, rows), columns, [2])
        return b.do("Mul", scores, b.do("Slice", mask, [0], columns, [3]))

    return b.attend(h, change)


def _buckets(b: Sized, h: str) -> str:
    """Relative positions, clipped, picked from a table, as in T5 and Swin."""
    table = b.table(15, 4)

    def change(scores: str) -> str:
        steps = b.steps()
        apart = b.do("Sub", b.do("Unsqueeze", steps, [0]), b.do("Unsqueeze", steps, [1]))
        bucket = b.do("Add", b.do("Min", b.do("Max", apart, -7), 7), 7)
        return b.do("Add", scores, b.do("Transpose", b.do("Gather", table, bucket), perm=[2, 0, 1]))

    return b.attend(h, change)


def _alibi(b: Sized, h: str) -> str:
    """Slopes of heads times distances; the heads are free, the table here is one of distances."""
    table = b.table(64)

    def change(scores: str) -> str:
        far = b.do("Slice", table, [0], b.sizes(scores, 3), [0])
        slopes = b.weight("slopes", 4, 1, 1)
        return b.do("Add", scores, b.do("Mul", slopes, b.do("Unsqueeze", far, [0])))

    return b.attend(h, change)


def _rotary(b: Sized, h: str) -> str:
    """Caches of cosines and sines, sliced; heads turned by halves."""
    cos, sin = b.table(64, 8), b.weight("sin", 64, 8)

    def rotate(x: str) -> str:
        one = b.do("Slice", x, [0], [4], [3])
        two = b.do("Slice", x, [4], [2**31 - 1], [3])
        turned = b.do("Concat", b.do("Neg", two), one, axis=-1)
        c, s = (b.do("Slice", t, [0], b.sizes(x, 2), [0]) for t in (cos, sin))
        return b.do("Add", b.do("Mul", x, c), b.do("Mul", turned, s))

    return b.attend(h, str, rotate)


def _class_token(b: Sized, h: str) -> str:
    """A token for each image in front, positions for all, and away with it again."""
    target = b.do("Concat", b.sizes("x", 0), [-1], [-1], axis=0)
    ones = b.do("ConstantOfShape", b.do("Shape", target), value=helper.make_tensor("v", INTEGER, [1], [1]))
    minus = b.do("Equal", target, b.do("Mul", ones, -1))
    token = b.do("Expand", b.weight("token", 1, 1, 32), b.do("Where", minus, ones, target))
    h = b.do("Concat", token, h, axis=1)
    h = b.do("Add", h, b.do("Slice", b.table(1, 65, 32), [0], b.sizes(h, 1), [1]))
    return b.do("Slice", h, [1], [2**63 - 1], [1])


def _scattered(b: Sized, h: str) -> str:
    index = b.do("Unsqueeze", b.steps(), [1])
    zeros = b.do("ConstantOfShape", b.do("Concat", b.sizes("x", 1), [32], axis=0))
    return b.do("Add", h, b.do("ScatterND", zeros, index, b.do("Gather", b.table(64, 32), b.steps())))


def _gathered(b: Sized, h: str) -> str:
    return b.do("Add", h, b.do("GatherND", b.table(64, 32), b.do("Unsqueeze", b.steps(), [1])))


def _padded(b: Sized, h: str) -> str:
    """A table padded, or cropped, to the length."""
    more = b.do("Sub", b.sizes("x", 1), [12])
    return b.do("Add", h, b.do("Pad", b.table(12, 32), b.do("Concat", [0, 0], more, [0], axis=0)))


def _tiled(b: Sized, h: str) -> str:
    times = b.do("Div", b.do("Add", b.sizes("x", 1), [11]), [12])
    many = b.do("Tile", b.table(12, 32), b.do("Concat", times, [1], axis=0))
    return b.do("Add", h, b.do("Slice", many, [0], b.sizes("x", 1), [0]))


def _one_hot(b: Sized, h: str) -> str:
    values = b.constant("values", np.array([0, 1], np.float32))
    return b.do("Add", h, b.do("MatMul", b.do("OneHot", b.steps(), 64, values), b.table(64, 32)))


def _compared(b: Sized, h: str) -> str:
    """One row of a product with a mask over all rows: nothing is sliced, all is compared."""
    last = b.do("Equal", b.constant("numbers", np.arange(64)), b.do("Sub", b.size("x", 1), 1))
    return b.do("Add", h, b.do("MatMul", b.floats(last), b.table(64, 32)))


def _compressed(b: Sized, h: str) -> str:
    keep = b.do("Less", b.constant("numbers", np.arange(64)), b.size("x", 1))
    return b.do("Add", h, b.do("Compress", b.table(64, 32), keep, axis=0))


def _where(b: Sized, h: str) -> str:
    keep = b.do("Less", b.constant("numbers", np.arange(64)[:, None]), b.do("Div", b.size("x", 1), 2))
    rows = b.do("Where", keep, b.table(64, 32), b.constant("zero", np.zeros((), np.float32)))
    return b.do("Add", h, b.do("Slice", rows, [0], b.sizes("x", 1), [0]))


def _triangle(b: Sized, h: str) -> str:
    """A lower triangle of a constant mixes the positions."""
    size = b.sizes("x", 1)
    part = b.do(
        "Slice", b.do("Trilu", b.table(64, 64), upper=0), [0, 0], b.do("Concat", size, size, axis=0), [0, 1]
    )
    return b.do("MatMul", part, h)


def _summed(b: Sized, h: str) -> str:
    """Positions as running sums of ones."""
    one = helper.make_tensor("v", INTEGER, [1], [1])
    ids = b.do("CumSum", b.do("ConstantOfShape", b.sizes("x", 1), value=one), 0, exclusive=1)
    return b.do("Add", h, b.do("Gather", b.table(64, 32), ids))


def _nonzero(b: Sized, h: str) -> str:
    one = helper.make_tensor("v", INTEGER, [1], [1])
    ids = b.do("NonZero", b.do("ConstantOfShape", b.sizes("x", 1), value=one))
    return b.do("Add", h, b.do("GatherND", b.table(64, 32), b.do("Transpose", ids)))


def _split(b: Sized, h: str) -> str:
    size = b.sizes("x", 1)
    parts = ["first", "rest"]
    sizes = b.do("Concat", size, b.do("Sub", [64], size), axis=0)
    b.nodes.append(helper.make_node("Split", [b.table(64, 32), sizes], parts, name="split", axis=0))
    return b.do("Add", h, "first")


def _best(b: Sized, h: str) -> str:
    """The highest of constant scores."""
    b.nodes.append(
        helper.make_node("TopK", [b.weight("scores", 64), b.sizes("x", 1)], ["high", "at"], name="top")
    )
    return b.do("Add", h, b.do("Gather", b.table(64, 32), "at"))


def _strided(b: Sized, h: str) -> str:
    step = b.do("Div", [64], b.sizes("x", 1))
    return b.do("Add", h, b.do("Slice", b.table(64, 32), [0], [64], [0], step))


def _folded(b: Sized, h: str) -> str:
    """A table seen as rows of the length, summed."""
    seen = b.do("Reshape", b.table(64, 32), b.do("Concat", [-1], b.sizes("x", 1), [32], axis=0))
    return b.do("Add", h, b.do("ReduceSum", seen, [0], keepdims=0))


def _branch(b: Sized, h: str) -> str:
    """A branch by the length, in which the table is sliced."""
    b.table(64, 32)
    size = b.sizes("x", 1)
    end = helper.make_node("Slice", ["pos", "zero_at", size], ["short"])
    other = helper.make_node("Slice", ["pos", "zero_at", size], ["cut"])
    b.constant("zero_at", np.array([0]))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("short", "long")]
    then = helper.make_graph([end], "then", [], info[:1])
    orelse = helper.make_graph([other, helper.make_node("Neg", ["cut"], ["long"])], "else", [], info[1:])
    return b.do("Add", h, b.do("If", b.do("Less", b.size("x", 1), 16), then_branch=then, else_branch=orelse))


def _buffer(b: Sized, h: str) -> str:
    """Token types from a buffer, picked by a buffer of positions, as BERT is exported."""
    ids = b.do("Slice", b.constant("ids", np.arange(64)[None]), [0], b.sizes("x", 1), [1], [1])
    types = b.do("GatherElements", b.constant("kinds", np.arange(64)[None] % 7), ids, axis=1)
    return b.do("Add", h, b.do("Gather", b.table(7, 32), types))


def _batch(b: Sized, h: str) -> str:
    """Four rows against a batch: an axis that has one element under these sizes only."""
    return b.do("Add", h, b.table(4, 1, 32))


def _chunks(b: Sized, h: str) -> str:
    """Padded to whole windows of eight, with a table for the places in a window."""
    size = b.sizes("x", 1)
    more = b.do("Mod", b.do("Sub", [8], b.do("Mod", size, [8])), [8])
    wide = b.do("Pad", h, b.do("Concat", [0, 0, 0, 0], more, [0], axis=0))
    seen = b.do("Reshape", wide, b.do("Concat", b.sizes("x", 0), [-1], [8], [32], axis=0))
    back = b.do(
        "Reshape", b.do("Add", seen, b.table(8, 32)), b.do("Concat", b.sizes("x", 0), [-1], [32], axis=0)
    )
    return b.do("Slice", back, [0], size, [1])


def _folded_heads(perm: list[int]) -> Callable[[Sized, str], str]:
    """Attention with batch and heads in one axis, either of them outside."""

    def build(b: Sized, h: str) -> str:
        inside = perm == [0, 2, 1, 3]  # heads inside of the batch

        def fold(name: str) -> str:
            y = b.op("MatMul", [h, b.weight(name, 32, 32)], f"{name}_matmul")
            y = b.do("Reshape", y, b.do("Concat", b.sizes("x", 0), b.sizes("x", 1), [4], [8], axis=0))
            return b.do(
                "Reshape", b.do("Transpose", y, perm=perm), b.do("Concat", [-1], b.sizes("x", 1), [8], axis=0)
            )

        q, k, v = (fold(name) for name in ("wq", "wk", "wv"))
        scores = b.do("MatMul", q, b.do("Transpose", k, perm=[0, 2, 1]))
        y = b.do("MatMul", b.do("Softmax", scores, axis=-1), v)
        parts = ([-1], [4]) if inside else ([4], [-1])
        y = b.do("Reshape", y, b.do("Concat", *parts, b.sizes("x", 1), [8], axis=0))
        y = b.do("Transpose", y, perm=perm if inside else [1, 2, 0, 3])
        y = b.do("Reshape", y, b.do("Concat", b.sizes("x", 0), b.sizes("x", 1), [32], axis=0))
        y = b.do("MatMul", y, b.weight("wo", 32, 32))
        return b.do("Add", b.do("Add", h, y), b.do("Slice", b.table(64, 32), [0], b.sizes("x", 1), [0]))

    return build


HEADS = frozenset({("w0", 1), ("w1", 1), ("wq", 1), ("wv", 1)})
CASES: dict[str, Case] = {
    "heads in batch": Case(_folded_heads([0, 2, 1, 3]), cut=HEADS),
    "heads in a batch of one": Case(
        _folded_heads([0, 2, 1, 3]), at=(1, 12), runs=((2, 5), (3, 40)), cut=HEADS
    ),
    "batch in heads": Case(_folded_heads([2, 0, 1, 3]), cut=HEADS),
    "batch of one in heads": Case(_folded_heads([2, 0, 1, 3]), at=(1, 12), runs=((2, 5), (3, 40))),
    "sliced": Case(_sliced, axis=1),
    "range": Case(_range),
    "range of vectors": Case(_range_of_vectors),
    "position ids": Case(_position_ids),
    "offset": Case(_offset, inputs={"past": ("N", "P")}),
    "window": Case(_window, inputs={"past": ("N", "P")}),
    "from the end": Case(_from_the_end),
    "negative": Case(_negative),
    "last": Case(_last),
    "clamped": Case(_clamped),
    "causal": Case(_causal, axis=2),
    "buckets": Case(_buckets, at=(2, 4)),
    "alibi": Case(_alibi),
    "rotary": Case(_rotary),
    "class token": Case(_class_token, axis=1),
    "scattered": Case(_scattered),
    "gathered": Case(_gathered),
    "padded": Case(_padded),
    "tiled": Case(_tiled),
    "one hot": Case(_one_hot),
    "compared": Case(_compared),
    "compressed": Case(_compressed),
    "where": Case(_where),
    "triangle": Case(_triangle),
    "summed": Case(_summed),
    "nonzero": Case(_nonzero),
    "split": Case(_split),
    "best": Case(_best),
    "strided": Case(_strided, at=(2, 16), runs=((1, 8), (3, 32), (2, 64), (1, 4))),
    "folded": Case(_folded, at=(2, 16), runs=((1, 8), (3, 32), (2, 64), (1, 4))),
    "branch": Case(_branch, cut=frozenset({("w1", 1)})),
    "buffer": Case(_buffer, at=(2, 4)),
    "batch": Case(_batch, at=(1, 12), runs=((4, 12), (1, 5), (4, 64), (4, 30))),
    "chunks": Case(_chunks),
}
