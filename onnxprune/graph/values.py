"""Evaluate the small tensors that carry shapes: numpy, one line per op.

Only what exporters use to compute targets of Reshape, Slice, Resize, Expand and the like. An op that is not here gives
no value, which is always safe: the tensor is then data like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.ops import Trait, traits_of

Array = NDArray[Any]
Maybe = Array | None

#: A computed value larger than this is treated as data (and never materialised).
MAX_ELEMENTS = 4096

_ELEM = {1: np.float32, 2: np.uint8, 3: np.int8, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16,
         11: np.float64, 12: np.uint32, 13: np.uint64}  # fmt: skip


def _axes(attrs: dict[str, Any], inputs: Sequence[Maybe], slot: int = 1) -> tuple[int, ...] | None:
    axes = inputs[slot] if len(inputs) > slot and inputs[slot] is not None else attrs.get("axes")
    return None if axes is None else tuple(int(a) for a in np.ravel(axes))


def _unsqueeze(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    axes, x = _axes(attrs, inputs), inputs[0]
    if axes is None or x is None:
        return None
    return np.asarray(np.expand_dims(x, axes))


def _squeeze(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    x = inputs[0]
    return None if x is None else np.squeeze(x, _axes(attrs, inputs))


def _slice(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    x = inputs[0]
    if x is None:
        return None
    if "starts" in attrs:
        starts, ends, steps = attrs["starts"], attrs["ends"], [1] * len(attrs["starts"])
        axes = attrs.get("axes", range(len(starts)))
    else:
        given = [None if v is None else [int(e) for e in np.ravel(v)] for v in inputs[1:]]
        starts, ends = given[0] or [], given[1] or []
        axes = given[2] if len(given) > 2 and given[2] is not None else range(len(starts))
        steps = given[3] if len(given) > 3 and given[3] is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # ONNX clamps to -n-1 when walking backwards; Python's None is "through the first element"
        stop = None if step < 0 and end < -x.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return np.asarray(x[tuple(index)])


def _gather(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    x, index = inputs[0], inputs[1]
    if x is None or index is None:
        return None
    return np.asarray(np.take(x, index.astype(np.int64), axis=attrs.get("axis", 0)))


def _concat(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    return np.concatenate([x for x in inputs if x is not None], axis=attrs["axis"])


def _cast(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    kind = _ELEM.get(attrs["to"])
    return None if kind is None or inputs[0] is None else inputs[0].astype(kind)


def _constant_of_shape(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    shape = inputs[0]
    if shape is None or np.prod(shape, dtype=np.float64) > MAX_ELEMENTS:
        return None
    fill = attrs.get("value")
    return np.full(tuple(int(s) for s in shape), 0.0 if fill is None else fill.ravel()[0],
                   np.float32 if fill is None else fill.dtype)  # fmt: skip


def _range(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    start, limit, delta = (np.ravel(x)[0] for x in inputs if x is not None)
    if abs((limit - start) / delta) > MAX_ELEMENTS:
        return None
    return np.arange(start, limit, delta, dtype=start.dtype)


def _reshape(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    x, target = inputs[0], inputs[1] if len(inputs) > 1 else attrs.get("shape")
    if x is None or target is None:
        return None
    shape = [int(t) for t in np.ravel(target)]
    if not attrs.get("allowzero", 0):
        shape = [x.shape[i] if s == 0 else s for i, s in enumerate(shape)]
    return x.reshape(shape)


def _expand(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    x, target = inputs[0], inputs[1]
    if x is None or target is None:
        return None
    shape = np.broadcast_shapes(x.shape, tuple(int(t) for t in target))
    return np.broadcast_to(x, shape).copy() if np.prod(shape, dtype=np.float64) <= MAX_ELEMENTS else None


def _tile(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    x, repeats = inputs[0], inputs[1]
    if x is None or repeats is None or x.size * np.prod(repeats, dtype=np.float64) > MAX_ELEMENTS:
        return None
    return np.tile(x, tuple(int(r) for r in repeats))


def _one_hot(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    index, depth, levels = inputs
    if index is None or depth is None or levels is None:
        return None
    size = int(np.ravel(depth)[0])
    if index.size * size > MAX_ELEMENTS:
        return None
    whole = np.where(index < 0, index + size, index)[..., None] == np.arange(size)
    return np.asarray(np.moveaxis(np.where(whole, levels[1], levels[0]), -1, attrs.get("axis", -1)))


def _div(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    a, b = inputs[0], inputs[1]
    if a is None or b is None:
        return None
    if a.dtype.kind in "iu":
        if (b == 0).any():
            return None
        return np.asarray(
            np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)), a.dtype
        )  # ONNX truncates toward zero
    return np.asarray(a / b)


def _reduce(function: Callable[..., Any]) -> Callable[[dict[str, Any], Sequence[Maybe]], Maybe]:
    def run(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
        x = inputs[0]
        if x is None:
            return None
        axes = _axes(attrs, inputs)
        if axes is None and attrs.get("noop_with_empty_axes", 0):
            return x
        return np.asarray(function(x, axis=axes, keepdims=bool(attrs.get("keepdims", 1)))).astype(x.dtype)

    return run


def _simple(function: Callable[..., Any]) -> Callable[[dict[str, Any], Sequence[Maybe]], Maybe]:
    def run(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
        return np.asarray(function(*inputs))

    return run


def _fold(function: Callable[..., Any]) -> Callable[[dict[str, Any], Sequence[Maybe]], Maybe]:
    def run(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
        total = inputs[0]
        for x in inputs[1:]:
            total = function(total, x)
        return None if total is None else np.asarray(total)

    return run


def _mod(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    function = np.fmod if attrs.get("fmod", 0) else np.mod
    return np.asarray(function(inputs[0], inputs[1]))  # type: ignore[arg-type]


def _clip(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    """Bound each entry: from opset 11 on by inputs, of which either may be absent; TF's "same" padding begins so."""
    x, low, high = (*inputs, None, None)[:3]
    if x is None:
        return None
    low, high = (attrs.get(name) if end is None else end for name, end in (("min", low), ("max", high)))
    x = x if low is None else np.maximum(x, low)
    return np.asarray(x if high is None else np.minimum(x, high)).astype(inputs[0].dtype)  # type: ignore[union-attr]


def _transpose(attrs: dict[str, Any], inputs: Sequence[Maybe]) -> Maybe:
    return None if inputs[0] is None else np.transpose(inputs[0], attrs.get("perm"))


_TABLE: dict[str, Callable[[dict[str, Any], Sequence[Maybe]], Maybe]] = {
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Slice": _slice, "Gather": _gather, "Concat": _concat, "Cast": _cast,
    "ConstantOfShape": _constant_of_shape, "Range": _range, "Reshape": _reshape, "Expand": _expand, "Tile": _tile,
    "OneHot": _one_hot,
    "Div": _div, "Mod": _mod, "Transpose": _transpose, "Clip": _clip,
    "ReduceProd": _reduce(np.prod), "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max), "ReduceMin": _reduce(np.min), "Identity": _simple(lambda x: x),
    "Add": _simple(np.add), "Sub": _simple(np.subtract), "Mul": _simple(np.multiply), "Max": _fold(np.maximum),
    "Min": _fold(np.minimum), "Where": _simple(np.where), "Equal": _simple(np.equal), "Greater": _simple(np.greater),
    "GreaterOrEqual": _simple(np.greater_equal), "Less": _simple(np.less), "LessOrEqual": _simple(np.less_equal),
    "Not": _simple(np.logical_not), "And": _simple(np.logical_and), "Or": _simple(np.logical_or),
    "Neg": _simple(np.negative), "Abs": _simple(np.abs), "Floor": _simple(np.floor), "Ceil": _simple(np.ceil),
    "Relu": _simple(lambda x: np.maximum(x, x.dtype.type(0))), "Round": _simple(np.rint), "Sign": _simple(np.sign),
    "Sqrt": _simple(np.sqrt), "Reciprocal": _simple(np.reciprocal),
    "Pow": _simple(lambda a, b: np.power(a, b).astype(a.dtype)),
}  # fmt: skip


def _too_many(op: str, attrs: dict[str, Any], inputs: Sequence[Maybe]) -> bool:
    """Whether a result would be too large, for ops that can make it much larger than their inputs."""
    arrays = [x for x in inputs if x is not None]
    if op == "Concat":
        return sum(x.size for x in arrays) > MAX_ELEMENTS
    if op == "Gather":
        x, index = arrays
        return bool(index.size * x.size > MAX_ELEMENTS * max(x.shape[attrs.get("axis", 0)], 1))
    if Trait.ELEMENTWISE in traits_of(op):
        return prod(np.broadcast_shapes(*(x.shape for x in arrays))) > MAX_ELEMENTS
    return False


def evaluate(op: str, attrs: dict[str, Any], inputs: Sequence[Maybe], present: Sequence[bool]) -> Maybe:
    """Return the value of a node's only output, or None where it is not known.

    Parameters
    ----------
    op : str
        An op of the ONNX domain.
    attrs : dict
        Its attributes as Python values; tensors as arrays.
    inputs : sequence of array or None
        The values of its inputs, None where absent or unknown.
    present : sequence of bool
        Which inputs the node has: an input that is present and unknown makes the output unknown.

    Returns
    -------
    array or None
        At most ``MAX_ELEMENTS`` elements.
    """
    rule = _TABLE.get(op)
    if rule is None or not inputs or any(p and x is None for p, x in zip(present, inputs, strict=True)):
        return None
    try:
        if _too_many(op, attrs, inputs):
            return None
        with np.errstate(all="ignore"):
            value = rule(attrs, inputs)
    except Exception:  # whatever is wrong with the node: its value isn't known
        return None
    return value if value is not None and value.size <= MAX_ELEMENTS else None
