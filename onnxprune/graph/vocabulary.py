"""The ids of a model: where they are looked up, what goes with them, and what else reads their numbers.

Which table is the vocabulary: of those whose ids come from an integer input, the one with most elements, and with it
all that have as many rows. Tables of positions and segments are others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import title_of
from onnxprune.graph.group_types import Group
from onnxprune.graph.lookups import IDS, Read, elements_of, fed, opened, reads_of, ties
from onnxprune.model import Model
from onnxprune.runtime.binding import real_inputs

__all__ = ["PREFIX", "Vocabulary", "most_ids", "put_nodes", "says_ids"]

Ints = NDArray[np.int64]

#: Begins the names of what is put into a graph.
PREFIX = "onnxprune/vocabulary"


def most_ids(analysis: Analysis) -> tuple[list[Read], int] | None:
    """Return all lookups in the tables of the vocabulary, and how many ids there are; None without such a table."""
    space, nodes, elements = analysis.coupling.space, analysis.coupling.nodes, elements_of(analysis.coupling)
    every, given = [r for r in reads_of(analysis.coupling) if r.root in elements], fed(analysis)
    outside = {read.root for read in every if nodes[read.number].node.inputs[read.slot] in given}
    if not outside:
        return None
    size = space.sizes[max(outside, key=lambda root: (elements[root], -root))]
    roots = {root for root in outside if space.sizes[root] == size}
    return [read for read in every if read.root in roots], size


def says_ids(analysis: Analysis) -> bool:
    """Whether the first output is logits of the ids that the model reads, at each position of a text."""
    first = analysis.model.proto.graph.output[0].name
    elem, shape = analysis.tracer.types.get(first, (0, None))
    if elem != onnx.TensorProto.FLOAT or shape is None or len(shape) < 3:
        return False
    ids = most_ids(analysis)
    return ids is not None and shape[-1] == ids[1]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The ids of a model.

    Attributes
    ----------
    analysis : Analysis
        Of the original, in whose space the axes that ids count may be cut.
    reads : list of Read
        All lookups in its tables.
    size : int
        How many ids there are.
    """

    analysis: Analysis
    reads: list[Read]
    size: int

    @classmethod
    def of(cls, analysis: Analysis) -> Vocabulary | None:
        """Find the vocabulary of a model; None where no table is looked up by ids from an integer input."""
        most = most_ids(analysis)
        return None if most is None else cls(opened(analysis, *most), *most)

    @cached_property
    def weights(self) -> list[str]:
        """Names of the weights with an element for each id: those that are looked up first, the largest first."""
        coupling, roots = self.analysis.coupling, {read.root for read in self.reads}
        named = [i.tensor for i in coupling.instances if {coupling.space.find(d) for d in i.dims} & roots]
        looked = {name for read in self.reads for name in coupling.nodes[read.number].node.inputs}
        shapes = {name: self.analysis.tracer.weights[name].shape for name in named}
        return sorted(shapes, key=lambda name: (name not in looked, -prod(shapes[name])))

    @cached_property
    def numbers(self) -> dict[int, Ints]:
        """Axis in the space -> the unit of each id on it, -1 where it must stay: tables, and heads that can be cut."""
        space, solution = self.analysis.coupling.space, self.analysis.grouping.families[0].solution
        roots = dict.fromkeys(read.root for read in self.reads)
        for value in self.analysis.model.proto.graph.output:
            dims = self.analysis.coupling.dims.get(value.name, ())
            roots |= dict.fromkeys(root for d in dims if space.sizes[root := space.find(d)] == self.size)
        owned = np.concatenate([np.zeros(0, np.int64), *self._own.values()])
        numbers = {root: solution.units_of(root, self.size) for root in roots}
        numbers = {root: np.where(np.isin(unit, owned), unit, -1) for root, unit in numbers.items()}
        tables = {read.root for read in self.reads}
        return {root: unit for root, unit in numbers.items() if root in tables or (unit >= 0).any()}

    @property
    def _own(self) -> Mapping[str, Ints]:
        return self.analysis.grouping.families[0].numbers

    @cached_property
    def groups(self) -> list[Group]:
        """The groups that ids are units of."""
        units = np.concatenate([unit[unit >= 0] for unit in self.numbers.values()])
        named = {g.name: g for g in self.analysis.grouping.families[0].groups}
        chosen = [named[name] for name, own in self._own.items() if np.isin(own, units).any()]
        return [replace(g, kind="vocabulary", alternative=False) for g in chosen]

    @property
    def frozen(self) -> str:
        """Why no id can go; empty where one can."""
        solution = self.analysis.grouping.families[0].solution
        for read in self.reads:
            if (self.numbers[read.root] < 0).all():
                return solution.why(read.root) or "it owns no weights"
        return ""

    def closed(self, ids: Iterable[int]) -> Ints:
        """Return these ids and those that must stay with them, ascending."""
        keep = np.zeros(self.size, bool)
        keep[np.asarray(list(ids), np.int64)] = True
        before = -1
        while before != (before := int(keep.sum())):
            for unit in self.numbers.values():
                keep |= (unit < 0) | np.isin(unit, unit[keep & (unit >= 0)])
        return np.flatnonzero(keep)

    def removed(self, keep: Ints) -> dict[str, Ints]:
        """Return the units that go, by group, when these ids stay (see `closed`)."""
        gone = np.ones(self.size, bool)
        gone[keep] = False
        units = np.unique(np.concatenate([unit[gone] for unit in self.numbers.values()]))
        chosen = {g.name: np.flatnonzero(np.isin(self._own[g.name], units)) for g in self.groups}
        return {name: numbers.astype(np.int64) for name, numbers in chosen.items() if numbers.size}

    def kept(self, removed: Mapping[str, Ints]) -> Ints:
        """Return the ids that stay when these units go; the inverse of `removed`.

        Raises
        ------
        ValueError
            If all ids would go, or an id in one table and not in another.
        """
        if unknown := set(removed) - {g.name for g in self.groups}:
            raise ValueError(f"{sorted(unknown)[0]!r} is no group of the vocabulary")
        gone = np.concatenate(
            [np.zeros(0, np.int64), *(self._own[n][np.asarray(u)] for n, u in removed.items())]
        )
        keep = np.flatnonzero(~np.isin(self.numbers[self.reads[0].root], gone))
        if not keep.size:
            raise ValueError(f"all {self.size} elements of an axis would go")
        wanted = self.removed(keep)
        for name, units in removed.items():
            if not np.array_equal(np.sort(np.asarray(units)), wanted.get(name, np.zeros(0, np.int64))):
                raise ValueError("an id would go in one place and stay in another")
        return keep

    def places(self, keep: Ints, unk: int) -> Ints:
        """Return the new number of each id, that of ``unk`` for those that go."""
        places = np.full(self.size, np.searchsorted(keep, unk), np.int64)
        places[keep] = np.arange(len(keep))
        return places

    def mapped(self, model: Model, name: str, values: Ints) -> Model:
        """Put a map in front of all lookups, in place; other readers of the same ids see what they saw."""
        nodes = self.analysis.coupling.nodes
        slots = {nodes[read.number].node.outputs[0]: read.slot for read in self.reads}
        results: dict[str, str] = {}
        graph, changed = model.proto.graph, []
        table = model.add(
            f"{PREFIX}/{name}", values.astype(np.int32)
        )  # all lookups take int32, and it is half as large
        for proto in [graph.node[i] for i in model.order]:
            slot = slots.get(proto.output[0] if proto.output else "")
            if slot is not None:
                ids = proto.input[slot]
                if ids not in results:
                    result = results[ids] = f"{PREFIX}/{name}/{len(results)}"
                    changed.append(helper.make_node("Gather", [table, ids], [result], name=result, axis=0))
                proto.input[slot] = results[ids]
            changed.append(proto)
        put_nodes(graph, changed)
        return model

    @cached_property
    def ids(self) -> dict[str, str]:
        """Inputs whose numbers reach the lookups as they are -> what else reads their numbers, empty: nothing."""
        found: dict[str, str] = {}
        looked = {(read.number, read.slot) for read in self.reads}
        for value in real_inputs(self.analysis.model.proto.graph):
            if value.type.tensor_type.elem_type in IDS:
                reached, others = ties(self.analysis, value.name, looked)
                if reached:
                    found[value.name] = others
        return found

    @property
    def tied(self) -> str:
        """Why ids can't count anew, as the end of a sentence; empty where they can."""
        reached: set[int] = set()
        looked = {(read.number, read.slot) for read in self.reads}
        for name, others in self.ids.items():
            if others:
                return f"{others} reads the numbers of {name!r}, too"
            reached |= ties(self.analysis, name, looked)[0]
        for read in self.reads:
            if read.number not in reached:
                node = self.analysis.coupling.nodes[read.number].node
                return f"{title_of(node)} looks up ids that the graph computes"
        return ""


def put_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
