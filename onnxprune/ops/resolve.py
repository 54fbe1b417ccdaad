"""Fit a row to the shapes of a node: which letter has which size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from onnxprune.ops.base import Node, Row, Shape
from onnxprune.ops.notation import Axis, Letter, Product, Star, Sum, Unit, parse

__all__ = ["FittedRow", "Misfit", "expand", "fit", "out_shapes", "size_of"]

Axes = tuple[Axis, ...]


class Misfit(ValueError):
    """A row and the shapes of a node don't agree; ``pair`` are two sizes that ought to be equal, if that is why."""

    def __init__(self, text: str, pair: tuple[int, int] | None = None) -> None:
        super().__init__(text)
        self.pair = pair


@cache
def expand(text: str, ranks: tuple[int | None, ...], out_ranks: tuple[int | None, ...]) -> tuple[
    tuple[Axes | None, ...], tuple[Axes | None, ...]
]:  # fmt: skip
    """Return the axes of each operand of a row for operands of these ranks (None: absent, or rank unknown).

    Raises
    ------
    Misfit
        If a rank doesn't fit, or a required operand is absent.
    """
    parsed = parse(text)
    ins: list[Axes | None] = []
    for n, operand in enumerate(parsed.inputs):
        rank = ranks[n] if n < len(ranks) else None
        if rank is None and not operand.optional:
            raise Misfit(f"input {n} is absent, or its shape unknown")
        ins.append(None if rank is None else _expand(operand.expand, rank))
    outs = tuple(
        None if n >= len(out_ranks) or (r := out_ranks[n]) is None else _expand(operand.expand, r)
        for n, operand in enumerate(parsed.outputs)
    )
    return tuple(ins), outs


def _expand(function: object, rank: int) -> Axes:
    try:
        return function(rank)  # type: ignore[operator, no-any-return]
    except ValueError as error:
        raise Misfit(str(error)) from error


def size_of(axis: Axis, sizes: Mapping[str, int]) -> int | None:
    """Return the length of an axis, None where a letter of it has no size yet."""
    if isinstance(axis, Letter):
        return sizes.get(axis.name)
    if isinstance(axis, Unit):
        return 1
    parts = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Sum) else ()
    total = 1 if isinstance(axis, Product) else 0
    for part in parts:
        size = size_of(part, sizes)
        if size is None:
            return None
        total = total * size if isinstance(axis, Product) else total + size
    return total


def _learn(axis: Axis, length: int, sizes: dict[str, int]) -> bool:
    """Take what an axis of known length says about its letters; return whether all of them are known."""
    if isinstance(axis, Letter):
        if sizes.setdefault(axis.name, length) != length:
            pair = (sizes[axis.name], length)
            raise Misfit(f"axis '{axis.name}' has {pair[0]} channels here and {pair[1]} there", pair)
        return True
    if isinstance(axis, Unit):
        if length != 1:
            raise Misfit(f"an axis of {length} where the row has a unit axis", (length, 1))
        return True
    known = size_of(axis, sizes)
    if known is not None:
        if known != length:
            raise Misfit(f"a composite axis of {length} where its parts make {known}", (length, known))
        return True
    product = isinstance(axis, Product)
    parts = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Sum) else ()
    open_ = [p for p in parts if size_of(p, sizes) is None]
    if len({id(p) if not isinstance(p, Letter) else p.name for p in open_}) != 1:
        return False
    rest = length
    for part in parts:
        size = size_of(part, sizes)
        if size is not None:
            if product and (size == 0 or rest % size):
                raise Misfit(f"an axis of {length} is no multiple of {size}")
            rest = rest // size if product else rest - size
    if len(open_) > 1:
        if product or rest % len(open_):
            return False
        rest //= len(open_)
    return _learn(open_[0], rest, sizes)


@dataclass(frozen=True, eq=False, slots=True)
class FittedRow:
    """A row fitted to shapes: sizes of the letters, axes of the operands. Compared by identity."""

    sizes: Mapping[str, int]
    ins: tuple[Axes | None, ...]
    outs: tuple[Axes | None, ...]


def fit(row: Row, node: Node, *, outputs: bool = True) -> FittedRow:
    """Fit a row to the shapes of a node.

    Raises
    ------
    Misfit
        If the row and the shapes contradict each other, or a letter's size stays unknown.
    """
    given = tuple(row.sizes.items()) + tuple(
        (letter, len(mapped.index)) for letter, mapped in row.maps.items()
    )
    return _fit(row.text, given, node.shapes, node.out_shapes if outputs else ())


@cache
def _fit(
    text: str,
    given: tuple[tuple[str, int], ...],
    shapes: tuple[Shape | None, ...],
    out_shapes: tuple[Shape | None, ...],
) -> FittedRow:
    ranks, out_ranks = (tuple(None if s is None else len(s) for s in side) for side in (shapes, out_shapes))
    ins, outs = expand(text, ranks, out_ranks)
    sides = ((ins, shapes), (outs, out_shapes))
    pairs = [
        pair for operands, known in sides for axes, shape in zip(operands, known, strict=False) if axes and shape
        for pair in zip(axes, shape, strict=True)
    ]  # fmt: skip
    sizes = dict(given)
    while pairs:
        left = [(a, n) for a, n in pairs if not _learn(a, n, sizes)]
        if len(left) == len(pairs):
            raise Misfit("the sizes of the letters don't follow from the shapes")
        pairs = left
    return FittedRow(sizes, ins, outs)


def out_shapes(row: Row, node: Node) -> list[Shape | None]:
    """Return the output shapes that a row gives from the input shapes alone; None where it doesn't say."""
    sizes = fit(row, node, outputs=False).sizes
    stars: dict[str, int] = {}
    for letter in sizes:
        name, dot, index = letter.partition(".")
        if dot:
            stars[name] = max(stars.get(name, 0), int(index) + 1)
    parsed = parse(row.text)
    shapes = zip(parsed.inputs, node.shapes, strict=False)
    given = {a.name for operand, s in shapes if s is not None for a in operand.axes if isinstance(a, Star)}
    outs: list[Shape | None] = []
    for operand in parsed.outputs:
        star = next((a.name for a in operand.axes if isinstance(a, Star)), None)
        if star is not None and star not in given:  # its number of axes is the op's own business
            outs.append(None)
            continue
        rank = len(operand.axes) - (star is not None) + stars.get(star or "", 0)
        shape = [size_of(a, sizes) for a in operand.expand(rank)]
        outs.append(None if any(s is None for s in shape) else tuple(s for s in shape if s is not None))
    outs += [None] * (len(node.outputs) - len(outs))
    return outs[: len(node.outputs)]
