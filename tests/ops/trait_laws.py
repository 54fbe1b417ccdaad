"""The laws of traits, each over one node, what runs it and its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.ops import Refusal, lookup, moved
from onnxprune.ops.notation import letters_of
from onnxprune.ops.resolve import fit
from onnxprune.testing.node import node_of, run_node

Array = NDArray[Any]
Run = Callable[[Sequence[Array | None]], list[Array]]
#: None: it says nothing of these inputs; else whether it holds.
Law = Callable[[NodeProto, Run, list[Array | None]], bool | None]
RNG = np.random.default_rng(5)
START = RNG.bit_generator.state


def drawn(like: Array) -> Array:
    """Return other values of a type: those that are there, in another order, and a little besides."""
    mixed = RNG.permutation(like.ravel()).reshape(like.shape)
    if like.dtype.kind == "f":
        return (mixed + RNG.uniform(0.1, 0.2, like.shape)).astype(like.dtype)
    return np.asarray(np.logical_not(like) if like.dtype.kind == "b" else mixed)


def places(inputs: Sequence[Array | None], slot: int, mask: Array, shape: tuple[int, ...]) -> Array | None:
    """Return which elements of a broadcast result stand at the marked places of an input."""
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        return None


def each_alone(inputs: list[Array | None], run: Run, slots: Sequence[int]) -> bool | None:
    """Change some elements of inputs: only elements at their places may change."""
    before, seen = run(inputs)[0], False
    for slot in slots:
        array = inputs[slot]
        if array is None or array.size < 2 or array.dtype.kind not in "fiub":
            continue
        mask = RNG.random(array.shape) < 0.5
        where = places(inputs, slot, mask, before.shape)
        if where is None:
            return False
        after = run([np.where(mask, drawn(array), array) if n == slot else a for n, a in enumerate(inputs)])[
            0
        ]
        if after.shape != before.shape or not same(before[~where], after[~where]):
            return False
        seen |= not same(before, after)
    return True if seen else None


def same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def elementwise(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    return each_alone(inputs, run, range(len(inputs)))


def overwrites(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    out = run(inputs)[0]
    alike = [
        n for n, a in enumerate(inputs) if a is not None and (a.shape, a.dtype) == (out.shape, out.dtype)
    ]
    return each_alone(inputs, run, alike)


def view(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    x, y = inputs[0], run(inputs)[0]
    if x is None or x.dtype.kind not in "fiub" or x.size < 2:
        return None
    return x.tobytes() == y.tobytes()


def movement(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    slots = moved(node.op_type, len(inputs), node.domain) or range(1)
    if any(inputs[n] is None or inputs[n].dtype.kind not in "fiu" or not inputs[n].size for n in slots):  # type: ignore[union-attr]
        return None
    given, start = list(inputs), 1
    for n in slots:
        array = inputs[n]
        assert array is not None
        given[n] = (np.arange(array.size) + start).reshape(array.shape).astype(array.dtype)
        start += array.size
    read = np.concatenate([np.ravel(given[n]) for n in slots])  # type: ignore[arg-type]
    out = [y for y in run(given) if y.size]
    return all(bool(np.isin(y, read).all()) and y.dtype == read.dtype for y in out) if out else None


def repeats(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    x = inputs[0]
    if x is None or x.size < 2 or not run(inputs)[0].size:
        return None
    given = np.arange(x.size).reshape(x.shape).astype(x.dtype)
    return set(run([given, *inputs[1:]])[0].ravel().tolist()) == set(given.ravel().tolist())


def exact(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    opsets = {"": 24 if node.op_type == "Swish" else 21}
    try:
        one, other = (run_node(node, inputs, opsets, reference=reference) for reference in (False, True))
    except Exception:  # one of the two doesn't run it
        return None
    return all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(one, other, strict=True)
    )


def linear(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    x = inputs[0]
    if x is None or x.dtype not in (np.float32, np.float64) or border(node, inputs):
        return None
    a, b = (RNG.standard_normal(x.shape).astype(x.dtype) for _ in "ab")
    one, other, both = (run([v, *inputs[1:]])[0].astype(float) for v in (a, b, (a + 2 * b).astype(x.dtype)))
    return bool(np.allclose(one + 2 * other, both, rtol=1e-4, atol=1e-4)) if both.any() else None


def border(node: NodeProto, inputs: list[Array | None]) -> bool:
    """Whether anything but zeros is filled in."""
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    fill = inputs[2] if node.op_type == "Pad" and len(inputs) > 2 else None
    return bool(fill is not None and fill.any()) or bool(
        attrs.get("extrapolation_value") or attrs.get("value")
    )


def constant(number: float) -> Law:
    def law(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
        x = inputs[0]
        if x is None or x.dtype.kind not in "fi" or not x.size or (not number and border(node, inputs)):
            return None
        out = run([np.full_like(x, number), *inputs[1:]])[0]
        return bool(np.allclose(out, number, rtol=1e-3)) if out.size else None

    return law


def size(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    x = inputs[0]
    assert x is not None
    return None if x.size < 2 else same(run(inputs)[0], run([drawn(x)])[0])


def natural(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Whether nothing that it gives is below zero; what isn't a number, such as a root of -1, says nothing."""
    x = inputs[0]
    if x is None or x.dtype.kind != "f" or run(inputs)[0].dtype.kind != "f":
        return None
    both = np.concatenate(
        [run([v.astype(x.dtype), *inputs[1:]])[0].ravel() for v in (x, RNG.normal(0, 3, x.shape))]
    )
    return not (both < 0).any()


def jumps(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Whether a result jumps somewhere: between neighbours of a multiple of a quarter."""
    x = inputs[0]
    if x is None or x.dtype not in (np.float32, np.float64) or run(inputs)[0].dtype.kind != "f" or not x.ndim:
        return None
    found = False
    for at in np.arange(-3, 3.25, 0.25):
        near = RNG.choice([at - 1e-5, at + 1e-5], x.shape)
        one, other = (run([v.astype(x.dtype), *inputs[1:]])[0] for v in (near, 2 * at - near))
        small = np.isfinite(one) & np.isfinite(other) & (np.abs(one) < 100) & (np.abs(other) < 100)
        found |= bool((np.abs(one - other)[small] > 1e-2).any())
    return found


def by_data(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Whether other values of the same shapes give a result of another shape."""
    shapes = set()
    for share in (0.0, 0.3, 0.6, 1.0):
        other = [
            a
            if a is None or n > 1
            else (RNG.random(a.shape) < share).astype(a.dtype)
            if a.dtype.kind in "fiub"
            else a
            for n, a in enumerate(inputs)
        ]
        shapes.add(run(other)[0].shape)
    return len(shapes) > 1


def gemm(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """A letter of two operands is contracted: it is in no output."""
    seen = node_of(node, inputs, run(inputs), 21)
    row = lookup(seen)
    if isinstance(row, Refusal):
        return None
    fitted = fit(row, seen)
    out = {x.name for axes in fitted.outs for x in letters_of(*axes or ())}
    read = Counter(name for axes in fitted.ins for name in {x.name for x in letters_of(*axes or ())})
    return any(count > 1 and name not in out for name, count in read.items())


def choice(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Whether a millionth more at other places (of a condition: another one) gives quite another result."""
    given: list[list[Array]] = []
    for at in range(8):
        other = [
            a if a is None or a.dtype.kind not in "fb" or a.size < 2 else np.zeros_like(a) for a in inputs
        ]
        for array in other:
            if array is not None and array.dtype.kind in "fb" and array.size > 1:
                array.flat[at % array.size] = 1e-6
        given.append(run(other))
    return any(a.shape != b.shape or bool((a != b).any() and abs(a.astype(float) - b).max() > 1e-2)
               for one in given for a, b in zip(given[0], one, strict=True))  # fmt: skip


def comparison(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Twice as large operands compare alike."""
    if len(inputs) != 2 or any(a is None or a.dtype.kind not in "fi" for a in inputs):
        return None
    return same(run(inputs)[0], run([2 * a for a in inputs if a is not None])[0])


def looked_up(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Whether other integers, of those that are there, give other elements in the same shape."""
    before = run(inputs)[0]
    other = [np.roll(a, 1) if a is not None and a.dtype.kind == "i" else a for a in inputs]
    after = run(other)[0]
    return before.shape == after.shape and not same(before, after)


def window(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    x, kernel = inputs[0], attrs.get("kernel_shape")
    if x is None or not kernel or attrs.get("auto_pad", b"NOTSET") != b"NOTSET" or attrs.get("ceil_mode"):
        return None
    rank = len(kernel)
    pads, steps = attrs.get("pads", [0] * 2 * rank), attrs.get("strides", [1] * rank)
    spread = attrs.get("dilations", [1] * rank)
    wide = [x.shape[n + 2] + pads[n] + pads[n + rank] - spread[n] * (kernel[n] - 1) - 1 for n in range(rank)]
    return run(inputs)[0].shape[2:] == tuple(w // s + 1 for w, s in zip(wide, steps, strict=True))


def recurrent(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Whether the first step has a part in the last result, and the last none in the first result."""
    x = inputs[0]
    backward = any(a.name in ("direction", "layout") for a in node.attribute)
    if x is None or x.ndim < 2 or x.shape[0] < 2 or backward or not node.output[0]:
        return None
    early, late, before = x.copy(), x.copy(), run(inputs)[0]
    early[0], late[-1] = drawn(x[0]), drawn(x[-1])
    one, other = run([early, *inputs[1:]])[0], run([late, *inputs[1:]])[0]
    return same(before[0], other[0]) and not same(before[-1], one[-1])


def summed(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Whether the output is the inputs' sum, in their order."""
    if any(a is None or a.dtype.kind not in "f" for a in inputs):
        return None
    total = inputs[0]
    for other in inputs[1:]:
        total = total + other  # type: ignore[operator]
    return bool(np.allclose(run(inputs)[0], total, rtol=1e-5, atol=1e-6))


def idempotent(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Whether applied to what it gave it gives that."""
    before = run(inputs)[0]
    if inputs[0] is None or inputs[0].shape != before.shape or inputs[0].dtype != before.dtype:
        return False
    return same(run([before, *inputs[1:]])[0], before)


def aside(node: NodeProto, run: Run, inputs: list[Array | None]) -> bool | None:
    """Whether the node that gives its first output alone is one, and gives the same."""
    if sum(map(bool, node.output)) < 2:
        return None
    alone = NodeProto.FromString(node.SerializeToString())
    del alone.output[1:]
    try:
        results = run_node(alone, inputs, {"": 17, "com.microsoft": 1})
    except Exception:  # there is no such node
        return False
    return same(results[0], run(inputs)[0])
