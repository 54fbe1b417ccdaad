"""Lengths of axes in stand-ins: what they would be if each dynamic axis had a size that no model has.

See `onnxprune.graph.sizes`. A row says which axes of an output are axes of its inputs; what it can't say, since values
give lengths, is in `onnxprune.graph.length_rules`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph.steps import Steps
from onnxprune.graph.trace import Tracer
from onnxprune.ops import Node, Row
from onnxprune.ops.notation import Axis, Letter, Product, Sum, Unit, letters_of
from onnxprune.ops.resolve import FittedRow, Misfit, fit

__all__ = ["Lengths", "Number", "Stretches", "Values", "leaves", "over", "stand_in"]

Number: TypeAlias = int | Fraction
Values: TypeAlias = NDArray[Any]  # of objects: a `Number`, or a float, or a bool, for each entry
Lengths: TypeAlias = tuple[Number, ...]

#: No stand-in is as small as this.
_SMALL = 1 << 64
#: Constants up to this size have a part in the name of a fresh number by their value.
_NAMED = 64


def stand_in(*key: object) -> int:
    """Return the number that stands for what is called by this key, of about a hundred bits."""
    text = "\0".join(map(repr, key)).encode()
    return (1 << 100) + int.from_bytes(blake2b(text, digest_size=12).digest(), "little")


def leaves(axis: Axis) -> list[str]:
    """Return the names of an axis's letters."""
    return [letter.name for letter in letters_of(axis)]


def over(whole: Number, part: Number) -> Number | None:
    """Divide exactly; None by zero."""
    if part == 0:
        return None
    quotient = Fraction(whole) / Fraction(part)
    return int(quotient) if quotient.denominator == 1 else quotient


@dataclass
class Stretches:
    """Lengths of all tensors of a traced graph.

    Attributes
    ----------
    tracer : Tracer
        Shapes and values under the binding that the graph was traced with.
    lengths : dict
        Tensor -> stand-in of the length of each axis; absent where none varies, or where the shape is unknown.
    entries : dict
        Tensor -> stand-in of each entry, for known values of which some entry varies; absent: all are as traced.
    natural : set
        Stand-ins that can't be negative.
    unplain : set
        Stand-ins that are no plain arithmetic of sizes.
    pinned : set
        Lengths that vary on paper only: such an axis is summed against one of fixed size, or is a factor of one,
        wherever the model runs.
    members : dict
        Stand-in for the widest of several -> those.
    ones : dict
        Stand-in for the lesser of one and a length -> that length: one, but where that is empty.
    steps : Steps
        How often bodies run.
    """

    tracer: Tracer
    lengths: dict[str, Lengths] = field(default_factory=dict)
    entries: dict[str, Values] = field(default_factory=dict)
    natural: set[Number] = field(default_factory=set)
    unplain: set[Number] = field(default_factory=set)
    pinned: set[Number] = field(default_factory=set)
    members: dict[Number, frozenset[Number]] = field(default_factory=dict)
    ones: dict[Number, Number] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the traced shape of a tensor."""
        return self.tracer.types.get(name, (0, None))[1] if name else None

    def length(self, name: str) -> Lengths | None:
        """Return the stand-ins of a tensor's lengths: its sizes where none varies, None where they are unknown."""
        return self.lengths.get(name) or self.shape(name)

    def stretches(self, name: str) -> bool:
        """Whether the length of some axis follows the sizes of dynamic axes."""
        return name in self.lengths and self.lengths[name] != self.shape(name)

    def value(self, name: str) -> Values | None:
        """Return the entries of a known value, in stand-ins where they vary."""
        entries = self.entries.get(name)
        if entries is None and name in self.tracer.values:
            entries = self.tracer.values[name].astype(object)
        return entries

    def moving(self, name: str) -> NDArray[np.bool_]:
        """Say which entries of a known value vary; all where it has not always as many."""
        traced = self.tracer.values.get(name)
        if traced is None:
            return np.ones(0, bool)
        entries = self.entries.get(name)
        if self.stretches(name) or entries is None:
            return np.full(traced.size, self.stretches(name))
        return np.array(
            [a != b for a, b in zip(entries.ravel().tolist(), traced.ravel().tolist(), strict=True)], bool
        )

    def fresh(self, node: Node, *key: object) -> int:
        """Return the number for what an op makes of its operands in a way that is no arithmetic."""
        attrs = sorted((k, repr(v)) for k, v in node.attrs.items() if not isinstance(v, onnx.GraphProto))
        number = stand_in(node.domain, node.op, attrs, [self._called(name) for name in node.inputs], *key)
        self.unplain.add(number)
        return number

    def whole(self, number: Number) -> int | None:
        """Return an exact quotient or product as an integer; None where it is one by the chance of its stand-ins.

        Half of a length may be whole as the stand-in is even, and so belongs to no other size. What is whole at all
        sizes is a product of lengths and of small numbers.
        """
        if isinstance(number, int):
            return number
        if number.denominator != 1:
            return None
        rest = abs(int(number))
        for length in self.natural:
            if rest < _SMALL:
                break
            while isinstance(length, int) and length > _SMALL and rest % length == 0:
                rest //= length
        return int(number) if rest < _SMALL else None

    def scaled(self, length: Number, scale: float) -> Number:
        """Return how long an axis of a length is that is made so many times longer, and rounded."""
        number = self.whole(length * Fraction(scale))
        if number is None:
            number = stand_in("scaled", length, scale)
            self.unplain.add(number)
        return number

    def _called(self, name: str) -> object:
        """What a tensor is, as far as sizes go."""
        value = self.entries.get(name)
        if value is None and name in self.tracer.values and self.tracer.values[name].size <= _NAMED:
            value = self.tracer.values[name]
        return (self.length(name), None if value is None else value.tolist())

    def same(self, numbers: Iterable[Number], sizes: Iterable[int]) -> Number:
        """Return the length of axes that must agree: a size that is fixed, else the plainest of them."""
        given = list(zip(numbers, sizes, strict=True))
        for number, size in given:
            if number == size:
                return number
        plain = [n for n, _ in given if n not in self.unplain]
        return (plain or [n for n, _ in given])[0]

    def widest(self, numbers: Iterable[Number], sizes: Iterable[int]) -> Number:
        """Return the length of axes that are broadcast against each other."""
        given = list(zip(numbers, sizes, strict=True))
        for number, size in given:
            if number == size != 1:
                return number
        loose = [n for n, size in given if n != size]
        plain = [n for n in loose if n not in self.unplain] or loose
        members = frozenset[Number]().union(*(self.members.get(n, frozenset({n})) for n in plain))
        members = frozenset(n for n in members if self.ones.get(n) not in members)  # no wider, empty or not
        if len(members) <= 1:
            return next(iter(members), 1)
        widest = stand_in("the widest", sorted(members))
        self.members[widest] = members
        return widest

    def broadcast(self, node: Node, slot: int) -> Lengths:
        """Return the lengths of an output of operands that are broadcast against each other."""
        rank = len(self.shape(node.outputs[slot]) or ())
        read = [(self.length(name) or (), self.shape(name) or ()) for name in node.inputs]
        return tuple(
            self.widest(
                [n[-back] for n, _ in read if len(n) >= back], [s[-back] for _, s in read if len(s) >= back]
            )
            for back in range(rank, 0, -1)
        )

    def letters(self, node: Node, row: Row, fitted: FittedRow) -> dict[str, Number]:
        """Return the lengths of a row's letters, as far as its inputs tell them."""
        seen: dict[str, list[Number]] = {}
        composites: list[tuple[Axis, Number, int]] = []
        for name, axes in zip(node.inputs, fitted.ins, strict=False):
            numbers, shape = self.length(name), self.shape(name)
            for axis, number, size in zip(axes or (), numbers or (), shape or (), strict=True):
                if isinstance(axis, Letter):
                    seen.setdefault(axis.name, []).append(number)
                elif not isinstance(axis, Unit):
                    composites.append((axis, number, size))
        kept = {leaf for axes in fitted.outs for axis in axes or () for leaf in leaves(axis)}
        for name, several in seen.items():
            summed = name not in kept and node.op != "Einsum"  # nothing is broadcast there
            if summed and fitted.sizes[name] in several:
                self.pinned |= {n for n in several if n != fitted.sizes[name]}
        lengths = {name: self.same(n, [fitted.sizes[name]] * len(n)) for name, n in seen.items()}
        lengths |= {name: size for name, size in row.sizes.items() if name not in lengths}
        for axis, number, size in composites:
            if number == size:
                self._pin(axis, fitted, lengths, seen)
            self._solve(axis, number, size, fitted, lengths)
        return lengths

    def _pin(
        self, axis: Axis, fitted: FittedRow, lengths: dict[str, Number], seen: dict[str, list[Number]]
    ) -> None:
        """Take the one letter that varies as fixed, where the others of an axis of fixed size are.

        Sums and products grow with each letter, so only one length of it fits: the width of a head, where the heads
        and the weights that make them all are fixed.
        """
        names = set(leaves(axis))
        loose = [n for n in names if lengths.get(n) != fitted.sizes[n]]
        if len(loose) == 1 and loose[0] in seen:
            (name,) = loose
            self.pinned |= {n for n in seen[name] if n != fitted.sizes[name]}
            lengths[name] = fitted.sizes[name]

    def _solve(
        self, axis: Axis, number: Number, size: int, fitted: FittedRow, lengths: dict[str, Number]
    ) -> None:
        """Take from a composite axis what it says about the letters that are not known."""
        names = leaves(axis)
        open_ = [n for n in names if n not in lengths]
        if number == size:
            lengths |= {n: fitted.sizes[n] for n in open_}
        elif (
            len(open_) == 1 and isinstance(axis, Product) and all(isinstance(f, Letter) for f in axis.factors)
        ):
            rest = over(number, prod(lengths[n] for n in names if n in lengths))
            if rest is not None:
                lengths[open_[0]] = rest

    def by_row(self, node: Node, row: Row, slot: int) -> Lengths | None:
        """Return the lengths of an output by the letters of a row, None where it doesn't fit."""
        try:
            fitted = fit(row, node)
        except Misfit:
            return None
        axes = fitted.outs[slot] if slot < len(fitted.outs) else None
        if axes is None:
            return None
        letters = self.letters(node, row, fitted)
        inside = {leaf for axis in axes for leaf in leaves(axis)}
        read = {leaf for own in fitted.ins for axis in own or () for leaf in leaves(axis)}
        loose = any(name in self.entries for name in node.inputs)  # may a new axis be of another length?
        loose |= any(letters.get(n) != fitted.sizes.get(n) for n in read - inside)

        def number(axis: Axis, at: int, size: int) -> Number:
            if isinstance(axis, Letter):
                if axis.name in letters:
                    return letters[axis.name]
                return self.fresh(node, slot, axis.name) if loose or axis.name in read else size
            if isinstance(axis, Unit):
                return self._unit(node, fitted, len(axes) - at)
            parts = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Sum) else ()
            numbers = [number(p, at, fitted.sizes[leaves(p)[0]] if leaves(p) else 1) for p in parts]
            return prod(numbers) if isinstance(axis, Product) else sum(numbers)

        shape = self.shape(node.outputs[slot]) or ()
        return tuple(number(axis, at, size) for at, (axis, size) in enumerate(zip(axes, shape, strict=True)))

    def _unit(self, node: Node, fitted: FittedRow, back: int) -> Number:
        """Return the length of an output's axis of one element: that of such axes of the inputs, where one varies."""
        at_place: list[Number] = []
        anywhere: list[Number] = []
        for name, axes in zip(node.inputs, fitted.ins, strict=False):
            for axis, number, place in zip(
                axes or (), self.length(name) or (), range(len(axes or ()), 0, -1), strict=True
            ):
                if isinstance(axis, Unit) and number != 1:
                    anywhere.append(number)
                    at_place += [number] * (place == back)
        units = at_place or (anywhere if node.op == "Einsum" else [])
        return self.widest(units, [1] * len(units))
