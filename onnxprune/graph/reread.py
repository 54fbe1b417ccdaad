"""A tensor that is laid out flat and looked up in its own order: a Reshape.

PyTorch's newer exporter writes ``as_strided`` by a table of indices, and that where a dynamic batch has a mean over
positions. Which channel an index of such a table means doesn't follow from its values, so all would stay. Rules:

1. A Gather reads, along axis 0, a tensor that a view has made flat. All axes of what was flattened are the same at all
   sizes of the dynamic axes, but for the first one, which may have a name.
2. The indices count its elements: they are known, or follow from a Range over that name by views that keep the first
   axis, sums, and products with numbers. Then each is linear in the place on that axis, and two places tell all.
3. A Reshape of what was flattened takes the Gather's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.graph.branches import Certain
from onnxprune.graph.known import opsets_of
from onnxprune.graph.trace import attributes
from onnxprune.graph.values import evaluate
from onnxprune.model import Model
from onnxprune.ops import Trait, moved, traits_of

__all__ = ["reread"]

_OWN = ("", "ai.onnx")
#: The first opset with Range.
_RANGE = 11
#: Nodes from the indices to the Range, and from there to the size: exporters need a handful.
DEEP = 32
Array = NDArray[Any]


def reread(model: Model) -> Model:
    """Return a model without lookups that change no order: the same one if it has none, else a fork.

    Parameters
    ----------
    model : Model
        Without local functions.
    """
    found = _lookups(model)
    if not found:
        return model
    known, fork = Certain(model), None
    for number, source in found.items():
        shape = _shape(model.proto.graph.node[number], source, known)
        if shape is not None:
            fork = fork or model.fork()
            _reshape(fork, number, source, shape)
    if fork is None:
        return model
    fork.refresh()
    return fork


def _lookups(model: Model) -> dict[int, str]:
    """Return the number of each Gather along the first axis of a view, and of what."""
    views = {
        node.output[0]: node.input[0]
        for node in model.proto.graph.node
        if Trait.VIEW | Trait.MOVEMENT in traits_of(node.op_type, node.domain) and node.input
    }
    found: dict[int, str] = {}
    if opsets_of(model).get("", 1) < _RANGE:
        return found
    for number, node in enumerate(model.proto.graph.node if views else ()):
        if node.op_type == "Gather" and node.domain in _OWN and node.input[0] in views:
            one = node.input[1] in model and prod(model.info(node.input[1]).dims) <= 1
            if not one and attributes(node).get("axis", 0) == 0:
                found[number] = views[node.input[0]]
    return found


def _shape(node: NodeProto, source: str, known: Certain) -> list[int] | None:
    """Return the shape that a lookup gives what was flattened; None where the rules don't hold."""
    flat, dims = known.named.get(node.input[0], []), known.named.get(source, [])
    rest = [size for size in dims[1:] if isinstance(size, int)]
    if len(flat) != 1 or not dims or len(rest) != len(dims) - 1:
        return None
    first, index = dims[0], known.of(node.input[1])
    if index is not None and index[1].all():
        whole = np.arange(prod(rest) * first if isinstance(first, int) else 0)
        return list(index[0].shape) if _is(index[0], whole) else None
    counted = _Stepped(known, first) if isinstance(first, str) and first else None
    places = [counted.at(node.input[1], place) for place in (0, 1)] if counted is not None else []
    for place, value in enumerate(places):
        if value is None or not _is(value, np.arange(prod(rest)) + place * prod(rest)):
            return None
    return [-1, *places[0].shape[1:]] if places and places[0] is not None else None


def _is(index: Array, whole: Array) -> bool:
    return bool(index.size) and np.array_equal(index.ravel(), whole)


class _Stepped:
    """Values that are linear in the place on their first axis, which is as long as a name says: one place of them."""

    def __init__(self, known: Certain, length: str) -> None:
        self.known, self.length = known, length
        self.seen: dict[tuple[str, int], Array | None] = {}

    def at(self, name: str, place: int, deep: int = DEEP) -> Array | None:
        """Return the slice of a tensor at one place; None where rule 2 doesn't hold."""
        if (name, place) not in self.seen:
            node = self.known.made.get(name)
            own = node is not None and node.domain in _OWN and deep > 0
            self.seen[name, place] = self._made(node, place, deep - 1) if node is not None and own else None
        return self.seen[name, place]

    def _made(self, node: NodeProto, place: int, deep: int) -> Array | None:
        numbers, traits = [self._number(n) for n in node.input], traits_of(node.op_type, node.domain)
        if node.op_type == "Range":
            start, _, step = numbers
            plain = start is not None and step is not None and not start.any() and bool((step == 1).all())
            return np.array([place]) if plain and self._sizes(node.input[1]) == [self.length] else None
        varying = [slot for slot, number in enumerate(numbers) if number is None]
        view, product = (
            Trait.VIEW | Trait.MOVEMENT in traits and varying == [0],
            node.op_type == "Mul" and len(varying) == 1,
        )
        if not varying or not (view or product or Trait.SUM in traits):
            return None
        parts = [
            self.at(n, place, deep) if v is None else v for n, v in zip(node.input, numbers, strict=True)
        ]
        given = [part for part in parts if part is not None]
        if len(given) < len(parts) or not (
            self._keeps_first(node, given) if view else _in_line(given, numbers)
        ):
            return None
        return evaluate(node.op_type, attributes(node), given, [True] * len(given))

    def _number(self, name: str) -> Array | None:
        part = self.known.of(name)
        return part[0] if part is not None and part[1].all() else None

    def _keeps_first(self, node: NodeProto, given: Sequence[Array]) -> bool:
        """Whether a view leaves the first axis what it is, however long."""
        shapes = []
        for length in (2, 3):
            longer = np.zeros((length, *given[0].shape[1:]), np.int64)
            made = evaluate(node.op_type, attributes(node), [longer, *given[1:]], [True] * len(given))
            shapes.append((0,) if made is None else made.shape)
        return [shape[:1] for shape in shapes] == [(2,), (3,)] and shapes[0][1:] == shapes[1][1:]

    def _sizes(self, name: str, deep: int = DEEP) -> list[int | str]:
        """Return the sizes that a tensor lists, by their names where they vary; none where that isn't known."""
        node = self.known.made.get(name)
        if node is None or node.domain not in _OWN or len(node.output) != 1 or not deep:
            return []
        attrs, count = attributes(node), len(node.input)
        if node.op_type == "Shape":
            return self.known.named.get(node.input[0], [])[slice(attrs.get("start", 0), attrs.get("end"))]
        sizes = self._sizes(node.input[0], deep - 1) if moved(node.op_type, count) == range(1) else []
        given = [np.arange(len(sizes)), *(self._number(n) for n in node.input[1:])]
        if Trait.VIEW in traits_of(node.op_type):
            return sizes
        places = evaluate(node.op_type, attrs, given, [bool(n) for n in node.input]) if sizes else None
        return [] if places is None else [sizes[place] for place in places.ravel()]


def _in_line(given: Sequence[Array], numbers: Sequence[Array | None]) -> bool:
    """Whether nothing but numbers is broadcast along the first axis."""
    rank = max(value.ndim for value in given)
    return all(
        value.ndim < rank or value.shape[0] == 1 if number is not None else value.ndim == rank
        for value, number in zip(given, numbers, strict=True)
    )


def _reshape(model: Model, number: int, source: str, shape: Sequence[int]) -> None:
    """Let a Reshape stand for a lookup, in place."""
    node = model.proto.graph.node[number]
    given = model.add(f"{node.output[0]}/shape", np.array(shape, np.int64))
    node.CopyFrom(helper.make_node("Reshape", [source, given], list(node.output), name=node.name))
