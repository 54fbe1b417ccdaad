"""Channels that are dead: what reads them would not notice if they went.

A channel is dead if at each sum that runs over it the weights that it is multiplied with are all zero, or if it is zero
whatever the input (its filter is all zero, and so is what bias, normalisation and activation make of that). One that is
constant but not zero may go where what it contributed can be added to a bias: from Conv without padding, Gemm, and
MatMul with a weight. With zero padding that isn't exact at the borders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.constants import Constants, Values, padded
from onnxprune.graph.coupling import Applied
from onnxprune.graph.groups import Family
from onnxprune.graph.kept import Kept
from onnxprune.graph.space import Space
from onnxprune.model import Model

__all__ = ["DeadUnits"]


@dataclass
class _Site:
    """One sum over an axis: which elements of it may go.

    Attributes
    ----------
    applied : Applied
    root : int
        The dim that is summed over.
    ok : bool array
        Elements whose terms are zero.
    fold : bool array
        Elements that are constant, and whose terms may be added to the bias.
    values : float64 array
        The constants, NaN where there are none.
    """

    applied: Applied
    root: int
    ok: NDArray[np.bool_]
    fold: NDArray[np.bool_]
    values: Values
    why: str = ""


class DeadUnits:
    """Says which units may go, and what their going adds to biases.

    Parameters
    ----------
    analysis : Analysis

    Attributes
    ----------
    refused : Counter
        Reason -> number of units that are constant and have to stay; known after `removable`.
    """

    space: Space
    constants: Constants
    open: set[int]
    sites: list[_Site]

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.space = analysis.coupling.space
        self.constants = Constants(analysis)
        self.refused: Counter[str] = Counter()
        self.open = {r for f in analysis.grouping.families for r in f.solution.start}
        self.sites = [s for a in analysis.coupling.nodes if a.row is not None for s in self._sites(a)]

    def _sites(self, applied: Applied) -> list[_Site]:
        by_root: dict[int, list[tuple[int, int]]] = {}
        for slot, axis in applied.contracted:
            root = self.space.find((applied.ins[slot] or ())[axis])
            if root in self.open:
                by_root.setdefault(root, []).append((slot, axis))
        return [self._site(applied, root, slots) for root, slots in by_root.items()]

    def _site(self, applied: Applied, root: int, slots: list[tuple[int, int]]) -> _Site:
        size = self.space.sizes[root]
        site = _Site(applied, root, np.zeros(size, bool), np.zeros(size, bool), np.full(size, np.nan))
        for slot, axis in slots:
            name = applied.node.inputs[slot]
            weight = self.constants.weight(name)
            if weight is not None:
                site.ok |= ~(weight != 0).any(tuple(a for a in range(weight.ndim) if a != axis))
                continue
            values = self.constants.read(name, axis, size)
            site.ok |= values == 0
            if slot == 0:
                site.values = values
        groups = applied.node.attrs.get("group", 1)
        if applied.node.op in ("Conv", "FusedConv") and groups > 1 and len(slots) == 1 and slots[0][0] == 1:
            x = self.constants.read(applied.node.inputs[0], 1, groups * size).reshape(groups, size)
            site.ok |= (x == 0).all(0)  # channel i of every group
        site.why = self._no_fold(applied)
        if not site.why:
            site.fold = np.isfinite(site.values)
        return site

    def _no_fold(self, applied: Applied) -> str:
        """Return why constants can't be added to the bias of a node; empty where they can."""
        node = applied.node
        title = f"{node.op} '{node.name}'"
        if node.op not in ("Conv", "FusedConv", "Gemm", "MatMul"):
            return f"a constant that isn't zero can't be folded into {title}"
        weight = self.constants.weight(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is None or (node.op == "MatMul" and weight.ndim != 2) or node.attrs.get("transA", 0):
            return f"the weight of {title} isn't constant"
        if node.op in ("Conv", "FusedConv") and padded(applied):
            return f"{title} pads with zeros: next to them a constant that isn't zero shows"
        if node.op in ("Conv", "FusedConv") and node.attrs.get("group", 1) > 1:
            return f"{title} is grouped"
        if node.op == "Gemm" and node.attrs.get("beta", 1.0) != 1.0:
            return f"{title} scales its bias"
        if node.op != "MatMul" and node.has(2):
            size = (node.out_shapes[0] or (0, 0))[1]
            if self.constants.vector(node.inputs[2], size) is None:
                return f"the bias of {title} isn't one number a channel"
        return ""

    def removable(self) -> dict[str, NDArray[np.int64]]:
        """Return the units of each group that may go; at least one of every axis stays."""
        grouping = self.analysis.grouping
        removed: dict[str, NDArray[np.int64]] = {}
        for family in grouping.families:
            bad = self._bad(family)
            for group in family.groups:
                units = np.flatnonzero(~bad[family.numbers[group.name]])
                if units.size:
                    removed[group.name] = units
        sizes = {g.name: g.units for g in grouping.groups}
        spared = grouping.spare(removed, {name: np.zeros(sizes[name]) for name in removed})
        return {name: units for name, units in spared.items() if units.size}

    def _bad(self, family: Family) -> NDArray[np.bool_]:
        bad = np.zeros(family.solution.inexact.size, bool)
        constant: dict[int, str] = {}
        for site in self.sites:
            unit = family.solution.units_of(site.root, self.space.sizes[site.root])
            ok = site.ok | site.fold | self._own(site, family, unit)
            bad[unit[~ok & (unit >= 0)]] = True
            for number in np.unique(unit[~ok & np.isfinite(site.values) & (unit >= 0)]):
                constant.setdefault(int(number), site.why)
        self.refused |= Counter(constant.values())  # the same units, in every family
        return bad

    def _own(self, site: _Site, family: Family, unit: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which inputs of a grouped convolution are read only by outputs of the same unit, or with zeros."""
        node = site.applied.node
        groups = node.attrs.get("group", 1)
        none = np.zeros(unit.size, bool)
        if node.op not in ("Conv", "FusedConv") or groups == 1:
            return none
        weight = self.constants.weight(node.inputs[1])
        x, y = (site.applied.ins[0] or ())[1], (site.applied.outs[0] or ())[1]
        if weight is None or self.space.find(x) != site.root:
            return none
        blocks = (weight != 0).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).any(3)
        rows = family.solution.units_of(self.space.find(y), weight.shape[0]).reshape(groups, -1, 1)
        owners = unit.reshape(groups, 1, -1)
        return np.asarray((~blocks | ((rows == owners) & (owners >= 0))).all(1).ravel())

    def compensate(self, pruned: Model, kept: Kept) -> None:
        """Add to the biases of a pruned model what the constants that went have contributed."""
        nodes = {name: node for node in pruned.proto.graph.node for name in node.output if name}
        for site in self.sites:
            gone = kept.dead.get(site.root)
            if gone is None:
                continue
            gone = gone & site.fold & (site.values != 0)
            if gone.any():
                self._add(pruned, nodes, site, self._contribution(site, gone, kept))

    def _contribution(self, site: _Site, gone: NDArray[np.bool_], kept: Kept) -> Values:
        node = site.applied.node
        weight = self.constants.weight(node.inputs[1])
        assert weight is not None
        if node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0)):
            weight = weight.T
        part = weight[:, gone].reshape(weight.shape[0], int(gone.sum()), -1).astype(np.float64).sum(2)
        contribution = part @ site.values[gone] * (node.attrs.get("alpha", 1.0) if node.op == "Gemm" else 1.0)
        axis = -1 if node.op == "MatMul" else 1
        return np.asarray(contribution[kept.indices((site.applied.outs[0] or ())[axis])], np.float64)

    def _add(self, model: Model, nodes: Mapping[str, NodeProto], site: _Site, values: Values) -> None:
        original = site.applied.node
        node, elem = nodes[original.outputs[0]], self.analysis.tracer.types[original.outputs[0]][0]
        dtype: Any = helper.tensor_dtype_to_np_dtype(elem)
        if not values.any():
            return
        if node.op_type == "MatMul":
            self._add_node(model, node, values.astype(dtype))
            return
        if len(node.input) > 2 and node.input[2]:
            values = values + np.asarray(model.weight(node.input[2]), np.float64).ravel()
        name = model.add(f"{original.outputs[0]}_bias", values.astype(dtype))
        while len(node.input) < 3:
            node.input.append("")
        old, node.input[2] = node.input[2], name
        _drop(model, old)

    def _add_node(self, model: Model, node: NodeProto, values: NDArray[Any]) -> None:
        """Add to a MatMul: to the bias of the Add that follows, where that is its own, else by a new Add."""
        graph, name = model.proto.graph, node.output[0]
        readers = [n for n in graph.node if name in n.input]
        if len(readers) == 1 and readers[0].op_type == "Add" and name not in {v.name for v in graph.output}:
            slot = 1 - list(readers[0].input).index(name)
            bias = readers[0].input[slot]
            if (
                bias not in self.constants.changing
                and bias in model
                and model.info(bias).dims == values.shape
            ):
                new = (np.asarray(model.weight(bias), np.float64) + values).astype(values.dtype)
                readers[0].input[slot] = model.add(f"{name}_bias", new)
                _drop(model, bias)
                return
        inner = f"{name}_without_bias"
        node.output[0] = inner
        add = helper.make_node(
            "Add", [inner, model.add(f"{name}_bias", values)], [name], name=f"{node.name}_bias"
        )
        at = next(i for i, n in enumerate(graph.node) if n is node or list(n.output) == [inner])
        graph.node.insert(at + 1, add)


def _drop(model: Model, name: str) -> None:
    """Remove a weight if nothing reads it any more."""
    graph = model.proto.graph
    read = {n for node in graph.node for n in (*node.input, *(captured(node) if node.attribute else ()))}
    read |= {v.name for v in (*graph.output, *graph.input)}
    if name and name in model and name not in read:
        model.drop(name)
