"""Costs as sums of functions of axis lengths, quick to count again when lengths change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Coupling
from onnxprune.graph.group_types import Group
from onnxprune.graph.groups import Grouping
from onnxprune.graph.kept import Kept, Masks
from onnxprune.graph.size import Size
from onnxprune.graph.space import Space

__all__ = ["Figures", "Costs", "Losses", "Pair", "Setting", "Term", "instance_terms", "mix", "node_terms"]

Floats = NDArray[np.float64]


class Figures(Protocol):
    """What a budget reads of a report: sizes before and after, and times where they were measured."""

    before: Size
    after: Size
    latency: dict[str, Any] | None


@dataclass(frozen=True)
class Term:
    """One summand of a cost.

    Attributes
    ----------
    dims : tuple of int
        Axes that it depends on.
    weight : float
    cost : callable, optional
        Lengths of the dims -> number; their product otherwise.
    """

    dims: tuple[int, ...]
    weight: float = 1.0
    cost: Callable[[Sequence[float]], float] | None = None


@dataclass
class Setting:
    """What a budget may ask for.

    Attributes
    ----------
    analysis : Analysis
    losses : Losses
    bytes : int
        Of the input's files.
    predictor : callable
        Measures the model and returns what predicts its latency.
    """

    analysis: Analysis
    losses: Losses
    bytes: int
    predictor: Callable[[], Any]


#: What a report says before and after; None where it says nothing.
Pair = tuple[float | None, float | None]


class Losses:
    """How many positions of each axis go with a unit of each group, on average.

    Attributes
    ----------
    of_root : dict
        Root dim -> {group: positions}.
    of_group : dict
        Group -> root dims.
    """

    def __init__(self, grouping: Grouping) -> None:
        self.space: Space = grouping.coupling.space
        self.coupling: Coupling = grouping.coupling
        self.of_root: defaultdict[int, dict[str, float]] = defaultdict(dict)
        self.of_group: defaultdict[str, list[int]] = defaultdict(list)
        for family in grouping.families:
            solution = family.solution
            owner = np.full(solution.inexact.size + 1, -1, np.int64)  # the last one stands for "frozen"
            for n, group in enumerate(family.groups):
                owner[family.numbers[group.name]] = n
            for root in solution.start:
                group_at = owner[solution.units_of(root, self.space.sizes[root])]
                for n, count in zip(*np.unique(group_at[group_at >= 0], return_counts=True), strict=True):
                    group = family.groups[n]
                    self.of_root[root][group.name] = int(count) / group.units
                    self.of_group[group.name].append(root)

    def length(self, root: int, state: Mapping[str, int]) -> float:
        """Return the length of an axis when groups have lost these counts of units."""
        lost = sum(share * state.get(name, 0) for name, share in self.of_root.get(root, {}).items())
        return self.space.sizes[root] - lost


class Costs:
    """A cost that is a sum of terms.

    Parameters
    ----------
    losses : Losses
    terms : sequence of Term
    fixed : float
        What doesn't change.
    """

    def __init__(self, losses: Losses, terms: Sequence[Term], fixed: float = 0.0) -> None:
        self.losses = losses
        self.fixed: float = fixed
        find = losses.space.find
        merged: dict[tuple[int, ...], float] = {}
        self.terms: list[Term] = []
        for term in terms:
            roots = tuple(find(d) for d in term.dims)
            touched = any(r in losses.of_root for r in roots)
            if term.cost is not None and touched:
                self.terms.append(Term(roots, term.weight, term.cost))
            elif term.cost is not None:
                self.fixed += term.weight * term.cost([losses.space.sizes[r] for r in roots])
            elif touched:
                key = tuple(sorted(roots))
                merged[key] = merged.get(key, 0.0) + term.weight
            else:
                self.fixed += term.weight * float(np.prod([losses.space.sizes[r] for r in roots]))
        self.terms += [Term(roots, weight) for roots, weight in merged.items()]
        self.of_root: defaultdict[int, list[int]] = defaultdict(list)
        for n, term in enumerate(self.terms):
            for root in set(term.dims):
                self.of_root[root].append(n)
        self._touched: dict[str, list[int]] = {}
        self.owners: list[tuple[str, ...]] = [
            tuple(sorted({name for root in t.dims for name in losses.of_root.get(root, {})}))
            for t in self.terms
        ]
        self._memory: dict[tuple[int, ...], float] = {}
        self._curves: dict[tuple[Any, ...], Floats] = {}

    def _value(self, n: int, length: Callable[[int], float]) -> float:
        term = self.terms[n]
        if term.cost is not None:
            return term.weight * term.cost([length(r) for r in term.dims])
        product = term.weight
        for root in term.dims:
            product *= length(root)
        return product

    def _known(self, n: int, state: Mapping[str, int]) -> float:
        """Return a term, worked out once for each state of the groups that it depends on."""
        key = (n, *[state.get(name, 0) for name in self.owners[n]])
        value = self._memory.get(key)
        if value is None:
            value = self._memory[key] = self._value(n, lambda r: self.losses.length(r, state))
        return value

    def total(self, state: Mapping[str, int]) -> float:
        """Return the cost when groups have lost these counts of units."""
        return self.fixed + sum(self._known(n, state) for n in range(len(self.terms)))

    def exact(self, dead: Masks) -> float:
        """Return the cost when exactly these elements of each root dim are gone."""
        kept = Kept(self.losses.coupling, dead)
        return self.fixed + sum(self._value(n, kept.size) for n in range(len(self.terms)))

    def touched(self, name: str) -> list[int]:
        """Return the terms that a group changes."""
        if name not in self._touched:
            roots = self.losses.of_group.get(name, ())
            self._touched[name] = sorted({n for root in roots for n in self.of_root.get(root, ())})
        return self._touched[name]

    def curve(self, group: Group, counts: NDArray[np.int64], state: Mapping[str, int]) -> Floats:
        """Return the cost of the terms that a group touches, for several counts of its units."""
        numbers, name = self.touched(group.name), group.name
        others = sorted({owner for n in numbers for owner in self.owners[n]} - {name})
        key = (name, counts.tobytes(), *[state.get(other, 0) for other in others])
        if key not in self._curves:
            costs = np.zeros(len(counts))
            for n in numbers:
                costs += self._along(n, name, counts, state)
            self._curves[key] = costs
        return self._curves[key]

    def _along(self, n: int, name: str, counts: NDArray[np.int64], state: Mapping[str, int]) -> Floats:
        """Return a term for several counts of a group's units."""
        term = self.terms[n]
        if term.cost is not None:
            return np.array([self._known(n, {**state, name: count}) for count in counts.tolist()])
        changed: dict[str, Any] = {**state, name: counts}  # lengths become arrays, and so does their product
        return np.asarray(self._value(n, lambda root: self.losses.length(root, changed)))

    def independent(self, groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
        """Split groups into those of which no two share a term, and the rest; groups that touch few come first."""
        terms = {g.name: set(self.touched(g.name)) for g in groups}
        readers = Counter(n for touched in terms.values() for n in touched)
        order = sorted(range(len(groups)), key=lambda i: (sum(readers[n] for n in terms[groups[i].name]), i))
        taken: set[int] = set()
        apart = set()
        for i in order:
            own = terms[groups[i].name]
            if not own & taken:
                taken |= own
                apart.add(groups[i].name)
        return [g for g in groups if g.name in apart], [g for g in groups if g.name not in apart]


def mix(parts: Sequence[tuple[Costs, float]]) -> Costs:
    """Return the weighted sum of costs."""
    terms = [Term(t.dims, t.weight * w, t.cost) for costs, w in parts for t in costs.terms]
    return Costs(parts[0][0].losses, terms, sum(costs.fixed * w for costs, w in parts))


def instance_terms(analysis: Analysis, weigh: Callable[[str], float]) -> list[Term]:
    """Return one term for each weight as its nodes see it: its elements, times what ``weigh`` says of one.

    A vector that several nodes share is as many terms, each of which counts for its part.
    """
    instances: list[Any] = [i for i in analysis.coupling.instances if i.uses or i.outer]
    shared = Counter(i.tensor for i in instances)
    alone = {name: p.root for p in analysis.coupling.passages for name in p.weights}
    return [
        _along(i.dims, w / shared[i.tensor], alone.get(i.tensor), analysis)
        for i in instances
        if (w := weigh(i.tensor))
    ]


def node_terms(analysis: Analysis) -> list[Term]:
    """Return one term for each product of lengths that a node's multiply-accumulates are, of one sample."""
    alone = {number: p.root for p in analysis.coupling.passages for number in p.nodes}
    return [
        _along(dims, analysis.coupling.space.share(dims), alone.get(number), analysis)
        for number, applied in enumerate(analysis.coupling.nodes)
        for dims in applied.macs
    ]


def _along(dims: tuple[int, ...], weight: float, root: int | None, analysis: Analysis) -> Term:
    """Return a term that goes with one element of an axis, as its share of that axis, whose elements are alike."""
    if root is None:
        return Term(dims, weight)
    return Term((*dims, root), weight / analysis.coupling.space.sizes[root])
