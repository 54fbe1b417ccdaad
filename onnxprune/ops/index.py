"""Ops that look elements up, sort or count them: the axis they work along is locked, the others pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune.ops.axes import join, mark, names, text
from onnxprune.ops.base import Map, Node, Refusal, Row, literal, normal, op
from onnxprune.ops.traits import Trait

RUN_TIME = "its indices are computed at run time"
TABLE = "picked by a table of indices"
ORDER = "counted along"

literal("b! n! q!, b! c! n! -> s! t!", ["NonMaxSuppression"], traits=Trait.CHOICE | Trait.BY_DATA)
literal("() -> w!", ["HannWindow", "HammingWindow", "BlackmanWindow"])


def _indexed(node: Node) -> str:
    """Return why an axis that input 1 indexes is locked."""
    return TABLE if node.constant[1] or node.values[1] is not None else RUN_TIME


def _along(node: Node, axes: set[int], outputs: int = 1, new: bool = False) -> Row:
    """Lock some axes; with ``new`` they have another length in the outputs."""
    letters = names(node.rank())
    left = text(mark(letters, axes))
    right = text(f"t{i}!" if new and i in axes else name for i, name in enumerate(mark(letters, axes)))
    why = {name: f"{node.op} works along it" for axis in axes for name in (letters[axis], f"t{axis}")}
    return Row(join([left], [right] * outputs), why=why)


@op("TopK", traits=Trait.CHOICE)
def top_k(node: Node) -> Row | Refusal:
    """The greatest elements and where they are; which is which doesn't change without one that is the least."""
    axis = node.axis(-1)
    row, letter = _along(node, {axis}, outputs=2, new=True), names(node.rank())[axis]
    if not node.attr("largest", 1):
        return replace(row, places={1: letter})
    return replace(row, places={1: letter}, lowest={letter: 0}, fewest={letter: node.out_shape()[axis]})


@op("CumSum", "CumProd")
def cumulate(node: Node) -> Row | Refusal:
    """Running sums and products."""
    return _along(node, {normal(int(node.value(1).reshape(-1)[0]), node.rank())})


@op("Trilu", traits=Trait.ZEROS)
@op("Trilu", domain="com.microsoft", traits=Trait.ZEROS)
def trilu(node: Node) -> Row | Refusal:
    """A triangle of a matrix."""
    return _along(node, {node.rank() - 1, node.rank() - 2})


@op("NonZero", "Unique", traits=Trait.CHOICE | Trait.BY_DATA)
def where(node: Node) -> Row | Refusal:
    """Results whose length depends on all elements."""
    letters = names(node.rank())
    why = dict.fromkeys((*letters, *"tuvw"), "which elements there are follows from all of them")
    return Row(f"{text(mark(letters, range(len(letters))))} -> *t!, *u!, *v!, *w!", why=why)


@op("ReverseSequence", traits=Trait.MOVEMENT)
def reverse_sequence(node: Node) -> Row | Refusal:
    """Each sequence of a batch is reversed up to its own length."""
    letters = list(names(node.rank()))
    batch, time = node.axis(1, name="batch_axis"), node.axis(0, name="time_axis")
    data = text(mark(letters, [time]))
    return Row(f"{data}, {letters[batch]} -> {data}", why={letters[time]: "reversed"})


@op("OneHot")
def one_hot(node: Node) -> Row | Refusal:
    """A new axis, one element for each value."""
    axes = list(names(node.rank()))
    at = node.axis(-1, node.rank() + 1)
    row = join([text(axes)], [text([*axes[:at], "z!", *axes[at:]])])
    return Row(row, why={"z": "one for each value"}, indexed={"z": 0} if node.values[1] is not None else {})


@op("Compress", traits=Trait.MOVEMENT | Trait.CHOICE | Trait.BY_DATA)
def compress(node: Node) -> Row | Refusal:
    """A known condition is a map; else the axis is locked."""
    if "axis" not in node.attrs:
        return Row(f"{text(mark(names(node.rank()), range(node.rank())))}, c! -> r!")
    letters, axis = list(names(node.rank())), node.axis(0)
    if node.values[1] is None:
        right = [*letters[:axis], "t!", *letters[axis + 1 :]]
        return Row(join([text(mark(letters, [axis])), "c!"], [text(right)]), why={letters[axis]: RUN_TIME})
    index = np.flatnonzero(node.value(1)).astype(np.int64)
    right = [*letters[:axis], "t", *letters[axis + 1 :]]
    return Row(
        join([text(letters), "c!"], [text(right)]),
        maps={"t": Map(letters[axis], index)},
        roles=("data", "shape"),
    )


def _beside(node: Node, others: tuple[int, ...]) -> tuple[int, list[str], list[str]]:
    """Axis, letters of the data and of the operands of the indices' shape: tied only where all lengths agree."""
    axis, shape = node.axis(0), node.shape(0)
    data, rest = list(names(len(shape))), list(names(len(shape)))
    for i, size in enumerate(shape):
        if i == axis or any(node.shape(slot)[i] != size for slot in others):
            data[i] += "!"
            rest[i] = f"i{i}!"
    return axis, data, rest


@op("GatherElements", traits=Trait.MOVEMENT | Trait.LOOKUP)
def gather_elements(node: Node) -> Row | Refusal:
    """One index for each result, along one axis."""
    axis, data, index = _beside(node, (1,))
    index[axis] = f"i{axis}"
    name = data[axis].rstrip("!")
    why = {name: _indexed(node), f"i{axis}": _indexed(node)}
    return Row(join([text(data), text(index)], [text(index)]), why=why, indexed={name: 1})


@op("ScatterElements", "Scatter")
def scatter_elements(node: Node) -> Row | Refusal:
    """One index for each update, along one axis."""
    axis, data, index = _beside(node, (1, 2))
    name = data[axis].rstrip("!")
    why = {name: _indexed(node), f"i{axis}": _indexed(node)}
    return Row(join([text(data), text(index), text(index)], [text(data)]), why=why, indexed={name: 1})


@op("GatherND", traits=Trait.MOVEMENT | Trait.LOOKUP)
@op("GatherND", domain="com.microsoft", traits=Trait.MOVEMENT | Trait.LOOKUP)
def gather_nd(node: Node) -> Row | Refusal:
    """Indices are vectors along the last axis: they address as many axes of the data, behind the batch's."""
    batch, depth = int(node.attr("batch_dims", 0)), node.shape(1)[-1]
    data, index = list(names(node.rank())), [f"i{i}" for i in range(node.rank(1) - 1)]
    index[:batch] = data[:batch]
    why = {data[i]: _indexed(node) for i in range(batch, batch + depth)}
    left, place = mark(data, range(batch, batch + depth)), f"i{len(index)}!"
    text_ = join([text(left), text([*index, place])], [text([*index, *data[batch + depth :]])])
    return Row(text_, why=why, indexed={data[batch]: 1} if depth == 1 else {})


@op("ScatterND")
def scatter_nd(node: Node) -> Row | Refusal:
    """Indices are vectors along the last axis; the axes behind those that they address pass."""
    depth = node.shape(1)[-1]
    data, index = list(names(node.rank())), [f"i{i}!" for i in range(node.rank(1) - 1)]
    left = text(mark(data, range(depth)))
    place = f"i{len(index)}"
    row = join([left, text([*index, f"{place}!"]), text([*index, *data[depth:]])], [left])
    why = {data[i]: _indexed(node) for i in range(depth)} | {
        f"i{i}": _indexed(node) for i in range(len(index))
    }
    return Row(row, why={**why, place: "coordinates"})


@op("TensorScatter")
def tensor_scatter(node: Node) -> Row | Refusal:
    """A cache with new entries along one axis, at places given for each image of a batch."""
    letters, axis = list(names(node.rank())), node.axis(-2)
    cache = text(mark(letters, [axis]))
    update = text([*letters[:axis], "u!", *letters[axis + 1 :]])
    return Row(
        f"{cache}, {update}, a? -> {cache}", why={letters[axis]: "written at places known at run time"}
    )


@op("DFT")
def fourier(node: Node) -> Row | Refusal:
    """Axes that are not transformed pass; the last one holds parts of complex numbers, however long the others are."""
    rank = node.rank()
    given = int(node.value(2)) if node.has(2) else node.attr("axis", 1 if node.opset < 20 else -2)
    letters, axis = list(names(rank)), normal(int(given), rank)
    left = text(mark(letters, [axis, rank - 1]))
    right = text([*(f"t{i}!" if i == axis else name for i, name in enumerate(letters[:-1])), "t!"])
    return Row(f"{left} -> {right}", sizes={"t": node.out_shape()[-1]}, why={letters[axis]: "transformed"})


@op("STFT")
def short_fourier(node: Node) -> Row | Refusal:
    """The batch passes."""
    signal = "b s!" if node.rank() == 2 else "b s! p!"
    return Row(f"{signal}, (), w!?, ()? -> b t! u! v!", roles=("data", "shape", "shape", "shape"),
               why=dict.fromkeys("spwtuv", "taken in frames and transformed"))  # fmt: skip


@op("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def loss(node: Node) -> Row | Refusal:
    """All classes and all samples are looked at."""
    result = "*_!" if node.op.startswith("Neg") else "*_!, n! c! *d!"
    return Row(f"n! c! *d!, n! *d!, c!? -> {result}")


@op("StringSplit", traits=Trait.BY_DATA)
def string_split(node: Node) -> Refusal:
    """A new axis as long as the text with the most parts."""
    return Refusal("StringSplit: how long its result is depends on the texts")


@op("SequenceAt", traits=Trait.BY_DATA)
def sequence_at(node: Node) -> Refusal:
    """A tensor of a sequence, whose tensors may have any shapes."""
    return Refusal("SequenceAt: which tensor of a sequence it gives is chosen at run time")
