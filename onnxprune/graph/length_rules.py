"""Lengths of the outputs of ops where values say how long they are: one rule each.

A rule returns None where it can't say; then each axis is a number of its own, that may be anything.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from onnxprune.graph.lengths import Lengths, Number, Stretches, over, stand_in
from onnxprune.ops import Node, Row, Trait
from onnxprune.ops.bodies import DOMAIN

__all__ = ["lengths_of"]

#: The end of a Slice that means the end of the axis.
_END = 2**31 - 1


def lengths_of(own: Stretches, node: Node, row: Row | None, slot: int) -> Lengths | None:
    """Return the lengths of an output in stand-ins, None where nothing is known of them.

    Parameters
    ----------
    own : Stretches
        Those of the inputs.
    node : Node
    row : Row or None
    slot : int
        Which output.
    """
    if node.domain == DOMAIN:
        return _joined(own, node, row, slot)
    if Trait.ELEMENTWISE in node.traits and slot == 0:
        return own.broadcast(node, slot)
    rule = _RULES.get(node.op) if node.domain in ("", "com.microsoft") else None
    if rule is not None:
        return rule(own, node, slot)
    lengths = None if row is None else own.by_row(node, row, slot)
    return _windows(own, node, slot, lengths) if lengths and Trait.WINDOW in node.traits else lengths


def _windows(own: Stretches, node: Node, slot: int, lengths: Lengths) -> Lengths:
    """As many positions as windows fit: convolutions and pools alike leave the same of the same length.

    With steps of one that is plain arithmetic; else ``floor((n - 1 + rest) / step) + 1`` has a number of its own.
    """
    data, shape, out = own.length(node.inputs[0]), own.shape(node.inputs[0]), own.shape(node.outputs[slot])
    if data is None or shape is None or out is None or len(shape) != len(lengths):
        return lengths
    count = len(shape) - 2
    kernel = node.attr("kernel_shape") or next(
        (s[2:] for n in node.inputs[1:] if (s := own.shape(n)) and len(s) == len(shape)), None
    )
    if kernel is None:
        return lengths
    ones = [1] * count
    steps, spread = (node.attr(name) or ones for name in ("strides", "dilations"))
    pads, mode = node.attr("pads") or [0] * 2 * count, node.attr("auto_pad") or "NOTSET"
    found = list(lengths[:2])
    for n, step in enumerate(steps):
        number, rest = data[n + 2], -spread[n] * (kernel[n] - 1)
        if mode.startswith("SAME"):
            rest = 0
        elif mode == "NOTSET":
            rest += pads[n] + pads[n + count]
        if number == shape[n + 2]:
            found.append(out[n + 2])
        elif step == 1:
            found.append(number + rest)
        else:
            positions = stand_in("windows", number + rest, step, bool(node.attr("ceil_mode", 0)))
            own.unplain.add(positions)
            found.append(positions)
    return tuple(found)


def _joined(own: Stretches, node: Node, row: Row | None, slot: int) -> Lengths | None:
    """Where bodies meet the graph around them: what all agree in that a value may be, now or after a step."""
    if node.op.endswith("Entry"):
        return None if row is None else own.by_row(node, row, slot)
    count, first = len(node.outputs), int(node.op != "Scan")
    if node.op == "If":
        names = node.inputs[1 + slot :: count]
    elif slot < len(node.inputs) - first - count:  # carried
        names = node.inputs[first + slot :: count]
    else:
        return _gathered(own, node, slot, first)
    known = [end for name in names if (end := own.length(name)) is not None]
    if not known or len(known) < len(names) or len({len(end) for end in known}) > 1:
        return None
    return tuple(
        axis[0] if len(set(axis)) == 1 else own.fresh(node, slot, at)
        for at, axis in enumerate(zip(*known, strict=True))
    )


def _gathered(own: Stretches, node: Node, slot: int, first: int) -> Lengths | None:
    """What a Loop or Scan gathers has as many places as there were steps."""
    inner = own.length(node.inputs[first + slot])
    if inner is None:
        return None
    axes = node.attr("scan_output_axes")
    carried = len(node.inputs) - first - len(node.outputs)
    at = 0 if axes is None else int(axes[slot - carried]) % (len(inner) + 1)
    known = own.steps.of(own, node)
    return (*inner[:at], own.fresh(node, slot, at) if known is None else known, *inner[at:])


def _reshape(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data = own.length(node.inputs[0])
    target = own.value(node.inputs[1]) if len(node.inputs) > 1 else np.array(node.attr("shape"), object)
    if data is None or target is None:
        return None
    copied = not node.attr("allowzero", 0)
    given = target.ravel().tolist()
    if any(e == 0 and copied and n >= len(data) for n, e in enumerate(given)):
        return None
    lengths: list[Number] = [data[n] if e == 0 and copied else e for n, e in enumerate(given)]
    if -1 in lengths:
        at = lengths.index(-1)
        rest = over(prod(data), prod(n for i, n in enumerate(lengths) if i != at))
        lengths[at] = own.fresh(node, slot, at) if rest is None else rest
    return tuple(lengths)


def _flatten(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data = own.length(node.inputs[0])
    if data is None:
        return None
    axis = node.axis(1, len(data) + 1)
    return (prod(data[:axis]), prod(data[axis:]))


def _squeeze(own: Stretches, node: Node, slot: int) -> Lengths | None:
    """Squeeze and Unsqueeze: the axes that stay, with ones between."""
    data, shape = own.length(node.inputs[0]), own.shape(node.inputs[0])
    out = own.shape(node.outputs[0])
    if data is None or shape is None or out is None:
        return None
    axes = node.ints("axes", 1, 13)
    if node.op == "Squeeze":
        gone = {a % len(shape) for a in axes} if axes else {a for a, size in enumerate(shape) if size == 1}
        return tuple(n for a, n in enumerate(data) if a not in gone)
    new = {a % len(out) for a in axes or ()}
    rest = iter(data)
    return tuple(1 if a in new else next(rest) for a in range(len(out)))


def _expand(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data, shape, target = (
        own.length(node.inputs[0]),
        own.shape(node.inputs[0]),
        own.value(node.inputs[1]),
    )
    out = own.shape(node.outputs[0])
    if data is None or shape is None or target is None or out is None:
        return None
    lengths: list[Number] = []
    for back in range(len(out), 0, -1):
        numbers = [data[-back]] if back <= len(data) else []
        sizes = [shape[-back]] if back <= len(shape) else []
        if back <= target.size:
            entry = target.ravel().tolist()[-back]
            numbers.append(entry)
            sizes.append(int(own.tracer.values[node.inputs[1]].ravel()[-back]))
        lengths.append(own.widest(numbers, sizes))
    return tuple(lengths)


def _tile(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data, counts = own.length(node.inputs[0]), own.value(node.inputs[1])
    if data is None or counts is None or counts.size != len(data):
        return None
    return tuple(n * c for n, c in zip(data, counts.ravel().tolist(), strict=True))


def _concat(own: Stretches, node: Node, slot: int) -> Lengths | None:
    read = [(n, s) for name in node.inputs if (n := own.length(name)) is not None and (s := own.shape(name))]
    if len(read) != len(node.inputs):
        return None
    axis = node.axis(1, len(read[0][0]))
    return tuple(
        sum(n[at] for n, _ in read)
        if at == axis
        else own.same([n[at] for n, _ in read], [s[at] for _, s in read])
        for at in range(len(read[0][0]))
    )


def _split(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data, shape = own.length(node.inputs[0]), own.shape(node.inputs[0])
    if data is None or shape is None:
        return None
    axis, out = node.axis(0, len(data)), own.shape(node.outputs[slot]) or ()
    given = own.value(node.inputs[1]) if node.has(1) else node.attr("split")
    number: Number = out[axis]
    if given is not None:
        number = np.ravel(given).tolist()[slot]
    elif node.has(1) or shape[axis] % len(node.outputs):
        number = number if not node.has(1) and data[axis] == shape[axis] else own.fresh(node, slot)
    elif data[axis] != shape[axis]:
        number = over(data[axis], len(node.outputs)) or 0
    return (*data[:axis], number, *data[axis + 1 :])


def _slice(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data, shape, out = (
        own.length(node.inputs[0]),
        own.shape(node.inputs[0]),
        own.shape(node.outputs[0]),
    )
    if data is None or shape is None or out is None:
        return None
    lists = [node.attr(n) if node.opset < 10 else None for n in ("starts", "ends", "axes", "steps")]
    for n, name in enumerate(node.inputs[1:]):
        value = own.value(name) if name else None
        if name and value is None:
            return None
        lists[n] = None if value is None else value.ravel().tolist()
    starts, ends, axes, steps = lists
    if starts is None or ends is None:
        return None
    lengths = list(data)
    for n, axis in enumerate(range(len(starts)) if axes is None else axes):
        if not isinstance(axis, int) or abs(axis) > len(data):
            return None
        axis %= len(data)
        step = 1 if steps is None else steps[n]
        plain = _taken(own, data[axis], starts[n], ends[n]) if step == 1 else None
        fixed = data[axis] == shape[axis] and not any(map(_large, (starts[n], ends[n], step)))
        lengths[axis] = out[axis] if fixed else plain if plain is not None else own.fresh(node, axis)
    return tuple(lengths)


def _taken(own: Stretches, length: Number, start: Any, end: Any) -> Number | None:
    """Return the length of a slice in steps of one, None where it is no plain arithmetic.

    ``x[:n]`` and ``x[n:]`` make up ``x`` whatever its length is: ``min(n, length)`` and the rest.
    """
    first, last = (_place(own, p, length) for p in (start, end))
    if first is None or last is None or _large(start):
        return None
    whole = last == length or first == 0 or (not _large(end) and 0 <= start <= end)
    return last - first if whole else None


def _place(own: Stretches, place: Any, length: Number) -> Number | None:
    """Return the position in an axis that a bound of a Slice stands for."""
    if not isinstance(place, (int, Fraction)) or isinstance(place, bool):
        return None
    if place == length or (_END <= place < 1 << 64):
        return length
    if -(1 << 64) < place < 0:
        return length - _least(own, -place, length)
    return _least(own, place, length) if place >= 0 else None


def _least(own: Stretches, one: Number, length: Number) -> Number:
    if one == 0 or length - one in own.natural:
        return one
    if not _large(one) and not _large(length):
        return min(one, length)
    least = stand_in("the least", one, length)
    own.unplain.add(least)
    if one == 1:
        own.ones[least] = length
    return least


def _gather(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data, index = own.length(node.inputs[0]), own.length(node.inputs[1])
    if data is None or index is None:
        return None
    axis = node.axis(0, len(data))
    return (*data[:axis], *index, *data[axis + 1 :])


def _pad(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data = own.length(node.inputs[0])
    given = (
        own.value(node.inputs[1])
        if node.has(1)
        else np.array(node.attr("pads", node.attr("paddings")), object)
    )
    if data is None or given is None or given.ndim == 0:
        return None
    axes = [int(a) % len(data) for a in node.value(3).ravel()] if node.has(3) else range(len(data))
    lengths, counts = list(data), given.ravel().tolist()
    for n, axis in enumerate(axes):
        lengths[axis] = lengths[axis] + counts[n] + counts[n + len(axes)]
    return tuple(lengths)


def _filled(own: Stretches, node: Node, slot: int) -> Lengths | None:
    shape = own.value(node.inputs[0])
    return None if shape is None else tuple(shape.ravel().tolist())


def _range(own: Stretches, node: Node, slot: int) -> Lengths | None:
    values = [own.value(name) for name in node.inputs]
    if any(v is None or v.size != 1 for v in values):
        return None
    start, limit, step = (v.ravel().tolist()[0] for v in values if v is not None)
    if not all(isinstance(v, (int, Fraction)) for v in (start, limit, step)) or _large(step) or not step:
        return None
    count = own.whole(limit - start if step == 1 else Fraction(limit - start) / step)
    return None if count is None else (count,)


def _shape(own: Stretches, node: Node, slot: int) -> Lengths | None:
    return own.shape(node.outputs[0])


def _top(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data, count = own.length(node.inputs[0]), own.value(node.inputs[1]) if node.has(1) else None
    if data is None or (count is None and "k" not in node.attrs):
        return None
    axis = node.axis(-1, len(data))
    number = node.attr("k") if count is None else count.ravel().tolist()[0]
    return (*data[:axis], number, *data[axis + 1 :])


def _resize(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data, shape, out = (
        own.length(node.inputs[0]),
        own.shape(node.inputs[0]),
        own.shape(node.outputs[0]),
    )
    if (
        data is None
        or shape is None
        or out is None
        or node.attr("keep_aspect_ratio_policy", "stretch") != "stretch"
        or node.attr("coordinate_transformation_mode") == "tf_crop_and_resize"  # of a part of the length
    ):
        return None
    axes = [int(a) % len(data) for a in node.attr("axes") or range(len(data))]
    sizes = own.value(node.inputs[3]) if node.has(3) else None
    given = sizes if sizes is not None and sizes.size else _scales(own, node)
    if given is None or given.size != len(axes):
        return None
    lengths = list(data)
    for axis, entry in zip(axes, given.ravel().tolist(), strict=True):
        if given is sizes:
            lengths[axis] = entry
        elif data[axis] == shape[axis] and not _large(entry):
            lengths[axis] = out[axis]
        elif entry != 1.0:
            lengths[axis] = own.fresh(node, axis) if _large(entry) else own.scaled(data[axis], entry)
    return tuple(lengths)


def _scales(own: Stretches, node: Node) -> Any:
    """Return how much longer each axis becomes; up to version 7 of Upsample it is an attribute."""
    slot = 2 if node.op == "Resize" and node.has(2) else 1
    if node.has(slot):
        return own.value(node.inputs[slot])
    given = node.attr("scales")
    return None if given is None else np.array([float(scale) for scale in given], object)


def _crop(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data, target = own.length(node.inputs[0]), own.value(node.inputs[1])
    if data is None or target is None:
        return None
    lengths = list(data)
    for axis, entry in zip(node.attr("axes") or range(len(data)), target.ravel().tolist(), strict=True):
        lengths[axis] = entry
    return tuple(lengths)


def _compress(own: Stretches, node: Node, slot: int) -> Lengths | None:
    data, out = own.length(node.inputs[0]), own.shape(node.outputs[0])
    if data is None or out is None or "axis" not in node.attrs:
        return None
    axis, condition = node.axis(0, len(data)), node.inputs[1]
    known = condition in own.tracer.values and not own.moving(condition).any()
    fixed = known and data[axis] == (own.shape(node.inputs[0]) or ())[axis]
    return (*data[:axis], out[axis] if fixed else own.fresh(node, slot), *data[axis + 1 :])


def _large(number: Any) -> bool:
    """Whether a number can only be a stand-in, or isn't one that can be calculated with."""
    return isinstance(number, Fraction) or (isinstance(number, int) and abs(number) > 1 << 64)


_RULES: dict[str, Callable[[Stretches, Node, int], Lengths | None]] = {
    "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze,
    "Unsqueeze": _squeeze, "Expand": _expand, "Tile": _tile, "Concat": _concat,
    "Split": _split, "Slice": _slice, "Gather": _gather, "Pad": _pad,
    "ConstantOfShape": _filled, "Range": _range, "Shape": _shape,
    "Size": _shape, "TopK": _top, "CenterCropPad": _crop, "Compress": _compress, "Resize": _resize, "Upsample": _resize,
}  # fmt: skip
