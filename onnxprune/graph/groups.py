"""Dependency groups: the units of a space, with the weights, axes and costs that go with them.

Two families of units are sought where an axis is a product with more than one factor that may go: the
outermost (whole heads, whole groups of a convolution) and the innermost (head width, channels within each
group). Both are reported; one is cut by default and the other stands by as an alternative. The outermost is
the default (it keeps the shape of what is left: head width, channels per group) unless it is too coarse to
follow a ratio, or, where no alignment is asked for, it would leave more parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.belongings import (
    Kinds,
    Weights,
    extents_of,
    macs_of,
    members_of,
    open_roots,
    overlaps_of,
)
from onnxprune.graph.coupling import Coupling
from onnxprune.graph.group_types import Group, Indices
from onnxprune.graph.space import Solution, Space, solve

#: An outer family with fewer units than this on some axis is too coarse to follow a ratio.
COARSE = 4


@dataclass(frozen=True)
class Frozen:
    """An axis of a weight that must not be cut, and why."""

    tensor: str
    axis: int
    reason: str


@dataclass(frozen=True)
class Family:
    """The groups found under one choice of factors."""

    solution: Solution
    groups: tuple[Group, ...]
    numbers: Mapping[str, Indices]  # group name -> its units' numbers in the solution


@dataclass
class Grouping:
    """All groups of a graph.

    Attributes
    ----------
    coupling : Coupling
    families : tuple of Family
        One, or two where some axis could be cut along two factors.
    groups : list of Group
        Of all families; ``alternative`` marks those that are not cut unless asked for.
    frozen : list of Frozen
        Axes of weights that no family may cut.
    """

    coupling: Coupling
    families: tuple[Family, ...]
    groups: list[Group] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)

    def dead(self, removed: Mapping[str, Iterable[int]]) -> dict[int, NDArray[np.bool_]]:
        """Return which indices of each root dim go when these units of these groups go.

        Raises
        ------
        ValueError
            If the set isn't closed under all relations, or an axis would lose all of its elements.
        """
        space, masks = self.coupling.space, self._masks(removed)
        for root, mask in masks.items():
            if mask.all():
                raise ValueError(f"all {space.sizes[root]} elements of an axis would go")
            if (left := int((~mask).sum())) < (least := self.coupling.least.get(root, 1)):
                raise ValueError(f"{left} of {mask.size} experts would be left, and {least} are chosen")
        check_closed(space, masks)
        return masks

    def spare(
        self, removed: Mapping[str, Indices], scores: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, Indices]:
        """Put units back, the most important first, until no axis would lose all of its elements.

        Axes that several groups share may be emptied by cuts that are sound one by one.
        """
        cut = {name: np.asarray(units, np.int64) for name, units in removed.items()}
        while True:
            empty = [root for root, mask in self._masks(cut).items() if mask.all()]
            if not empty:
                return cut
            for root in empty:
                self._put_back(cut, scores, root)

    def _put_back(
        self, removed: dict[str, Indices], scores: Mapping[str, NDArray[np.float64]], root: int
    ) -> None:
        best: tuple[float, str, int] | None = None
        for family in self.families:
            on_axis = set(family.solution.units_of(root, self.coupling.space.sizes[root]).tolist())
            for name, units in removed.items():
                numbers = family.numbers.get(name)
                for unit in units if numbers is not None else ():
                    if numbers is not None and int(numbers[unit]) in on_axis:
                        candidate = (float(scores[name][unit]), name, int(unit))
                        best = candidate if best is None or candidate > best else best
        assert best is not None, "an axis is emptied by no unit"
        removed[best[1]] = removed[best[1]][removed[best[1]] != best[2]]

    def _masks(self, removed: Mapping[str, Iterable[int]]) -> dict[int, NDArray[np.bool_]]:
        space = self.coupling.space
        masks: dict[int, NDArray[np.bool_]] = {}
        for family in self.families:
            gone = np.zeros(family.solution.inexact.size + 1, bool)  # the last one stands for "frozen"
            for name, units in removed.items():
                if name in family.numbers:
                    gone[family.numbers[name][np.asarray(list(units), np.int64)]] = True
            if not gone.any():
                continue
            for root in family.solution.start:
                mask = gone[family.solution.units_of(root, space.sizes[root])]
                if mask.any():
                    masks[root] = masks[root] | mask if root in masks else mask
        return masks


def group(
    coupling: Coupling, elements: Mapping[str, int], *, allow_inexact: bool = False, keep_blocks: bool = True
) -> Grouping:
    """Find the dependency groups of a coupled graph.

    Parameters
    ----------
    coupling : Coupling
    elements : mapping
        Weight -> its ONNX element type: only floats and quantised integers count as parameters.
    allow_inexact : bool
        Open axes that an average runs over (LayerNorm width); groups that need it are marked inexact.
    keep_blocks : bool
        Prefer whole groups of a convolution to channels within each group even where fewer parameters would go:
        kernels that work on whole blocks of channels stay fast.
    """
    space = coupling.space
    weights = Weights(coupling, elements)
    outer = solve(space, allow_inexact=allow_inexact)
    component = _components(coupling, outer)
    families = [_family(weights, outer, component)]
    alternative: dict[str, bool] = {}
    if outer.ambiguous:
        inner = solve(space, allow_inexact=allow_inexact, inner_first=True)
        touched = {component[space.find(space.products[n].whole)] for n in outer.ambiguous}
        family = _family(weights, inner, component, families[0].groups)
        left = [{} if keep_blocks else _left_at_half(weights, f, component) for f in (*families, family)]
        families.append(replace(family, groups=tuple(g for g in family.groups if g.component in touched)))
        for number in touched:
            prefer_inner = not any(g.component == number for g in families[0].groups)
            prefer_inner |= _too_coarse(space, component, number, outer, inner)
            if not prefer_inner and not keep_blocks:
                prefer_inner = left[1].get(number, np.inf) < 0.98 * left[0].get(number, np.inf)
            for n, fam in enumerate(families):
                alternative |= {g.name: prefer_inner != bool(n) for g in fam.groups if g.component == number}
    groups = [
        replace(g, alternative=True) if alternative.get(g.name) else g for f in families for g in f.groups
    ]
    return Grouping(coupling, tuple(families), groups, _frozen(weights, families))


def _components(coupling: Coupling, solution: Solution) -> dict[int, int]:
    """Number of the part of each root dim that isn't frozen as a whole; links and products join dims to parts."""
    space, joined = coupling.space, Space()
    for _ in space.sizes:
        joined.new(1)
    pairs = [(x.a, x.b) for x in space.links] + [(p.whole, f) for p in space.products for f in p.factors]
    for a, b in pairs:
        one, other = space.find(a), space.find(b)
        if one in solution.start and other in solution.start:
            joined.tie(one, other)
    parts = {root: number for number, root in enumerate(sorted({joined.find(d) for d in solution.start}))}
    return {dim: parts[joined.find(dim)] for dim in solution.start}


def _too_coarse(
    space: Space, component: Mapping[int, int], number: int, outer: Solution, inner: Solution
) -> bool:
    wholes = [space.find(space.products[n].whole) for n in outer.ambiguous]
    wholes = [w for w in wholes if component[w] == number]

    def fewest(solution: Solution) -> int:
        counts = [np.unique(u[u >= 0]).size for u in (solution.units_of(w, space.sizes[w]) for w in wholes)]
        return min(counts, default=0)

    return fewest(outer) < COARSE and fewest(inner) > fewest(outer)


def _left_at_half(weights: Weights, family: Family, component: Mapping[int, int]) -> dict[int, float]:
    """Parameters left in the weights that each component touches when half of the units of every group go."""
    space, solution = weights.coupling.space, family.solution
    gone = np.zeros(solution.inexact.size + 1, bool)
    for g in family.groups:
        gone[family.numbers[g.name][: g.units // 2]] = True
    kept = {r: 1 - float(gone[solution.units_of(r, space.sizes[r])].mean()) for r in solution.start}
    total: defaultdict[int, float] = defaultdict(float)
    for instance in weights.instances:
        roots = [space.find(d) for d in instance.dims]
        left = prod(space.sizes[r] * kept.get(r, 1.0) for r in roots)
        for number in {component[r] for r in roots if r in component}:
            total[number] += left
    return total


def _family(
    weights: Weights, solution: Solution, component: Mapping[int, int], others: Sequence[Group] = ()
) -> Family:
    """Collect the units of a solution that own parameters into groups: same axes, same group."""
    space = weights.coupling.space
    units = solution.inexact.size
    owned = np.zeros(units, bool)
    for instance in weights.instances:
        for root in open_roots(space, solution, instance.dims):
            number = solution.units_of(root, space.sizes[root])
            owned[number[number >= 0]] = True
    owned[list(solution.entire)] = False
    group_of, local, count = _by_signature(space, solution, owned)
    members, names, params = members_of(weights, solution, group_of, local, count)
    extents = extents_of(weights, solution, group_of, local, count)
    macs = macs_of(weights.coupling, solution, units)
    again = overlaps_of(weights, solution, group_of, len(count))
    parts = _component_of(solution, component, group_of, len(count))
    kinds = Kinds(weights.coupling, solution)
    groups, numbers, stay = [], {}, _needed(weights.coupling)
    taken, tensors = {g.name: 1 for g in others}, {g.tensor: 1 for g in others}
    owners = np.flatnonzero(owned)
    for g, at in enumerate(_slots(group_of[owned], len(count))):
        own = owners[at]
        name, tensor = _unique(names[g][0], taken), _unique(names[g][1], tensors)
        numbers[name] = own
        groups.append(
            Group(name, int(count[g]), kinds.of(own), tuple(members[g]), tuple(extents[g]), parts[g],
                  np.round(params[own]).astype(np.int64), macs[own], bool(solution.inexact[own].any()),
                  tensor=tensor, least=max((e.needs(stay.get(e.axis_id, 1)) for e in extents[g]), default=1),
                  params_again=round(again[0][g]), macs_again=float(again[1][g]))
        )  # fmt: skip
    return Family(solution, tuple(groups), numbers)


def _needed(coupling: Coupling) -> dict[int, int]:
    """Return how many elements of an axis an op needs, where that is more than one and it chooses none of them."""
    needed: dict[int, int] = {}
    for applied in coupling.nodes:
        row = applied.row
        for letter, number in () if row is None or row.lowest or row.places else row.fewest.items():
            root = coupling.space.find(applied.letters[letter])
            needed[root] = max(needed.get(root, 1), number)
    return needed


def _slots(group_of: Indices, count: int) -> list[Indices]:
    order = np.argsort(group_of, kind="stable")
    first = np.searchsorted(group_of[order], np.arange(count + 1))
    return [order[first[g] : first[g + 1]] for g in range(count)]


def _unique(name: str, taken: dict[str, int]) -> str:
    unique, number = name, 1
    while unique in taken:
        number = taken[name] = taken[name] + 1
        unique = f"{name}#{number}"
    taken[unique] = 1
    return unique


def _by_signature(
    space: Space, solution: Solution, owned: NDArray[np.bool_]
) -> tuple[Indices, Indices, Indices]:
    """Number the groups; return the group of each unit (-1: none), its place in the group, and the groups' sizes."""
    rng = np.random.default_rng(0)
    signature = np.zeros(owned.size, np.uint64)
    marks: list[np.uint64] = []
    marked: list[Indices] = []
    for root, first in solution.start.items():
        unit = solution.unit[first : first + space.sizes[root]]
        marks.append(rng.integers(1, 1 << 63, dtype=np.uint64))
        marked.append(unit)
    if marked:  # wraps around: a random hash of the multiset of axes
        unit, mark = np.concatenate(marked), np.repeat(marks, [u.size for u in marked])
        np.add.at(signature, unit[unit >= 0], mark[unit >= 0])
    group_of = np.full(owned.size, -1, np.int64)
    if owned.any():
        _, first_at, inverse = np.unique(signature[owned], return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first_at))
        group_of[owned] = rank[inverse.ravel()]
    count = np.bincount(group_of[owned], minlength=0) if owned.any() else np.zeros(0, np.int64)
    local = np.full(owned.size, -1, np.int64)
    owners = np.flatnonzero(owned)
    for slot in _slots(group_of[owned], len(count)):
        local[owners[slot]] = np.arange(slot.size)
    return group_of, local, count


def _component_of(
    solution: Solution, component: Mapping[int, int], group_of: Indices, count: int
) -> list[int]:
    components = [-1] * count
    roots = sorted(solution.start.items(), key=lambda item: item[1])
    for n, (root, first) in enumerate(roots):
        unit = solution.unit[first : roots[n + 1][1] if n + 1 < len(roots) else None]
        for g in np.unique(group_of[unit[unit >= 0]]):
            if g >= 0 and components[g] < 0:
                components[g] = component.get(root, -1)
    return components


def _frozen(weights: Weights, families: list[Family]) -> list[Frozen]:
    space = weights.coupling.space
    reasons: dict[tuple[str, int], str] = {}
    for instance in weights.instances:
        for axis, dim in enumerate(instance.dims):
            root, size = space.find(dim), space.sizes[dim]
            if size > 1 and all(_all_frozen(f.solution, root, size) for f in families):
                reasons.setdefault((instance.tensor, axis), families[0].solution.why(root))
    return [Frozen(tensor, axis, reason) for (tensor, axis), reason in reasons.items()]


def _all_frozen(solution: Solution, root: int, size: int) -> bool:
    if root not in solution.start:
        return True
    unit = solution.units_of(root, size)
    return bool(((unit < 0) | np.isin(unit, list(solution.entire))).all())


def check_closed(space: Space, masks: Mapping[int, NDArray[np.bool_]]) -> None:
    """Check that a set of dead elements satisfies every relation of a space; ValueError where not."""

    def mask(dim: int) -> NDArray[np.bool_]:
        return masks.get(space.find(dim), np.zeros(space.sizes[dim], bool))

    for link in space.links:
        if not np.array_equal(mask(link.a)[link.ia], mask(link.b)[link.ib]):
            raise ValueError("a cut is not the same on both sides of a concatenation, split or gather")
    for product in space.products:
        if space.find(product.whole) not in masks and not any(
            space.find(f) in masks for f in product.factors
        ):
            continue
        want = np.zeros(tuple(space.sizes[f] for f in product.factors), bool)
        for k, factor in enumerate(product.factors):
            shape = [1] * want.ndim
            shape[k] = -1
            want = want | mask(factor).reshape(shape)
        if not np.array_equal(want.ravel(), mask(product.whole)):
            raise ValueError("a cut of a composite axis is not a union of whole slices")
