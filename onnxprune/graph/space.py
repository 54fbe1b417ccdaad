"""The space of axes: which channels must go together.

A *dim* is one axis that several tensors may share; equal letters of a row are the same dim. Between dims
there are two relations, and both speak of *elements* (a dim and an index on it):

- a link: element ``a[i]`` is the same channel as ``b[j]`` (concatenation, split, slice, gather, pad);
- a product: dim ``a`` is the row-major product of its factors (heads x head width, conv groups x channels per
  group): ``a[h, d]`` is gone exactly when ``h`` is gone or ``d`` is gone.

A set of dead elements is *closed* when it satisfies all relations. The union of two closed sets is closed, so
units found under different choices of factor may be cut together. `solve` fixes, for every product, one
factor along which it may be cut; what is left is an equivalence, and its classes are the units.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.components import components

Ints = NDArray[np.int64]
NONE = np.iinfo(np.int64).max  # "no reason": larger than any reason's number


@dataclass(frozen=True)
class Link:
    """Elements ``a[ia]`` and ``b[ib]`` are the same channels, pairwise, as the node says that is named."""

    a: int
    ia: Ints
    b: int
    ib: Ints
    by: str = ""

    def says(self, reason: str) -> str:
        """Return a reason with the node's title behind it."""
        return f"{reason} ({self.by})" if self.by else reason


@dataclass(frozen=True)
class Factored:
    """Dim ``whole`` is the row-major product of ``factors``."""

    whole: int
    factors: tuple[int, ...]


@dataclass
class Space:
    """Dims with their sizes, what ties them, what must not be cut, and which hold a dynamic batch."""

    sizes: list[int] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    products: list[Factored] = field(default_factory=list)
    locks: list[tuple[int, Ints | None, bool, str]] = field(
        default_factory=list
    )  # dim, indices, soft, reason
    _parent: list[int] = field(default_factory=list)
    shares: dict[int, float] = field(default_factory=dict)  # root dim -> 1 / the samples that it holds
    by: str = ""  # title of the node that links are made for

    def new(self, size: int) -> int:
        """Return a new dim of the given size."""
        self.sizes.append(size)
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def find(self, dim: int) -> int:
        """Return the representative of a dim."""
        parent = self._parent
        root = dim
        while parent[root] != root:
            root = parent[root]
        while parent[dim] != root:
            parent[dim], dim = root, parent[dim]
        return root

    @property
    def samples(self) -> int:
        """The samples of a run, where it may have any number: figures are of one of them."""
        return round(1 / min(self.shares.values(), default=1.0))

    def share(self, dims: Iterable[int]) -> float:
        """Return what a product of the lengths of these dims counts: the samples of a run count once."""
        return (
            min((self.shares.get(self.find(dim), 1.0) for dim in dims), default=1.0) if self.shares else 1.0
        )

    def tie(self, a: int, b: int) -> int:
        """Make two dims of equal size the same one."""
        a, b = self.find(a), self.find(b)
        if a != b:
            if self.sizes[a] != self.sizes[b]:
                raise ValueError(f"axes of {self.sizes[a]} and {self.sizes[b]} channels cannot be the same")
            a, b = min(a, b), max(a, b)
            self._parent[b] = a
        return a

    def lock(self, dim: int, reason: str, *, soft: bool = False, index: Ints | None = None) -> None:
        """Forbid cutting a dim, or only some indices of it; soft: only because exactness would be lost."""
        self.locks.append((dim, index, soft, reason))

    def link(self, a: int, ia: Ints, b: int, ib: Ints) -> None:
        """Say that ``a[ia]`` and ``b[ib]`` are the same channels, pairwise."""
        self.links.append(Link(a, ia, b, ib, self.by))

    def product(self, whole: int, factors: tuple[int, ...]) -> None:
        """Say that ``whole`` is the row-major product of ``factors``."""
        self.products.append(Factored(whole, factors))


@dataclass
class Solution:
    """Units of a space under one choice of factors.

    Attributes
    ----------
    start : dict
        Root dim -> first element number; absent where the whole dim is frozen.
    unit : int64[elements]
        Unit of each element, -1 where frozen.
    reason : int64[elements]
        Number of the reason why an element is frozen (into `reasons`), ``NONE`` where free.
    inexact : bool[units]
        Units that pass through an axis which is averaged over.
    whole : dict
        Root dim -> number of the reason why all of it is frozen.
    reasons : list of str
    chosen : list of int
        For each product of the space, the number of its factor that may be cut, -1 where none may.
    ambiguous : frozenset of int
        Products that had more than one factor to choose from.
    entire : dict
        Free unit that is all of an axis, and so can't go -> why.
    """

    start: dict[int, int]
    unit: Ints
    reason: Ints
    inexact: NDArray[np.bool_]
    whole: dict[int, int]
    reasons: list[str]
    chosen: list[int]
    ambiguous: frozenset[int]
    entire: dict[int, str]

    def units_of(self, root: int, size: int) -> Ints:
        """Return the unit of each index of a root dim, -1 where frozen."""
        if root not in self.start:
            return np.full(size, -1, np.int64)
        first = self.start[root]
        return self.unit[first : first + size]

    def why(self, root: int, index: int = 0) -> str:
        """Return why an element can't go, or an empty string."""
        number = self.whole.get(root, NONE)
        if number == NONE and root in self.start:
            number = int(self.reason[self.start[root] + index])
        if number != NONE:
            return self.reasons[number]
        return self.entire.get(int(self.unit[self.start[root] + index]), "") if root in self.start else ""


def _factor_index(sizes: tuple[int, ...], k: int) -> Ints:
    """Index on factor ``k`` of each element of the row-major product of ``sizes``."""
    inner = int(np.prod(sizes[k + 1 :], dtype=np.int64))
    outer = int(np.prod(sizes[:k], dtype=np.int64))
    return np.tile(np.repeat(np.arange(sizes[k], dtype=np.int64), inner), outer)


class _Whole:
    """Dims that are frozen as a whole, spread through relations until nothing changes."""

    def __init__(self, space: Space, allow_inexact: bool) -> None:
        self.space = space
        self.reasons: list[str] = ["an axis of one element", "all factors of this axis are frozen"]
        self._number: dict[str, int] = {}
        self.frozen: dict[int, int] = {}
        self._queue: deque[int] = deque()
        self.soft: list[int] = []
        self.partial: list[tuple[int, Ints, int]] = []
        for soft in (False, True):  # where both hold, what no permission opens is the reason
            self._seed(soft, allow_inexact)
            self._spread()

    def number(self, reason: str) -> int:
        if reason not in self._number:
            self._number[reason] = len(self.reasons)
            self.reasons.append(reason)
        return self._number[reason]

    def freeze(self, root: int, reason: int) -> None:
        if root not in self.frozen:
            self.frozen[root] = reason
            self._queue.append(root)

    def _seed(self, soft: bool, allow_inexact: bool) -> None:
        space = self.space
        for dim, index, opens, reason in space.locks:
            root = space.find(dim)
            if opens != soft:
                continue
            if opens and allow_inexact:
                self.soft.append(root)
            elif index is None:
                self.freeze(root, self.number(reason))
            else:
                self.partial.append((root, index, self.number(reason)))
        for dim, size in enumerate(space.sizes):
            if size <= 1 and space.find(dim) == dim:
                self.freeze(dim, 0)

    def _spread(self) -> None:
        space, touching = self.space, defaultdict(list)
        for product in space.products:
            for dim in {space.find(d) for d in (product.whole, *product.factors)}:
                touching[dim].append(product)
        while self._queue:
            root = self._queue.popleft()
            for product in touching.get(root, ()):
                whole = space.find(product.whole)
                factors = [space.find(f) for f in product.factors]
                if whole in self.frozen:
                    for factor in factors:
                        self.freeze(factor, self.frozen[whole])
                elif all(f in self.frozen for f in factors):
                    real = [self.frozen[f] for f in factors if self.frozen[f] > 1]
                    self.freeze(whole, min(real, default=1))  # first that of an input, which a user may open


def solve(space: Space, *, allow_inexact: bool = False, inner_first: bool = False) -> Solution:
    """Find the units of a space.

    Parameters
    ----------
    space : Space
    allow_inexact : bool
        Open axes that are only frozen because an average runs over them.
    inner_first : bool
        Where several factors of a product could be cut, prefer the innermost (channels per group, head width) to the
        outermost (groups, heads).

    Returns
    -------
    Solution
        Linear in the number of elements, but for the few rounds in which a choice of factor proves to be frozen.
    """
    whole = _Whole(space, allow_inexact)
    start, total = _number_elements(space, whole.frozen)
    options = _options(space, whole.frozen, inner_first)
    base_u, base_v, base_reason = _link_edges(space, whole, start, total)
    soft = np.zeros(total, bool)
    for root in whole.soft:
        if root in start:
            soft[start[root] : start[root] + space.sizes[root]] = True
    blocked: set[int] = set()
    while True:
        chosen = _choose(space, options, blocked)
        label, reason = _classes(space, whole, start, chosen, (base_u, base_v, base_reason))
        worse = {
            root
            for product, open_, k in zip(space.products, options, chosen, strict=True)
            if k >= 0
            and (root := space.find(product.factors[k])) not in blocked
            and _all_frozen(space, start, reason, root)
            and any(space.find(product.factors[j]) not in blocked for j in open_ if j != k)
        }
        if not worse:
            break
        blocked |= worse
    unit, inexact = _units(label, reason, soft)
    ambiguous = frozenset(n for n, o in enumerate(options) if len(o) > 1)
    entire = _entire(space, start, unit)
    return Solution(start, unit, reason, inexact, whole.frozen, whole.reasons, chosen, ambiguous, entire)


def _number_elements(space: Space, frozen: dict[int, int]) -> tuple[dict[int, int], int]:
    start, total = {}, 0
    for dim, size in enumerate(space.sizes):
        if space.find(dim) == dim and dim not in frozen:
            start[dim] = total
            total += size
    return start, total


def _options(space: Space, frozen: dict[int, int], inner_first: bool) -> list[list[int]]:
    options = []
    for product in space.products:
        free = [k for k, f in enumerate(product.factors) if space.find(f) not in frozen]
        open_ = space.find(product.whole) not in frozen
        options.append((free[::-1] if inner_first else free) if open_ else [])
    return options


def _choose(space: Space, options: list[list[int]], blocked: set[int]) -> list[int]:
    """Pick one factor for every product: one that another product has picked already, else the first that none has
    passed over. A channel shuffle is two products of the same factors in opposite order, and must pick the same.
    """
    picked: set[int] = set()
    passed: set[int] = set()
    chosen = []
    for product, open_ in zip(space.products, options, strict=True):
        roots = {k: space.find(product.factors[k]) for k in open_}
        order = sorted(open_, key=lambda k: (roots[k] in blocked, roots[k] not in picked, roots[k] in passed))
        if len(open_) > 1:  # sorted() is stable: the preference of the family decides between equals
            picked.add(roots[order[0]])
            passed.update(roots[k] for k in order[1:])
        chosen.append(order[0] if order else -1)
    return chosen


def _link_edges(space: Space, whole: _Whole, start: dict[int, int], total: int) -> tuple[Ints, Ints, Ints]:
    """Edges of all links, and the reasons that locked indices and frozen dims bring to single elements."""
    us: list[Ints] = []
    vs: list[Ints] = []
    reason = np.full(total, NONE, np.int64)
    for link in space.links:
        a, b = space.find(link.a), space.find(link.b)
        if a in start and b in start:
            us.append(start[a] + link.ia)
            vs.append(start[b] + link.ib)
        elif a in start or b in start:
            root, index, other = (a, link.ia, b) if a in start else (b, link.ib, a)
            number = whole.frozen[other] or whole.number(link.says("by itself an axis of one element"))
            np.minimum.at(reason, start[root] + index, number)
    for root, index, number in whole.partial:
        if root in start:
            np.minimum.at(reason, start[root] + index, number)
    return _join(us), _join(vs), reason


def _join(parts: Iterable[Ints]) -> Ints:
    parts = list(parts)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _classes(
    space: Space,
    whole: _Whole,
    start: dict[int, int],
    chosen: list[int],
    base: tuple[Ints, Ints, Ints],
) -> tuple[Ints, Ints]:
    """Label of each element's class, and the least reason in its class, under one choice of factors."""
    us, vs, reason = [base[0]], [base[1]], base[2].copy()
    other = whole.number("this axis is cut along its other factor")
    both = whole.number("both factors of a product are this axis")  # one element would be of two classes
    for product, k in zip(space.products, chosen, strict=True):
        if k < 0:
            continue
        root, factor = space.find(product.whole), space.find(product.factors[k])
        sizes = tuple(space.sizes[f] for f in product.factors)
        us.append(start[root] + np.arange(space.sizes[root], dtype=np.int64))
        vs.append(start[factor] + _factor_index(sizes, k))
        for j, f in enumerate(product.factors):
            rest = space.find(f)
            if j != k and rest in start:
                span = slice(start[rest], start[rest] + space.sizes[rest])
                reason[span] = np.minimum(reason[span], both if rest == factor else other)
    label = components(reason.size, _join(us), _join(vs))
    least = np.full(reason.size, NONE, np.int64)
    np.minimum.at(least, label, reason)
    return label, least[label]


def _all_frozen(space: Space, start: dict[int, int], reason: Ints, factor: int) -> bool:
    root = space.find(factor)
    return bool((reason[start[root] : start[root] + space.sizes[root]] != NONE).all())


def _units(label: Ints, reason: Ints, soft: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.bool_]]:
    """Number the free classes 0, 1, 2, ... in the order of their least element."""
    free = reason == NONE
    roots, unit = np.unique(label[free], return_inverse=True)
    units = np.full(label.size, -1, np.int64)
    units[free] = unit.ravel()
    inexact = np.zeros(roots.size, bool)
    inexact[units[free & soft]] = True
    return units, inexact


def _entire(space: Space, start: dict[int, int], unit: Ints) -> dict[int, str]:
    """Find the units that are all of an axis, with the first link that joins elements of them."""
    found = {}
    for root, first in start.items():
        own = unit[first : first + space.sizes[root]]
        if own[0] >= 0 and (own == own[0]).all():
            found[int(own[0])] = "all channels of an axis are one unit"
    entire = dict(found)
    for link in space.links if found else ():
        root = space.find(link.a)
        if root in start:
            joined = np.unique(unit[start[root] + link.ia]).tolist()
            entire |= {number: link.says(found.pop(number)) for number in joined if number in found}
    return entire
