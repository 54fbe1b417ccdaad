"""Choices among elements of an axis: where the numbers of the chosen go, and what must lose an element with that axis.

A router gives each expert a score, TopK chooses the greatest, and their numbers then pick experts' weights: they are
positions on the router's axis. A fused mixture of experts chooses within. Such an axis is locked in the space of axes,
since an op looks at all of it. It is opened here where three things hold.

1. Each op that looks at all of it counts an element that is the least number as little as one that isn't there
   (`Row.lowest`), or takes elements by the numbers of the chosen alone (`Row.looked`, `Row.indexed`).
2. The numbers of the chosen reach nothing but such ops, through movements and casts. The axis that each of these takes
   elements from is then the same axis as the router's: *a tie of contents*.
3. It is known how many are chosen (`Row.fewest`), so that as many stay.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import numpy as np
from onnx import TensorProto

from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied, Coupling, title_of
from onnxprune.graph.group_types import EXPERTS, Group, Member
from onnxprune.graph.groups import Family, Grouping, group
from onnxprune.graph.lookups import passing
from onnxprune.graph.passage import Passage
from onnxprune.graph.readers import Readers
from onnxprune.graph.space import Space
from onnxprune.graph.unrolled import Unchosen, passages
from onnxprune.ops import Row
from onnxprune.ops.notation import Letter
from onnxprune.ops.resolve import fit
from onnxprune.ops.traits import Trait

__all__ = ["opened"]

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})


@dataclass
class _Choices:
    """Choices of a graph.

    Attributes
    ----------
    space : Space
        A copy, in which what contents tie is tied.
    reached : set of int
        Dims of choices whose numbers pick weights, or that hold experts themselves.
    shut : list of (dim, reason)
        Axes whose numbers are read otherwise.
    spared : list of (dim, reason)
        Locks that ops put on an axis which they take elements from.
    alone : list of (dim, element, tensor)
        What is zero where an element isn't chosen.
    positions : dict
        (node, slot) of constants that the numbers are compared with -> the axis on which they count.
    begins : dict
        Nodes that spread a choice over an axis -> that axis.
    """

    analysis: Analysis
    space: Space
    reached: set[int] = field(default_factory=set)
    shut: list[tuple[int, str]] = field(default_factory=list)
    spared: list[tuple[int, str]] = field(default_factory=list)
    alone: list[tuple[int, int, str]] = field(default_factory=list)
    positions: dict[tuple[int, int], int] = field(default_factory=dict)
    begins: dict[int, int] = field(default_factory=dict)

    @cached_property
    def readers(self) -> Readers:
        return Readers.of(self.analysis)

    @property
    def coupling(self) -> Coupling:
        return self.analysis.coupling

    def follow(self) -> None:
        """Follow the numbers of the chosen through the graph."""
        numbers: dict[str, int] = {}  # tensor -> the dim that its numbers are positions on
        for number, applied in enumerate(self.coupling.nodes):
            read = {slot: numbers[name] for slot, name in enumerate(applied.node.inputs) if name in numbers}
            read_inside = numbers.keys() & captured(applied.proto) if applied.proto.attribute else ()
            for name in read_inside:
                self.shut.append((numbers[name], f"{title_of(applied.node)} reads which are chosen"))
            if applied.row is not None:
                for slot, letter in applied.row.places.items():
                    if slot < len(applied.node.outputs) and applied.node.outputs[slot]:
                        numbers[applied.node.outputs[slot]] = applied.letters[letter]
            if read and Trait.SIZE not in applied.node.traits:
                self.read(number, applied, read, numbers)
        for value in self.analysis.model.proto.graph.output:
            if value.name in numbers:
                self.shut.append((numbers[value.name], f"the output '{value.name}' says which are chosen"))

    def read(self, number: int, applied: Applied, read: dict[int, int], numbers: dict[str, int]) -> None:
        """Follow the numbers through one node that reads them."""
        node, row = applied.node, applied.row
        onward = passing(self.analysis, node)
        taken = {} if row is None else {slot: x for x, slot in (*row.looked.items(), *row.indexed.items())}
        for slot, dim in read.items():
            other = applied.letters.get(taken[slot]) if slot in taken else None
            if other is not None and self.space.sizes[other] == self.space.sizes[dim]:
                assert row is not None
                self.space.tie(other, dim)
                self.reached.add(dim)
                self.spared.append((dim, f"{row.why[taken[slot]]} ({title_of(node)})"))
                if slot in row.indexed.values() and Trait.MOVEMENT not in node.traits:
                    self.begins[number] = dim
            elif node.op == "Equal" and self.compared(number, applied, 1 - slot, dim):
                continue
            elif slot in onward and all(read.get(other) == dim for other in onward):
                numbers.update((name, dim) for name in node.outputs if name)
            else:
                self.shut.append((dim, f"{title_of(node)} reads the numbers of those that are chosen"))

    def compared(self, number: int, applied: Applied, slot: int, dim: int) -> bool:
        """Whether the numbers are compared with one that is known, or with those of all elements in their order."""
        node, value, size = applied.node, applied.node.values[slot], self.space.sizes[dim]
        if value is None or not applied.node.constant[slot]:
            return False
        flat = np.ravel(value)
        if flat.size == 1 and 0 <= flat[0] < size:
            self.alone += [(dim, int(flat[0]), name) for name in node.outputs]
        elif np.array_equal(flat, np.arange(size)):
            dims = applied.ins[slot] or ()
            self.space.tie(dims[value.shape.index(size)], dim)
            self.reached.add(dim)
            self.begins[number] = dim
        else:
            return False
        self.positions[number, slot] = dim
        return True

    def own_rows(self) -> None:
        """Find what reads one element of a choice by a fixed number."""
        rows = Unchosen(self.analysis, self.space, self.readers).table(self.begins)
        self.alone += rows
        for dim, _, name in rows:
            self.spared.append(
                (dim, f"picked by {title_of(self.coupling.nodes[self.readers.made[name]].node)}")
            )

    def passages(self, least: dict[int, int]) -> tuple[list[Passage], dict[int, str]]:
        """Return what goes with single elements of these axes, and for each axis with elements that stay, why."""
        passed, stay = list[Passage](), dict[int, str]()
        for root in least:
            sources = defaultdict[int, list[str]](list)
            for dim, element, name in self.alone:
                if self.space.find(dim) == root:
                    sources[element].append(name)
            more, reasons = passages(self.analysis, self.space, root, sources, self.readers)
            passed += more
            if reasons:
                stay[root] = next(iter(reasons.values()))
        return passed, stay

    def copies(self) -> Iterator[tuple[int, str]]:
        """Yield axes that count copies of the same elements, and their locks' reasons: a copy less is a copy less."""
        for applied in self.coupling.nodes:
            if applied.row is not None and Trait.REPEATS in applied.node.traits:
                for letter in applied.row.sizes.keys() & applied.row.why.keys():
                    yield applied.letters[letter], f"{applied.row.why[letter]} ({title_of(applied.node)})"

    def looked_at(self) -> Iterator[tuple[Row, int, str]]:
        """Yield rows of ops that look at all of an axis and can do without an element of it, the axis, and its lock."""
        for applied in self.coupling.nodes:
            row, node = applied.row, applied.node
            for letter, slot in () if row is None else row.lowest.items():
                assert row is not None
                axes = fit(row, node).ins[slot] or ()
                plain = any(isinstance(axis, Letter) and axis.name == letter for axis in axes)
                if plain and self.analysis.tracer.types.get(node.inputs[slot], (0, None))[0] in _FLOATS:
                    yield row, applied.letters[letter], f"{row.why[letter]} ({title_of(node)})"

    def counts(self) -> dict[int, int]:
        """Return how many elements of an axis are chosen, where their numbers pick weights or an op does all of it."""
        least: dict[int, int] = {}
        self.reached |= {dim for dim, _, _ in self.alone}
        for row, dim, why in self.looked_at():
            self.spared.append((dim, why))
            if not row.fewest:
                continue
            root = self.space.find(dim)
            least[root] = max(least.get(root, 1), *row.fewest.values())
            if not row.places:
                self.reached.add(dim)
        reached = {self.space.find(dim) for dim in self.reached}
        return {root: count for root, count in least.items() if root in reached}


def opened(analysis: Analysis, *, allow_inexact: bool = False, keep_blocks: bool = True) -> Analysis:
    """Return an analysis in which experts are units.

    Parameters
    ----------
    analysis : Analysis
    allow_inexact, keep_blocks : bool
        As `onnxprune.graph.analysis.analyse`.

    Returns
    -------
    Analysis
        With groups of the kind "experts", each of which keeps as many units as are chosen (`Group.least`); the same
        where nothing is chosen.
    """
    coupling = analysis.coupling
    old = coupling.space
    choices = _Choices(
        analysis, Space(old.sizes, old.links, old.products, list(old.locks), list(old._parent), old.shares)
    )
    choices.follow()
    choices.own_rows()
    space, least = choices.space, choices.counts()
    if not least:
        return analysis
    passed, stay = choices.passages(least)
    choices.spared += choices.copies()
    spared = Counter((space.find(dim), why) for dim, why in choices.spared)
    near = _beside(space, set(least))
    space.locks[:] = [lock for lock in old.locks if not _spared(space, lock, spared, near)]
    space.locks += [(dim, None, False, why) for dim, why in choices.shut]
    elements = {name: weight.elem for name, weight in analysis.tracer.weights.items()}

    def grouped() -> tuple[Coupling, Grouping]:
        now = replace(coupling, space=space, least=least, passages=tuple(passed), positions=choices.positions)
        return now, group(now, elements, allow_inexact=allow_inexact, keep_blocks=keep_blocks)

    now, grouping = grouped()
    shut = {root: stay.get(root) or _shut(grouping, root, count) for root, count in least.items()}
    for root, why in shut.items():
        if why:
            space.lock(root, why)
    if any(shut.values()):
        now, grouping = grouped()
    return replace(analysis, coupling=now, grouping=_named(grouping, least, analysis))


def _beside(space: Space, roots: set[int]) -> set[int]:
    """Return axes, and those that are another reading of a factor: copies (r n) of tokens, read as (experts n)."""
    wholes = {space.find(p.whole) for p in space.products if roots & {space.find(f) for f in p.factors}}
    return roots | {space.find(f) for p in space.products if space.find(p.whole) in wholes for f in p.factors}


def _spared(
    space: Space, lock: tuple[int, object, bool, str], spared: Counter[tuple[int, str]], near: set[int]
) -> bool:
    """Whether a lock is one that an op put on an axis which it can do without elements of."""
    dim, _, _, why = lock
    key = (space.find(dim), why)
    if key[0] not in near or spared[key] <= 0:
        return False
    spared[key] -= 1
    return True


def _owners(
    family: Family, root: int, size: int
) -> list[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]]:
    """Return the groups with units on an axis, and how many elements of it each unit has."""
    unit = family.solution.units_of(root, size)
    owners = []
    for g in family.groups:
        own = np.isin(unit, family.numbers[g.name])
        if own.any():
            place = np.searchsorted(family.numbers[g.name], unit[own])
            owners.append((g.name, np.bincount(place, minlength=g.units)))
    return owners


def _shut(grouping: Grouping, root: int, count: int) -> str:
    """Return why an axis is to be frozen; empty where it is, or where all of its elements are one group's, as many of
    each unit, and more than are chosen.
    """
    size = grouping.coupling.space.sizes[root]
    for family in grouping.families:
        owners = _owners(family, root, size)
        if owners and (len(owners) > 1 or owners[0][1].sum() < size or np.ptp(owners[0][1]) > 0):
            reasons = (family.solution.why(root, at) for at in range(size))
            return next(filter(None, reasons), "its experts differ in what goes with them")
        if owners and owners[0][1].size <= -(-count // int(owners[0][1][0])):
            return f"all of its {size} experts are chosen"
    return ""


def _named(grouping: Grouping, least: dict[int, int], analysis: Analysis) -> Grouping:
    """Return a grouping whose groups of experts say so, and how many of their units must stay."""
    changed: dict[str, Group] = {}
    for root, count in least.items():
        for family in grouping.families:
            for name, held in _owners(family, root, grouping.coupling.space.sizes[root]):
                g = changed.get(name) or next(g for g in family.groups if g.name == name)
                g = _with_own(g, family, grouping.coupling, root, analysis)
                changed[name] = replace(g, kind=EXPERTS, least=max(g.least, -(-count // int(held[0]))))
    families = tuple(
        replace(family, groups=tuple(changed.get(g.name, g) for g in family.groups))
        for family in grouping.families
    )
    groups = [replace(changed.get(g.name, g), alternative=g.alternative) for g in grouping.groups]
    return replace(grouping, families=families, groups=groups)


def _with_own(g: Group, family: Family, coupling: Coupling, root: int, analysis: Analysis) -> Group:
    """Return a group with the weights that are there for one of its units alone."""
    unit = family.solution.units_of(root, coupling.space.sizes[root])
    params, members = g.params.copy(), list(g.members)
    role_of = {
        name: applied.row.roles[slot]
        for applied in coupling.nodes
        if applied.row is not None
        for slot, name in enumerate(applied.node.inputs[: len(applied.row.roles)])
    }
    for passage in (p for p in coupling.passages if p.root == root):
        own = int(np.searchsorted(family.numbers[g.name], unit[passage.element]))
        for name in passage.weights:
            info = analysis.model.info(name)
            if analysis.numbers[name] and info.dims:
                every = np.arange(info.dims[0], dtype=np.int64)
                members.append(
                    Member(name, 0, every, np.full_like(every, own), role_of.get(name, "data"), False)
                )
                params[own] += round(prod(info.dims) * analysis.numbers[name])
    return replace(g, members=tuple(members), params=params)
