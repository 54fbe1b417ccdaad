"""Where ids are looked up, which tables they count, and where else their numbers are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Coupling, title_of
from onnxprune.graph.groups import group
from onnxprune.graph.openings import Openings
from onnxprune.graph.space import Space
from onnxprune.ops import Node, moved
from onnxprune.ops.traits import Trait
from onnxprune.runtime.binding import declared, real_inputs

__all__ = ["IDS", "Read", "elements_of", "fed", "opened", "passing", "reads_of", "ties"]

Ints = NDArray[np.int64]

#: Element types of ids.
IDS = frozenset({TensorProto.INT64, TensorProto.INT32})
_WHOLE = frozenset(
    {*IDS, TensorProto.INT16, TensorProto.INT8, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32}
    | {TensorProto.UINT64, TensorProto.BOOL}
)
_HELD = "its rows are read by ids that the graph holds"


@dataclass(frozen=True)
class Read:
    """A node that looks rows up by ids.

    Attributes
    ----------
    number : int
        Of the node, in the order of the analysis.
    slot : int
        The input that holds the ids.
    root : int
        The axis that they count, in the space.
    """

    number: int
    slot: int
    root: int


def reads_of(coupling: Coupling) -> Iterator[Read]:
    """Yield all lookups of a graph."""
    for number, applied in enumerate(coupling.nodes):
        if applied.row is not None:
            for letter, slot in applied.row.looked.items():
                yield Read(number, slot, coupling.space.find(applied.letters[letter]))


def elements_of(coupling: Coupling) -> dict[int, int]:
    """Axis in the space -> how many elements the weights have that it is an axis of."""
    space, counts = coupling.space, Counter[int]()
    for instance in coupling.instances:
        if instance.uses or instance.outer:
            for root in {space.find(d) for d in instance.dims}:
                counts[root] += prod(space.sizes[d] for d in instance.dims)
    return dict(counts)


def fed(analysis: Analysis) -> set[str]:
    """Return the tensors of whole numbers that hang on numbers of an integer input."""
    graph, types = analysis.model.proto.graph, analysis.types
    fed = {v.name for v in real_inputs(graph) if v.type.tensor_type.elem_type in IDS}
    for applied in analysis.coupling.nodes:
        if Trait.SIZE not in applied.node.traits and fed.intersection(applied.node.inputs):
            fed.update(name for name in applied.node.outputs if types.get(name) in _WHOLE)
    return fed


def opened(analysis: Analysis, reads: list[Read], size: int) -> Analysis:
    """Return an analysis in which what only these lookups and the outputs of that length lock may be cut."""
    coupling = analysis.coupling
    space, roots = coupling.space, {read.root for read in reads}
    spared: Counter[tuple[int, str]] = Counter()
    for read in reads:
        applied = coupling.nodes[read.number]
        assert applied.row is not None
        for letter, slot in applied.row.looked.items():
            if slot == read.slot and space.find(applied.letters[letter]) == read.root:
                spared[read.root, f"{applied.row.why[letter]} ({title_of(applied.node)})"] += 1
    for value in analysis.model.proto.graph.output:
        for dim in coupling.dims.get(value.name, ()):
            if space.sizes[dim] == size:
                spared[space.find(dim), f"axis of the graph output '{value.name}'"] += 1
    locks = []
    for dim, index, soft, reason in space.locks:
        key = (space.find(dim), reason)
        if index is None and not soft and spared[key]:
            spared[key] -= 1
        else:
            locks.append((dim, index, soft, reason))
    locks += [
        (root, index, False, _HELD) for root, index in (*_held(coupling, roots), *_constant(analysis, reads))
    ]
    free = Space(space.sizes, space.links, space.products, locks, space._parent)
    coupling = replace(coupling, space=free, opened=_shrinking(analysis, size))
    elements = {name: weight.elem for name, weight in analysis.tracer.weights.items()}
    return replace(analysis, coupling=coupling, grouping=group(coupling, elements))


def _shrinking(analysis: Analysis, size: int) -> Openings:
    """Return the axes of that length of the graph outputs, where they are declared."""
    given = dict(analysis.coupling.opened)
    for value in analysis.model.proto.graph.output:
        axes = {axis for axis, length in enumerate(declared(value) or ()) if length == size}
        given[value.name] = given.get(value.name, frozenset()) | axes
    return given


def _held(coupling: Coupling, roots: set[int]) -> Iterator[tuple[int, Ints]]:
    """Yield ids that nodes with known indices look up: what they give must keep its length."""
    for applied in coupling.nodes:
        if applied.row is not None and Trait.LOOKUP in applied.node.traits:
            for mapped in applied.row.maps.values():
                root = coupling.space.find(applied.letters[mapped.source])
                if root in roots:
                    yield root, np.unique(mapped.index[mapped.index >= 0])


def _constant(analysis: Analysis, reads: Collection[Read]) -> Iterator[tuple[int, Ints]]:
    """Yield ids that the graph holds and that reach a lookup as they are, among others perhaps."""
    model, nodes, size = analysis.model, analysis.coupling.nodes, analysis.coupling.space.sizes
    made = {name: applied.node for applied in nodes for name in applied.node.outputs if name}
    for read in reads:
        todo, seen = [nodes[read.number].node.inputs[read.slot]], set[str]()
        while todo:
            name = todo.pop()
            if not name or name in seen:
                continue
            seen.add(name)
            if name in model and model.info(name).elem_type in IDS:
                yield read.root, np.unique(np.asarray(model.weight(name), np.int64) % size[read.root])
            elif name in made:
                node = made[name]
                onward = (1, 2) if node.op == "Where" else passing(analysis, node)
                todo += [node.inputs[slot] for slot in onward]


def ties(analysis: Analysis, source: str, looked: Collection[tuple[int, int]]) -> tuple[set[int], str]:
    """Follow the numbers of an input.

    Parameters
    ----------
    analysis : Analysis
    source : str
    looked : collection of tuple of int
        Node and input slot of each lookup.

    Returns
    -------
    set of int
        Lookups that they reach unchanged.
    str
        What else reads them; empty: nothing does. Their shape may be read.
    """
    carried, reached, others = {source}, set[int](), ""
    for number, applied in enumerate(analysis.coupling.nodes):
        node = applied.node
        if carried & captured(applied.proto):
            others = others or title_of(node)
        slots = [slot for slot, name in enumerate(node.inputs) if name in carried]
        onward = passing(analysis, node)
        for slot in slots if Trait.SIZE not in node.traits else ():
            if (number, slot) in looked:
                reached.add(number)
            elif slot in onward and all(other in slots for other in onward):
                carried.update(name for name in node.outputs if name)
            else:
                others = others or title_of(node)
    given = [value.name for value in analysis.model.proto.graph.output if value.name in carried]
    return reached, others or (f"the output {given[0]!r}" if given else "")


def passing(analysis: Analysis, node: Node) -> Collection[int]:
    """Return the slots whose numbers a node passes on: it moves them, or casts them to other whole numbers."""
    if node.op == "Cast":
        types = analysis.tracer.types
        kinds = {types.get(name, (0, None))[0] for name in (*node.inputs, *node.outputs)}
        return (0,) if kinds <= IDS else ()
    return moved(node.op, len(node.inputs), node.domain)
