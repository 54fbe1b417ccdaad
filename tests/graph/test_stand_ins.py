"""What is said to be the same for all sizes is the same: random shape arithmetic, traced at many sizes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune import Model
from onnxprune.graph.analysis import _tracer, weights_of
from onnxprune.graph.sizes import Sizes
from onnxprune.graph.trace import TraceError, Tracer
from onnxprune.ops import Node, Row, lookup
from onnxprune.runtime.binding import declared, real_inputs

from size_models import CASES, Sized  # isort: skip

SIZES = [(1, 1, 1), (1, 2, 3), (3, 5, 2), (2, 12, 7), (1, 16, 9), (4, 20, 5), (2, 33, 12), (5, 64, 8), (1, 96, 30),
         (2, 7, 64)]  # fmt: skip

SEEDS = 60


class Random(Sized):
    """Grows a graph from sizes: numbers, vectors of sizes, and tensors whose lengths follow from them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.pick = np.random.default_rng(seed)
        h = self.op("MatMul", ["x", self.weight("w", 16, 32)], "h")
        self.numbers = [
            self.size("x", 0),
            self.size("x", 1),
            self.size("y", 1),
            self.size(h, 2),
            self.number(3),
        ]
        self.tensors: list[tuple[str, int]] = [(h, 3), (self.weight("table", 64, 32), 2), ("y", 2)]

    def one(self) -> str:
        return str(self.pick.choice(self.numbers))

    def some(self) -> tuple[str, int]:
        return self.tensors[int(self.pick.integers(len(self.tensors)))]

    def vector(self, *numbers: str) -> str:
        return self.do("Concat", *(self.do("Unsqueeze", n, [0]) for n in numbers), axis=0)

    def arithmetic(self) -> None:
        a, b = self.one(), self.one()
        kind = int(self.pick.integers(11))
        if kind > 7:  # bounded below, above, or at both ends
            ends = ((b, ""), ("", b), (b, self.one()))[kind - 8]
            self.numbers.append(self.do("Clip", a, *ends))
        elif kind < 6:
            op = ("Add", "Sub", "Mul", "Min", "Max", "Div")[kind]
            b = self.do("Max", b, 1) if op == "Div" else b
            self.numbers.append(self.do(op, a, b))
        elif kind == 6:
            self.numbers.append(self.do("Where", self.do("Less", a, b), a, self.one()))
        else:
            wide = self.do(
                "Floor", self.do("Mul", self.floats(a), self.constant(f"f{self.count}", np.float32(0.5)))
            )
            self.numbers.append(self.do("Cast", wide, to=TensorProto.INT64))

    def move(self) -> None:
        x, rank = self.some()
        axis = int(self.pick.integers(rank))
        small = self.do("Min", self.do("Max", self.one(), 0), 40)
        ones = [self.number(1)] * rank
        kind = int(self.pick.integers(9))
        if kind == 0:
            x = self.do("Slice", x, self.vector(self.one()), self.vector(self.one()), [axis])
        elif kind == 1:
            x = self.do("Slice", x, [1], [2**62], [axis], self.vector(self.do("Max", self.one(), 1)))
        elif kind == 2:
            x = self.do("Gather", x, self.do("Range", 0, small, 1), axis=axis)
        elif kind == 3:
            pads = [self.number(0)] * (2 * rank)
            pads[axis] = small
            x = self.do("Pad", x, self.vector(*pads))
        elif kind == 4:
            ones[axis] = small
            x = self.do("Tile", x, self.vector(*ones))
        elif kind == 5:
            x = self.do("Concat", x, x, axis=axis)
        elif kind == 6:
            x, rank = self.do("ConstantOfShape", self.vector(small, self.one())), 2
        elif kind == 7:
            x, rank = self.do("Reshape", x, self.vector(self.number(-1), self.one())), 2
        else:
            x, rank = self.do("Expand", self.do("Slice", x, [0], [1], [axis]), self.vector(*ones[:axis], self.one(),
                              *ones[axis + 1 :])), rank  # fmt: skip
        self.tensors.append((x, rank))
        self.numbers.append(self.size(x, int(self.pick.integers(rank))))

    def grown(self) -> onnx.ModelProto:
        for step in range(14):
            (self.move if step % 2 else self.arithmetic)()
        model = self.model({"x": ("N", "T", 16), "y": ("N", "P")}, self.tensors[-1][0])
        del model.graph.output[:]
        model.graph.output.extend(
            helper.make_tensor_value_info(t, TensorProto.FLOAT, None) for t, _ in self.tensors[3:]
        )
        return model


def traced(model: Model, shapes: dict[str, tuple[int, ...]]) -> tuple[Tracer, list[Node]]:
    tracer = _tracer(model, weights_of(model), shapes, {})
    return tracer, [tracer.visit(model.proto.graph.node[i]) for i in model.order]


def derived(model: Model, shapes: dict[str, tuple[int, ...]]) -> Sizes:
    tracer, nodes = traced(model, shapes)
    found = Sizes(tracer)
    found.declare({v.name: declared(v) for v in real_inputs(model.proto.graph)})
    for node in nodes:
        row = lookup(node)
        found.visit(node, row if isinstance(row, Row) else None)
    return found


def lies(sizes: Sizes, other: Tracer) -> list[str]:
    """Names of tensors of which a length or an entry is said to be fixed, and isn't."""
    found = []
    for name, (_, shape) in other.types.items():
        traced, numbers = sizes.shape(name), sizes.length(name)
        if shape is not None and traced is not None and numbers is not None:
            fixed = [s for s, m, n in zip(shape, traced, numbers, strict=True) if n == m and s != m]
            found += [name] * bool(fixed)
    for name, value in other.values.items():
        known = sizes.tracer.values.get(name)
        if known is None:
            continue
        if known.shape != value.shape:
            found += [name] * (not sizes.stretches(name))
        elif ((known != value) & ~sizes.moving(name).reshape(known.shape)).any():
            found.append(name)
    return found


def checked(model: Model, sizes: Sizes) -> int:
    """Trace at other sizes, see that nothing fixed changes, and return how many could be traced."""
    runs = 0
    for batch, time, past in SIZES:
        own = {"N": batch, "T": time, "P": past}
        shapes = {v.name: tuple(d.dim_value or own[d.dim_param] for d in v.type.tensor_type.shape.dim)
                  for v in model.proto.graph.input}  # fmt: skip
        try:
            other, _ = traced(model, shapes)
        except TraceError:
            continue
        assert not lies(sizes, other)
        runs += 1
    return runs


@pytest.mark.parametrize("name", CASES)
def test_what_is_fixed_is_fixed_in_models(name: str) -> None:
    case = CASES[name]
    model = Model.load(case.model())
    shapes = {"x": (*case.at, 16)} | ({"past": (case.at[0], 9)} if case.inputs else {})
    assert checked(model, derived(model, shapes)) > 1


def test_what_is_fixed_is_fixed_in_random_arithmetic() -> None:
    runs, fixed = 0, 0
    for seed in range(SEEDS):
        model = Model.load(Random(seed).grown())
        try:
            sizes = derived(model, {"x": (2, 12, 16), "y": (2, 7)})
        except TraceError:
            continue
        runs += checked(model, sizes)
        fixed += sum(sizes.fixed(n) for n in sizes.tracer.values if n not in sizes.tracer.weights)
    assert runs > SEEDS
    assert fixed > SEEDS


def test_the_check_finds_a_lie() -> None:
    model = Model.load(CASES["sliced"].model())
    sizes = derived(model, {"x": (2, 12, 16)})
    sizes.lengths.clear()
    assert lies(sizes, traced(model, {"x": (2, 20, 16)})[0])
