"""Law 2 on generated shapes and attributes."""

from __future__ import annotations

import os
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper

from .engine import law

#: Generated nodes of each kind.
EXAMPLES = int(os.environ.get("ONNXPRUNE_EXAMPLES", "25"))
FEW = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES <= 25
)  # fmt: skip
RNG = np.random.default_rng(11)
SIZES = st.integers(1, 6)
SHAPES = st.lists(SIZES, min_size=1, max_size=4)

Draw = st.DrawFn
Sample = tuple[NodeProto, dict[str, Any]]


def f(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def ints(values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def node(op: str, *inputs: Any, outputs: int = 1, **attrs: Any) -> Sample:
    named = {f"i{n}": array for n, array in enumerate(inputs)}
    return helper.make_node(op, list(named), [f"o{n}" for n in range(outputs)], **attrs), named


@st.composite
def elementwise(draw: Draw) -> Sample:
    whole = draw(SHAPES)

    def side() -> list[int]:
        shape = [draw(st.sampled_from([size, size, 1])) for size in whole]
        return shape[draw(st.integers(0, len(shape))) :]

    count = draw(st.integers(2, 3))
    return node("Add" if count == 2 else "Sum", *(f(*side()) for _ in range(count)))


@st.composite
def reshape(draw: Draw) -> Sample:
    """Merge, split and insert axes of length 1; also ones without a common factor."""
    old = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    new: list[int] = []
    for size in old:
        if new and draw(st.booleans()):
            new[-1] *= size
        elif size in (4, 6) and draw(st.booleans()):
            new += [2, size // 2]
        else:
            new += [size] + [1] * draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        new = list(draw(st.permutations(new)))
    target = list(new)
    if draw(st.booleans()):
        target[draw(st.integers(0, len(target) - 1))] = -1
    zero = draw(st.integers(0, len(target) - 1))
    if zero < len(old) and old[zero] == new[zero] and target[zero] != -1:
        target[zero] = 0
    return node("Reshape", f(*old), ints(target))


@st.composite
def sliced(draw: Draw) -> Sample:
    shape = draw(SHAPES)
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=2, unique=True))
    starts = [draw(st.integers(-8, 8)) for _ in axes]
    ends = [draw(st.sampled_from([-3, -1, 2, 4, 2**62])) for _ in axes]
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1])) for _ in axes]
    for start, end, step, axis in zip(starts, ends, steps, axes, strict=True):
        assume(len(range(*slice(start, end, step).indices(shape[axis]))) > 0)
    named = [a - len(shape) * draw(st.booleans()) for a in axes]
    return node("Slice", f(*shape), ints(starts), ints(ends), ints(named), ints(steps))


@st.composite
def padded(draw: Draw) -> Sample:
    shape = draw(SHAPES)
    pads = [draw(st.integers(-1, 2)) for _ in range(2 * len(shape))]
    assume(all(size + a + b > 0 for size, a, b in zip(shape, pads, pads[len(shape) :], strict=False)))
    return node("Pad", f(*shape), ints(pads), mode="constant")


@st.composite
def gathered(draw: Draw) -> Sample:
    shape = draw(SHAPES)
    axis = draw(st.integers(0, len(shape) - 1))
    size = shape[axis]
    entries = st.integers(-size, size - 1)
    index = draw(st.one_of(entries, st.lists(entries, min_size=1, max_size=6)))
    return node("Gather", f(*shape), ints(index), axis=axis)


@st.composite
def split(draw: Draw) -> Sample:
    shape = draw(SHAPES)
    axis = draw(st.integers(0, len(shape) - 1))
    parts = draw(st.lists(SIZES, min_size=1, max_size=4))
    shape[axis] = sum(parts)
    return node("Split", f(*shape), ints(parts), axis=axis, outputs=len(parts))


@st.composite
def concat(draw: Draw) -> Sample:
    shape = draw(SHAPES)
    axis = draw(st.integers(0, len(shape) - 1))
    parts = draw(st.lists(SIZES, min_size=1, max_size=4))
    return node("Concat", *(f(*shape[:axis], n, *shape[axis + 1 :]) for n in parts), axis=axis)


@st.composite
def conv(draw: Draw) -> Sample:
    g, i, o, n, rank = (draw(st.integers(1, top)) for top in (4, 3, 3, 2, 3))
    op = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    weight = (g * o, i) if op == "Conv" else (g * i, o)
    inputs = [f(n, g * i, *[5] * rank), f(*weight, *[draw(st.integers(1, 3))] * rank)]
    inputs += [f(g * o)] * draw(st.booleans())
    return node(op, *inputs, group=g, strides=[draw(st.integers(1, 2))] * rank)


@st.composite
def matmul(draw: Draw) -> Sample:
    m, k, n = draw(SIZES), draw(SIZES), draw(SIZES)
    batch = draw(st.lists(SIZES, max_size=2))
    left = [draw(st.sampled_from([size, 1])) for size in batch][draw(st.integers(0, len(batch))) :]
    a = f(k) if draw(st.integers(0, 4)) == 0 else f(*left, m, k)
    b = f(k) if draw(st.integers(0, 4)) == 0 else f(*batch, k, n)
    return node("MatMul", a, b)


@st.composite
def einsum(draw: Draw) -> Sample:
    letters = "abcde"
    sizes = {letter: draw(SIZES) for letter in letters}
    count = draw(st.integers(1, 2))
    terms = [
        "".join(draw(st.lists(st.sampled_from(letters), min_size=1, max_size=3, unique=True)))
        for _ in range(count)
    ]
    result = "".join(
        letter for letter in draw(st.permutations(sorted(set("".join(terms))))) if draw(st.booleans())
    )
    return node(
        "Einsum", *(f(*(sizes[c] for c in t)) for t in terms), equation=f"{','.join(terms)}->{result}"
    )


@st.composite
def reduced(draw: Draw) -> Sample:
    shape = draw(SHAPES)
    axes = draw(
        st.lists(st.integers(-len(shape), len(shape) - 1), max_size=2, unique_by=lambda a: a % len(shape))
    )
    ops = [
        "ReduceSum",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceMean",
        "ReduceMax",
        "ReduceProd",
        "ReduceLogSumExp",
    ]
    attrs = {"keepdims": draw(st.integers(0, 1)), "noop_with_empty_axes": draw(st.integers(0, 1))}
    return node(draw(st.sampled_from(ops)), f(*shape), ints(axes), **attrs)


@st.composite
def depth_to_space(draw: Draw) -> Sample:
    n, c, h, w, block = (draw(st.integers(1, top)) for top in (2, 4, 3, 3, 3))
    if draw(st.booleans()):
        mode = draw(st.sampled_from(["DCR", "CRD"]))
        return node("DepthToSpace", f(n, c * block * block, h, w), blocksize=block, mode=mode)
    return node("SpaceToDepth", f(n, c, h * block, w * block), blocksize=block)


@st.composite
def transposed(draw: Draw) -> Sample:
    shape = draw(SHAPES)
    return node("Transpose", f(*shape), perm=list(draw(st.permutations(range(len(shape))))))


@st.composite
def expanded(draw: Draw) -> Sample:
    whole = draw(SHAPES)
    shape = [draw(st.sampled_from([size, 1])) for size in whole][draw(st.integers(0, len(whole))) :]
    target = [draw(st.sampled_from([size, 1])) if size == own else size
              for size, own in zip(whole, [1] * (len(whole) - len(shape)) + shape, strict=True)]  # fmt: skip
    return node("Expand", f(*shape), ints(target))


@st.composite
def tiled(draw: Draw) -> Sample:
    shape = draw(SHAPES)
    return node("Tile", f(*shape), ints([draw(st.integers(1, 3)) for _ in shape]))


KINDS = {
    "elementwise": elementwise(), "reshape": reshape(), "slice": sliced(), "pad": padded(), "gather": gathered(),
    "split": split(), "concat": concat(), "conv": conv(), "matmul": matmul(), "einsum": einsum(), "reduce": reduced(),
    "depth": depth_to_space(), "transpose": transposed(), "expand": expanded(), "tile": tiled(),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_law_2_on_generated_shapes(kind: str) -> None:
    cuts = 0

    @FEW
    @given(KINDS[kind], st.integers(0, 99))
    def check(sample: Sample, seed: int) -> None:
        nonlocal cuts
        proto, inputs = sample
        assume(prod(array.size for array in inputs.values()) > 0)
        found = law(proto, inputs, cuts=4, seed=seed)
        assert found.violations == []
        cuts += found.cuts

    check()
    assert cuts >= EXAMPLES // 2, "the shapes are too small to be cut"
