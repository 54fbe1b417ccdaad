"""Residual branches: what a sum adds to a stream that goes past it, and what only that needs.

A sum of two values or more (one node, or some that only add to each other) is of a stream and branches if one of its
terms is the stream: nothing with weights is on its way from the value ``f`` that it forks from, and the other terms
depend on ``f``. A term is a branch if it has layers that nothing else needs. So are found: attention and feed-forward
parts, before or after a norm, one after the other or side by side; the blocks of residual convolutional networks. On a
stream with one layer of its own (a projection), branches have two or more; where terms are alike, none is a branch.

What is summed must have the sum's shape, so that the sum without a branch is what is left of it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.coupling import Applied
from onnxprune.graph.group_types import Group
from onnxprune.graph.kept import Kept
from onnxprune.graph.scopes import is_anonymous, module_of
from onnxprune.graph.spelling import Spelled, spell
from onnxprune.ops import Trait

__all__ = ["Branch", "Depth", "Term"]

#: A term of a sum: the position of the node that adds it, and the slot.
Term = tuple[int, int]
#: Values of a cache have more axes than this; lengths, which all layers read, have fewer.
CACHED = 2


@dataclass(frozen=True, eq=False)
class Branch:
    """A residual branch.

    Attributes
    ----------
    name : str
        Unique: the module that its layers have in common, or else what their weights do, or its value.
    value : str
        What it adds to the stream.
    term : tuple (position, slot)
        Where that is added.
    sum : str
        The whole sum: the stream behind the branch.
    stream : str
        The term that is the stream.
    nodes : tuple of int
        Positions of the nodes that nothing else needs.
    layers : tuple of int
        Those with weights among them.
    params, macs : int
        Of what goes with it.
    outputs, inputs : tuple of str
        That go with it since the user opened them, such as keys and values of a cache: outputs that it gives besides,
        and inputs that it alone reads.
    """

    name: str
    value: str
    term: Term
    sum: str
    stream: str
    nodes: tuple[int, ...]
    layers: tuple[int, ...]
    params: int
    macs: int
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Depth:
    """The residual branches of a model.

    Attributes
    ----------
    analysis : Analysis
        Of the original, with sums that are fused with a norm spelled out: places of branches are its places.
    branches : list of Branch
        In order of execution.
    refused : dict
        Name -> why a branch can't go.
    original : Analysis
    spelled : dict
        Sum -> what it was spelled from.
    """

    analysis: Analysis
    branches: list[Branch]
    refused: dict[str, str]
    original: Analysis
    spelled: dict[str, Spelled]

    @classmethod
    def of(cls, analysis: Analysis) -> Depth:
        """Find the branches of a model."""
        model, parts = spell(analysis)
        plain = analyse(model, input_shapes=analysis.inputs, runs=analysis.runs) if parts else analysis
        branches, refused = _DepthSearch(plain, frozenset(analysis.coupling.opened)).run()
        return cls(plain, branches, refused, analysis, {part.total: part for part in parts})

    @cached_property
    def named(self) -> dict[str, Branch]:
        """Name -> branch."""
        return {branch.name: branch for branch in self.branches}

    @cached_property
    def groups(self) -> list[Group]:
        """The branches as groups of one unit each."""
        none: tuple[()] = ()
        return [
            Group(b.name, 1, "depth", none, none, number, np.array([b.params]), np.array([float(b.macs)]))
            for number, b in enumerate(self.branches)
        ]

    def chosen(self, names: Iterable[str]) -> list[Branch]:
        """Return branches by their names, in order of execution, with those that lie within them.

        Raises
        ------
        ValueError
            If there is none of a name.
        """
        wanted = set(names)
        if unknown := sorted(wanted - self.named.keys()):
            raise ValueError(f"{unknown[0]!r} is no branch of the model")
        gone = {node for name in wanted for node in self.named[name].nodes}
        return [b for b in self.branches if b.name in wanted or b.term[0] in gone]


@dataclass
class _Leaf:
    """A term of a sum, and what only it needs."""

    value: str
    term: Term
    nodes: list[int]
    layers: list[int]
    reads: list[str]  # activations from outside that its own nodes read


@dataclass(frozen=True)
class _Also:
    """What a branch gives and reads at the ends of the graph, and the nodes that go with all that."""

    nodes: list[int]
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()  # inputs that others read, too


class _DepthSearch:
    def __init__(self, analysis: Analysis, opened: frozenset[str]) -> None:
        self.analysis, self.opened = analysis, opened
        self.nodes = analysis.coupling.nodes
        self.tracer = analysis.tracer
        graph = analysis.model.proto.graph
        self.outputs = {v.name for v in graph.output}
        self.reads = [_reads(applied) for applied in self.nodes]
        self.maker = {name: n for n, a in enumerate(self.nodes) for name in a.node.outputs if name}
        self.readers: defaultdict[str, list[int]] = defaultdict(list)
        for number, names in enumerate(self.reads):
            for name in names:
                self.readers[name].append(number)
        self._depend()

    def _depend(self) -> None:
        """Find of each value the nodes and inputs that it depends on, as bits, and which values are constant."""
        inputs = [n for n in self.analysis.inputs if n not in self.tracer.weights]
        self.bits = {name: 1 << (len(self.nodes) + k) for k, name in enumerate(inputs)}
        self.before: dict[str, int] = {}
        for number, names in enumerate(self.reads):
            above = 0
            for name in names:
                above |= self.before.get(name, 0) | self.bits.get(name, 0)
            for name in self.nodes[number].node.outputs:
                if name and above:
                    self.before[name], self.bits[name] = above, 1 << number

    def varies(self, name: str) -> bool:
        """Whether a value depends on an input."""
        return name in self.bits

    def run(self) -> tuple[list[Branch], dict[str, str]]:
        """Return the branches in order of execution, and why others can't go."""
        found: list[tuple[_Leaf, _Leaf, str]] = []
        for number, applied in enumerate(self.nodes):
            if self._sums(number) and not self._inner(number):
                leaves = [self._leaf(*term) for term in self._terms(number)]
                found += [(q, s, applied.node.outputs[0]) for q, s in _branches(leaves, self._forks)]
        names = self._names([leaf for leaf, _, _ in found])
        branches, refused = [], {}
        for name, (leaf, stream, whole) in zip(names, found, strict=True):
            also = self._also(leaf, stream, whole)
            if why := self._stays(also):
                refused[name] = why
                continue
            nodes, inputs = also.nodes, tuple(n for n in also.inputs if n in self.opened)
            layers = tuple(filter(self._is_layer, nodes))
            taken = tuple(nodes), layers, sum(self._params(nodes).values()), self._macs_of(nodes)
            ends = also.outputs, inputs
            branches.append(Branch(name, leaf.value, leaf.term, whole, stream.value, *taken, *ends))
        return sorted(branches, key=lambda b: b.term), refused

    def _shape(self, name: str) -> tuple[int, ...] | None:
        typed = self.tracer.types.get(name)
        return None if typed is None or typed[1] is None else tuple(typed[1])

    def _sums(self, number: int) -> bool:
        """Whether a node adds activations of one shape, that of the sum, whatever sizes inputs have."""
        node = self.nodes[number].node
        if Trait.SUM not in node.traits or len(node.inputs) < 2 or not all(map(self.varies, node.inputs)):
            return False
        shape = self._shape(node.outputs[0])
        dims = self.analysis.coupling.dims
        if shape is None or any(self._shape(name) != shape for name in node.inputs):
            return False
        return all(name in dims for name in node.inputs) and self._alike(node.inputs)

    def _alike(self, names: Sequence[str]) -> bool:
        """Whether values have one shape under other sizes of dynamic axes, too."""
        other = self.analysis.other_trace()
        if other is None:
            return True
        return len({other.types.get(name, (0, None))[1] for name in names}) == 1

    def _inner(self, number: int) -> bool:
        """Whether a sum is but a term of another sum, and of nothing else."""
        value = self.nodes[number].node.outputs[0]
        readers = self.readers[value]
        return len(readers) == 1 and value not in self.outputs and self._sums(readers[0])

    def _terms(self, number: int) -> list[Term]:
        """Return the terms of a sum, those of sums that are its terms in their place."""
        terms: list[Term] = []
        for slot, name in enumerate(self.nodes[number].node.inputs):
            maker = self.maker.get(name)
            within = maker is not None and self._sums(maker) and self._inner(maker)
            terms += self._terms(maker) if within and maker is not None else [(number, slot)]
        return terms

    def _leaf(self, number: int, slot: int) -> _Leaf:
        value = self.nodes[number].node.inputs[slot]
        nodes = self._only({(number, value)}) if self.nodes[number].node.inputs.count(value) == 1 else []
        own = set(nodes)
        reads = dict.fromkeys(
            n for node in nodes for n in self.reads[node] if self.varies(n) and self.maker.get(n) not in own
        )
        return _Leaf(value, (number, slot), nodes, [n for n in nodes if self._is_layer(n)], list(reads))

    def _only(self, uses: set[tuple[int, str]], outputs: frozenset[str] = frozenset()) -> list[int]:
        """Return the nodes that nothing needs but these reads of values by nodes, and these outputs."""
        gone: set[int] = set()
        heap = [-self.maker[name] for name in {v for _, v in uses} | outputs if name in self.maker]
        heapq.heapify(heap)
        while heap:
            number = -heapq.heappop(heap)
            if number in gone or not self._unneeded(number, gone, uses, outputs):
                continue
            gone.add(number)
            for name in self.reads[number]:
                if name in self.maker:
                    heapq.heappush(heap, -self.maker[name])
        return sorted(gone)

    def _unneeded(
        self, number: int, gone: set[int], uses: set[tuple[int, str]], outputs: frozenset[str]
    ) -> bool:
        return all(
            name not in self.outputs - outputs
            and all(r in gone or (r, name) in uses for r in self.readers[name])
            for name in self.nodes[number].node.outputs
            if name
        )

    def _is_layer(self, number: int) -> bool:
        """Whether a node multiplies an activation with weights."""
        applied = self.nodes[number]
        names = [n for n in applied.node.inputs if n]
        matrix = any(not self.varies(n) and len(self._shape(n) or ()) > 1 for n in names)
        return bool(applied.macs) and matrix and any(map(self.varies, names))

    def _forks(self, stream: _Leaf, branch: _Leaf) -> bool:
        """Whether a branch depends on the one value that a stream comes from."""
        source = [stream.value] if not stream.nodes else stream.reads
        if len(source) != 1:
            return False
        return bool(self.before.get(branch.value, 0) & self.bits[source[0]])

    def _also(self, leaf: _Leaf, stream: _Leaf, whole: str) -> _Also:
        """Return what outputs a branch gives besides, if more layers would go with them."""
        source = stream.value if not stream.nodes else stream.reads[0]
        fork, above = self.bits[source], self.before.get(leaf.value, 0) | self.bits[leaf.value]
        ends, reached, outputs = {leaf.term[0], self.maker[whole]}, set[str](), set[str]()
        for number, applied in enumerate(self.nodes):
            names = {n for n in applied.node.outputs if n}
            between = any(self.before.get(n, 0) & fork and self.bits[n] & above for n in names)
            behind = any(self.before.get(n, 0) & self.bits[whole] for n in names)  # reads the stream again
            onwards = number not in ends and not behind and Trait.SIZE not in applied.node.traits
            if between or (onwards and reached.intersection(self.reads[number])):
                reached |= names
                outputs |= names & self.outputs
        more = self._only({(leaf.term[0], leaf.value)}, frozenset(outputs)) if outputs else []
        if sum(map(self._is_layer, more)) <= len(leaf.layers):
            outputs, more = set(), leaf.nodes
        own = set(more)
        inputs = [name for name in self.analysis.inputs if own.intersection(self.readers[name])]
        return _Also(
            more,
            tuple(sorted(outputs)),
            tuple(name for name in inputs if own.issuperset(self.readers[name])),
            tuple(name for name in inputs if not own.issuperset(self.readers[name])),
        )

    def _stays(self, also: _Also) -> str:
        """Say which output or input keeps a branch; empty where it may go."""
        if not also.outputs:
            return ""
        caches = [name for name in also.inputs if self._caches(name)]
        for name in also.shared:
            if name in self.opened and self._caches(name):
                return f"the input {name!r}, which --open-io names, is read by others, too"
        for what, names in (("give the output", also.outputs), ("alone read the input", caches)):
            closed = [name for name in names if name not in self.opened]
            if closed:
                last = f" and {len(closed) - 1} more" if len(closed) > 1 else ""
                return f"layers of it {what} {closed[0]!r}{last}, too, which stays unless --open-io names it"
        return ""

    def _caches(self, name: str) -> bool:
        return len(self._shape(name) or ()) > CACHED

    def _params(self, nodes: Iterable[int]) -> dict[str, int]:
        """Return the elements of weights that only these nodes read."""
        own, weights, numbers = set(nodes), self.tracer.weights, self.analysis.numbers
        read = {name for n in own for name in self.reads[n] if name in weights}
        alone = (name for name in read if own.issuperset(self.readers[name]))
        return {name: round(prod(weights[name].shape) * numbers[name]) for name in alone}

    def _macs_of(self, nodes: Iterable[int]) -> int:
        whole = Kept(self.analysis.coupling, {})
        return round(sum(whole.macs(self.nodes[n]) for n in nodes))

    def _names(self, leaves: Sequence[_Leaf]) -> list[str]:
        """Return a unique name for each branch."""
        titles = [self._title(leaf) for leaf in leaves]
        return [
            title if title and titles.count(title) == 1 else leaf.value
            for title, leaf in zip(titles, leaves, strict=True)
        ]

    def _title(self, leaf: _Leaf) -> str:
        layers = [self.nodes[n] for n in leaf.layers]
        modules = [module_of(a.node.name, a.proto) for a in layers]
        if all(modules):
            return _common(modules)
        weights = [self._params([n]) for n in leaf.layers]
        names = [max(own, key=lambda name: own[name]) for own in weights if own]
        names = [name.rpartition(".")[0] for name in names if not is_anonymous(name)]
        return _common(names) if len(names) == len(layers) and all(names) else ""


def _branches(leaves: Sequence[_Leaf], forks: Callable[[_Leaf, _Leaf], bool]) -> list[tuple[_Leaf, _Leaf]]:
    """Return the terms of a sum that are branches, each with the stream."""
    for most in (0, 1):  # layers on the way of the stream
        for stream in leaves:
            if len(stream.layers) != most:
                continue
            found = [b for b in leaves if len(b.layers) > most and forks(stream, b)]
            if found:
                return [(branch, stream) for branch in found]
    return []


def _common(names: Sequence[str]) -> str:
    """Return the module that names have in common.

    Examples
    --------
    >>> _common(["layers.0.attn.q", "layers.0.attn.out"])
    'layers.0.attn'
    """
    parts = [name.split(".") for name in names]
    first, last = min(parts), max(parts)
    alike = [one == other for one, other in zip(first, last, strict=False)]
    return ".".join(first[: alike.index(False) if False in alike else len(alike)])


def _reads(applied: Applied) -> list[str]:
    inner = sorted(captured(applied.proto)) if applied.proto.attribute else []
    return [name for name in dict.fromkeys((*applied.node.inputs, *inner)) if name]
