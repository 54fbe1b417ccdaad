"""Rows applied to a traced graph: every axis of every tensor becomes a dim of one `Space`.

The index space of a dim is that of the original model. Weights that several nodes read are one instance (cut once, for
all of them), except vectors: exporters share equal biases and scales between layers that have nothing to do with each
other, so each use of a vector is an instance of its own and gets a copy if the uses end up different.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.files.protowalk import captured
from onnxprune.graph.escapes import counted
from onnxprune.graph.openings import NONE, Openings, closed
from onnxprune.graph.passage import Passage
from onnxprune.graph.space import Space
from onnxprune.graph.trace import Tracer
from onnxprune.ops import Node, Refusal, Row, lookup
from onnxprune.ops.notation import Axis, Letter, Product, Sum, Unit, letters_of
from onnxprune.ops.resolve import FittedRow, Misfit, fit

Dims = tuple[int, ...]


@dataclass(slots=True)
class Applied:
    """One node with its row, and the dims of its operands.

    Attributes
    ----------
    node : Node
    proto : NodeProto
    row : Row or None
        None where the op has no row: all that it touches is frozen.
    reason : str
        Why it has no row.
    letters : dict
        Letter -> dim.
    ins, outs : list of dims or None
        One entry for each input and output; None where absent or of unknown shape.
    contracted : tuple of (slot, axis)
        Input axes that are summed over.
    macs : tuple of dims
        Multiply-accumulates: a sum of products of the sizes of these dims.
    """

    node: Node
    proto: NodeProto
    row: Row | None = None
    reason: str = ""
    letters: dict[str, int] = field(default_factory=dict)
    ins: list[Dims | None] = field(default_factory=list)
    outs: list[Dims | None] = field(default_factory=list)
    contracted: tuple[tuple[int, int], ...] = ()
    macs: tuple[Dims, ...] = ()


@dataclass(slots=True)
class Instance:
    """A weight as one node (or all of its nodes) sees it."""

    tensor: str
    dims: Dims
    uses: list[tuple[int, int]] = field(default_factory=list)  # (index of Applied, input slot)
    outer: bool = False  # also read where no node of the graph reads it: a subgraph or a graph output


@dataclass
class Coupling:
    """The whole graph as dims."""

    space: Space
    nodes: list[Applied]
    dims: dict[str, Dims]
    instances: list[Instance]
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)  # weight -> names that went into it
    opened: Openings = field(default_factory=dict)
    least: dict[int, int] = field(default_factory=dict)  # root dim -> how many of its elements must stay
    passages: tuple[Passage, ...] = ()
    positions: dict[tuple[int, int], int] = field(
        default_factory=dict
    )  # node, slot -> dim that its values count


def couple(
    tracer: Tracer, nodes: list[Applied], inputs: Mapping[str, tuple[int, ...]], outputs: Sequence[str],
    opened: Openings = NONE,
) -> Coupling:  # fmt: skip
    """Apply the row of every node of a graph.

    Parameters
    ----------
    tracer : Tracer
        That has visited the nodes.
    nodes : list of Applied
        In topological order.
    inputs, outputs
        The graph's inputs with their bound shapes, and the names of its outputs: none of their axes is cut but those
        in ``opened``.
    opened : mapping, optional
        See `onnxprune.graph.openings`.
    """
    builder = _Builder(tracer, nodes, outputs)
    builder.coupling.opened = opened
    for name, shape in inputs.items():
        dims = builder.fresh(shape)
        builder.coupling.dims[name] = dims
        builder.lock_all(closed(opened, name, dims), f"axis of the graph input '{name}'")
    for number, applied in enumerate(nodes):
        builder.apply(number, applied)
    for name in outputs:
        dims = builder.coupling.dims.get(name, ())
        builder.lock_all(closed(opened, name, dims), f"axis of the graph output '{name}'")
    builder.lock_escapes(outputs)
    return builder.coupling


class _Builder:
    def __init__(self, tracer: Tracer, nodes: list[Applied], outputs: Sequence[str]) -> None:
        self.tracer = tracer
        self.space = Space()
        self.coupling = Coupling(self.space, nodes, {}, [])
        self.shared: dict[str, Instance] = {}
        uses = Counter(n for a in nodes for n in a.node.inputs)
        self.read = set(uses)
        inner = set().union(*(captured(a.proto) for a in nodes if a.proto.attribute)) | set(outputs)
        self.read |= inner
        for name, weight in tracer.weights.items():
            vector = sum(size > 1 for size in weight.shape) <= 1
            if not vector or uses[name] <= 1 or name in inner:
                instance = self.instance(name, outer=name in inner)
                self.coupling.dims[name] = instance.dims
                self.shared[name] = instance
            if name in inner and name not in outputs:
                self.lock_all(self.coupling.dims[name], "read by a subgraph (If, Loop, Scan)")

    def fresh(self, shape: Iterable[int]) -> Dims:
        return tuple(self.space.new(size) for size in shape)

    def instance(self, name: str, outer: bool = False) -> Instance:
        """Return a weight with dims of its own."""
        weight = self.tracer.weights[name]
        instance = Instance(name, self.fresh(weight.shape), outer=outer)
        self.coupling.instances.append(instance)
        if weight.elem == TensorProto.STRING:
            self.lock_all(instance.dims, "texts are not cut")
        return instance

    def lock_all(self, dims: Dims | None, reason: str) -> None:
        for dim in dims or ():
            self.space.lock(dim, reason)

    def lock_escapes(self, outputs: Sequence[str]) -> None:
        """Lock what is counted by sizes that a graph output, a body or an op without a row reads."""
        escaped = list(outputs)
        for applied in self.coupling.nodes:
            if applied.row is None:
                escaped += [*applied.node.inputs, *captured(applied.proto)]
        nodes = [applied.node for applied in self.coupling.nodes]
        dims = self.coupling.dims
        ranks = {name: len(own) for name, own in dims.items()}
        reason = "its size is read by a graph output, a subgraph or an op without a row"
        for name, axis in counted(nodes, self.tracer.values, ranks, escaped):
            if name in dims:
                self.space.lock(dims[name][axis], reason)

    def operand(self, number: int, slot: int, name: str) -> Dims | None:
        """Dims of an input as this node sees it."""
        if name in self.tracer.weights:
            instance = self.shared.get(name)
            if instance is None:
                instance = self.instance(name)
            instance.uses.append((number, slot))
            return instance.dims
        return self.coupling.dims.get(name) if name else None

    def apply(self, number: int, applied: Applied) -> None:
        node = applied.node
        if node.op == "Constant" and not node.inputs:
            return
        applied.ins = [self.operand(number, slot, name) for slot, name in enumerate(node.inputs)]
        found = lookup(node)
        if isinstance(found, Refusal):
            self.refuse(applied, found.reason)
            return
        try:
            fitted = fit(found, node)
        except Misfit as error:
            self.refuse(applied, f"{node.op}: {error}")
            return
        reason = self.gap(node, fitted)
        if reason:
            self.refuse(applied, reason)
            return
        applied.row = found
        _Row(self.space, applied, found, fitted).run()
        self.finish(applied, len(fitted.ins))

    def gap(self, node: Node, fitted: FittedRow) -> str:
        """Say what a row can't be held against: a tensor of unknown shape, or an output that it doesn't have."""
        for slot in range(min(len(fitted.ins), len(node.inputs))):
            if node.has(slot) and node.shapes[slot] is None:
                return f"{node.op}: the shape of its input '{node.inputs[slot]}' is unknown"
        for slot, name in enumerate(node.outputs):
            if name in self.read and slot >= len(fitted.outs):
                return f"the row of {node.op} does not describe its output '{name}'"
            if name in self.read and node.out_shapes[slot] is None:
                return f"{node.op}: the shape of its output '{name}' is unknown"
        return ""

    def finish(self, applied: Applied, covered: int) -> None:
        node = applied.node
        roles = applied.row.roles if applied.row is not None else ()
        for slot in range(covered, len(applied.ins)):
            if slot < len(roles) and roles[slot] == "unread":
                continue
            self.lock_all(applied.ins[slot], f"it sets what {title_of(node)} does: sizes, scales or values")
        for name, dims in zip(node.outputs, applied.outs, strict=False):
            if name and dims is not None:
                self.coupling.dims[name] = dims

    def refuse(self, applied: Applied, reason: str) -> None:
        node = applied.node
        applied.reason = reason
        why = f"{reason} ({title_of(node)})"
        for dims in applied.ins:
            self.lock_all(dims, why)
        for name in captured(applied.proto):
            self.lock_all(self.coupling.dims.get(name), why)
        for name, shape in zip(node.outputs, node.out_shapes, strict=True):
            dims = None if shape is None else self.fresh(shape)
            applied.outs.append(dims)
            if name and dims is not None:
                self.coupling.dims[name] = dims
                self.lock_all(dims, why)


class _Row:
    """The letters of one row, bound to dims."""

    def __init__(self, space: Space, applied: Applied, row: Row, fitted: FittedRow) -> None:
        self.space, self.applied, self.row = space, applied, row
        self.fitted, self.sizes = fitted, fitted.sizes
        self.letters = applied.letters
        self.composites: dict[Axis, int] = {}

    def run(self) -> None:
        applied, row, ins, outs = self.applied, self.row, self.fitted.ins, self.fitted.outs
        self.space.by = title_of(applied.node)
        for axes, dims in zip(ins, applied.ins, strict=False):
            for axis, dim in zip(axes or (), dims or (), strict=True):
                self.bind(axis, dim)
        for letter, mapped in row.maps.items():
            self.map(letter, mapped.source, mapped.index)
        for slot, shape in enumerate(applied.node.out_shapes):
            axes = outs[slot] if slot < len(outs) else None
            if shape is None:
                applied.outs.append(None)
            elif axes is None:
                applied.outs.append(None)  # nobody reads it, see `_Builder.apply`
            else:
                applied.outs.append(tuple(self.dim(a, n) for a, n in zip(axes, shape, strict=True)))
        for letter, index in row.pinned.items():
            why = f"picked by {self.space.by}"
            self.space.lock(self.letters[letter], why, index=np.asarray(index, np.int64))
        self.close()

    def close(self) -> None:
        facts = _facts(self.fitted)
        for name, lock in facts.locks:
            if name in self.letters:
                why = self.row.why.get(name) or self.row.why.get(name.partition(".")[0]) or _LOCKED[lock]
                self.space.lock(self.letters[name], f"{why} ({self.space.by})", soft=lock == "~")
        self.applied.contracted = facts.contracted
        macs = self.row.macs or facts.macs
        self.applied.macs = tuple(tuple(self.dim(Letter(n), 1) for n in names) for names in macs)

    def bind(self, axis: Axis, dim: int) -> None:
        """Say that an operand's axis is this dim."""
        axis = axis if isinstance(axis, Letter) else self.simple(axis)
        if isinstance(axis, Letter):
            known = self.letters.get(axis.name)
            self.letters[axis.name] = dim if known is None else self.space.tie(known, dim)
        elif isinstance(axis, Unit):
            return
        elif axis in self.composites:
            self.space.tie(self.composites[axis], dim)
        else:
            self.composites[axis] = dim
            self.relate(axis, dim)

    def dim(self, axis: Axis, size: int) -> int:
        """Return the dim of an output's axis."""
        axis = axis if isinstance(axis, Letter) else self.simple(axis)
        if isinstance(axis, Letter):
            if axis.name not in self.letters:
                self.letters[axis.name] = self.space.new(self.sizes.get(axis.name, size))
            return self.letters[axis.name]
        if isinstance(axis, Unit):
            return self.space.new(1)
        if axis not in self.composites:
            self.composites[axis] = self.space.new(size)
            self.relate(axis, self.composites[axis])
        return self.composites[axis]

    def simple(self, axis: Axis) -> Axis:
        """Drop factors of one element: (g i) with one channel a group is g."""
        if not isinstance(axis, Product):
            return axis
        for factor in axis.factors:  # every letter gets its dim, also one that is dropped here
            if isinstance(factor, Letter) and self.sizes[factor.name] == 1:
                self.dim(factor, 1)
        factors = tuple(f for f in axis.factors if not isinstance(f, Letter) or self.sizes[f.name] != 1)
        return Unit() if not factors else factors[0] if len(factors) == 1 else Product(factors)

    def relate(self, axis: Axis, whole: int) -> None:
        if isinstance(axis, Product):
            self.space.product(whole, tuple(self.dim(f, self.length(f)) for f in axis.factors))
            return
        assert isinstance(axis, Sum)
        first = 0
        for part in axis.parts:
            size = self.length(part)
            inside = np.arange(size, dtype=np.int64)
            self.space.link(whole, first + inside, self.dim(part, size), inside)
            first += size

    def length(self, axis: Axis) -> int:
        if isinstance(axis, Letter):
            return self.sizes[axis.name]
        if isinstance(axis, Product):
            return int(np.prod([self.length(f) for f in axis.factors], dtype=np.int64))
        return sum(self.length(p) for p in axis.parts) if isinstance(axis, Sum) else 1

    def map(self, letter: str, source: str, index: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
        origin = self.letters[source]
        if np.array_equal(index, np.arange(self.sizes[source])):
            self.letters[letter] = origin
            return
        self.letters[letter] = self.space.new(len(index))
        has = np.flatnonzero(index >= 0)
        self.space.link(self.letters[letter], has, origin, np.asarray(index, np.int64)[has])


_LOCKED = {"!": "all of it is needed", "~": "averaged over"}


@dataclass(frozen=True)
class _Facts:
    locks: tuple[tuple[str, str], ...]
    contracted: tuple[tuple[int, int], ...]
    macs: tuple[tuple[str, ...], ...]


@cache
def _facts(fitted: FittedRow) -> _Facts:
    """Locks, contracted axes and MACs of a row: all from its letters."""
    leaves = [[letters_of(a) for a in axes or ()] for axes in fitted.ins]
    out = [leaf for axes in fitted.outs for a in axes or () for leaf in letters_of(a)]
    everywhere = [leaf for slot in leaves for axis in slot for leaf in axis] + out
    locks = {leaf.name: leaf.lock for leaf in everywhere if leaf.lock}
    out_names = {leaf.name for leaf in out}
    contracted, macs = [], []
    for slot, axes in enumerate(leaves):
        extra: list[str] = []
        sums, added = False, axes == leaves[0][-len(axes) :]  # to the data, as in front of a norm
        for at, axis in enumerate(axes):
            gone = [x for x in axis if x.contract or (x.name not in out_names and not x.lock)]
            if gone:
                contracted.append((slot, at))
                sums = True
            extra += [x.name for x in axis if x.contract or x.name not in out_names]
        if slot and sums and not added:
            first = fitted.outs[0] or ()
            macs.append(tuple(x.name for a in first for x in letters_of(a)) + tuple(extra))
    return _Facts(tuple(sorted(locks.items())), tuple(contracted), tuple(macs))


def title_of(node: Node) -> str:
    """Return what reasons call a node."""
    return f"{node.op} '{node.name}'"


def uses_of(coupling: Coupling) -> dict[str, list[tuple[int, int]]]:
    """Return for every tensor the (node number, input slot) pairs that read it."""
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, applied in enumerate(coupling.nodes):
        for slot, name in enumerate(applied.node.inputs):
            if name:
                found[name].append((number, slot))
    return found


__all__ = ["Applied", "Coupling", "Dims", "Instance", "couple", "title_of", "uses_of"]
