"""Constants that encode sizes, written anew after a cut. Nothing is emitted where nothing changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.ops.base import Cut, Edit, Node, Pick, SetAttr, SetInput, emitter
from onnxprune.ops.movement import centre, pads, slices, widest

__all__: list[str] = []


def _set(node: Node, slot: int, old: NDArray[Any], new: NDArray[Any]) -> list[Edit]:
    return [] if np.array_equal(old, new) else [SetInput(slot, new.astype(old.dtype).reshape(old.shape))]


def _list(node: Node, name: str, slot: int, since: int, new: list[int]) -> list[Edit]:
    """Write a list that was an attribute before opset ``since`` and is an input from it."""
    old = node.ints(name, slot, since)
    if old == new or old is None:
        return []
    if node.opset < since or name in node.attrs:
        return [SetAttr(name, new)]
    return [SetInput(slot, np.asarray(new, node.value(slot).dtype).reshape(node.value(slot).shape))]


@emitter("Reshape")
def reshape(node: Node, cut: Cut) -> list[Edit]:
    """Entries 0 (as in the input) and -1 (the rest) stay where they are still right."""
    target = node.ints("shape", 1, 5) or []
    old, new = node.out_shape(), cut.new_out_shape(0)
    before = cut.new_shape(0)
    shape = list(target)
    for n, entry in enumerate(target):
        copied = entry == 0 and not node.attr("allowzero", 0)
        right = before[n] == new[n] if copied else entry == -1 or old[n] == new[n]
        if not right:
            shape[n] = new[n]
    return _list(node, "shape", 1, 5, shape)


@emitter("Expand")
def expand(node: Node, cut: Cut) -> list[Edit]:
    """An entry 1 leaves an axis as it is."""
    target, old, new = node.value(1), node.out_shape(), cut.new_out_shape(0)
    shape, skip = target.copy(), len(old) - target.size
    for n, entry in enumerate(target.reshape(-1)):
        if entry != 1 and old[skip + n] != new[skip + n]:
            shape.reshape(-1)[n] = new[skip + n]
    return _set(node, 1, target, shape)


@emitter("Tile")
def tile(node: Node, cut: Cut) -> list[Edit]:
    """An axis is repeated as often as copies of it are kept."""
    counts = node.value(1)
    pairs = zip(cut.new_out_shape(0), cut.new_shape(0), counts.reshape(-1), strict=True)
    repeats = [new // old if old else int(count) for new, old, count in pairs]
    return _set(node, 1, counts, np.asarray(repeats))


@emitter("ConstantOfShape")
def constant_of_shape(node: Node, cut: Cut) -> list[Edit]:
    return _set(node, 0, node.value(0), np.asarray(cut.new_out_shape(0), np.int64))


@emitter("Slice")
def slice_(node: Node, cut: Cut) -> list[Edit]:
    """What is kept of a slice is again a slice, or (of a stepped one) positions that a Gather picks in front of it."""
    starts, ends = list(node.ints("starts", 1, 10) or []), list(node.ints("ends", 2, 10) or [])
    steps = [step for _, _, step in slices(node)]
    shape, out = node.shape(0), node.out_shape()
    picks: list[Edit] = []
    for n, (axis, start, step) in enumerate(slices(node)):
        kept = cut.kept(0, axis)
        if len(kept) == shape[axis] or (step == 1 and out[axis] == shape[axis]):
            continue
        at = np.searchsorted(kept, start + step * cut.kept_out(0, axis))
        if step == 1:
            starts[n] = int((kept < start).sum())
            ends[n] = starts[n] + len(at)
        elif len(at) and np.unique(np.diff(at)).size <= 1:
            steps[n] = int(at[1] - at[0]) if len(at) > 1 else 1
            starts[n], end = int(at[0]), int(at[-1]) + steps[n]
            ends[n] = end if end >= 0 else -len(kept) - 1  # walking backwards, through the first one
        else:
            picks.append(Pick(0, axis, at))
            starts[n], ends[n], steps[n] = 0, len(at), 1
    edits = _list(node, "starts", 1, 10, starts) + _list(node, "ends", 2, 10, ends)
    return [*picks, *edits, *(_list(node, "steps", 4, 10, steps) if node.has(4) else [])]


@emitter("Split")
def split(node: Node, cut: Cut) -> list[Edit]:
    axis = node.axis(0)
    old = [node.out_shape(n)[axis] for n in range(len(node.outputs))]
    new = [cut.new_out_shape(n)[axis] for n in range(len(node.outputs))]
    if old == new:
        return []
    if node.opset < 13:
        return [] if "split" not in node.attrs and len(set(new)) == 1 else [SetAttr("split", new)]
    if node.has(1):
        return _list(node, "split", 1, 13, new)
    counted = "num_outputs" in node.attrs  # then the last piece may be shorter
    piece = -(-sum(new) // len(new))
    if new == [min(piece, sum(new) - piece * n) for n in range(len(new))] and (counted or len(set(new)) == 1):
        return []
    drop = [SetAttr("num_outputs", None)] if counted else []
    return [*drop, SetInput(1, np.asarray(new, np.int64))]


@emitter("Pad")
@emitter("Pad", domain="com.microsoft")
def pad(node: Node, cut: Cut) -> list[Edit]:
    """Padding of a cut axis is what is kept of it, in front and behind."""
    rank = node.rank()
    axes = [int(a) % rank for a in node.value(3).reshape(-1)] if node.has(3) else list(range(rank))
    since = 1 if node.domain else 11
    amounts = list(node.ints("pads", 1, since) or [])
    for n, axis in enumerate(axes):
        before, after = pads(node)[axis]
        kept = cut.kept_out(0, axis)
        if len(kept) == node.out_shape()[axis] and len(cut.kept(0, axis)) == node.shape(0)[axis]:
            continue
        end = before + node.shape(0)[axis]
        if before > 0:
            amounts[n] = int((kept < before).sum())
        if after > 0:
            amounts[n + len(axes)] = int((kept >= end).sum())
        if before < 0 or after < 0:  # cropped elements that are gone need no cropping
            inside = cut.kept(0, axis)
            amounts[n] = -int((inside < -before).sum()) if before < 0 else amounts[n]
            amounts[n + len(axes)] = (
                -int((inside >= node.shape(0)[axis] + after).sum()) if after < 0 else amounts[n + len(axes)]
            )
    return _list(node, "pads", 1, since, amounts)


@emitter("Gather")
def gather(node: Node, cut: Cut) -> list[Edit]:
    """Indices count anew on the shorter axis."""
    index = node.values[1]
    axis = node.axis(0)
    size = node.shape(0)[axis]
    kept = cut.kept(0, axis)
    if index is None or len(kept) == size:
        return []
    place = np.full(size, -1, np.int64)
    place[kept] = np.arange(len(kept))
    moved = place[np.where(index < 0, index + size, index)]
    if index.ndim:
        wide = widest(index.shape)
        moved = np.take(moved, cut.kept_out(0, axis + wide), axis=wide)
    return [SetInput(1, moved.astype(index.dtype))]


@emitter("OneHot")
def one_hot(node: Node, cut: Cut) -> list[Edit]:
    """As many as there are values."""
    axis = node.axis(-1, node.rank() + 1)
    if len(cut.kept_out(0, axis)) == node.out_shape()[axis]:
        return []
    return [SetInput(1, np.full_like(node.value(1), len(cut.kept_out(0, axis))))]


@emitter("Resize")
def resize(node: Node, cut: Cut) -> list[Edit]:
    """Scales stay; sizes name the channels too."""
    if not node.has(3) or node.values[3] is None or node.values[3].size == 0:
        return []
    axes = node.attr("axes") or range(node.rank())
    sizes = node.value(3)
    return _set(node, 3, sizes, np.asarray([cut.new_out_shape(0)[a] for a in axes]).reshape(sizes.shape))


@emitter("CenterCropPad")
def center(node: Node, cut: Cut) -> list[Edit]:
    """The shape names axes that keep their length, too; what isn't in the centre any more, a Gather picks in front."""
    shape, old, new = node.value(1), node.shape(0), cut.new_out_shape(0)
    axes = node.attr("axes") or range(node.rank())
    edits = _set(node, 1, shape, np.asarray([new[a] for a in axes]))
    for axis, (size, wide) in enumerate(zip(old, node.out_shape(), strict=True)):
        if wide < size:
            kept = cut.kept(0, axis)
            at = np.searchsorted(kept, centre(size, wide) + cut.kept_out(0, axis))
            if not np.array_equal(at, np.arange(len(at)) + centre(len(kept), len(at))):
                edits.append(Pick(0, axis, at))
    return edits


@emitter("Compress")
def compress(node: Node, cut: Cut) -> list[Edit]:
    """The condition loses the entries of what goes; it may be shorter than its axis."""
    condition = node.values[1]
    if condition is None or "axis" not in node.attrs:
        return []
    kept = cut.kept(0, node.axis(0))
    entries = condition[kept[kept < condition.size]]
    return [] if entries.size == condition.size else [SetInput(1, entries)]


@emitter("MatMulNBits", domain="com.microsoft")
def product_of_blocks(node: Node, cut: Cut) -> list[Edit]:
    """The width that is contracted."""
    left = cut.new_shape(0)[-1]
    return [SetAttr("K", left)] if left != int(node.attrs["K"]) else []
