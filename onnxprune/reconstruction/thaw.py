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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied
from onnxprune.graph.known import opsets_of
from onnxprune.graph.live import names_of, needed, remove
from onnxprune.graph.widen import MOST
from onnxprune.model import Model
from onnxprune.ops import Node
from onnxprune.reconstruction.layers import around, sites
from onnxprune.reconstruction.seen import Around, FloatLayer, as_floats, weight_slot
from onnxprune.reconstruction.stored import INTEGERS, Codec, Packed, Quantised

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

    def nearest(self, model: Model, value: Array) -> Array:
        """Return the nearest values that can be stored."""
        grid = self.codec.grid(model)
        assert grid is not None
        return grid.through(self._arriving).nearest(np.asarray(value, np.float64)).astype(value.dtype)

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

    def settle(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Return weights as they can be stored."""
        return {
            name: self.frozen[name].nearest(self.source, value) if name in self.frozen else value
            for name, value in weights.items()
        }


def thawed(analysis: Analysis) -> Thawed | None:
    """Return a model of floats; None where no layer has a quantised weight that can be a float, or they are too large.

    Parameters
    ----------
    analysis : Analysis
        Of the quantised model.
    """
    graph, frozen, products = around(analysis), dict[str, OnGrid](), list[_Product]()
    for site in sites(analysis):
        applied = graph.nodes[site.number]
        node = applied.node
        if len(site.uses) > 1 or analysis.tracer.types.get(site.y, (0, None))[0] != TensorProto.FLOAT:
            continue
        seen = as_floats(graph, site.number)
        if seen is not None and seen.plain:
            name = _free(analysis.model, f"{site.weight}/floats")
            order = (
                range(2)[::-1]
                if isinstance(seen.codec, Packed)
                else range(len(seen.codec.shape(analysis.model)))
            )
            frozen[name] = OnGrid(seen.codec, tuple(order))
            products.append(_Product(seen, applied, name))
            continue
        names = [node.inputs[weight_slot(node)]]
        if site.adder is not None and site.own:
            names.append(graph.nodes[site.adder[0]].node.inputs[site.adder[1]])
        for name in names:
            stored = None if name in analysis.model else graph.constant(name)
            plain = analysis.tracer.types.get(name, (0, None))[0] == TensorProto.FLOAT
            if stored is not None and not stored[0].exact and plain:
                frozen[name] = OnGrid(*stored)
    large = sum(prod(one.codec.shape(analysis.model)) for one in frozen.values()) * 4 > MOST
    if not frozen or large or opsets_of(analysis.model).get("", 0) < CLIP:
        return None
    return Thawed(_as_floats(analysis.model, graph, frozen, products), frozen, analysis.model)


@dataclass(frozen=True)
class _Product:
    """A product of integers or blocks that becomes one of floats.

    Attributes
    ----------
    seen : FloatLayer
    applied : Applied
    weight : str
        The floats.
    """

    seen: FloatLayer
    applied: Applied
    weight: str

    def nodes(self) -> list[NodeProto]:
        """Return the nodes of floats; a bias that the product takes itself is added behind it."""
        seen, node, slot = self.seen, self.applied.node, self.seen.view.bias_slot
        bias = node.inputs[slot] if slot >= 0 and node.has(slot) else ""
        y = f"{self.weight}/product" if bias else seen.y
        made = [helper.make_node(seen.plain, [seen.x, self.weight], [y], name=node.name)]
        if seen.plain == "Conv":
            made[0].attribute.extend(self.applied.proto.attribute)
        return [*made, helper.make_node("Add", [y, bias], [seen.y])] if bias else made


def _free(model: Model, name: str) -> str:
    """Return a name that no tensor has."""
    taken = names_of(model)
    while name in taken:
        name += "_"
    return name


def _as_floats(
    model: Model, graph: Around, frozen: Mapping[str, OnGrid], products: Sequence[_Product]
) -> Model:
    fork, before = model.fork(), needed(model)
    made = {
        graph.maker[name]: [_clip(fork, graph, graph.nodes[graph.maker[name]].node)]
        for name in _rounded(graph)
    }
    made |= {product.seen.end: product.nodes() for product in products}
    made |= {number: [_attention(fork, graph, graph.nodes[number])] for number in _attentions(graph)}
    gone = {graph.maker[name] for name in frozen if name in graph.maker}
    nodes: list[NodeProto] = []
    proto = fork.proto.graph
    for number, index in enumerate(fork.order):
        if number in made:
            nodes += made[number]
        elif number not in gone:
            nodes.append(NodeProto.FromString(proto.node[index].SerializeToString()))
    del proto.node[:]
    proto.node.extend(nodes)
    for name in frozen:
        proto.initializer.add(name=name)
    fork.refresh()
    for name, one in frozen.items():
        fork.put(name, one.read(model))
    remove(fork, before - needed(fork) - frozen.keys())
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
        if same and node.has(2) and graph.number(node.inputs[1]) and graph.number(node.inputs[2]) is not None:
            found.append(node.outputs[0])
    return found


def _clip(model: Model, graph: Around, node: Node) -> NodeProto:
    source = graph.made_by(node.inputs[0], "QuantizeLinear")
    assert source is not None
    scale, zero = (graph.number(name) or 0.0 for name in node.inputs[1:3])
    low, high = INTEGERS[graph.model.info(node.inputs[2]).elem_type]
    ends = [model.add(f"{node.outputs[0]}/{e}", np.float32((e - zero) * scale)) for e in (low, high)]
    return helper.make_node("Clip", [source.inputs[0], *ends], [node.outputs[0]], name=node.name)


def _attentions(graph: Around) -> list[int]:
    """Return the positions of fused attention over integers whose input DynamicQuantizeLinear rounds."""
    found = []
    for number, applied in enumerate(graph.nodes):
        node = applied.node
        source = graph.made_by(node.inputs[0], "DynamicQuantizeLinear") if node.op == "QAttention" else None
        if source is None or not graph.known(_attention_weight(node)):
            continue
        if source.outputs[1:] == tuple(node.inputs[slot] for slot in (3, 6) if node.has(slot)):
            found.append(number)
    return found


def _attention_weight(node: Node) -> Quantised:
    return Quantised(node.inputs[1], node.inputs[4], node.inputs[7] if node.has(7) else "", 1)


def _attention(model: Model, graph: Around, applied: Applied) -> NodeProto:
    """Return the attention of floats; its weight isn't moved."""
    node = applied.node
    source = graph.made_by(node.inputs[0], "DynamicQuantizeLinear")
    assert source is not None
    floats = _attention_weight(node).read(graph.model).astype(np.float32)
    mask, past = (node.inputs[slot] if node.has(slot) else "" for slot in (5, 8))
    inputs = [source.inputs[0], model.add(f"{node.inputs[1]}/floats", floats), node.inputs[2], mask, past]
    made = helper.make_node("Attention", inputs, node.outputs, name=node.name, domain=node.domain)
    made.attribute.extend(applied.proto.attribute)
    return made
