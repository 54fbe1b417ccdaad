"""A quantised model as floats, for descent: weights behind DequantizeLinear become floats that know their grid.

What stands between two layers as QuantizeLinear and DequantizeLinear is, but for its rounding, a Clip to the ends of
its type,

    x' = clip(x, (low - z) s, (high - z) s),

which often stands for a Relu. Weights go down as floats; at each step and in the end they are judged as the nearest
values of their grid, which is where the gradient is taken too (straight-through).

References
----------
Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv 1308.3432.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.known import opsets_of
from onnxprune.graph.live import needed, remove
from onnxprune.model import Model
from onnxprune.ops import Node
from onnxprune.reconstruction.layers import around, sites
from onnxprune.reconstruction.seen import Around, weight_slot
from onnxprune.reconstruction.stored import INTEGERS, Codec

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
        In which its axes arrive.
    """

    codec: Codec
    order: tuple[int, ...]

    def nearest(self, model: Model, value: Array) -> Array:
        """Return the nearest values that can be stored."""
        grid = self.codec.grid(model)
        assert grid is not None
        moved = grid.through(lambda array: array.transpose(self.order))
        return moved.nearest(np.asarray(value, np.float64)).astype(value.dtype)

    def write(self, model: Model, value: Array) -> None:
        """Put a float into a quantised model."""
        self.codec.write(model, np.asarray(value).transpose(np.argsort(self.order)))


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
    """Return a model of floats; None where no layer has a quantised weight behind DequantizeLinear.

    Parameters
    ----------
    analysis : Analysis
        Of the quantised model.
    """
    graph, frozen = around(analysis), dict[str, OnGrid]()
    for site in sites(analysis):
        node = graph.nodes[site.number].node
        names = [node.inputs[weight_slot(node)]]
        if site.adder is not None and site.own:
            names.append(graph.nodes[site.adder[0]].node.inputs[site.adder[1]])
        for name in names if len(site.uses) == 1 else ():
            stored = None if name in analysis.model else graph.constant(name)
            plain = analysis.tracer.types.get(name, (0, None))[0] == TensorProto.FLOAT
            if stored is not None and not stored[0].exact and plain:
                frozen[name] = OnGrid(*stored)
    if not frozen or opsets_of(analysis.model).get("", 0) < CLIP:
        return None
    return Thawed(_as_floats(analysis.model, graph, frozen), frozen, analysis.model)


def _as_floats(model: Model, graph: Around, frozen: Mapping[str, OnGrid]) -> Model:
    fork, before = model.fork(), needed(model)
    made = {number: pair for number, pair in ((graph.maker[n], n) for n in _rounded(graph)) if pair}
    gone = {graph.maker[name] for name in frozen}
    nodes: list[NodeProto] = []
    proto = fork.proto.graph
    for number, index in enumerate(fork.order):
        node = NodeProto.FromString(proto.node[index].SerializeToString())
        if number in gone:
            continue
        if number in made:
            node = _clip(fork, graph, graph.nodes[number].node)
        nodes.append(node)
    del proto.node[:]
    proto.node.extend(nodes)
    for name in frozen:
        proto.initializer.add(name=name)
    fork.refresh()
    for name, one in frozen.items():
        fork.put(name, one.codec.read(model).transpose(one.order).astype(np.float32))
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
