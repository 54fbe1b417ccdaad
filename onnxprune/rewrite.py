"""Carry a decided cut into a model: slice weights, re-emit what encodes sizes, drop what died.

After the weights are sliced the graph is traced once more, node by node, beside the original trace. Wherever a node would
read a shape or a scalar that differs from what it must be (a Reshape target that names a channel count, an attention scale
computed from a Shape), that input is mended; everything else keeps its bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from onnxprune.coupling import Applied, Coupling, Dims, Instance
from onnxprune.model import Model
from onnxprune.ops import Node, SetAttr, SetInput, emit
from onnxprune.trace import Tracer, TraceError, Weight

Indices = NDArray[np.int64]
Masks = Mapping[int, NDArray[np.bool_]]


class RewriteError(ValueError):
    """The pruned graph can't be given the shapes that the plan asks for."""


@dataclass(frozen=True)
class WeightCut:
    """Slices taken out of one weight: positions on an axis of the original."""

    tensor: str
    axis: int
    removed: Indices
    copy: str = ""  # name of the copy that was cut, where the uses of a shared vector differ
    nodes: tuple[str, ...] = ()


@dataclass
class Kept:
    """What stays of every dim."""

    coupling: Coupling
    dead: Masks
    _kept: dict[int, Indices] = field(default_factory=dict)

    def root(self, dim: int) -> int:
        return self.coupling.space.find(dim)

    def cut(self, dim: int) -> bool:
        """Whether a dim loses anything."""
        return self.root(dim) in self.dead

    def indices(self, dim: int) -> Indices:
        """Indices that stay, ascending."""
        root = self.root(dim)
        if root not in self._kept:
            mask = self.dead.get(root)
            size = self.coupling.space.sizes[root]
            self._kept[root] = np.arange(size) if mask is None else np.flatnonzero(~mask)
        return self._kept[root]

    def size(self, dim: int) -> int:
        """Number of indices that stay."""
        root = self.root(dim)
        return self.indices(root).size if root in self.dead else self.coupling.space.sizes[root]

    def shape(self, dims: Dims) -> tuple[int, ...]:
        return tuple(self.size(d) for d in dims)

    def axes(self, dims: Dims) -> dict[int, Indices]:
        """Axis -> indices that stay, for the axes that are cut."""
        return {axis: self.indices(dim) for axis, dim in enumerate(dims) if self.cut(dim)}


class _NodeCut:
    """What an emitter may ask (`onnxprune.ops.Cut`)."""

    def __init__(self, applied: Applied, kept: Kept) -> None:
        self.applied, self.sizes = applied, kept

    def kept(self, slot: int, axis: int) -> Indices:
        return self.sizes.indices((self.applied.ins[slot] or ())[axis])

    def kept_out(self, slot: int, axis: int) -> Indices:
        return self.sizes.indices((self.applied.outs[slot] or ())[axis])

    def new_shape(self, slot: int) -> tuple[int, ...]:
        return self.sizes.shape(self.applied.ins[slot] or ())

    def new_out_shape(self, slot: int) -> tuple[int, ...]:
        return self.sizes.shape(self.applied.outs[slot] or ())


@dataclass
class Rewritten:
    """The pruned model, and which slices of which weights are gone."""

    model: Model
    cuts: list[WeightCut]


def rewrite(
    model: Model,
    coupling: Coupling,
    tracer: Tracer,
    dead: Masks,
    other: Mapping[str, NDArray[Any]] | None = None,
) -> Rewritten:
    """Return a pruned fork of a model; the model itself is not touched.

    Parameters
    ----------
    model : Model
    coupling, tracer
        Of that model, with ``coupling.nodes[i]`` the node ``model.order[i]``.
    dead : mapping
        Root dim -> which of its indices go.
    other : mapping, optional
        Values of small tensors under another binding of the dynamic axes, to tell fixed entries from those that follow the
        input; None where the model has no dynamic axes.

    Raises
    ------
    RewriteError
        If a tensor of the pruned graph would not get the shape that the cut implies.
    """
    kept = Kept(coupling, dead)
    writer = _Writer(model, coupling, kept)
    cuts = writer.slice_weights()
    mender = _Mender(writer, tracer, other)
    for number in range(len(coupling.nodes)):
        mender.visit(number)
    writer.drop_dead()
    writer.update_types()
    return Rewritten(writer.model, cuts)


class _Writer:
    """Edits on the fork."""

    def __init__(self, model: Model, coupling: Coupling, kept: Kept) -> None:
        self.source, self.coupling, self.kept = model, coupling, kept
        self.model = model.fork()
        graph = self.model.proto.graph
        self.protos: list[NodeProto] = [graph.node[i] for i in model.order]
        self.before: dict[int, list[NodeProto]] = {}  # new nodes to be put in front of a node
        self.loose: list[str] = []  # names that lost a reader
        self.uses = _readers(graph)
        for value in graph.output:
            self.uses[value.name] += 1

    def slice_weights(self) -> list[WeightCut]:
        by_name: defaultdict[str, list[Instance]] = defaultdict(list)
        for instance in self.coupling.instances:
            if instance.uses or instance.outer:
                by_name[instance.tensor].append(instance)
        cuts: list[WeightCut] = []
        for name, instances in by_name.items():
            if any(self.kept.cut(d) for i in instances for d in i.dims):
                cuts += self._slice(name, instances)
        return cuts

    def _slice(self, name: str, instances: list[Instance]) -> list[WeightCut]:
        variants: defaultdict[tuple[Any, ...], list[Instance]] = defaultdict(list)
        for instance in instances:
            axes = self.kept.axes(instance.dims)
            variants[tuple((a, k.tobytes()) for a, k in axes.items())].append(instance)
        if len(variants) == 1:
            axes = self.kept.axes(instances[0].dims)
            self.model.take(name, axes)
            return [WeightCut(name, a, self._removed(name, a, k)) for a, k in axes.items()]
        cuts = []
        for same in variants.values():
            axes = self.kept.axes(same[0].dims)
            if not axes:
                continue
            array = np.asarray(self.source.weight(name)[_index(axes, len(same[0].dims))], order="C")
            copy = self.model.add(f"{name}_pruned", array)
            uses = [use for instance in same for use in instance.uses]
            for number, slot in uses:
                self.set_input(number, slot, copy)
            nodes = tuple(self.coupling.nodes[n].node.name for n, _ in uses)
            cuts += [WeightCut(name, a, self._removed(name, a, k), copy, nodes) for a, k in axes.items()]
        return cuts

    def _removed(self, name: str, axis: int, kept: Indices) -> Indices:
        return np.setdiff1d(np.arange(self.source.info(name).dims[axis]), kept)

    def sole_reader(self, name: str) -> bool:
        """Whether a weight is read exactly once, so that it may get a new value in place."""
        return self.uses[name] == 1 and name in self.model

    def set_input(self, number: int, slot: int, name: str) -> None:
        proto = self.protos[number]
        self.loose.append(proto.input[slot])
        proto.input[slot] = name

    def set_attr(self, number: int, name: str, value: Any) -> None:
        proto = self.protos[number]
        for attr in proto.attribute:
            if attr.name == name:
                doc = attr.doc_string
                attr.CopyFrom(helper.make_attribute(name, value))
                if doc:
                    attr.doc_string = doc
                return
        proto.attribute.append(helper.make_attribute(name, value))

    def drop_dead(self) -> None:
        """Put new nodes in place, and remove nodes and weights whose last reader is gone."""
        graph = self.model.proto.graph
        readers = _readers(graph)
        for name in (name for nodes in self.before.values() for node in nodes for name in node.input):
            readers[name] += 1
        inputs = {v.name for v in graph.input}
        outputs = {v.name for v in graph.output}
        producer = {name: node for node in graph.node for name in node.output if name}
        gone: set[int] = set()
        dropped: list[str] = []
        while self.loose:
            name = self.loose.pop()
            if not name or readers[name] > 0 or name in outputs:
                continue
            node = producer.get(name)
            if node is None:
                if name not in inputs and name in self.model:
                    dropped.append(name)
            elif id(node) not in gone and not any(readers[o] > 0 or o in outputs for o in node.output if o):
                gone.add(id(node))
                for read in node.input:
                    readers[read] -= 1
                    self.loose.append(read)
        self.model.drop(*dropped)
        if gone or self.before:
            place = {id(self.protos[n]): new for n, new in self.before.items()}
            nodes = [
                x for node in graph.node if id(node) not in gone for x in (*place.get(id(node), ()), node)
            ]
            copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
            del graph.node[:]
            graph.node.extend(copies)

    def update_types(self) -> None:
        """Bring value_info (and inputs that double as initializers) up to the new shapes."""
        graph = self.model.proto.graph
        known = set(self.model.names()) | {o for n in graph.node for o in n.output}
        stale = [i for i, v in enumerate(graph.value_info) if v.name not in known]
        for i in reversed(stale):
            del graph.value_info[i]
        for value in (*graph.value_info, *graph.input):
            dims = self.coupling.dims.get(value.name)
            if dims is None or not value.type.HasField("tensor_type"):
                continue
            shape = value.type.tensor_type.shape
            for dim, proto in zip(dims, shape.dim, strict=False):
                if self.kept.cut(dim) and proto.HasField("dim_value"):
                    proto.dim_value = self.kept.size(dim)


def _index(axes: Mapping[int, Indices], rank: int) -> tuple[Any, ...]:
    if len(axes) == 1:
        ((axis, kept),) = axes.items()
        return (slice(None),) * axis + (kept,)
    return np.ix_(
        *(axes.get(a, slice(None)) for a in range(rank))
    )  # pragma: no cover - vectors have one cut axis


def _readers(graph: onnx.GraphProto) -> defaultdict[str, int]:
    from onnxprune.trace import captured

    readers: defaultdict[str, int] = defaultdict(int)
    for node in graph.node:
        for name in node.input:
            readers[name] += 1
        if node.attribute:
            for name in captured(node):
                readers[name] += 1
    return readers


class _Mender:
    """Second trace, over the pruned graph, that mends what reads a stale size."""

    def __init__(self, writer: _Writer, tracer: Tracer, other: Mapping[str, NDArray[Any]] | None) -> None:
        self.writer, self.kept, self.old, self.other = writer, writer.kept, tracer, other
        weights = {}
        model = writer.model
        for name in model.names():
            info = model.info(name)
            before = tracer.weights.get(name)
            same = before is not None and before.shape == tuple(info.dims)
            value = before.value if same and before is not None else self._small(name, before)
            weights[name] = Weight(info.elem_type, tuple(info.dims), value)
        self.new = Tracer(tracer.opsets, weights, hints=self._hints(tracer), types=dict(self._inputs(tracer)))

    def _small(self, name: str, before: Weight | None) -> NDArray[Any] | None:
        return self.writer.model.weight(name) if before is None or before.value is not None else None

    def _inputs(self, tracer: Tracer) -> Sequence[tuple[str, Any]]:
        made = {o for a in self.writer.coupling.nodes for o in a.node.outputs}
        return [(n, t) for n, t in tracer.types.items() if n not in made and n not in tracer.weights]

    def _hints(self, tracer: Tracer) -> dict[str, Any]:
        dims = self.writer.coupling.dims
        return {n: (t[0], self.kept.shape(dims[n])) for n, t in tracer.types.items() if n in dims}

    def visit(self, number: int) -> None:
        applied = self.writer.coupling.nodes[number]
        proto = self.writer.protos[number]
        if applied.row is not None:
            self._mend(number, applied, applied.node)
        try:
            self.new.visit(proto)
        except TraceError as error:
            raise RewriteError(str(error)) from error
        for name, dims in zip(applied.node.outputs, applied.outs, strict=False):
            shape = self.new.types.get(name, (0, None))[1]
            if dims is not None and shape is not None and shape != self.kept.shape(dims):
                raise RewriteError(
                    f"{applied.node.op} '{applied.node.name}' would give '{name}' the shape {shape}, "
                    f"where the cut implies {self.kept.shape(dims)}"
                )

    def _mend(self, number: int, applied: Applied, node: Node) -> None:
        row = applied.row
        assert row is not None
        if all(name in self.old.values for name in node.outputs if name):
            return  # shape arithmetic computes itself anew
        touched = any(self.kept.cut(d) for dims in (*applied.ins, *applied.outs) for d in dims or ())
        wanted: dict[int, NDArray[Any]] = {}
        if touched:
            for name, letter in row.attrs.items():
                dim = applied.letters[letter]
                if self.kept.cut(dim):
                    self.writer.set_attr(number, name, self.kept.size(dim))
            for edit in emit(node, _NodeCut(applied, self.kept)):
                if isinstance(edit, SetAttr):
                    self.writer.set_attr(number, edit.name, edit.value)
                else:
                    assert isinstance(edit, SetInput)
                    wanted[edit.slot] = edit.array
        for slot, value in enumerate(node.values):
            if value is not None or slot in wanted:
                self._mend_input(number, applied, slot, wanted.get(slot))

    def _mend_input(self, number: int, applied: Applied, slot: int, want: NDArray[Any] | None) -> None:
        old = applied.node.values[slot] if slot < len(applied.node.values) else None
        proto = self.writer.protos[number]
        name = proto.input[slot]
        if want is None:
            assert old is not None
            axes = self.kept.axes((applied.ins[slot] or ()) if slot < len(applied.ins) else ())
            want = old
            for axis, kept in axes.items():
                want = np.take(want, kept, axis=axis)
        have = self.new.values.get(name)
        if have is not None and have.shape == want.shape and np.array_equal(have, want):
            return
        if have is None and old is None and not applied.node.constant[slot]:
            raise RewriteError(
                f"{applied.node.op} '{applied.node.name}': input {slot} is computed at run time"
            )
        original = applied.node.inputs[slot]
        if self.writer.sole_reader(name):
            self.writer.model.put(name, np.asarray(want, order="C"))
            self.new.values[name] = want
            self.new.types[name] = (self.new.types[name][0], want.shape)
            return
        if self._fixed(original, old):
            new = self.writer.model.add(f"{original}_pruned", np.asarray(want, order="C"))
            self.new.weights = {**self.new.weights, new: Weight(0, want.shape)}
        else:
            new = self._scaled(number, name, have, want)
        self.new.types[new] = (numpy_helper.from_array(want[:0] if want.ndim else want).data_type, want.shape)
        self.new.values[new] = want
        self.writer.set_input(number, slot, new)

    def _fixed(self, name: str, old: NDArray[Any] | None) -> bool:
        """Whether a value is the same for every size of the dynamic axes."""
        if self.other is None or name in self.old.weights or old is None:
            return True
        return name in self.other and np.array_equal(self.other[name], old)

    def _scaled(self, number: int, name: str, have: NDArray[Any] | None, want: NDArray[Any]) -> str:
        """Insert ``name * a / b``, for entries that follow the input (batch * heads)."""
        if have is None or have.shape != want.shape or have.dtype.kind not in "iu" or (have == 0).any():
            raise RewriteError(f"the size '{name}' follows the input in a way that cannot be rewritten")
        over = np.array(
            [gcd(int(w), int(h)) for w, h in zip(want.ravel(), have.ravel(), strict=True)]
        ).reshape(want.shape)
        top = self.writer.model.add(f"{name}_kept", (want // over).astype(have.dtype))
        bottom = self.writer.model.add(f"{name}_of", (have // over).astype(have.dtype))
        product, ratio = f"{top}_product", f"{top}_ratio"
        self.writer.before.setdefault(number, []).extend([
            helper.make_node("Mul", [name, top], [product], name=product),
            helper.make_node("Div", [product, bottom], [ratio], name=ratio),
        ])  # fmt: skip
        return ratio
