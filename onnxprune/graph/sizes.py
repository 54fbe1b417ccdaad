"""Which lengths and which small values follow the sizes of dynamic axes: derived, not sampled.

The graph is traced under one binding of the dynamic axes. Beside each length and each entry of a value that is
known before the model runs stands a *stand-in*: what it would be if each dynamic axis had a size that no model has,
a number of a hundred bits of its own. Sums, products and quotients of stand-ins are calculated as of numbers; whatever
else an op makes of one (a minimum, a comparison, the end of a Slice) is a fresh number that belongs to the op and its
operands. So a stand-in equals the traced number exactly where that number is the same for all sizes.

It is no size that the model could run with: a table of 64 rows has no row 2**100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite, prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.files.protowalk import outer_names
from onnxprune.graph.length_rules import lengths_of
from onnxprune.graph.lengths import Number, Stretches, Values, stand_in
from onnxprune.graph.steps import Steps
from onnxprune.graph.values import evaluate
from onnxprune.ops import Node, Row, Trait
from onnxprune.ops.bodies import DOMAIN

__all__ = ["Sizes"]


@dataclass
class Sizes(Stretches):
    """Lengths and entries of all tensors of a traced graph, in stand-ins.

    Attributes
    ----------
    free : set
        Tensors that no data has a part in: weights, sizes, and what ops make of them.
    loose : set
        Those of them that sizes of dynamic axes have a part in.
    by_run : bool
        Whether some lengths follow from data, too.
    """

    free: set[str] = field(default_factory=set)
    loose: set[str] = field(default_factory=set)
    by_run: bool = False

    def __post_init__(self) -> None:
        self.free |= set(self.tracer.weights)

    def forget(self) -> None:
        """Forget all that was derived."""
        for known in (self.lengths, self.entries, self.members, self.ones):
            known.clear()
        for numbers in (self.natural, self.unplain, self.pinned, self.loose, self.free):
            numbers.clear()
        self.by_run, self.steps = False, Steps()
        self.__post_init__()

    def declare(self, declared: Mapping[str, Sequence[int | str] | None]) -> None:
        """Take the inputs' axes: a size, or a name for a dynamic one (axes of equal names are equally long)."""
        for name, axes in declared.items():
            shape = self.shape(name)
            if shape is None:
                continue
            if axes is None or len(axes) != len(shape):
                axes = [f"{name}.{n}" for n in range(len(shape))]
            self.lengths[name] = tuple(a if isinstance(a, int) else stand_in("axis", a) for a in axes)
            self.natural.update(self.lengths[name])

    def varies(self, name: str) -> bool:
        """Whether a value, or how many entries it has, follows the sizes of dynamic axes."""
        return name in self.entries or name in self.loose or self.stretches(name)

    def fixed(self, name: str) -> bool:
        """Whether a value is known, and the same for all sizes."""
        return name in self.tracer.values and not self.varies(name)

    def elsewhere(self) -> dict[str, NDArray[Any]] | None:
        """Return known values with another number for each entry that varies; None where no size can vary.

        What hasn't always as many entries is left out.
        """
        if not self.by_run and not self.lengths:
            return None
        values = {}
        for name, value in self.tracer.values.items():
            if not self.stretches(name):
                unlike = (value == 0).astype(value.dtype)
                moving = self.moving(name).reshape(value.shape)
                values[name] = np.where(moving, unlike, value) if name in self.entries else value
        return values

    def visit(self, node: Node, row: Row | None) -> None:
        """Follow one node; those that it reads from have been visited."""
        bodies = [v for v in node.attrs.values() if isinstance(v, onnx.GraphProto)]
        read = [*filter(None, node.inputs), *set[str]().union(*map(outer_names, bodies))]
        counted = node.op in ("Shape", "Size") and not node.domain
        if counted or (node.inputs and all(n in self.free for n in read)):
            self.free.update(filter(None, node.outputs))
        by_run = (Trait.BY_DATA in node.traits or bool(bodies)) and any(
            n in self.tracer.hints for n in node.outputs
        )
        self.by_run |= by_run
        self.steps.visit(self, node)
        # what a body gives in each step is as long as there are steps, whatever the body reads
        gathers = node.domain == DOMAIN and node.op in ("Loop", "Scan")
        if not by_run and not gathers and not any(self.varies(n) or self.shape(n) is None for n in read):
            return
        for slot, name in enumerate(node.outputs):
            shape = self.shape(name)
            if shape is None:
                continue
            lengths = None if by_run else lengths_of(self, node, row, slot)
            if lengths is None or len(lengths) != len(shape):
                lengths = tuple(self.fresh(node, slot, axis) for axis in range(len(shape)))
            if lengths != shape:
                self.lengths[name] = tuple(lengths)
                self.natural.update(lengths)
        self._values(node, counted)
        for name in node.outputs:
            if name in self.free and (
                name not in self.tracer.values or name in self.entries or self.stretches(name)
            ):
                self.loose.add(name)

    # -- values

    def _values(self, node: Node, counted: bool) -> None:
        for slot, name in enumerate(node.outputs):
            traced = self.tracer.values.get(name)
            if traced is None or node.domain:
                continue
            entries = self._sizes_of(node) if counted else self._made(node, traced, slot)
            if entries is None or entries.shape != traced.shape:
                entries = self._unlike(node, traced, slot)
            if entries.ravel().tolist() != traced.ravel().tolist():
                self.entries[name] = entries

    def _unlike(self, node: Node, traced: NDArray[Any], slot: int) -> Values:
        """Entries of which nothing is known but that they follow the sizes."""
        first = self.fresh(node, "entries", slot)
        return _objects([first + n for n in range(traced.size)], traced.shape)

    def _sizes_of(self, node: Node) -> Values | None:
        lengths = self.length(node.inputs[0])
        if lengths is None:
            return None
        if node.op == "Size":
            self.natural.add(prod(lengths))
            return _objects([prod(lengths)], ())
        part = lengths[slice(node.attr("start", 0), node.attr("end"))]
        return _objects(part, (len(part),))

    def _made(self, node: Node, traced: NDArray[Any], slot: int) -> Values | None:
        """Return the entries of an output, None where nothing is known of them."""
        names = [n for n in node.inputs if n]
        read = [v for n in names if (v := self.value(n)) is not None]
        if not read or len(read) != len(names):
            return None
        if node.op == "Split":
            return None if any(map(self.varies, names[1:])) else self._part(node, read[0], slot)
        if node.op in ("ConstantOfShape", "Range"):  # how many there are varies, what they are doesn't
            steps = names[::2] if node.op == "Range" else []
            return None if any(n in self.entries for n in steps) else traced.astype(object)
        if node.op.startswith("Reduce"):
            plain = node.op in ("ReduceProd", "ReduceSum") and not any(map(self.stretches, names))
            return self._reduced(node, read) if plain else None
        if node.moved:
            return self._moved(node, names, read)
        return self._by_entry(node, names, read, traced)

    def _moved(self, node: Node, names: Sequence[str], read: Sequence[Values]) -> Values | None:
        data = len(node.moved)
        if Trait.REPEATS not in node.traits and any(map(self.varies, names[data:])):
            return None
        given = [*read[:data], *(self.tracer.values[n] for n in names[data:])]
        return evaluate(node.op, dict(node.attrs), given, [True] * len(given))

    def _part(self, node: Node, data: Values, slot: int) -> Values | None:
        axis = int(node.attr("axis", 0))
        shapes = [s for n in node.outputs if (s := self.shape(n)) is not None]
        if len(shapes) != len(node.outputs):
            return None
        return np.split(data, np.cumsum([s[axis] for s in shapes])[:-1], axis)[slot]

    def _reduced(self, node: Node, read: Sequence[Values]) -> Values | None:
        given = [read[0], *(np.asarray(v, np.int64) for v in read[1:])]
        reduced = evaluate(node.op, dict(node.attrs), given, [True] * len(given))
        if reduced is not None and all(map(self._never_negative, read[0].ravel().tolist())):
            self.natural.update(reduced.ravel().tolist())
        return reduced

    def _by_entry(
        self, node: Node, names: list[str], read: list[Values], traced: NDArray[Any]
    ) -> Values | None:
        """Apply an op that looks at each entry by itself."""
        try:
            wide = [np.broadcast_to(v, traced.shape).ravel().tolist() for v in read]
            plain = [np.broadcast_to(self.tracer.values[n], traced.shape).ravel().tolist() for n in names]
        except ValueError:
            return None
        entries = [
            result if (now := [w[at] for w in wide]) == [p[at] for p in plain]
            else self._entry(node, now, traced.dtype.kind)
            for at, result in enumerate(traced.ravel().tolist())
        ]  # fmt: skip
        return _objects(entries, traced.shape)

    def _entry(self, node: Node, given: list[Any], kind: str) -> Any:
        if node.op in ("Identity", "Cast") and kind not in "iub":
            return given[0]
        if node.op == "Where" and isinstance(given[0], bool):
            return given[1] if given[0] else given[2]
        if node.op == "Equal" and any(map(self._never_negative, given)) and any(map(_negative, given)):
            return False
        entry = _arithmetic(node.op, given, kind, self.whole)
        if entry is None:
            made = stand_in(
                node.op, sorted(node.attrs.items(), key=str), [bool(n) for n in node.inputs], given
            )
            if node.op in ("Div", "Cast", "Floor", "Ceil") and all(map(self._never_negative, given)):
                self.natural.add(made)
            if node.op == "Relu" or (node.op == "Clip" and self._never_negative(_least_of(node, given))):
                self.natural.add(made)
            return made
        if node.op in ("Add", "Mul", "Div", "Cast") and all(map(self._never_negative, given)):
            self.natural.add(entry)
        return entry

    def _never_negative(self, number: Any) -> bool:
        return number in self.natural or (isinstance(number, int) and 0 <= number < 1 << 64)


def _negative(number: Any) -> bool:
    return isinstance(number, int) and -(1 << 64) < number < 0


def _least_of(node: Node, given: Sequence[Any]) -> Any:
    """Return the lower bound of a Clip, of the entries of the inputs that it has; None: it has none."""
    return given[1] if node.has(1) else node.attr("min")


def _objects(entries: Sequence[Any], shape: tuple[int, ...]) -> Values:
    array = np.empty(len(entries), object)
    array[:] = entries
    return array.reshape(shape)


def _exact(number: Any) -> Number | None:
    if isinstance(number, float):
        return int(number) if number.is_integer() else Fraction(number) if isfinite(number) else None
    return None if isinstance(number, bool) else number


def _arithmetic(
    op: str, given: Sequence[Any], kind: str, whole: Callable[[Number], int | None]
) -> Number | None:
    """Return what exact arithmetic makes of stand-ins, None where it can't be done: no other rounding is."""
    read = [number for g in given if (number := _exact(g)) is not None]
    if len(read) != len(given) or not read:
        return None
    a, b = read[0], read[1] if len(read) > 1 else 0
    if op in ("Add", "Sub", "Mul"):
        return a + b if op == "Add" else a - b if op == "Sub" else a * b
    if op == "Div" and b:
        quotient = Fraction(a) / Fraction(b)
        return whole(quotient) if kind in "iu" else quotient
    if op == "Neg":
        return -a
    return whole(a) if op in ("Floor", "Ceil") or (op == "Cast" and kind in "iu") else None
