"""Edits on the fork of a model that is being pruned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.files.protowalk import captured
from onnxprune.graph.coupling import Coupling, Instance
from onnxprune.graph.kept import Kept
from onnxprune.model import Model
from onnxprune.ops.packed import repack

__all__ = ["WeightCut", "Writer"]

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class WeightCut:
    """Slices taken out of one weight: positions on an axis of the original."""

    tensor: str
    axis: int
    removed: Indices
    copy: str = ""  # name of the copy that was cut, where the uses of a shared vector differ
    nodes: tuple[str, ...] = ()


class Writer:
    """Edits on the fork."""

    source: Model
    coupling: Coupling
    kept: Kept
    model: Model
    uses: defaultdict[str, int]

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
        """Slice every weight that loses something, and return what was taken."""
        by_name: defaultdict[str, list[Instance]] = defaultdict(list)
        for instance in self.coupling.instances:
            if instance.uses or instance.outer:
                by_name[instance.tensor].append(instance)
        cuts: list[WeightCut] = []
        for name, instances in by_name.items():
            if any(self.kept.cut(d) for i in instances for d in i.dims):
                cuts += self._slice(name, instances)
        self._repack()
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
            array = self.source.weight(name)
            for axis, kept in axes.items():
                array = np.take(array, kept, axis)
            copy = self.model.add(f"{name}_{self.kept.word}", array)
            uses = [use for instance in same for use in instance.uses]
            for number, slot in uses:
                self.set_input(number, slot, copy)
            nodes = tuple(self.coupling.nodes[n].node.name for n, _ in uses)
            cuts += [WeightCut(name, a, self._removed(name, a, k), copy, nodes) for a, k in axes.items()]
        return cuts

    def _repack(self) -> None:
        """Pack anew what holds several numbers a byte along an axis that is cut; its own axes are sliced already."""
        made: dict[tuple[str, int, bytes], str] = {}
        for number, applied in enumerate(self.coupling.nodes):
            for slot, (letter, bits) in (applied.row.packs if applied.row is not None else {}).items():
                dim = applied.letters[letter]
                if not self.kept.cut(dim):
                    continue
                name, index = self.protos[number].input[slot], self.kept.indices(dim)
                key = (name, bits, index.tobytes())
                if key not in made:
                    count = self.coupling.space.sizes[self.kept.root(dim)]
                    new = repack(self.model.weight(name), bits, count, index)
                    if self.sole_reader(name):
                        self.model.put(name, new)
                        continue
                    made[key] = self.model.add(f"{name}_{self.kept.word}", new)
                self.set_input(number, slot, made[key])

    def _removed(self, name: str, axis: int, kept: Indices) -> Indices:
        return np.setdiff1d(np.arange(self.source.info(name).dims[axis]), kept)

    def sole_reader(self, name: str) -> bool:
        """Whether a weight is read exactly once, so that it may get a new value in place."""
        return self.uses[name] == 1 and name in self.model

    def set_input(self, number: int, slot: int, name: str) -> None:
        """Have a node read another tensor; an optional input that it didn't have is given to it."""
        proto = self.protos[number]
        proto.input.extend([""] * (slot + 1 - len(proto.input)))
        self.loose.append(proto.input[slot])
        proto.input[slot] = name

    def pass_through(self, places: Sequence[tuple[int, int]]) -> None:
        """Have those who read outputs of nodes read one of their inputs, at a slot, instead; in the nodes' order."""
        readers = defaultdict[str, list[tuple[NodeProto, int]]](list)
        for proto in self.protos if places else ():
            for at, read in enumerate(proto.input):
                readers[read].append((proto, at))
        for number, slot in places:
            name, given = self.protos[number].output[0], self.protos[number].input[slot]
            for proto, at in readers.pop(name, ()):
                proto.input[at] = given
                self.loose.append(name)
                readers[given].append((proto, at))

    def set_attr(self, number: int, name: str, value: Any) -> None:
        """Give an attribute a value; None removes it."""
        proto = self.protos[number]
        for n, attr in enumerate(proto.attribute):
            if attr.name == name:
                if value is None:
                    del proto.attribute[n]
                    return
                doc = attr.doc_string
                attr.CopyFrom(helper.make_attribute(name, value))
                if doc:
                    attr.doc_string = doc
                return
        if value is not None:
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
        """Bring value_info, and inputs and outputs that were cut, up to the new shapes."""
        graph = self.model.proto.graph
        known = set(self.model.names()) | {o for n in graph.node for o in n.output}
        stale = [i for i, v in enumerate(graph.value_info) if v.name not in known]
        for i in reversed(stale):
            del graph.value_info[i]
        first_output = len(graph.value_info) + len(graph.input)
        for number, value in enumerate((*graph.value_info, *graph.input, *graph.output)):
            if not value.type.HasField("tensor_type"):
                continue
            shape = value.type.tensor_type.shape
            if value.name in self.model and number < first_output:
                # a vector has no dims of its own: each of its uses has
                for size, proto in zip(self.model.info(value.name).dims, shape.dim, strict=False):
                    proto.dim_value = size
                continue
            for dim, proto in zip(self.coupling.dims.get(value.name, ()), shape.dim, strict=False):
                if self.kept.cut(dim) and proto.HasField("dim_value"):
                    proto.dim_value = self.kept.size(dim)


def _readers(graph: onnx.GraphProto) -> defaultdict[str, int]:
    readers: defaultdict[str, int] = defaultdict(int)
    for node in graph.node:
        for name in node.input:
            readers[name] += 1
        if node.attribute:
            for name in captured(node):
                readers[name] += 1
    return readers
