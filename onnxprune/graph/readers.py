"""Who reads each tensor of a graph, and what nobody needs once some of it is passed by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Coupling, uses_of

__all__ = ["Readers", "owned"]


@dataclass(frozen=True)
class Readers:
    """Who reads each tensor of a graph.

    Attributes
    ----------
    uses : mapping
        Tensor -> (number of a node, input slot).
    kept : frozenset of str
        Tensors that graph outputs and bodies read.
    made : mapping
        Tensor -> the number of its node.
    """

    uses: Mapping[str, list[tuple[int, int]]]
    kept: frozenset[str]
    made: Mapping[str, int]

    @classmethod
    def of(cls, analysis: Analysis) -> Readers:
        """Return those of a model."""
        coupling = analysis.coupling
        kept = {value.name for value in analysis.model.proto.graph.output}
        for applied in coupling.nodes:
            if applied.proto.attribute:
                kept |= captured(applied.proto)
        made = {o: number for number, applied in enumerate(coupling.nodes) for o in applied.node.outputs if o}
        return cls(uses_of(coupling), frozenset(kept), made)


def owned(
    coupling: Coupling, model: Container[str], readers: Readers, through: Iterable[tuple[int, int]]
) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the nodes, and the weights, that nobody needs without these places: readers that are gone are counted."""
    nodes = coupling.nodes
    lost: defaultdict[str, int] = defaultdict(int)
    gone, weights = {number for number, _ in through}, []
    todo = [name for number, _ in through for name in nodes[number].node.inputs if name]
    for number, slot in through:  # what goes through keeps its readers: those behind the place
        lost[nodes[number].node.inputs[slot]] -= 1
    while todo:
        name = todo.pop()
        lost[name] += 1
        if lost[name] < len(readers.uses.get(name, ())) or name in readers.kept:
            continue
        number = readers.made.get(name, -1)
        if number < 0:
            weights += [name] if name in model else []
        elif number not in gone and all(
            lost[o] >= len(readers.uses.get(o, ())) and o not in readers.kept
            for o in nodes[number].node.outputs
            if o
        ):
            gone.add(number)
            todo += [n for n in nodes[number].node.inputs if n]
    return frozenset(gone), tuple(weights)
