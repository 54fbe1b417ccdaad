"""MACs and parameters as sums of products of axis lengths, quick to count again when lengths change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.coupling import Coupling
from onnxprune.graph.group_types import Group
from onnxprune.graph.groups import Grouping

__all__ = ["Costs", "macs", "parameters"]

Floats = NDArray[np.float64]


class Costs:
    """A cost that is a sum of products of axis lengths.

    Parameters
    ----------
    grouping : Grouping
    terms : sequence of tuples of dims
        Each stands for the product of the lengths of its dims.
    """

    def __init__(self, grouping: Grouping, terms: Sequence[tuple[int, ...]]) -> None:
        space = grouping.coupling.space
        self.sizes = space.sizes
        self.terms = [tuple(space.find(d) for d in dims) for dims in terms]
        self.lost: dict[str, dict[int, float]] = {}  # group -> root -> mean positions lost with a unit
        families = [(f.solution, f.numbers) for f in grouping.families]
        touched = {root for term in self.terms for root in term}
        for solution, numbers in families:
            owners = {name: np.zeros(solution.inexact.size, bool) for name in numbers}
            for name, units in numbers.items():
                owners[name][units] = True
            for root in touched & set(solution.start):
                unit = solution.units_of(root, self.sizes[root])
                for name in numbers:
                    share = int(owners[name][unit[unit >= 0]].sum())
                    if share:
                        self.lost.setdefault(name, {})[root] = share / len(numbers[name])
        self.of_root: defaultdict[int, list[int]] = defaultdict(list)
        for n, term in enumerate(self.terms):
            for root in set(term):
                self.of_root[root].append(n)

    def _length(self, root: int, state: Mapping[str, int]) -> float:
        lost = sum(self.lost.get(name, {}).get(root, 0.0) * count for name, count in state.items() if count)
        return self.sizes[root] - lost

    def _sum(self, numbers: Sequence[int], state: Mapping[str, int]) -> float:
        lengths: dict[int, float] = {}
        total = 0.0
        for n in numbers:
            product = 1.0
            for root in self.terms[n]:
                if root not in lengths:
                    lengths[root] = self._length(root, state)
                product *= lengths[root]
            total += product
        return total

    def total(self, state: Mapping[str, int]) -> float:
        """Return the cost when groups have lost these counts of units."""
        return self._sum(range(len(self.terms)), state)

    def curve(self, group: Group, counts: NDArray[np.int64], state: Mapping[str, int]) -> Floats:
        """Return the cost of the terms that a group touches, for several counts of its units."""
        numbers = sorted({n for root in self.lost.get(group.name, {}) for n in self.of_root[root]})
        return np.array([self._sum(numbers, {**state, group.name: int(c)}) for c in counts])

    def independent(self, groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
        """Split groups into those of which no two share a term, and the rest; groups that touch few come first."""
        terms = {
            g.name: {n for root in self.lost.get(g.name, {}) for n in self.of_root[root]} for g in groups
        }
        readers = Counter(n for mine in terms.values() for n in mine)
        order = sorted(range(len(groups)), key=lambda i: (sum(readers[n] for n in terms[groups[i].name]), i))
        taken: set[int] = set()
        apart = set()
        for i in order:
            mine = terms[groups[i].name]
            if not mine & taken:
                taken |= mine
                apart.add(groups[i].name)
        return [g for g in groups if g.name in apart], [g for g in groups if g.name not in apart]


def macs(grouping: Grouping) -> Costs:
    """Return multiply-accumulates of one run."""
    return Costs(grouping, [dims for applied in grouping.coupling.nodes for dims in applied.macs])


def parameters(grouping: Grouping, counted: Sequence[str]) -> Costs:
    """Return parameters of the named weights."""
    coupling: Coupling = grouping.coupling
    names = set(counted)
    return Costs(grouping, [i.dims for i in coupling.instances if i.tensor in names and i.uses])
