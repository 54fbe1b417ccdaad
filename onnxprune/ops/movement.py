"""Ops that only move elements: a row says where the axes go, a `Map` where the indices go."""

from __future__ import annotations

import numpy as np

from onnxprune.ops.axes import broadcast, join, names, regroup, text
from onnxprune.ops.base import Map, Node, Refusal, Row, normal, op
from onnxprune.ops.traits import Trait

MOVES = Trait.MOVEMENT | Trait.EXACT
_MODE = "padded with its own elements"
_RUN_TIME = "its indices are computed at run time"
_TABLE = "picked by a table of indices"


@op("Transpose", traits=MOVES)
def transpose(node: Node) -> Row:
    axes = names(node.rank())
    perm = node.attr("perm") or range(len(axes) - 1, -1, -1)
    return Row(join([text(axes)], [text(axes[p] for p in perm)]))


@op("Reshape", "Flatten", "Squeeze", "Unsqueeze", traits=MOVES | Trait.VIEW)
@op("ExpandDims", domain="com.microsoft", traits=MOVES | Trait.VIEW)
def reshape(node: Node) -> Row:
    """Regroup the elements; the atoms of a composite axis are cut by themselves."""
    if node.op == "Reshape":
        node.ints("shape", 1, 5)  # raises where the target is computed at run time: it couldn't be rewritten
    left, right, sizes, locked = regroup(node.shape(0), node.out_shape())
    why = dict.fromkeys(locked, "reshaped without a common factor")
    bare = node.op == "Squeeze" and not node.has(1) and "axes" not in node.attrs  # takes whatever is one
    fewest = {name: 2 for name, size in sizes if bare and size > 1}
    return Row(join([text(left)], [text(right)]), sizes=dict(sizes), why=why, fewest=fewest)


@op("Concat", traits=MOVES)
def concat(node: Node) -> Row:
    axes, axis = names(node.rank()), node.axis(1)
    parts = [f"p{n}" for n in range(len(node.inputs))]
    ins = [text(p if n == axis else a for n, a in enumerate(axes)) for p in parts]
    whole = parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"
    return Row(join(ins, [text(whole if n == axis else a for n, a in enumerate(axes))]))


@op("Split", traits=MOVES)
def split(node: Node) -> Row:
    axes, axis = names(node.rank()), node.axis(0)
    node.ints("split", 1, 13)  # raises where the lengths are computed at run time
    parts = [f"p{n}" for n in range(len(node.outputs))]
    outs = [text(p if n == axis else a for n, a in enumerate(axes)) for p in parts]
    whole = parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"
    return Row(join([text(whole if n == axis else a for n, a in enumerate(axes))], outs))


def slices(node: Node) -> list[tuple[int, int, int]]:
    """Return (axis, start, step) of each sliced axis, starts counted from the front and clamped."""
    shape = node.shape(0)
    starts = node.ints("starts", 1, 10) or []
    axes = node.ints("axes", 3, 10) or list(range(len(starts)))
    steps = (node.ints("steps", 4, 10) if node.opset >= 10 else None) or [1] * len(starts)
    slices = []
    for axis, start, step in zip(axes, starts, steps, strict=True):
        axis = normal(axis, len(shape))
        start = start + shape[axis] if start < 0 else start
        slices.append((axis, min(max(start, 0), shape[axis] if step > 0 else shape[axis] - 1), step))
    return slices


@op("Slice", traits=MOVES)
def slice_(node: Node) -> Row:
    shape, out = node.shape(0), node.out_shape()
    left, right = list(names(len(shape))), list(names(len(shape)))
    maps = {}
    for axis, start, step in slices(node):
        if step == 1 and out[axis] == shape[axis]:
            continue
        right[axis] = f"s{axis}"
        maps[right[axis]] = Map(left[axis], start + step * np.arange(out[axis], dtype=np.int64))
    return Row(join([text(left)], [text(right)]), maps=maps)


@op("Gather", traits=MOVES | Trait.LOOKUP)
def gather(node: Node) -> Row:
    data = list(names(node.rank()))
    axis = node.axis(0)
    size, index = node.shape(0)[axis], node.values[1]
    if index is None:
        letters = [f"i{n}" for n in range(node.rank(1))]
        why = {data[axis]: _TABLE if node.constant[1] else _RUN_TIME}
        looked = {data[axis]: 1}
        data[axis] += "!"
        row = join([text(data), text(letters)], [text([*data[:axis], *letters, *data[axis + 1 :]])])
        return Row(row, why=why, looked=looked)
    index = np.where(index < 0, index + size, index).astype(np.int64)
    rest = [*data[:axis], *data[axis + 1 :]]
    if index.ndim == 0:
        return Row(join([text(data), "()"], [text(rest)]), pinned={data[axis]: index.reshape(1)})
    wide = widest(index.shape)
    if index.size == index.shape[wide]:  # one list of indices, whatever axes of length 1 are around it
        ones = ["1"] * index.ndim
        given, taken = ([*ones[:wide], name, *ones[wide + 1 :]] for name in ("r!", "q"))
        out = text([*data[:axis], *taken, *data[axis + 1 :]])
        return Row(join([text(data), text(given)], [out]), maps={"q": Map(data[axis], index.reshape(-1))})
    letters = [f"i{n}!" for n in range(index.ndim)]
    why = {data[axis]: _TABLE}
    data[axis] += "!"
    return Row(
        join([text(data), text(letters)], [text([*data[:axis], *letters, *data[axis + 1 :]])]), why=why
    )


def widest(shape: tuple[int, ...]) -> int:
    """Return the longest axis of a table of indices."""
    return max(range(len(shape)), key=lambda n: shape[n])


def pads(node: Node) -> list[tuple[int, int]]:
    """Return (before, after) of each axis."""
    rank = node.rank()
    name = "pads" if "pads" in node.attrs or node.opset >= 2 else "paddings"
    given = node.ints(name, 1, 1 if node.domain else 11) or []
    axes = [normal(int(a), rank) for a in node.value(3).reshape(-1)] if node.has(3) else list(range(rank))
    amounts = [(0, 0)] * rank
    for n, axis in enumerate(axes):
        amounts[axis] = (given[n], given[n + len(axes)])
    return amounts


@op("Pad", traits=Trait.ZEROS)
@op("Pad", domain="com.microsoft", traits=Trait.ZEROS)
def pad(node: Node) -> Row:
    left, right = list(names(node.rank())), list(names(node.rank()))
    maps, why = {}, {}
    for axis, (before, after) in enumerate(pads(node)):
        if not before and not after:
            continue
        right[axis] = f"s{axis}"
        if node.attr("mode", "constant") == "constant":
            index = np.arange(-before, node.shape(0)[axis] + after, dtype=np.int64)
            maps[right[axis]] = Map(
                left[axis], np.where(index < node.shape(0)[axis], np.maximum(index, -1), -1)
            )
        else:
            why[left[axis]] = why[right[axis]] = _MODE
            left[axis] += "!"
            right[axis] += "!"
    return Row(join([text(left)], [text(right)]), maps=maps, why=why)


@op("Expand", traits=MOVES | Trait.REPEATS)
def expand(node: Node) -> Row:
    """New axes, and those of length 1 that are repeated, are free: all their elements are equal."""
    node.value(1)  # raises where the target is computed at run time
    axes = broadcast((node.shape(0), node.out_shape()))
    return Row(join([text(axes[0])], [text(axes[1])]))


@op("Tile", traits=MOVES | Trait.REPEATS)
def tile(node: Node) -> Row:
    """Repeat axes; of those of length 1 all copies are equal, so that they are free, as behind Expand."""
    node.value(1)  # raises where the counts are computed at run time: they couldn't be rewritten
    shape, out = node.shape(0), node.out_shape()
    left, right, sizes = list(names(len(shape))), list(names(len(shape))), {}
    for n, (size, wide) in enumerate(zip(shape, out, strict=True)):
        if size == 1:
            left[n] = "1"
        elif size != wide:
            sizes[f"r{n}"] = wide // size
            right[n] = f"(r{n}! {left[n]})"
    return Row(join([text(left)], [text(right)]), sizes=sizes, why=dict.fromkeys(sizes, "repeated"))


@op("DepthToSpace", traits=MOVES)
def depth_to_space(node: Node) -> Row:
    block = int(node.attrs["blocksize"])
    depth = "(c p! q!)" if node.attr("mode", "DCR") == "CRD" else "(p! q! c)"
    why = dict.fromkeys("pq", "the blocks of DepthToSpace become rows and columns")
    return Row(f"n {depth} h w -> n c (h p!) (w q!)", sizes={"p": block, "q": block}, why=why)


@op("SpaceToDepth", traits=MOVES)
def space_to_depth(node: Node) -> Row:
    block = int(node.attrs["blocksize"])
    why = dict.fromkeys("pq", "rows and columns become blocks of channels")
    depth = "(c p! q!)" if node.attr("mode", "DCR") == "CRD" else "(p! q! c)"
    return Row(f"n c (h p!) (w q!) -> n {depth} h w", sizes={"p": block, "q": block}, why=why)


@op("Shape", "Size", traits=Trait.SIZE)
def shape(node: Node) -> Row:
    """Reads no element; the tracer knows the values."""
    return Row(
        f"-> {'q!' if node.op == 'Shape' else '()'}", roles=("unread",), why={"q": "the sizes of a tensor"}
    )


@op("ConstantOfShape", traits=Trait.EXACT)
def constant_of_shape(node: Node) -> Row:
    node.value(0)  # raises where the shape is computed at run time
    axes = broadcast((node.out_shape(),))[-1]
    return Row(join(["q!"], [text(axes)]), why={"q": "the sizes of a tensor"})


@op("Range")
def range_(node: Node) -> Row | Refusal:
    """Runtimes take vectors of one number for scalars."""
    shapes = [node.shape(n) for n in range(3)]
    if any(shape not in ((), (1,)) for shape in shapes):
        return Refusal("Range: its bounds must be scalars")
    bounds = ["1" if shape else "()" for shape in shapes]
    return Row(f"{', '.join(bounds)} -> q!", why={"q": "counted"})


@op("CenterCropPad", traits=Trait.ZEROS)
def center(node: Node) -> Row:
    """Crop, or pad with zeros, around the centre; padding stays as it is, so that the centre stays where it was."""
    node.value(1)  # raises where the target is computed at run time
    old, new = node.shape(0), node.out_shape()
    left, right = list(names(len(old))), list(names(len(old)))
    maps, pinned = {}, {}
    for axis, (size, wide) in enumerate(zip(old, new, strict=True)):
        if size == wide:
            continue
        right[axis] = f"t{axis}"
        index = np.arange(wide, dtype=np.int64) + centre(size, wide)
        index[(index < 0) | (index >= size)] = -1
        maps[right[axis]] = Map(left[axis], index)
        if wide > size:
            pinned[right[axis]] = np.flatnonzero(index < 0)
    return Row(join([text(left)], [text(right)]), maps=maps, pinned=pinned)


def centre(size: int, wide: int) -> int:
    """Return where the first element of what CenterCropPad makes ``wide`` long was; negative where it is padding."""
    return (size - wide) // 2 if wide < size else -((wide - size) // 2)


@op("EyeLike")
def eye_like(node: Node) -> Row:
    """A diagonal of ones of the shape of its input: every cut would move it."""
    return Row("m! n! -> m! n!", why=dict.fromkeys("mn", "a diagonal"))


@op("AffineGrid")
def affine_grid(node: Node) -> Row:
    """Coordinates for each image of a batch."""
    return Row("n! a! b! -> n! *t!", why={"n": "its size is given", "t": "coordinates"})


@op("QLinearConcat", domain="com.microsoft")
def qlinear_concat(node: Node) -> Row:
    """Concat behind a scale and a zero point; each operand has its own two."""
    slots = range(2, len(node.inputs), 3)
    axes = names(node.rank(2))
    axis = node.axis(0, len(axes))
    own = [text("1" for _ in node.shape(slot)) for slot in range(len(node.inputs))]
    for slot in slots:
        own[slot] = text(f"p{slot}" if i == axis else name for i, name in enumerate(axes))
    whole = " + ".join(f"p{slot}" for slot in slots)
    row = join(own, [text(f"({whole})" if i == axis else name for i, name in enumerate(axes))])
    return Row(row, elems={0: 2})
