"""Which ids an integer input may hold: those that the tables behind it have rows for.

Fields often share a table, ``table[ids + (0, 10, 20)]``: what is added on the way to a table is followed, place by
place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.model import Model
from onnxprune.ops import moved
from onnxprune.runtime.binding import Shape, Typed, real_inputs

__all__ = ["Ids", "id_bounds"]

Numbers = NDArray[np.int64]

#: So many ids are drawn at most, whatever the size of the table that they look up.
MOST_IDS = 1000


@dataclass(frozen=True)
class Ids:
    """Bounds of ids: one pair for all of them, or arrays that are broadcast over the input.

    Attributes
    ----------
    least : array
    end : array
        What lies behind the largest.
    """

    least: Numbers
    end: Numbers

    @classmethod
    def below(cls, end: int) -> Ids:
        """Return the bounds of the ids from zero up to an end."""
        return cls(np.array(0), np.array(end))

    def both(self, other: Ids) -> Ids:
        """Return the bounds of what keeps to these and to others."""
        try:
            return _bounds(np.maximum(self.least, other.least), np.minimum(self.end, other.end))
        except ValueError:  # for inputs of different shapes
            return self.at_any_place().both(other.at_any_place())

    def at_any_place(self) -> Ids:
        """Return bounds that do wherever an id stands."""
        return _bounds(self.least.max(), self.end.min())

    def fitting(self, shape: Shape) -> Ids:
        """Return bounds for an input of this shape."""
        try:
            fits = np.broadcast_shapes(self.least.shape, self.end.shape, shape) == tuple(shape)
        except ValueError:
            fits = False
        return self if fits else self.at_any_place()

    def draw(self, shape: Shape, rng: np.random.Generator) -> Numbers:
        """Draw ids for an input of this shape."""
        own = self.fitting(shape)
        return np.asarray(rng.integers(own.least, np.minimum(own.end, own.least + MOST_IDS), shape))

    def ones(self, shape: Shape) -> Numbers:
        """Return ones, or where one is none of the ids the next to it."""
        own = self.fitting(shape)
        return np.broadcast_to(np.clip(1, own.least, own.end - 1), shape)


def _bounds(least: Numbers, end: Numbers) -> Ids:
    """Return bounds with one id between them at least."""
    return Ids(np.asarray(least), np.maximum(end, least + 1))


@dataclass(frozen=True)
class _Shift:
    """What was added to an input on the way to some tensor.

    Attributes
    ----------
    least, most : arrays
        Broadcast over the input, if each of its numbers is still at its place.
    placed : bool
    known : bool
        Whether that is all.
    """

    least: Numbers
    most: Numbers
    placed: bool = True
    known: bool = True

    def plus(self, added: Numbers | None) -> _Shift:
        """Add constants, or numbers that aren't known."""
        if added is None:
            return replace(self, known=False)
        try:
            if self.placed or not added.ndim:
                return replace(self, least=self.least + added, most=self.most + added)
        except ValueError:  # not of one shape
            pass
        least, most = self.least.min() + added.min(), self.most.max() + added.max()
        return replace(self, least=np.asarray(least), most=np.asarray(most))

    def either(self, other: _Shift | None) -> _Shift:
        """Return the shift of what came one way or another."""
        if other is None:
            return self
        if not (np.array_equal(self.least, other.least) and np.array_equal(self.most, other.most)):
            least = np.asarray(min(self.least.min(), other.least.min()))
            self = replace(self, least=least, most=np.asarray(max(self.most.max(), other.most.max())))
        return replace(self, placed=self.placed and other.placed, known=self.known and other.known)

    def within(self, size: int, fixed: bool) -> Ids:
        """Return bounds of the ids with which a table of this size is read; half of it where more isn't certain."""
        least = np.maximum(-self.least, 0)
        room = size - self.most - least
        return _bounds(least, least + (room if self.known and fixed else (room + 1) // 2))


def id_bounds(model: Model, sizes: Mapping[str, Typed]) -> dict[str, Ids]:
    """Find the bounds of each integer input that looks up rows of a table.

    Parameters
    ----------
    model : Model
    sizes : mapping
        Tensor -> (element type, shape), to find tables that are not weights.
    """
    graph, bounds = model.proto.graph, dict[str, Ids]()
    integers = (TensorProto.INT64, TensorProto.INT32)
    names = [v.name for v in real_inputs(graph) if v.type.tensor_type.elem_type in integers]
    shifts = {name: {name: _Shift(np.array(0), np.array(0))} for name in names}
    for index in model.order if names else ():
        node = graph.node[index]
        found = _shifted(model, node, shifts)
        shifts |= dict.fromkeys(node.output, found) if found else {}
        for table, axis, ids in _lookups(node):
            fixed = table in model
            shape = (model.info(table).dims if fixed else sizes.get(table, (0, None))[1]) or ()
            for source, shift in shifts.get(ids, {}).items() if shape else ():
                own = shift.within(shape[axis], fixed)
                bounds[source] = own.both(bounds[source]) if source in bounds else own
    return bounds


def _shifted(
    model: Model, node: onnx.NodeProto, shifts: Mapping[str, Mapping[str, _Shift]]
) -> dict[str, _Shift]:
    """Return the inputs whose numbers, perhaps some way off, a node's outputs have."""
    pairs: list[tuple[str, _Shift]] = []
    if node.op_type == "Cast" and not node.domain:
        pairs += shifts.get(node.input[0], {}).items()
    for slot in moved(node.op_type, len(node.input), node.domain):
        pairs += [(n, replace(s, placed=False)) for n, s in shifts.get(node.input[slot], {}).items()]
    if node.op_type in ("Add", "Sub") and not node.domain:
        for name, other in (tuple(node.input), tuple(node.input)[::-1]):
            added = _constant(model, other)
            if node.op_type == "Add":
                pairs += [(n, s.plus(added)) for n, s in shifts.get(name, {}).items()]
            elif added is not None and other == node.input[1]:
                pairs += [(n, s.plus(-added)) for n, s in shifts.get(name, {}).items()]
    found: dict[str, _Shift] = {}
    for name, shift in pairs:
        found[name] = shift.either(found.get(name))
    return found


def _constant(model: Model, name: str) -> Numbers | None:
    array = np.asarray(model.weight(name)) if name in model else np.zeros(0)
    return array.astype(np.int64) if array.size and array.dtype.kind in "iu" else None


def _lookups(node: onnx.NodeProto) -> list[tuple[str, int, str]]:
    """Return (table, axis, ids) of each lookup that a node does."""
    if node.op_type == "Gather" and len(node.input) == 2:
        return [
            (node.input[0], next((int(a.i) for a in node.attribute if a.name == "axis"), 0), node.input[1])
        ]
    if node.op_type == "EmbedLayerNormalization" and len(node.input) > 4:
        return [(node.input[2], 0, node.input[0]), (node.input[4], 0, node.input[1])]
    return []
