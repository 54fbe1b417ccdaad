"""A quantised model as floats, for descent: its weights become floats that know their grid.

Weights lie behind DequantizeLinear, or in a product that takes integers or blocks (MatMulNBits, and MatMulInteger with
what stands around it), which becomes the MatMul or Conv of floats that it rounds. What stands between two layers as
QuantizeLinear and DequantizeLinear is, but for its rounding, a Clip to the ends of its type,

    x' = clip(x, (low - z) s, (high - z) s),

which often stands for a Relu. Weights go down as floats; at each step and in the end they are judged as the nearest
values of their grid, which is where the gradient is taken too (straight-through).

References
----------
Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv 1308.3432.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.known import opsets_of
from onnxprune.graph.live import names_of, needed, remove
from onnxprune.graph.widen import MOST
from onnxprune.model import Model
from onnxprune.ops import Node
from onnxprune.reconstruction.layers import Site, around, sites
from onnxprune.reconstruction.seen import Around, as_floats, weight_slot
from onnxprune.reconstruction.stored import INTEGERS, SMALL, Codec, Grid, Packed, Quantised

__all__ = ["OnGrid", "Thawed", "thawed"]

Array = NDArray[Any]
#: The opset from which Clip takes its ends as inputs.
CLIP = 11


@dataclass(frozen=True)
class OnGrid:
    """How a float of a thawed model is stored.

    Attributes
    ----------
    codec : Codec
    order : tuple of int
        In which its axes arrive; one less than those of blocks, which are put together first.
    """

    codec: Codec
    order: tuple[int, ...]

    def read(self, model: Model) -> Array:
        """Return a weight of a quantised model as floats."""
        return self._arriving(self.codec.read(model)).astype(np.float32)

    def grid(self, model: Model) -> Grid:
        """Return the values that can be stored in a quantised model, of the floats' shape and type."""
        grid = self.codec.grid(model)
        assert grid is not None
        return grid.through(self._arriving).in_floats()

    def write(self, model: Model, value: Array) -> None:
        """Put a float into a quantised model."""
        stored = np.asarray(value).transpose(np.argsort(self.order))
        self.codec.write(model, stored.reshape(self.codec.shape(model)))

    def _arriving(self, stored: Array) -> Array:
        rank = len(self.order)
        return stored.reshape(*stored.shape[: rank - 1], -1).transpose(self.order)


@dataclass(frozen=True)
class Thawed:
    """A model of floats, and how its weights are stored.

    Attributes
    ----------
    model : Model
    frozen : dict
        Weight -> how it is stored in the quantised model, for those that were thawed.
    source : Model
        The quantised model.
    """

    model: Model
    frozen: Mapping[str, OnGrid]
    source: Model

    @cached_property
    def grids(self) -> dict[str, Grid]:
        """Of the weights that were thawed; scales stay as they are while these go down."""
        return {name: one.grid(self.source) for name, one in self.frozen.items()}

    def settle(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Return weights as they can be stored."""
        grids = self.grids
        return {name: grids[name].nearest(w) if name in grids else w for name, w in weights.items()}


def thawed(analysis: Analysis) -> Thawed | None:
    """Return a model of floats; None where no layer has a quantised weight that can be a float, or they are too large.

    Weights that others read too, or whose form can't be written, become constants that gradients pass.

    Parameters
    ----------
    analysis : Analysis
        Of the quantised model.
    """
    graph, model, types = around(analysis), analysis.model, analysis.tracer.types
    layers = [
        s for s in sites(analysis) if len(s.uses) == 1 and types.get(s.y, (0, None))[0] == TensorProto.FLOAT
    ]
    frozen = {
        name: OnGrid(*stored)
        for site in layers
        for name in _constants(graph, site)
        if (stored := graph.constant(name)) is not None and not stored[0].exact
        and types.get(name, (0, None))[0] == TensorProto.FLOAT
    }  # fmt: skip
    suffix, taken = "/floats", names_of(model)
    while any(name.endswith(suffix) for name in taken):
        suffix += "_"
    numbers, still, made = {s.number for s in layers}, dict[str, _Unrounded](), dict[int, list[NodeProto]]()
    every = replace(graph, fixed=True)
    for number in range(len(graph.nodes)):
        found = _unrounded(every, number)
        if found is None or types.get(found.plain.output[0], (0, None))[0] != TensorProto.FLOAT:
            continue
        name = f"{found.grid.codec.name}{suffix}"
        made[found.end] = found.nodes(name)
        moves = found.inside or number in numbers
        if moves and _unrounded(graph, number) is not None:
            frozen[name] = found.grid
        else:
            still[name] = found
    codecs = [one.codec for one in frozen.values()] + [one.grid.codec for one in still.values()]
    large = sum(prod(codec.shape(model)) for codec in codecs) * 4 > MOST
    if not codecs or large or opsets_of(model).get("", 0) < CLIP:
        return None
    fork = _as_floats(model, graph, frozen, made)
    floats = {name: one.read(model) for name, one in frozen.items()}
    floats |= {name: found.floats(model) for name, found in still.items()}
    for name in floats:
        fork.proto.graph.initializer.add(name=name)
    fork.refresh()
    for name, value in floats.items():
        fork.put(name, value)
    remove(fork, needed(model) - needed(fork) - frozen.keys())
    return Thawed(fork, frozen, model)


def _constants(graph: Around, site: Site) -> list[str]:
    """Return what nodes make of constants for a layer: its weight, and a bias of its own."""
    node = graph.nodes[site.number].node
    names = [node.inputs[weight_slot(node)]]
    if site.adder is not None and site.own:
        names.append(graph.nodes[site.adder[0]].node.inputs[site.adder[1]])
    return [name for name in names if name not in graph.model]


@dataclass(frozen=True)
class _Unrounded:
    """A node that takes integers or blocks as one of floats.

    Attributes
    ----------
    grid : OnGrid
        Of its weight.
    end : int
        Position of the node in whose place it is.
    plain : NodeProto
        Without its weight, which is input 1.
    bias : str
        Added behind it.
    width : int or None
        Inputs of a layer whose last block is only begun.
    inside : bool
        Whether it is a layer inside of a node.
    """

    grid: OnGrid
    end: int
    plain: NodeProto
    bias: str = ""
    width: int | None = None
    inside: bool = False

    def floats(self, model: Model) -> Array:
        """Return its weight."""
        return self.grid.read(model)[: self.width]

    def nodes(self, weight: str) -> list[NodeProto]:
        """Return it with its weight, and the Add of its bias."""
        node = NodeProto.FromString(self.plain.SerializeToString())
        node.input.insert(1, weight)
        if not self.bias:
            return [node]
        y, node.output[0] = node.output[0], f"{weight}/product"
        return [node, helper.make_node("Add", [node.output[0], self.bias], [y])]


def _unrounded(graph: Around, number: int) -> _Unrounded | None:
    """Return what a node of integers or blocks rounds; None where it isn't one."""
    return (
        _attention(graph, number) if graph.nodes[number].node.op == "QAttention" else _product(graph, number)
    )


def _product(graph: Around, number: int) -> _Unrounded | None:
    """Return the MatMul or Conv that a layer rounds; None where it is one."""
    applied, seen = graph.nodes[number], as_floats(graph, number)
    if seen is None or not seen.plain:
        return None
    node, codec, slot = applied.node, seen.codec, seen.view.bias_slot
    order = (1, 0) if isinstance(codec, Packed) else tuple(range(len(codec.shape(graph.model))))
    plain = helper.make_node(seen.plain, [seen.x], [seen.y], name=node.name)
    if seen.plain == "Conv":
        plain.attribute.extend(applied.proto.attribute)
    bias = node.inputs[slot] if slot >= 0 and node.has(slot) else ""
    width = int(node.attrs["K"]) if isinstance(codec, Packed) else None
    return _Unrounded(OnGrid(codec, order), seen.end, plain, bias, width)


def _attention(graph: Around, number: int) -> _Unrounded | None:
    """Return the Attention that QAttention is where DynamicQuantizeLinear rounds its input."""
    applied = graph.nodes[number]
    node = applied.node
    source = graph.made_by(node.inputs[0], "DynamicQuantizeLinear")
    if source is None or source.outputs[1:] != tuple(node.inputs[slot] for slot in (3, 6) if node.has(slot)):
        return None
    codec = Quantised(node.inputs[1], node.inputs[4], node.inputs[7] if node.has(7) else "", 1)
    if not graph.known(codec) or not graph.own(codec.name):
        return None
    rest = [node.inputs[slot] if node.has(slot) else "" for slot in (2, 5, 8)]
    plain = helper.make_node(
        "Attention", [source.inputs[0], *rest], node.outputs, node.name, domain=node.domain
    )
    plain.attribute.extend(applied.proto.attribute)
    return _Unrounded(OnGrid(codec, (0, 1)), number, plain, inside=True)


def _as_floats(
    model: Model, graph: Around, frozen: Mapping[str, OnGrid], made: Mapping[int, list[NodeProto]]
) -> Model:
    """Return a model with nodes in the place of others, and the floats of weights."""
    fork = model.fork()
    clips = {
        graph.maker[name]: [_clip(fork, graph, graph.nodes[graph.maker[name]].node)]
        for name in _rounded(graph)
    }
    gone = {graph.maker[name] for name in frozen if name in graph.maker}
    nodes: list[NodeProto] = []
    proto = fork.proto.graph
    for number, index in enumerate(fork.order):
        found = made.get(number) or clips.get(number)
        if found is not None:
            nodes += found
        elif number not in gone:
            nodes.append(NodeProto.FromString(proto.node[index].SerializeToString()))
    del proto.node[:]
    proto.node.extend(nodes)
    return fork


def _rounded(graph: Around) -> list[str]:
    """Return what DequantizeLinear makes of an activation that QuantizeLinear rounds with the same numbers."""
    found = []
    for applied in graph.nodes:
        node = applied.node
        source = graph.made_by(node.inputs[0], "QuantizeLinear") if node.op == "DequantizeLinear" else None
        same = (
            source is not None
            and source.inputs[1:] == node.inputs[1:]
            and source.inputs[0] not in graph.model
        )
        numbers = (
            same and node.has(2) and graph.number(node.inputs[1]) and graph.number(node.inputs[2]) is not None
        )
        if numbers and _ends(graph, node) is not None:
            found.append(node.outputs[0])
    return found


def _ends(graph: Around, node: Node) -> tuple[float, float] | None:
    """Return the least and the greatest value of what a DequantizeLinear reads; None where they aren't known."""
    elem = graph.model.info(node.inputs[2]).elem_type
    most = SMALL.get(elem)
    return INTEGERS.get(elem) if most is None else (-most, most)


def _clip(model: Model, graph: Around, node: Node) -> NodeProto:
    source = graph.made_by(node.inputs[0], "QuantizeLinear")
    assert source is not None
    scale, zero = (graph.number(name) or 0.0 for name in node.inputs[1:3])
    low, high = _ends(graph, node) or (0.0, 0.0)
    ends = [model.add(f"{node.outputs[0]}/{e}", np.float32((e - zero) * scale)) for e in (low, high)]
    return helper.make_node("Clip", [source.inputs[0], *ends], [node.outputs[0]], name=node.name)
