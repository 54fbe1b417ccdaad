"""Experts that are written one by one: what each gives where nothing chooses it, and what goes with it.

A router's choice becomes a table of ones (OneHot), of which each expert reads its own row by a fixed number, or each
expert compares the numbers of the chosen with its own (Equal). What it reads is zero wherever it isn't chosen, and then
what follows is followed, by what rows and traits say:

1. *nothing*: the places of ones among zeros (NonZero) are none; what is moved, looked up or computed element by element
   of nothing is nothing, and so is what an op gives that sums over none but the axes of weights;
2. *zeros*: what moves zeros, adds them up, or maps them to zero whatever else it reads, gives zeros;
3. where zeros are added to something, or nothing is written into something (ScatterElements), that *goes through*.

So the original with an expert that is never chosen is the one in which, at the places of 3, the other input stands for
the output. What nobody needs then is the expert's. Where something else reads zeros or nothing, its experts stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied, title_of
from onnxprune.graph.passage import Passage
from onnxprune.graph.readers import Readers, owned
from onnxprune.graph.space import Space
from onnxprune.graph.values import evaluate
from onnxprune.ops import Row, Trait
from onnxprune.ops.notation import letters_of
from onnxprune.ops.resolve import fit

__all__ = ["Unchosen", "passages"]

Uses = Mapping[str, list[tuple[int, int]]]
#: Values that stand for any of an element-wise op's other operands.
_OTHERS = np.array([0.37, -2.25, 3.0, 1e-3, -7.5, 11.0])


class Unread(ValueError):
    """What reads an expert that isn't chosen isn't understood; the text says which node."""


@dataclass
class Unchosen:
    """What one expert gives where it isn't chosen.

    Attributes
    ----------
    zeros : set of str
        Tensors whose elements are all zero.
    nothing : set of str
        Tensors without elements.
    rest : set of str
        Tensors of which nothing is known, such as lengths of nothing. They must end where there is nothing.
    through : list of (node, slot)
        Nodes whose output is what they read at that slot.
    reason : str
        Why the first of the rest isn't known.
    points : dict
        Zeros that are quantised -> their zero point.
    """

    analysis: Analysis
    space: Space
    readers: Readers
    zeros: set[str] = field(default_factory=set)
    nothing: set[str] = field(default_factory=set)
    rest: set[str] = field(default_factory=set)
    through: list[tuple[int, int]] = field(default_factory=list)
    reason: str = ""
    points: dict[str, str] = field(default_factory=dict)

    def follow(self, names: Iterable[str]) -> None:
        """Follow these zeros to where something goes through.

        Raises
        ------
        Unread
            If they reach anything else.
        """
        todo: list[int] = []
        for name in names:
            self._reach(name, self.zeros, todo)
        last = -1
        while todo:
            number = heappop(todo)
            if number == last:
                continue
            last, applied = number, self.analysis.coupling.nodes[number]
            if Trait.SIZE in applied.node.traits:
                if applied.node.inputs[0] in self.nothing:
                    self._reach(applied.node.outputs[0], self.rest, todo)
                continue
            slot = self._given(applied, todo)
            if slot is not None:
                if applied.node.outputs[0] in self.readers.kept:
                    raise Unread(f"{applied.node.outputs[0]!r} leaves the graph")
                self.through.append((number, slot))

    def _reach(self, name: str, state: set[str], todo: list[int]) -> None:
        if name in self.readers.kept:
            raise Unread(self.reason or f"{name!r} leaves the graph")
        state.add(name)
        for number, _ in self.readers.uses.get(name, ()):
            heappush(todo, number)

    def _given(self, applied: Applied, todo: list[int]) -> int | None:
        """Find what a node's outputs are, and return the slot of what goes through it, if that is one of its inputs.

        Raises
        ------
        Unread
            If neither is known.
        """
        node, row = applied.node, applied.row
        outs = [name for name in node.outputs if name]
        if row is None or None in applied.outs:
            raise Unread(f"{title_of(node)}: {applied.reason or 'its shape is unknown'}")
        for name in [
            name for slot, name in enumerate(node.outputs) if name and self._void(applied, row, slot)
        ]:
            self._reach(name, self.nothing, todo)
            outs.remove(name)
        if not outs:
            return None
        try:
            slot = self._slot(applied)
        except Unread as reason:
            self.reason = self.reason or str(reason)
            for name in outs:
                self._reach(name, self.rest, todo)
            return None
        if slot is None:
            for name in outs:
                self._reach(name, self.zeros, todo)
                self.points[name] = self._point(applied)
        elif node.shapes[slot] != node.out_shapes[0]:
            raise Unread(f"{title_of(node)} gives another shape than what goes through it")
        return slot

    def _void(self, applied: Applied, row: Row, slot: int) -> bool:
        """Whether an output has no elements."""
        node = applied.node
        if node.op == "NonZero":
            return node.inputs[0] in self.zeros
        read = [n in self.nothing for n in node.inputs]
        if Trait.ELEMENTWISE in node.traits:
            return any(read)
        if Trait.LOOKUP in node.traits and any(
            read[at] for at in (*row.looked.values(), *row.indexed.values())
        ):
            return True
        if node.moved:
            return all(n in self.nothing for n in node.moved)
        fitted = fit(row, node)
        leaves = [[leaf.name for axis in axes or () for leaf in letters_of(axis)] for axes in fitted.ins]
        given = {leaf.name for axis in fitted.outs[slot] or () for leaf in letters_of(axis)}
        for at in (at for at, is_read in enumerate(read[: len(leaves)]) if is_read):
            weights = [names for names, known in zip(leaves, node.constant, strict=False) if known]
            own = {name for names in weights for name in names} | given
            if leaves[at] and len(leaves[at]) == node.rank(at) and own.issuperset(leaves[at]):
                return True  # the axis that is empty is one of the output's, since those of weights aren't
        return False

    def _point(self, applied: Applied) -> str:
        """Return the zero point, a tensor, that zeros are in quantised units; empty where they are zero."""
        node = applied.node
        if node.op == "QuantizeLinear":
            return node.inputs[2] if node.has(2) else ""
        return next((self.points[n] for n in node.moved if self.points.get(n)), "")

    def _unpacked(self, applied: Applied) -> bool:
        """Whether a node gives zeros for zeros in quantised units, or in units of its own."""
        node = applied.node
        point = self.points.get(node.inputs[0], "")
        if node.op == "QuantizeLinear" or not point:
            return not point
        own = node.inputs[2] if node.has(2) else ""
        known = [self.analysis.tracer.values.get(name) for name in (point, own)]
        same = known[0] is not None and known[1] is not None and np.array_equal(known[0], known[1])
        return node.op == "DequantizeLinear" and (own == point or same)

    def _slot(self, applied: Applied) -> int | None:
        """Return the slot of what goes through a node; None where it gives zeros.

        Raises
        ------
        Unread
            If neither is known.
        """
        node, row = applied.node, applied.row
        assert row is not None
        zero = [n in self.zeros for n in node.inputs]
        if not self.rest.isdisjoint(node.inputs):
            raise Unread(f"{title_of(node)} reads how often it is chosen")
        if row.indexed and not node.traits & Trait.MOVEMENT and 0 not in row.indexed.values():
            if all(node.inputs[slot] in self.nothing for slot in row.indexed.values()):
                return None if self._null(node.inputs[0]) else 0  # written at no place
        elif node.op in ("QuantizeLinear", "DequantizeLinear"):
            if zero[0] and self._unpacked(applied):
                return None
        elif any(self.points.get(n) for n in node.inputs if n not in node.moved):
            raise Unread(f"{title_of(node)} reads quantised zeros")
        elif Trait.ELEMENTWISE in node.traits:
            return self._pointwise(applied, zero)
        elif node.moved:
            if all(n in self.zeros for n in node.moved):
                return None
        elif Trait.LINEAR in node.traits and Trait.ZEROS in node.traits:
            if zero[0] or node.inputs[0] in self.nothing:
                return None
        elif Trait.GEMM in node.traits and len(node.inputs) == 2 and any(zero):
            return None
        raise Unread(f"what {title_of(node)} makes of it isn't known")

    def _null(self, name: str) -> bool:
        """Whether a tensor is known to hold nothing but zeros."""
        number = self.readers.made.get(name, -1)
        applied = self.analysis.coupling.nodes[number]
        if number < 0 or applied.node.op != "ConstantOfShape":
            return name in self.zeros
        fill = applied.node.attr("value")
        return fill is None or not np.any(fill)

    def _pointwise(self, applied: Applied, zero: list[bool]) -> int | None:
        """Try an element-wise op on zeros, and on anything else in the other operands."""
        node = applied.node
        operands = [
            np.zeros(len(_OTHERS)) if is_zero else _values(applied, slot) for slot, is_zero in enumerate(zero)
        ]
        kinds = [self.analysis.tracer.types.get(name, (1, None))[0] for name in node.inputs]
        given = [_as(kind, values) for kind, values in zip(kinds, operands, strict=True)]
        result = evaluate(node.op, dict(node.attrs), given, [bool(n) for n in node.inputs])
        if result is not None and not result.any():
            return None
        for slot, values in enumerate(given):
            if result is not None and not zero[slot] and np.array_equal(result, values):
                return slot
        raise Unread(f"what {title_of(node)} makes of it isn't known")

    def table(self, begins: Mapping[int, int]) -> list[tuple[int, int, str]]:
        """Return what reads one element of a choice by a fixed number.

        Parameters
        ----------
        begins : mapping
            Node that spreads a choice over an axis -> that axis, a dim.

        Returns
        -------
        list of (dim, element, tensor)
            Where the element isn't chosen the tensor is zero.
        """
        rows: list[tuple[int, int, str]] = []
        roots = {self.space.find(dim) for dim in begins.values()}
        for number, applied in enumerate(self.analysis.coupling.nodes):
            row, node = applied.row, applied.node
            if number in begins and self._spreads(applied):
                self.zeros.add(node.outputs[0])
            elif row is not None and not self.zeros.isdisjoint(node.inputs):
                for letter, index in row.pinned.items():
                    if len(index) == 1:  # what is picked at known places is the first input
                        rows += [(applied.letters[letter], int(index[0]), name) for name in node.outputs]
                with suppress(Unread):
                    whole = any(self.space.find(d) in roots for d in applied.outs[0] or ())
                    if whole and self._slot(applied) is None:
                        self.zeros.add(node.outputs[0])
        return rows

    def _spreads(self, applied: Applied) -> bool:
        """Whether a node puts zeros where nothing is chosen."""
        node, row = applied.node, applied.row
        if row is None or not row.indexed:
            return True  # a comparison
        if 0 in row.indexed.values():
            return node.values[2] is not None and not np.ravel(node.values[2])[0]
        return self._null(node.inputs[0])


def _values(applied: Applied, slot: int) -> NDArray[np.float64]:
    """Return a constant's one value, or numbers that stand for any."""
    known = applied.node.values[slot] if applied.node.constant[slot] else None
    if known is not None and known.size and (np.ravel(known) == np.ravel(known)[0]).all():
        return np.full(len(_OTHERS), float(np.ravel(known)[0]))
    return np.roll(_OTHERS, slot)


def _as(kind: int, values: NDArray[np.float64]) -> NDArray[np.generic]:
    """Return values as an ONNX element type has them."""
    if kind == 9:
        return np.asarray(values > 0)
    return values.astype(np.int64) if kind in (6, 7) else values.astype(np.float32)


def passages(
    analysis: Analysis, space: Space, root: int, sources: Mapping[int, list[str]], readers: Readers
) -> tuple[list[Passage], dict[int, str]]:
    """Find what goes through where an expert isn't chosen, for each that reads its own part of a choice.

    Parameters
    ----------
    analysis : Analysis
    space : Space
        With what contents tie.
    root : int
        Axis of the experts.
    sources : mapping
        Expert -> tensors that are zero where it isn't chosen.
    readers : Readers

    Returns
    -------
    list of Passage
    dict
        Expert -> why it can't go.
    """
    passed: list[Passage] = []
    stay: dict[int, str] = {}
    for expert, names in sources.items():
        unchosen = Unchosen(analysis, space, readers)
        try:
            unchosen.follow(names)
        except Unread as reason:
            stay[expert] = f"what expert {expert} gives where it isn't chosen isn't known: {reason}"
            continue
        nodes, weights = owned(analysis.coupling, analysis.model, readers, unchosen.through)
        passed.append(Passage(root, expert, tuple(unchosen.through), nodes, weights))
    return passed, stay
