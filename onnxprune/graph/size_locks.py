"""What must not be cut because it depends on the sizes of dynamic axes.

An axis that is indexed, sliced, counted, padded, repeated or compared with a value that follows the sizes of dynamic
axes (`onnxprune.graph.sizes`) may be read at other places under other sizes: that a position is not read under the
sizes at hand says nothing. So it is locked, and so is each axis whose own length follows them, unless it is a product
of which only one factor does (batch x heads): then the others are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from onnxprune.graph.coupling import Applied, Coupling, Dims
from onnxprune.graph.equal_sizes import Declared, renamed
from onnxprune.graph.lengths import Lengths, Number, leaves, over
from onnxprune.graph.sizes import Sizes
from onnxprune.ops import Node, Trait
from onnxprune.ops.notation import Axis, Letter, Product, Unit
from onnxprune.ops.resolve import FittedRow, fit

__all__ = ["follow"]

#: Op -> what is done along an axis, how much of it is given by an input, and by which.
_COUNTED = {
    "Slice": ("its elements are picked up to a position that follows {}", (1, 2, 4), 3),
    "Pad": ("it is padded by a number that follows {}", (1,), 3),
    "Resize": ("it is resized to a length that follows {}", (1, 2, 3), None),
    "Upsample": ("it is resized to a length that follows {}", (1,), None),
    "CenterCropPad": ("it is cropped to a length that follows {}", (1,), None),
}


def follow(coupling: Coupling, sizes: Sizes, declared: Declared) -> set[tuple[str, int]]:
    """Derive which lengths and values of a coupled graph follow the sizes of dynamic axes, and lock what they touch.

    Parameters
    ----------
    coupling : Coupling
    sizes : Sizes
        Of the tracer that the graph was coupled with; nothing visited yet.
    declared : mapping
        Input -> its axes, a size or the name of a dynamic one; None where even the rank is open.

    Returns
    -------
    set of (str, int)
        Axes that have one element under these sizes only, by tensor and place, on whose account a reshape was locked:
        what it does to other axes can't be seen where one of its factors is one.
    """
    given: Declared | None = declared
    while given is not None:
        sizes.forget()
        sizes.declare(given)
        for applied in coupling.nodes:
            sizes.visit(applied.node, applied.row)
        given = renamed(coupling.nodes, sizes, given)
    if not sizes.lengths:
        return set()
    locks = _Locks(coupling, sizes)
    locks.run()
    return locks.flat


class _Locks:
    def __init__(self, coupling: Coupling, sizes: Sizes) -> None:
        self.space, self.coupling, self.sizes = coupling.space, coupling, sizes
        self.what = "the size of an input or its data" if sizes.by_run else "the size of an input"
        self.moving: dict[int, str] = {}  # root dim -> why its length follows the sizes
        self.repeated: set[tuple[int, Number]] = (
            set()
        )  # root dim and length of axes that hold it many times over
        self.flat: set[tuple[str, int]] = (
            set()
        )  # tensor and place of axes that are one under these sizes only

    def run(self) -> None:
        for applied in self.coupling.nodes:
            if applied.row is not None:
                self.node(applied)
        for name, dims in self.coupling.dims.items():
            shape = self.sizes.shape(name) or ()
            for dim, number, size in zip(dims, self.sizes.lengths.get(name, ()), shape, strict=False):
                root = self.space.find(dim)
                free = number in self.sizes.pinned or (root, number) in self.repeated
                if number != size and not free:
                    self.moving.setdefault(root, f"its length follows {self.what}")
        self.lock_moving()

    def lock_moving(self) -> None:
        """Lock axes that vary, but for products of which a factor is locked."""
        space = self.space
        linked = {space.find(d) for link in space.links for d in (link.a, link.b)}
        factored = {
            space.find(p.whole)
            for p in space.products
            if any(space.find(f) in self.moving for f in p.factors)
        }
        for root, reason in self.moving.items():
            if root not in factored or root in linked:
                space.lock(root, reason)

    def lock(self, dims: Dims | None, axis: int, reason: str, node: Node) -> None:
        if dims is not None and -len(dims) <= axis < len(dims) and self.space.sizes[dims[axis]] > 1:
            self.space.lock(dims[axis], f"{reason} ({node.op} '{node.name}')")

    def node(self, applied: Applied) -> None:
        node = applied.node
        ins, outs = applied.ins, applied.outs
        if not any(map(self.sizes.varies, filter(None, (*node.inputs, *node.outputs)))):
            return
        for axis, reason in self.counted(node):
            self.lock(ins[0], axis, reason, node)
            for dims in outs:
                self.lock(dims, axis, reason, node)
        for slot, axis, reason in self.picked(node):
            self.lock(ins[slot], axis, reason, node)
        if Trait.VIEW in node.traits and Trait.ELEMENTWISE not in node.traits:
            self.regrouped(applied)
        if node.op == "Tile":
            self.tiled(applied)
        each = Trait.ELEMENTWISE in node.traits
        if each or ("MatMul" in node.op and node.op != "MatMulNBits"):  # that takes one matrix
            self.broadcast(applied, 0 if each else 2)
        if node.op == "Einsum":
            self.summed(applied)
        if Trait.COMPARISON in node.traits or node.op == "Where":
            self.compared(applied)

    def compared(self, applied: Applied) -> None:
        """Lock constants that are compared with a value that varies, or chosen between by one, place by place."""
        node = applied.node
        reason = f"it is compared with a value that follows {self.what}"
        if not all(n in self.sizes.free for n in node.inputs):
            return
        places = self.sizes.shape(node.inputs[0]) or ()
        for dims in applied.ins:
            for back in range(1, len(dims or ()) + 1):
                if node.op != "Where" or (back <= len(places) and places[-back] > 1):
                    self.lock(dims, -back, reason, node)

    def counted(self, node: Node) -> Iterator[tuple[int, str]]:
        """Yield the axes along which an op counts by a value that varies."""
        rank = len(self.sizes.shape(node.inputs[0]) or ()) if node.inputs else 0
        if node.op == "Split" and node.has(1) and self.sizes.moving(node.inputs[1]).any():
            yield node.axis(0, rank), f"it is split at positions that follow {self.what}"
        if node.op not in _COUNTED:
            return
        reason, slots, at = _COUNTED[node.op]
        given = (
            node.values[at]
            if at is not None and node.has(at) and at < len(node.values)
            else node.attr("axes")
        )
        axes = [int(a) for a in np.ravel(given)] if given is not None else None
        loose = at is not None and node.has(at) and bool(self.sizes.moving(node.inputs[at]).any())
        for slot in slots:
            if not node.has(slot):
                continue
            moving = self.sizes.moving(node.inputs[slot])
            own = axes if axes is not None else range(rank)
            if moving.any():
                for n, axis in enumerate(own):
                    if loose or moving[n :: len(own)].any():
                        yield axis, reason.format(self.what)
            elif loose:
                yield from ((axis, reason.format(self.what)) for axis in range(rank))

    def picked(self, node: Node) -> Iterator[tuple[int, int, str]]:
        """Yield the axes of operands from which a value that varies picks."""
        reason = f"its elements are picked by a position that follows {self.what}"
        if node.op == "Gather" and node.values[1] is not None and self.sizes.varies(node.inputs[1]):
            yield 0, node.axis(0, node.rank()), reason
        if node.op == "Compress" and "axis" in node.attrs and self.sizes.varies(node.inputs[1]):
            yield 0, node.axis(0), reason
        if node.op == "Expand" and node.has(1):
            moving = self.sizes.moving(node.inputs[1])
            for back in range(1, min(moving.size, node.rank()) + 1):
                if moving[-back]:
                    yield 0, -back, f"it is repeated as often as {self.what} says"

    def broadcast(self, applied: Applied, behind: int) -> None:
        """Lock what is set against an axis that varies: it may have one element under these sizes only."""
        node = applied.node
        reason = f"it is set against an axis whose length follows {self.what}"
        sides = [(n, d) for n, d in zip(node.inputs, applied.ins, strict=False) if d]
        for back in range(behind + 1, max((len(d) for _, d in sides), default=0) + 1):
            own = [(self.stretches(n, -back), d) for n, d in sides if len(d) >= back]
            if any(stretches for stretches, _ in own):
                for stretches, dims in own:
                    if not stretches:
                        self.lock(dims, -back, reason, node)

    def summed(self, applied: Applied) -> None:
        """Lock what an Einsum sets against an axis that varies, as `broadcast`."""
        terms = "".join(str(applied.node.attrs["equation"]).split()).partition("->")[0].split(",")
        places: dict[str, list[tuple[int, int]]] = {}
        for slot, (term, dims) in enumerate(zip(terms, applied.ins, strict=True)):
            before, _, after = term.partition("...")
            for at, letter in enumerate(before):
                places.setdefault(letter, []).append((slot, at))
            for back, letter in enumerate(reversed(after), 1):
                places.setdefault(letter, []).append((slot, len(dims or ()) - back))
        reason = f"it is set against an axis whose length follows {self.what}"
        for sites in places.values():
            if any(self.stretches(applied.node.inputs[slot], at) for slot, at in sites):
                for slot, at in sites:
                    self.lock(applied.ins[slot], at, reason, applied.node)

    def stretches(self, name: str, axis: int) -> bool:
        """Whether the length of an axis follows the sizes of dynamic axes."""
        numbers, shape = self.sizes.length(name), self.sizes.shape(name)
        return numbers is not None and shape is not None and numbers[axis] != shape[axis]

    def tiled(self, applied: Applied) -> None:
        """Allow repetitions: they are outside of what is repeated, also where they are one under these sizes."""
        for dim, number in zip(
            applied.outs[0] or (), self.sizes.length(applied.node.outputs[0]) or (), strict=False
        ):
            self.repeated.add((self.space.find(dim), number))

    def regrouped(self, applied: Applied) -> None:
        """Hold the atoms of a reshape to all sizes: they were found under one binding.

        A run of axes that becomes another run is sound if each axis is the product of its atoms under all sizes, and if
        what lies behind it has as many elements on both sides: by their lengths, or since all up to there has, and a
        reshape runs only where both sides have as many.
        """
        node, row = applied.node, applied.row
        assert row is not None
        left, right = self.sizes.length(node.inputs[0]), self.sizes.length(node.outputs[0])
        if left is None or right is None:
            return
        fitted = fit(row, node)
        sides = self.settled(fitted, left, right)
        sizes = (self.sizes.shape(node.inputs[0]) or (), self.sizes.shape(node.outputs[0]) or ())
        for letters in _segments([axis for axes, _ in sides for axis in axes]):
            own = [[i for i, a in enumerate(axes) if letters & set(leaves(a))] for axes, _ in sides]
            axes, repeated = _outside(sides, sizes, own)
            for side, at in repeated:
                dims = (applied.ins[0], applied.outs[0])[side] or ()
                self.repeated.add((self.space.find(dims[at]), sides[side][1][at]))
            atoms = _atoms(axes, fitted)
            between = any(
                n != 1 for (axes, numbers), at in zip(sides, own, strict=True) if at
                for a, n in zip(axes[at[0] : at[-1]], numbers[at[0] : at[-1]], strict=True) if isinstance(a, Unit)
            )  # fmt: skip
            parts = [
                (prod(numbers[at[-1] + 1 :]), prod(numbers[: at[-1] + 1])) if at else (None, None)
                for (_, numbers), at in zip(sides, own, strict=True)
            ]
            alike = any(one == other for one, other in zip(*parts, strict=True))
            sound = atoms is not None and not between and alike
            if not sound:
                self.flat |= self.thin(node.inputs[0], left) | self.thin(node.outputs[0], right)
            for letter in letters:
                if not sound or atoms is None or atoms[letter] != fitted.sizes[letter]:
                    word = "its length follows" if sound else "it is reshaped in a way that follows"
                    dim = applied.letters.get(letter)
                    if dim is not None:
                        self.moving.setdefault(self.space.find(dim), f"{word} {self.what}")
                        if not sound:
                            self.space.lock(dim, f"{word} {self.what} ({node.op} '{node.name}')")

    def thin(self, name: str, numbers: Lengths) -> set[tuple[str, int]]:
        """Return the axes of a tensor that have one element, and another number of them under other sizes."""
        shape = self.sizes.shape(name) or ()
        return {(name, at) for at, (n, size) in enumerate(zip(numbers, shape, strict=True)) if size == 1 != n}

    def settled(
        self, fitted: FittedRow, left: Lengths, right: Lengths
    ) -> list[tuple[Sequence[Axis], Lengths]]:
        """Return the axes of both sides of a reshape with their lengths.

        Where the result can only have its traced length (a Gemm reads it), the axes of one element that it takes in,
        such as what a pooling leaves of an image, can only be that.
        """
        ins, outs = fitted.ins[0] or (), fitted.outs[0] or ()
        units = [n for axis, n in zip(ins, left, strict=True) if isinstance(axis, Unit) and n != 1]
        for at, (axis, number) in enumerate(zip(outs, right, strict=True)):
            own = prod(n for a, n in zip(ins, left, strict=True) if set(leaves(a)) & set(leaves(axis)))
            if units and number in self.sizes.pinned and number == own * prod(units):
                left = tuple(1 if isinstance(a, Unit) else n for a, n in zip(ins, left, strict=True))
                right = (*right[:at], own, *right[at + 1 :])
                break
        return [(ins, left), (outs, right)]


def _segments(axes: Sequence[Axis]) -> list[set[str]]:
    """Letters that belong together, since they share an axis."""
    segments: list[set[str]] = []
    for axis in axes:
        own = set(leaves(axis))
        joined = [s for s in segments if s & own]
        segments = [s for s in segments if not s & own]
        if own:
            segments.append(own.union(*joined))
    return segments


def _outside(
    sides: Sequence[tuple[Sequence[Axis], Sequence[Number]]],
    sizes: Sequence[Sequence[int]],
    own: Sequence[Sequence[int]],
) -> tuple[list[tuple[Axis, Number, int]], list[tuple[int, int]]]:
    """Return the axes of a run on both sides with length and size, and which axes hold a letter many times over.

    A batch of one is no factor of (batch x heads), which then looks like heads alone. Where an axis is as many times
    longer as the axes of one element in front of the run on the other side, the run is repeated outside of it.
    """
    outside = [
        [(axes[i], numbers[i], size[i]) for i in at]
        for (axes, numbers), at, size in zip(sides, own, sizes, strict=True)
    ]
    repeated = []
    for side, at in enumerate(own):
        if not at or not own[1 - side]:
            continue
        axis, number, size = outside[side][0]
        axes, numbers = sides[1 - side]
        front = own[1 - side][0]
        times: Number = 1
        while front > 0 and isinstance(axes[front - 1], Unit):
            front -= 1
            times = times * numbers[front]
        whole, other = (prod(n for _, n, _ in outside[s]) for s in (side, 1 - side))
        if times != 1 and isinstance(axis, Letter) and whole == times * other:
            outside[side][0] = (axis, over(number, times) or 0, size)
            repeated.append((side, at[0]))
            break
    return [*outside[0], *outside[1]], repeated


def _atoms(axes: Sequence[tuple[Axis, Number, int]], fitted: FittedRow) -> dict[str, Number] | None:
    """Return the length of each letter of some axes on both sides of a reshape; None where they contradict."""
    lengths: dict[str, Number] = {}
    for axis, number, _ in axes:
        if isinstance(axis, Letter) and lengths.setdefault(axis.name, number) != number:
            return None
    for _ in axes:
        for axis, number, _ in axes:
            open_ = [n for n in leaves(axis) if n not in lengths]
            rest = (
                over(number, prod(lengths[n] for n in leaves(axis) if n in lengths))
                if len(open_) == 1
                else None
            )
            if rest is not None:
                lengths[open_[0]] = rest
    for axis, number, size in axes:
        if number == size:
            lengths |= {n: fitted.sizes[n] for n in leaves(axis) if n not in lengths}
    for axis, number, _ in axes:
        if not isinstance(axis, (Letter, Product)) or any(n not in lengths for n in leaves(axis)):
            return None
        if prod(lengths[n] for n in leaves(axis)) != number:
            return None
    return lengths
