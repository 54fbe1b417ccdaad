"""Tensors that follow from weights alone: which there are, and which may stand in the file instead of what makes them.

Rules:

1. A node is *computed* if it is an op of ONNX without a body, gives the same result each time (nothing random, no
   Dropout), isn't about quantisation, and reads only weights that are no graph inputs, and what computed nodes make.
2. The type and shape of what it makes are known, and it has at most `MOST` times as many bytes as the largest weight
   that it follows from, and `SLACK` more: what a few bytes blow up (ConstantOfShape, Expand, Tile) is left as it is.
3. DequantizeLinear and its kin are never computed: a quantised weight stays one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from onnxprune.files.payload import known_type, nbytes
from onnxprune.files.protowalk import captured, subgraphs
from onnxprune.graph.trace import TraceError, Tracer
from onnxprune.model import Model
from onnxprune.ops import Trait, traits_of
from onnxprune.runtime.binding import Typed

__all__ = ["Computed", "Finder", "another_form"]

#: A tensor may be so many times as large as the largest weight behind it, in bytes, ...
MOST = 16
#: ... and so many bytes besides.
SLACK = 1 << 16


@dataclass(frozen=True)
class Computed:
    """A tensor that follows from weights alone.

    Attributes
    ----------
    name : str
    typed : tuple
        Element type and shape.
    nodes : tuple of int
        Indices in the graph of all nodes that lead to it.
    weights : tuple of str
        All weights that it follows from.
    gone : int
        Bytes of those weights that nothing else needs.
    """

    name: str
    typed: Typed
    nodes: tuple[int, ...]
    weights: tuple[str, ...]
    gone: int

    @property
    def nbytes(self) -> int:
        """Bytes that it would take in the file."""
        return nbytes(self.typed[1] or (), self.typed[0])


class Finder:
    """Finds what is computed from weights in the main graph of a model without local functions.

    Parameters
    ----------
    model : Model
    tracer : Tracer
        That knows the weights; computed nodes are traced with it where it doesn't know their results.
    """

    model: Model
    tracer: Tracer
    nodes: list[NodeProto]
    fixed: set[str]
    outer: set[str]

    def __init__(self, model: Model, tracer: Tracer) -> None:
        graph = model.proto.graph
        self.model, self.tracer = model, tracer
        self.nodes = list(graph.node)
        changing = {v.name for v in graph.input}
        self.fixed = {name for name in model.names() if name not in changing}
        self.maker: dict[str, int] = {}
        self.largest: dict[str, int] = {name: model.info(name).nbytes for name in self.fixed}
        self.readers: defaultdict[str, list[int]] = defaultdict(list)
        self.outer = {v.name for v in graph.output}
        for number, node in enumerate(self.nodes):
            for name in filter(None, node.input):
                self.readers[name].append(number)
            self.outer |= captured(node) if node.attribute else set()
        for number in model.order:
            self._visit(number)

    def _visit(self, number: int) -> None:
        node = self.nodes[number]
        names = [n for n in node.input if n]
        if not _foldable(node) or not names or not all(n in self.largest for n in names):
            return
        if any(n not in self.tracer.types for n in node.output if n):
            try:
                self.tracer.visit(node)
            except TraceError:
                return
        largest = max(self.largest[n] for n in names)
        found = [(n, self.tracer.types.get(n, (0, None))) for n in node.output if n]
        if not all(shape is not None and _fits(elem, shape, largest) for _, (elem, shape) in found):
            return
        for name, _ in found:
            self.maker[name], self.largest[name] = number, largest

    def ends(self) -> list[str]:
        """Return the computed tensors that something else reads: a node that isn't computed, a body, an output."""
        found = []
        for name in self.maker:
            others = (
                r for r in self.readers[name] if not any(o in self.maker for o in self.nodes[r].output if o)
            )
            if name in self.outer or any(True for _ in others):
                found.append(name)
        return found

    def of(self, name: str) -> Computed:
        """Return what is known of a computed tensor."""
        nodes, weights, stack = set[int](), dict[str, None](), [name]
        while stack:
            one = stack.pop()
            if one not in self.maker:
                weights[one] = None
            elif self.maker[one] not in nodes:
                nodes.add(self.maker[one])
                stack += [n for n in self.nodes[self.maker[one]].input if n]
        gone = sum(self.largest[w] for w in self._private(name, nodes, weights))
        order = tuple(sorted(nodes))
        return Computed(name, self.tracer.types[name], order, tuple(sorted(weights)), gone)

    def only_views(self, found: Computed) -> bool:
        """Whether a tensor is a weight in another form."""
        return all(another_form(self.nodes[n]) for n in found.nodes)

    def _private(self, name: str, nodes: set[int], weights: Iterable[str]) -> list[str]:
        """Return the weights that only lead to one tensor."""
        shared = {n for n in nodes if any(self._escapes(o, name, nodes) for o in self.nodes[n].output if o)}
        stack = list(shared)
        while stack:  # what leads to a shared node is needed as well
            for read in filter(None, self.nodes[stack.pop()].input):
                made = self.maker.get(read)
                if made is not None and made not in shared:
                    shared.add(made)
                    stack.append(made)
        own = nodes - shared
        return [w for w in weights if w not in self.outer and all(r in own for r in self.readers[w])]

    def _escapes(self, output: str, name: str, nodes: set[int]) -> bool:
        return output != name and (output in self.outer or any(r not in nodes for r in self.readers[output]))


def another_form(node: NodeProto) -> bool:
    """Whether a node gives a weight another form, with the same numbers."""
    traits = traits_of(node.op_type, node.domain)
    return Trait.VIEW | Trait.MOVEMENT in traits or node.op_type in ("Transpose", "Cast")


def _foldable(node: NodeProto) -> bool:
    random = Trait.RANDOM in traits_of(node.op_type, node.domain)
    if node.domain not in ("", "ai.onnx") or random or "quantize" in node.op_type.lower():
        return False
    return node.op_type != "Constant" and not any(True for _ in subgraphs(node))


def _fits(elem: int, shape: tuple[int, ...], largest: int) -> bool:
    if not known_type(elem) or elem == TensorProto.STRING:
        return False
    return nbytes(shape, elem) <= MOST * largest + SLACK
