"""Which channels may change places: symmetries of a space of axes.

A permutation of the elements of a space keeps what a model computes if it maps every axis onto itself and keeps
every relation: a link (concatenation, split, slice, gather, pad) must join the same channels afterwards, and a
product must stay the product of its factors. The ops themselves don't care: a letter of a row that isn't locked
says that the op treats all its channels alike, each by itself or in a sum; an average is one too, so axes that only
averages freeze may be permuted although they may not be cut.

Units are classes of elements that relations tie together. Two units may be swapped if they look alike from inside:
the same number of positions on the same axes, tied to each other by the same links in the same order. So channels
change places with channels of the same part of a concatenation, padded ones with padded ones, head width with the
same head width in all heads. `broken` checks a finished permutation against every relation, whatever it was made by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.coupling import Coupling
from onnxprune.graph.groups import Family
from onnxprune.graph.kept import Indices, Kept
from onnxprune.graph.space import Solution, Space

__all__ = ["Order", "Orders", "Symmetry", "broken", "symmetry_of"]

#: Root dim -> what stands where: new element i is the old element ``order[i]``.
Orders = Mapping[int, Indices]


class Order(Kept):
    """A permutation, in the shape of a cut that takes nothing away."""

    word = "permuted"

    def __init__(self, coupling: Coupling, orders: Orders) -> None:
        super().__init__(coupling, {root: np.zeros(order.size, bool) for root, order in orders.items()})
        self._kept.update(orders)


@dataclass(frozen=True)
class Symmetry:
    """Units that look alike, class by class, and where they are.

    Attributes
    ----------
    alike : int64[units]
        The class of each unit of a solution; equal numbers may be swapped.
    solution : Solution
    """

    alike: Indices
    solution: Solution

    def orders(self, space: Space, source: Indices) -> dict[int, Indices]:
        """Return the permutation of elements that follows from one of units.

        Parameters
        ----------
        space : Space
        source : int64[units]
            For each unit the unit that takes its places; of the same class.
        """
        orders: dict[int, Indices] = {}
        moved = source != np.arange(source.size)
        if not moved.any():
            return orders
        for root, first in self.solution.start.items():
            size = space.sizes[root]
            unit = self.solution.unit[first : first + size]
            at = np.flatnonzero((unit >= 0) & moved[unit])
            if not at.size:
                continue
            order = np.arange(size)
            # the r-th place of a unit goes to the r-th place of its source, places in ascending order
            places = at[np.lexsort((at, unit[at]))]
            theirs = at[np.lexsort((at, np.argsort(source)[unit[at]]))]
            order[places] = theirs
            orders[root] = order
        return orders


def symmetry_of(space: Space, family: Family) -> Symmetry:
    """Find which units of a family look alike from inside.

    Each unit gets a hash of the multiset of its places and of the relations between them; a collision could only
    lead to a permutation that `broken` refuses.
    """
    solution = family.solution
    rank = _ranks(space, solution)
    rng = np.random.default_rng(0)
    signature = np.zeros(solution.inexact.size, np.uint64)

    def mark(unit: Indices, *codes: Indices) -> None:
        salt = rng.integers(1, 1 << 63, dtype=np.uint64)
        value = np.full(unit.size, salt, np.uint64)
        for code in codes:
            value = _mix(value ^ code.astype(np.uint64))
        free = unit >= 0
        np.add.at(signature, unit[free], value[free])

    for root, first in solution.start.items():
        at = np.arange(first, first + space.sizes[root])
        mark(solution.unit[at], rank[at])
    for link in space.links:
        a, b = space.find(link.a), space.find(link.b)
        if a in solution.start and b in solution.start:
            left, right = solution.start[a] + link.ia, solution.start[b] + link.ib
            mark(solution.unit[left], rank[left], rank[right])
    for product, k in zip(space.products, solution.chosen, strict=True):
        if k >= 0:
            first = solution.start[space.find(product.whole)]
            at = first + np.arange(space.sizes[product.whole])
            sizes = tuple(space.sizes[f] for f in product.factors)
            index = np.arange(at.size).reshape(sizes)
            other = np.broadcast_to(
                index.take([0], axis=k), sizes
            ).ravel()  # where it is on the other factors
            mark(solution.unit[at], rank[at], other)
    return Symmetry(np.unique(signature, return_inverse=True)[1].astype(np.int64), solution)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of numbers (splitmix64)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _ranks(space: Space, solution: Solution) -> Indices:
    """Return for each element how many places of its unit come before it on the same axis."""
    rank = np.zeros(solution.unit.size, np.int64)
    for root, first in solution.start.items():
        unit = solution.unit[first : first + space.sizes[root]]
        by_unit = np.argsort(unit, kind="stable")
        owner = unit[by_unit]
        begin = np.searchsorted(owner, owner)
        rank[first + by_unit] = np.arange(unit.size) - begin
    return rank


def broken(space: Space, orders: Orders) -> str:
    """Say which relation a permutation doesn't keep; empty if it keeps all of them.

    Exact, in time linear in the number of elements: a link must be mapped onto itself, and a product's order must be
    the product of the orders of its factors.
    """

    def order(dim: int) -> Indices | None:
        return orders.get(space.find(dim))

    for link in space.links:
        a, b = order(link.a), order(link.b)
        if a is None and b is None:
            continue
        width = space.sizes[link.b]
        pairs = link.ia * width + link.ib
        ia = link.ia if a is None else a[link.ia]
        ib = link.ib if b is None else b[link.ib]
        if not np.array_equal(np.sort(ia * width + ib), np.sort(pairs)):
            return "a concatenation, split, slice or gather would join other channels"
    for product in space.products:
        parts = [order(f) for f in product.factors]
        whole = order(product.whole)
        if whole is None and all(p is None for p in parts):
            continue
        sizes = [space.sizes[f] for f in product.factors]
        want = np.zeros(1, np.int64)
        for part, size in zip(parts, sizes, strict=True):
            inner = np.arange(size) if part is None else part
            want = (want[:, None] * size + inner).ravel()
        if not np.array_equal(want, np.arange(want.size) if whole is None else whole):
            return "a composite axis (heads, groups of a convolution) would be mixed"
    return ""
