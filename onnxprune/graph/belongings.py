"""What goes with the units of a group: slices of weights, axes of kernels, parameters and MACs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxprune.graph.coupling import Coupling, Instance, uses_of
from onnxprune.graph.group_types import Extent, Indices, Member
from onnxprune.graph.scopes import is_anonymous, module_of
from onnxprune.graph.space import Solution, Space
from onnxprune.graph.trace import attributes
from onnxprune.ops.notation import Sum, letters_of
from onnxprune.ops.packed import packed_bits
from onnxprune.ops.resolve import fit

__all__ = [
    "FLOATS",
    "PARAMETER_TYPES",
    "QUANTISED",
    "Kinds",
    "Weights",
    "extents_of",
    "macs_of",
    "members_of",
    "numbers_of",
    "open_roots",
    "overlaps_of",
    "packed_in",
    "per_group",
]

FLOATS = frozenset({1, 10, 11, 16, 17, 18, 19, 20, 23})
QUANTISED = frozenset({2, 3, 21, 22})
#: ONNX element types that count as parameters.
PARAMETER_TYPES = FLOATS | QUANTISED
_BYTES = frozenset({TensorProto.UINT8, TensorProto.INT8})


def packed_in(nodes: Iterable[NodeProto]) -> dict[str, int]:
    """Return the bits of each number in tensors that hold several numbers a byte, for those who read them."""
    packed: dict[str, int] = {}
    for node in nodes:
        held = packed_bits(node.op_type, node.domain)
        for slot, bits in () if held is None else held(attributes(node)).items():
            if slot < len(node.input) and node.input[slot]:
                packed[node.input[slot]] = bits
    return packed


def numbers_of(elem: int, bits: int = 8) -> float:
    """Return how many parameters an element of a weight of this type is, where bytes hold numbers of so many bits.

    Examples
    --------
    >>> numbers_of(TensorProto.UINT8, 4), numbers_of(TensorProto.INT4, 4), numbers_of(TensorProto.INT64)
    (2.0, 1.0, 0.0)
    """
    if elem not in PARAMETER_TYPES:
        return 0.0
    return 8 / bits if elem in _BYTES else 1.0


class Weights:
    """What is known of the weights: parameters, roles, and which of their axes are contracted."""

    def __init__(self, coupling: Coupling, elements: Mapping[str, int]) -> None:
        self.coupling = coupling
        self.uses: dict[str, list[tuple[int, int]]] = uses_of(coupling)
        packed = packed_in(applied.proto for applied in coupling.nodes)
        self.numbers = {name: numbers_of(elem, packed.get(name, 8)) for name, elem in elements.items()}
        self._facts: dict[tuple[int, int], tuple[str, bool, bool]] = {}
        self.instances: list[Instance] = [
            i for i in coupling.instances if i.dims and self.numbers.get(i.tensor) and (i.uses or i.outer)
        ]
        order = {id(i): min(i.uses, default=(1 << 60, 0)) for i in self.instances}
        self.instances.sort(key=lambda i: order[id(i)])

    def facts(self, instance: Instance, axis: int) -> tuple[str, bool, bool]:
        """Role of a weight, whether this axis is summed over, and whether its op multiplies and accumulates."""
        key = (id(instance), axis)
        if key not in self._facts:
            self._facts[key] = self._follow(instance, axis)
        return self._facts[key]

    def _follow(self, instance: Instance, axis: int) -> tuple[str, bool, bool]:
        space, nodes = self.coupling.space, self.coupling.nodes
        root = space.find(instance.dims[axis])
        stack, seen = list(instance.uses), set(instance.uses)
        role, contracted, dense = "", False, False
        while stack:
            number, slot = stack.pop(0)
            applied = nodes[number]
            if applied.row is None:
                continue
            node = applied.node
            derived = all(n == "" or n in self.constants for n in node.inputs)
            if derived:
                following = [
                    use for name in node.outputs for use in self.uses.get(name, ()) if use not in seen
                ]
                seen.update(following)
                stack += following
            else:
                role = role or (applied.row.roles[slot] if slot < len(applied.row.roles) else "data")
                dims = applied.ins[slot] or ()
                contracted |= any(s == slot and space.find(dims[a]) == root for s, a in applied.contracted)
                dense |= bool(applied.macs)
        return role or "data", contracted, dense

    def title(self, instance: Instance) -> str:
        """Return what people call a weight: its name, or the module that reads it where an exporter has numbered it."""
        if is_anonymous(instance.tensor):
            for number, _ in instance.uses:
                applied = self.coupling.nodes[number]
                module = module_of(applied.node.name, applied.proto)
                if module:
                    return module
        return instance.tensor

    def parts(self, instance: Instance, axis: int) -> set[int] | None:
        """Roots of what is summed over of an axis of several parts (queries, keys and values); None: it is one."""
        roots: set[int] = set()
        for number, slot in instance.uses:
            applied = self.coupling.nodes[number]
            axes = None if applied.row is None else fit(applied.row, applied.node).ins[slot]
            if axes is None or not isinstance(axes[axis], Sum):
                return None
            summed = (leaf.name for leaf in letters_of(axes[axis]) if leaf.contract)
            roots |= {self.coupling.space.find(applied.letters[name]) for name in summed}
        return roots

    @cached_property
    def constants(self) -> set[str]:
        """Names of tensors that depend on weights alone."""
        names = {i.tensor for i in self.coupling.instances}
        for applied in self.coupling.nodes:
            node = applied.node
            if node.inputs and all(n == "" or n in names for n in node.inputs):
                names.update(node.outputs)
        return names


def per_group(unit: Indices, group_of: Indices) -> Iterator[tuple[int, Indices]]:
    """Yield each group on an axis with the positions that belong to it."""
    if not group_of.size:
        return
    owner = np.where(unit >= 0, group_of[unit], -1)
    if owner[0] >= 0 and (owner == owner[0]).all():  # nearly always: one group owns the whole axis
        yield int(owner[0]), np.arange(owner.size)
        return
    present = np.unique(owner)
    for g in present[present >= 0]:
        yield int(g), np.flatnonzero(owner == g)


def members_of(
    weights: Weights, solution: Solution, group_of: Indices, local: Indices, count: Indices
) -> tuple[list[list[Member]], list[tuple[str, str]], NDArray[np.float64]]:
    """Return the members of each group, its name as people and as the file have it, and the parameters of each unit."""
    space = weights.coupling.space
    members: list[list[Member]] = [[] for _ in count]
    names = [("", "")] * len(count)
    named = np.zeros(len(count), int)  # 1: by any weight, 2: by one of a layer
    params: list[tuple[Indices, float]] = []
    for instance in weights.instances:
        shape = [space.sizes[d] for d in instance.dims]
        for axis, dim in enumerate(instance.dims):
            root = space.find(dim)
            if root not in solution.start:
                continue
            unit = solution.units_of(root, shape[axis])
            role, contracted, dense = weights.facts(instance, axis)
            parts = weights.parts(instance, axis) if contracted else None
            part_of = {g for r in parts or () for g, _ in _groups_on(solution, space, r, group_of)}
            slice_size = prod(shape) // shape[axis] * weights.numbers[instance.tensor]
            for g, at in per_group(unit, group_of):
                summed = contracted and (parts is None or g in part_of)
                own = unit[at]
                members[g].append(Member(instance.tensor, axis, at, local[own], role, summed))
                params.append((own, slice_size))
                if named[g] < 1 + dense:
                    named[g] = 1 + dense
                    names[g] = f"{weights.title(instance)}:{axis}", f"{instance.tensor}:{axis}"
    return members, names, _summed(params, group_of.size)


def _groups_on(
    solution: Solution, space: Space, root: int, group_of: Indices
) -> Iterator[tuple[int, Indices]]:
    if root in solution.start:
        yield from per_group(solution.units_of(root, space.sizes[root]), group_of)


def extents_of(
    weights: Weights, solution: Solution, group_of: Indices, local: Indices, count: Indices
) -> list[list[Extent]]:
    """Axes of the weights of multiplying ops: those whose length a kernel cares about.

    What counts blocks or heads, the outer factor of an axis of channels, has no width in channels of its own.
    """
    space = weights.coupling.space
    outer = {space.find(p.factors[0]) for p in space.products if space.find(p.whole) in solution.start}
    extents: list[list[Extent]] = [[] for _ in count]
    done: set[int] = set()
    for instance in weights.instances:
        if sum(space.sizes[d] > 1 for d in instance.dims) < 2:
            continue
        for axis, dim in enumerate(instance.dims):
            root = space.find(dim)
            if root in done or root not in solution.start or not weights.facts(instance, axis)[2]:
                continue
            done.add(root)
            if root in outer:
                continue
            unit = solution.units_of(root, space.sizes[root])
            for g, at in per_group(unit, group_of):
                per_unit = np.bincount(local[unit[at]], minlength=int(count[g])).astype(np.int64)
                extents[g].append(Extent(root, space.sizes[root], per_unit, f"{instance.tensor}:{axis}"))
    return extents


def macs_of(coupling: Coupling, solution: Solution, units: int) -> NDArray[np.float64]:
    """Return the multiply-accumulates that go when only that unit goes."""
    space = coupling.space
    gone: list[tuple[Indices, float]] = []
    for applied in coupling.nodes:
        for dims in applied.macs:
            total = float(prod([space.sizes[d] for d in dims])) * space.share(dims)
            for root in open_roots(space, solution, dims):
                size = space.sizes[root]
                gone.append((solution.units_of(root, size), total / size))
    return _summed(gone, units)


def overlaps_of(
    weights: Weights, solution: Solution, group_of: Indices, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return of each group what its units count more than once between them, of parameters and of MACs.

    So it is where rows and columns of a matrix go with the same group, and where a weight is cut for each reader.
    """
    coupling = weights.coupling
    summed, most = np.zeros(count), [dict[str, float]() for _ in range(count)]
    macs = np.zeros(count)
    for instance in weights.instances:
        number = weights.numbers[instance.tensor]
        for g, (each, whole) in _gone(coupling.space, solution, group_of, instance.dims).items():
            summed[g] += number * each
            most[g][instance.tensor] = max(most[g].get(instance.tensor, 0.0), number * whole)
    for dims in (dims for applied in coupling.nodes for dims in applied.macs):
        for g, (each, whole) in _gone(coupling.space, solution, group_of, dims).items():
            macs[g] += (each - whole) * coupling.space.share(dims)
    return summed - [sum(tensors.values()) for tensors in most], macs


def _gone(
    space: Space, solution: Solution, group_of: Indices, dims: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """Return, of a product of lengths, what goes with each group: summed up axis by axis, and each element once."""
    sizes, held = [space.sizes[d] for d in dims], defaultdict[int, list[int]](lambda: [0] * len(dims))
    for axis, dim in enumerate(dims):
        for g, at in _groups_on(solution, space, space.find(dim), group_of):
            held[g][axis] = at.size
    total = float(prod(sizes))
    return {
        g: (
            sum(total / size * n for size, n in zip(sizes, gone, strict=True) if n),
            total - prod(size - n for size, n in zip(sizes, gone, strict=True)),
        )
        for g, gone in held.items()
    }


def _summed(values: Sequence[tuple[Indices, float]], units: int) -> NDArray[np.float64]:
    """Return what comes together for each unit, added in the order in which it is given; -1 is no unit."""
    sums = np.zeros(units)
    if values:
        unit = np.concatenate([own for own, _ in values])
        value = np.repeat([value for _, value in values], [own.size for own, _ in values])
        np.add.at(sums, unit[unit >= 0], value[unit >= 0])
    return sums


def open_roots(space: Space, solution: Solution, dims: Iterable[int]) -> list[int]:
    """Roots of those dims that aren't frozen as a whole."""
    return [root for d in dims if (root := space.find(d)) in solution.start]


class Kinds:
    """Names the kind of a unit by its place in grouped convolutions and in products of two activations."""

    kind: NDArray[np.int64]

    def __init__(self, coupling: Coupling, solution: Solution) -> None:
        self.kind = np.zeros(solution.inexact.size, np.int64)
        space = coupling.space
        fixed = set[str]()  # made of weights alone, which is no activation
        for applied in coupling.nodes:
            node = applied.node
            given = [c or not n or n in fixed for n, c in zip(node.inputs, node.constant, strict=True)]
            if given and all(given):
                fixed.update(node.outputs)
            if applied.row is None or not applied.macs:
                continue
            letters = applied.letters
            if "group" in applied.row.attrs:
                self._mark(space, solution, [letters[applied.row.attrs["group"]]], 1)
            elif len(applied.ins) >= 2 and not any(given[:2]) and applied.ins[0] and applied.ins[1]:
                left, right = ({space.find(d) for d in dims or ()} for dims in applied.ins[:2])
                out = {space.find(d) for d in applied.outs[0] or ()}
                self._mark(space, solution, (left ^ right) | ((left & right) - out), 2)
                self._mark(space, solution, left & right & out, 3)

    def _mark(self, space: Space, solution: Solution, dims: Iterable[int], kind: int) -> None:
        for root in open_roots(space, solution, dims):
            unit = solution.units_of(root, space.sizes[root])
            np.maximum.at(self.kind, unit[unit >= 0], kind)

    def of(self, units: Indices) -> str:
        """Return the kind of a group from its units."""
        return ("channels", "conv groups", "head width", "heads")[int(self.kind[units].max(initial=0))]
