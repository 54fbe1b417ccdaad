"""LayerNorm as an RMS norm, whose width can be cut exactly.

With the mean of its input taken off before, LayerNorm is

    x / sqrt(mean(x^2) + epsilon) * scale + bias,

so of a stream that is written without its mean (`onnxprune.rotation.streams`) each norm becomes an RMS norm: from opset
23 on RMSNormalization, else in ops that every runtime has and onnxruntime fuses to one when it loads them. Where the
writers can't take the mean off, the norm does so itself, ``x - x @ (1/n ... 1/n)``: a sum, which can be cut as well.

What nobody cuts in the end is put back as it was: `onnxprune.rotation.restored`.

References
----------
Ashkboos et al., SliceGPT, arXiv 2401.15024, section 3.2; Jiang et al., Pre-RMSNorm and Pre-CRMSNorm transformers,
arXiv 2305.14858.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.live import names_of
from onnxprune.graph.origins import Origins
from onnxprune.ops import Node
from onnxprune.ops.norm import epsilon_of
from onnxprune.reconstruction.layer import weights_of, write
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.least_squares import Fit
from onnxprune.rotation.restored import OneStream, RmsModel, first_output
from onnxprune.rotation.streams import Norm, NormStream, Read
from onnxprune.runtime.binding import Shape

__all__ = ["rewrite"]

#: The first opset with RMSNormalization.
_RMS = 23


def rewrite(analysis: Analysis, streams: Sequence[NormStream]) -> RmsModel:
    """Make the norms of some streams RMS norms.

    Parameters
    ----------
    analysis : Analysis
    streams : sequence of NormStream
        Of that analysis. Where the writers don't take the mean off (`NormStream.centred`) each norm does.
    """
    return _Rewriter(analysis).run(streams)


class _Rewriter:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.model = analysis, analysis.model.fork()
        graph = self.model.proto.graph
        self.protos = [graph.node[i] for i in self.model.order]
        self.nodes = [applied.node for applied in analysis.coupling.nodes]
        self.opset = analysis.tracer.opsets.get("", 1)
        self.taken = names_of(self.model) | {v.name for v in graph.input}
        self.constants: dict[tuple[str, str], str] = {}
        self.before: dict[int, list[NodeProto]] = {}  # nodes in front of one
        self.instead: dict[int, list[NodeProto]] = {}  # nodes in the place of one
        self.touched: set[int] = set()
        self.weights: list[str] = []

    def run(self, streams: Sequence[NormStream]) -> RmsModel:
        marks: list[tuple[NormStream, set[int], list[str]]] = []
        for stream in streams:
            self.touched, self.weights = set(), []
            if stream.centred:
                self._take_off(stream)
            for norm in stream.norms:
                self._norm(norm, centred=stream.centred)
            marks.append((stream, self.touched, self.weights))
        parts = []
        for stream, touched, weights in marks:
            made = tuple(first_output(node) for number in sorted(touched) for node in self._nodes(number))
            gone = tuple(first_output(self.protos[number]) for number in sorted(touched))
            ends = {number for site in stream.layers for number in (site.number, site.end)}
            writers = tuple(
                first_output(self.protos[number]) for number in sorted(ends if stream.centred else ())
            )
            parts.append(OneStream(made, gone, tuple(weights), tuple(self._axes(stream)), writers))
        self._place()
        new = sorted(set(self.model.names()) - set(self.analysis.model.names()))
        self.model.fixed = {**self.model.fixed, **{name: self.model.info(name).dims for name in new}}
        return RmsModel(self.analysis.model, self.model, parts, self._origins(new))

    def _origins(self, weights: Sequence[str]) -> Origins:
        """Return for which nodes of the original the new ones are there."""
        made = [(n, node) for part in (self.before, self.instead) for n in part for node in part[n]]
        titles = {f"{x.op_type} '{x.name}'": f"{self.nodes[n].op} '{self.nodes[n].name}'" for n, x in made}
        old = {name for node in self.nodes for name in node.outputs}
        return Origins(titles, frozenset({*weights, *(name for _, x in made for name in x.output)} - old))

    def _axes(self, stream: NormStream) -> list[tuple[str, int]]:
        """Return the axes of weights that hold the channels of a stream."""
        rank = {site.weight: len(self.model.info(site.weight).dims) for site in stream.layers}
        axes = [(s.weight, n) for s in stream.layers for n in range(rank[s.weight]) if not s.view.reads(n)]
        tables = [(self.nodes[number].inputs[0], 1) for number, _ in stream.tables]
        constants = [(name, axis) for name, axis in stream.constants if name not in stream.shared]
        return [*axes, *tables, *constants]

    def _nodes(self, number: int) -> list[NodeProto]:
        """Return what stands in the place of a node."""
        return [*self.before.get(number, ()), *self.instead.get(number, [self.protos[number]])]

    def _take_off(self, stream: NormStream) -> None:
        """Have a stream written without its mean."""
        for site in stream.layers:
            self._layer(site)
        for (name, axis), reads in stream.constants.items():
            self._constant(name, axis, reads, shared=name in stream.shared)
        for (number, name), reads in stream.tables.items():
            self._table(number, name, reads)
        for (name, axis), reads in stream.others.items():
            first = min(number for number, _ in reads)
            nodes, result = self._without_mean(name, *self.analysis.tracer.types[name], axis)
            self._read(reads, result)
            self.before.setdefault(first, []).extend(nodes)

    def _layer(self, site: Site) -> None:
        matrices, biases = weights_of(site, self.model)
        fits = [
            Fit(w - w.mean(axis=1, keepdims=True), b - b.mean())
            for w, b in zip(matrices.astype(np.float64), biases.astype(np.float64), strict=True)
        ]
        write(self.model, site if site.bias is not None else replace(site, adder=None), fits)
        self.weights += site.free

    def _constant(self, name: str, axis: int, reads: Sequence[Read], *, shared: bool) -> None:
        array = self.model.weight(name)
        value = (array - array.mean(axis=axis, keepdims=True, dtype=np.float64)).astype(array.dtype)
        if shared:
            self._read(reads, self.model.add(f"{name}_centred", value))
        else:
            self.model.put(name, value)
            self.weights.append(name)

    def _table(self, number: int, name: str, reads: Sequence[Read]) -> None:
        """Look the mean of each row up, and take it off."""
        table, ids = self.nodes[number].inputs[:2]
        array = self.model.weight(table)
        mean = array.mean(axis=1, keepdims=True, dtype=np.float64).astype(array.dtype)
        means = self.model.add(f"{table}_means", mean)
        mean_of, result = self._name(f"{name}_mean"), self._name(f"{name}_centred")
        nodes = [_node("Gather", [means, ids], mean_of, axis=0), _node("Sub", [name, mean_of], result)]
        self._read(reads, result)
        self.before.setdefault(min(n for n, _ in reads), []).extend(nodes)

    def _read(self, reads: Sequence[Read], name: str) -> None:
        for number, slot in reads:
            self.protos[number].input[slot] = name
            self.touched.add(number)

    def _without_mean(
        self, name: str, elem: int, shape: Shape | None, axis: int = -1
    ) -> tuple[list[NodeProto], str]:
        """Return nodes that take the mean over an axis off a tensor, and what they make."""
        mean, result = self._name(f"{name}_mean"), self._name(f"{name}_centred")
        nodes = self._mean(name, mean, elem, shape or (), axis)
        return [*nodes, _node("Sub", [name, mean], result)], result

    def _mean(self, name: str, result: str, elem: int, shape: Shape, axis: int) -> list[NodeProto]:
        """Return nodes that make the mean over the last axis of a tensor, or over axis 1, as a sum of products."""
        last, size = axis % len(shape) == len(shape) - 1, shape[axis]
        form, op = ((size, 1), "MatMul") if last else ((1, size, *[1] * (len(shape) - 2)), "Conv")
        hint = f"mean_of_{size}" if last else f"mean_of_{size}_in_{len(shape) - 2}d"
        summed = TensorProto.FLOAT if elem == TensorProto.FLOAT16 else elem
        shares = self._number(hint, np.full(form, 1 / size), summed)
        if summed == elem:
            return [_node(op, [name, shares], result)]
        wide, mean = self._name(f"{name}_float"), self._name(f"{result}_float")
        return [  # a mean of many halves is none in halves
            _node("Cast", [name], wide, to=summed),
            _node(op, [wide, shares], mean),
            _node("Cast", [mean], result, to=elem),
        ]

    def _number(self, hint: str, value: Any, elem: int) -> str:
        array = np.asarray(value, helper.tensor_dtype_to_np_dtype(elem))
        key = hint, str(array.dtype)
        if key not in self.constants:
            self.constants[key] = self.model.add(hint, array)
        return self.constants[key]

    def _norm(self, norm: Norm, *, centred: bool) -> None:
        node = self.nodes[norm.number]
        self.touched.add(norm.number)
        if norm.difference >= 0:
            self._spelled_out(norm, centred=centred)
            return
        nodes: list[NodeProto] = []
        x, scale, bias = self.protos[norm.number].input[0], 1, 2
        if norm.skip:
            scale, bias = 2, 3
            nodes, x = self._sum(norm.number)
        self.instead[norm.number] = [*nodes, *self._rms(node, x, scale, bias, centred=centred)]

    def _sum(self, number: int) -> tuple[list[NodeProto], str]:
        """Return the nodes that add up what a SkipLayerNormalization does, and their sum."""
        node, proto = self.nodes[number], self.protos[number]
        total = node.outputs[3] if node.gives(3) else self._name(f"{node.outputs[0]}_sum")
        parts = [name for slot, name in enumerate(proto.input) if slot in (0, 1, 4) and name]
        first = total if len(parts) == 2 else self._name(f"{node.outputs[0]}_skip")
        nodes = [_node("Add", parts[:2], first)]
        if len(parts) == 3:
            nodes.append(_node("Add", [first, parts[2]], total))
        return nodes, total

    def _rms(self, node: Node, x: str, scale: int, bias: int, *, centred: bool) -> list[NodeProto]:
        (elem, shape), y = self.analysis.tracer.types[node.inputs[0]], node.outputs[0]
        nodes: list[NodeProto] = []
        if not centred:
            nodes, x = self._without_mean(x, elem, shape)
        out = self._name(f"{y}_rms") if node.has(bias) else y
        epsilon, gamma = float(node.attr("epsilon", epsilon_of(node.op))), node.inputs[scale]
        if self.opset >= _RMS:
            nodes.append(_node("RMSNormalization", [x, gamma], out, axis=-1, epsilon=epsilon))
        else:
            nodes += self._steps(x, gamma, out, epsilon, elem)
        return [*nodes, _node("Add", [out, node.inputs[bias]], y)] if node.has(bias) else nodes

    def _steps(self, x: str, scale: str, out: str, epsilon: float, elem: int) -> list[NodeProto]:
        """Return the nodes of an RMS norm, in the form that onnxruntime fuses."""
        wide = TensorProto.FLOAT if elem == TensorProto.FLOAT16 else elem
        names = {
            part: self._name(f"{out}_{part}") for part in ("float", "squares", "mean", "variance", "root")
        }
        normed = self._name(f"{out}_normed")
        nodes = []
        if wide != elem:
            nodes.append(_node("Cast", [x], names["float"], to=wide))
            x = names["float"]
        two, dtype = self._number("two", 2, wide), helper.tensor_dtype_to_np_dtype(wide)
        small = self.model.add(f"{out}_epsilon", np.asarray(epsilon, dtype))
        axes = {"axes": [-1]} if self.opset < 18 else {}
        given = [] if axes else [self._number("last_axis", [-1], TensorProto.INT64)]
        nodes += [
            _node("Pow", [x, two], names["squares"]),
            _node("ReduceMean", [names["squares"], *given], names["mean"], keepdims=1, **axes),
            _node("Add", [names["mean"], small], names["variance"]),
            _node("Sqrt", [names["variance"]], names["root"]),
            _node("Div", [x, names["root"]], normed),
        ]
        if wide != elem:
            nodes.append(_node("Cast", [normed], names["squares"] + "_half", to=elem))
            normed = names["squares"] + "_half"
        return [*nodes, _node("Mul", [normed, scale], out)]

    def _spelled_out(self, norm: Norm, *, centred: bool) -> None:
        """Leave the mean out, or take it as a sum of products."""
        node, difference = self.nodes[norm.number], self.nodes[norm.difference]
        if not centred:
            elem, shape, name = *self.analysis.tracer.types[node.inputs[0]], node.inputs[0]
            self.instead[norm.number] = self._mean(name, node.outputs[0], elem, shape or (), norm.axis)
            return
        self.touched.add(norm.difference)
        x = self.protos[norm.number].input[0]
        self.instead[norm.number] = self.instead[norm.difference] = []
        self._read(
            [(n, s) for n, other in enumerate(self.nodes) for s, name in enumerate(other.inputs)
             if name == difference.outputs[0]], x,
        )  # fmt: skip

    def _name(self, hint: str) -> str:
        name, number = hint, 0
        while name in self.taken:
            number += 1
            name = f"{hint}_{number}"
        self.taken.add(name)
        return name

    def _place(self) -> None:
        """Put the new nodes into the graph."""
        graph = self.model.proto.graph
        number = {i: n for n, i in enumerate(self.model.order)}
        nodes = [x for i in range(len(graph.node)) for x in self._nodes(number[i])]
        copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        made = {o for n in copies for o in n.output} | {v.name for v in graph.output}
        stale = [i for i, v in enumerate(graph.value_info) if v.name not in made and v.name not in self.model]
        for i in reversed(stale):
            del graph.value_info[i]
        self.model.refresh()


def _node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), [output], name=output, **attributes)
