"""Residual streams whose channels can be given the mean zero, and the LayerNorms that read them.

LayerNorm takes the mean over channels off what it reads, so nothing changes for it if each position of a stream is
shifted by a number. Where all that reads a stream does so, the mean may be taken off by those that write it:

    W <- W - mean over outputs of W,    b <- b - mean(b),    tables and constants likewise.

Rules:

1. A *norm* normalises the last axis alone: LayerNormalization, SkipLayerNormalization (with the sum in front of it), or
   a mean and the difference to it, spelled out, which may go over axis 1 (channels of pictures) as well. Statistics
   that are outputs make it none. Where the mean itself is read again, as in ``x s + (b - mean s)`` of Keras, the norm
   takes it as a sum of products.
2. A stream is followed from what a norm reads, back and forth: through sums and differences of parts of it, movements
   that keep its channels on one axis, Cast, Where, means over other axes, products and quotients with numbers that all
   channels share.
3. It is written by layers (`onnxprune.reconstruction.layers`) whose float weight and bias nobody else needs, and by
   constants. A table that others read as well stays as it is: the mean of each row is looked up beside it. What is
   written otherwise (the output of another norm, a quantised layer) gets its mean taken off when the model runs.
4. Whoever else reads a tensor of the stream needs it as it is, and so does the output of a graph: then nothing is
   shifted, and each norm takes the mean off itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from onnx import TensorProto

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied, Dims
from onnxprune.ops import Node, Trait
from onnxprune.reconstruction.layers import Site, around, sites

__all__ = ["Norm", "Read", "NormStream", "streams"]

#: Types that a mean can be taken off.
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
#: Those that the mean over axis 1 can be taken of, by a convolution: onnxruntime has none of doubles.
IN_PICTURES = (TensorProto.FLOAT, TensorProto.FLOAT16)
#: Elements of a constant that others read as well, of which the stream may have a copy.
COPIED = 1 << 16
#: (position of a node in topological order, input slot)
Read = tuple[int, int]


@dataclass(frozen=True)
class Norm:
    """What normalises the channels of a stream.

    Attributes
    ----------
    number : int
        Position of the node, or of the one that takes a mean.
    difference : int
        Position of the node that takes the mean off, where the norm is spelled out, else -1.
    skip : bool
        Whether it makes the sum that it normalises.
    root : int
        Dim of the channels.
    alone : bool
        Whether nothing else reads the mean that is spelled out.
    axis : int
        That the mean goes over.
    """

    number: int
    difference: int
    skip: bool
    root: int
    alone: bool = True
    axis: int = -1


@dataclass
class NormStream:
    """Tensors that are shifted together.

    Attributes
    ----------
    norms : list of Norm
    layers : list of Site
        That write it.
    constants : dict
        (constant, axis) -> which slots read it as part of the stream.
    shared : set of str
        Constants that others read as they are.
    tables : dict
        (node that looks up rows of a table that stays, its output) -> which slots read that.
    others : dict
        (tensor, axis) -> which slots read it as part of the stream, though it was written without its mean taken off.
    broken : str
        Why it can't be shifted; empty where it can.
    """

    norms: list[Norm] = field(default_factory=list)
    layers: list[Site] = field(default_factory=list)
    constants: dict[tuple[str, int], list[Read]] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)
    tables: dict[tuple[int, str], list[Read]] = field(default_factory=dict)
    others: dict[tuple[str, int], list[Read]] = field(default_factory=dict)
    broken: str = ""

    @property
    def centred(self) -> bool:
        """Whether the writers take the mean off, and not each norm."""
        return not self.broken and len(self.others) < len(self.norms)

    @property
    def why(self) -> str:
        """Why the writers don't take the mean off; empty where they do."""
        if self.centred:
            return ""
        return (
            self.broken or "what is written can't have its mean taken off, as by a norm or a quantised layer"
        )


def streams(analysis: Analysis) -> list[NormStream]:
    """Find the streams that norms read, in topological order of their first norms."""
    return list(_Finder(analysis).streams())


class _Finder:
    """Follows streams through an analysed graph."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.around = analysis, around(analysis)
        self.nodes, self.uses, self.maker = self.around.nodes, self.around.uses, self.around.maker
        self.space = analysis.coupling.space
        self.inputs = {v.name for v in analysis.model.proto.graph.input}
        self.layers: dict[str, Site] = {}
        self.norms = {norm.number: norm for norm in self._norms()}
        self.differences = {n.difference: n for n in self.norms.values() if n.difference >= 0}

    def streams(self) -> Iterator[NormStream]:
        if self.norms:
            self.layers = {s.y: s for s in sites(self.analysis) if self._writes(s)}
        seen: set[int] = set()
        for number, norm in self.norms.items():
            if number not in seen:
                stream = _Walk(self, norm.root).run(norm)
                seen |= {n.number for n in stream.norms}
                yield stream

    def _writes(self, site: Site) -> bool:
        alone = not site.more and site.given is None and not site.clipped
        return site.exact and alone and site.view.blocks == 1 and (site.bias is None or site.own)

    def _norms(self) -> Iterator[Norm]:
        for number, applied in enumerate(self.nodes):
            node, dims = applied.node, applied.ins[0] if applied.ins else None
            if applied.row is None or not dims or self.type_of(node.inputs[0]) not in FLOATS:
                continue
            mean = Trait.MEAN | Trait.LINEAR in node.traits and not node.is_square(0)
            axis = self._averaged(node, len(dims)) if mean else len(dims) - 1
            root = self.space.find(dims[axis])
            if self.axis(dims, root) != axis or self.space.sizes[root] < 2:
                continue
            if node.op == "SkipLayerNormalization":
                if not node.gives(1) and not node.gives(2) and self._same_shape(applied):
                    yield Norm(number, -1, True, root)
            elif node.op == "LayerNormalization":
                last = node.axis(-1) == len(dims) - 1
                if last and not node.gives(1) and not node.gives(2) and node.has(1):
                    yield Norm(number, -1, False, root)
            elif mean and self.averages(node.inputs[0], axis):
                difference, alone = self._difference(applied)
                if difference >= 0:
                    yield Norm(number, difference, False, root, alone, axis)

    def _same_shape(self, applied: Applied) -> bool:
        return applied.node.shapes[0] == applied.node.shapes[1]

    def _averaged(self, node: Node, rank: int) -> int:
        """Return the one axis that a mean goes over and keeps; -1 where it is another mean."""
        pool = node.op == "GlobalAveragePool"  # as tf2onnx writes a mean over the last of three axes
        axes = list(range(2, rank) if pool else node.ints("axes", 1, 18) or [])
        return axes[0] % rank if len(axes) == 1 and (pool or node.attr("keepdims", 1)) else -1

    def averages(self, name: str, axis: int) -> bool:
        """Whether the mean of a tensor over an axis can be written as a sum of products."""
        elem, shape = self.analysis.tracer.types.get(name, (0, None))
        rank = len(shape or ())
        return 0 <= axis == rank - 1 or (axis == 1 and 3 <= rank <= 5 and elem in IN_PICTURES)

    def _difference(self, applied: Applied) -> tuple[int, bool]:
        """Return the node that takes a mean off its own input, and whether nothing else reads it; -1 without one."""
        node = applied.node
        reads, both = self.uses.get(node.outputs[0], ()), [node.inputs[0], node.outputs[0]]
        takes = [
            n
            for n, _ in reads
            if self.nodes[n].node.op == "Sub" and self.nodes[n].node.inputs[:2] == tuple(both)
        ]
        if not takes:
            return -1, False
        sole = self.around.sole(node.outputs[0]) == takes[0]
        return takes[0], sole and self.nodes[takes[0]].node.outputs[0] not in self.around.outer

    def type_of(self, name: str) -> int:
        return self.analysis.tracer.types.get(name, (0, None))[0]

    def axis(self, dims: Dims | None, root: int) -> int:
        """Return the axis that holds the channels; -1 where there isn't just one."""
        at = [n for n, d in enumerate(dims or ()) if self.space.find(d) == root]
        return at[0] if len(at) == 1 else -1

    def parts(self, number: int, root: int) -> list[int]:
        """Return the slots of a node whose sum, or whose elements, its outputs are; none where it is another thing."""
        applied = self.nodes[number]
        node, ins = applied.node, applied.ins
        if applied.row is None or not node.outputs or self.type_of(node.outputs[0]) not in FLOATS:
            return []
        has = [self.axis(dims, root) >= 0 for dims in ins]
        if any(self.axis(o, root) < 0 for o, name in zip(applied.outs, node.outputs, strict=True) if name):
            return []
        slots: list[int] = []
        if number in self.norms and self.norms[number].skip:
            slots = [0, 1, *([4] if node.has(4) else [])]
        elif Trait.MOVEMENT in node.traits:
            slots = [slot for slot, name in enumerate(node.inputs) if name in node.moved]
            if sum(has) > len(slots):  # channels that move each by itself have no mean in common
                return []
        elif node.op in ("Add", "Sub"):
            slots = [0, 1]
        elif node.op == "Where":
            slots = [1, 2] if not has[0] else []
        elif node.op in ("Mul", "Div"):
            slots = [0] if has == [True, False] else [1] if has == [False, True] and node.op == "Mul" else []
        elif Trait.LINEAR in node.traits or Trait.VIEW in node.traits or node.op == "Cast":
            slots = [0]
        floats = all(self.type_of(node.inputs[slot]) in FLOATS for slot in slots)
        return slots if floats and all(has[slot] for slot in slots) else []

    def table(self, number: int, root: int) -> bool:
        """Whether a node looks up rows of a constant table."""
        node, ins = self.nodes[number].node, self.nodes[number].ins
        return (
            node.op == "Gather" and node.constant[0] and node.attr("axis", 0) == 0
            and len(ins[0] or ()) == 2 and self.axis(ins[0], root) == 1 and self.is_float(node.inputs[0])
        )  # fmt: skip

    def is_float(self, name: str) -> bool:
        """Whether a tensor is a constant that a mean can be taken off."""
        return name in self.analysis.model and name not in self.inputs and self.type_of(name) in FLOATS


class _Walk:
    """One stream, as it is found."""

    def __init__(self, finder: _Finder, root: int) -> None:
        self.of, self.root = finder, root
        self.stream, self.region = NormStream(), set[str]()
        self.todo: list[Read] = []
        self.pulled: set[Read] = set()

    def run(self, norm: Norm) -> NormStream:
        self._add_norm(norm)
        while self.todo:
            self._pull(self.todo.pop())
        self._settle()
        self.stream.norms.sort(key=lambda n: n.number)
        return self.stream

    def _add_norm(self, norm: Norm) -> None:
        if norm in self.stream.norms:
            return
        self.stream.norms.append(norm)
        slots = self.of.parts(norm.number, self.root) if norm.skip else [0]
        if not norm.alone:
            self.stream.broken = "the mean of a norm is read again"
        if not slots:
            self.stream.broken = "what a norm adds up has other channels"
        self.todo += [(norm.number, slot) for slot in slots]
        if norm.skip and self.of.nodes[norm.number].node.gives(3):
            self._shift(self.of.nodes[norm.number].node.outputs[3])

    def _pull(self, read: Read) -> None:
        """Have what a slot reads written without its mean."""
        if read in self.pulled:
            return
        self.pulled.add(read)
        number, slot = read
        of, name = self.of, self.of.nodes[number].node.inputs[slot]
        axis, made = of.axis(of.nodes[number].ins[slot], self.root), of.maker.get(name)
        if name in self.region:
            return
        if of.is_float(name):
            self.stream.constants.setdefault((name, axis), []).append(read)
        elif name in of.layers and of.layers[name].view.out_axis % self._rank(name) == axis:
            self.stream.layers.append(of.layers[name])
            self._shift(name)
        elif (
            made is not None
            and of.table(made, self.root)
            and not of.around.alone(of.nodes[made].node.inputs[0])
        ):
            self.stream.tables.setdefault((made, name), []).append(read)
        elif made is not None and self._passes(made, name) and not self._begins(made, axis):
            self._shift(name)
        elif of.averages(name, axis):
            self.stream.others.setdefault((name, axis), []).append(read)
        else:
            self.stream.broken = f"the mean of '{name}' can't be taken off"

    def _passes(self, made: int, name: str) -> bool:
        """Whether a tensor consists of parts of the stream."""
        norm = self.of.norms.get(made)
        if norm is not None and norm.skip:
            return self.of.nodes[made].node.outputs[3:4] == (name,)
        return bool(self.of.parts(made, self.root))

    def _begins(self, made: int, axis: int) -> bool:
        """Whether a node only brings the channels of what isn't part of the stream to the last axis."""
        node, slots = self.of.nodes[made].node, self.of.parts(made, self.root)
        if len(slots) != 1 or made in self.of.norms or axis != len(node.out_shape()) - 1:
            return False
        name, dims = node.inputs[slots[0]], self.of.nodes[made].ins[slots[0]]
        last = self.of.axis(dims, self.root) == len(dims or ()) - 1
        known = self.of.is_float(name) or name in self.of.layers or name in self.region
        before = self.of.maker.get(name)
        return not (last or known or (before is not None and self._passes(before, name)))

    def _rank(self, name: str) -> int:
        return len(self.of.analysis.tracer.types[name][1] or ())

    def _shift(self, name: str) -> None:
        """Take a tensor into the stream, with all that it is made of and all that reads it."""
        if not name or name in self.region:
            return
        self.region.add(name)
        if name in self.of.around.outer:
            self.stream.broken = f"'{name}' is an output, or read by a body"
        made = self.of.maker[name]
        norm = self.of.norms.get(made)
        if norm is not None and norm.skip:
            self._add_norm(norm)
        elif name not in self.of.layers:
            self.todo += [(made, slot) for slot in self.of.parts(made, self.root)]
            for other in self.of.nodes[made].node.outputs:
                self._shift(other)
        for read in self.of.uses.get(name, ()):
            self._reader(read, name)

    def _reader(self, read: Read, name: str) -> None:
        number, slot = read
        norm = self.of.norms.get(number) or self.of.differences.get(number)
        node = self.of.nodes[number].node
        if norm is not None and norm.root == self.root and slot in ((0, 1) if norm.skip else (0,)):
            self._add_norm(norm)
        elif Trait.SIZE in node.traits:
            return
        elif slot in self.of.parts(number, self.root):
            for output in node.outputs:
                self._shift(output)
        else:
            self.stream.broken = f"{node.op} '{node.name}' reads '{name}' as it is"

    def _settle(self) -> None:
        """Leave large constants alone that others read too; of a small one the stream gets a copy."""
        for (name, _), reads in self.stream.constants.items():
            if set(self.of.uses[name]) <= set(reads) and name not in self.of.around.outer:
                continue
            self.stream.shared.add(name)
            if prod(self.of.analysis.model.info(name).dims) > COPIED:
                self.stream.broken = f"others read '{name}' too"
