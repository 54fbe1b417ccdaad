"""Layers inside of nodes, whose outputs no node gives out: Q, K and V as onnxruntime's Attention makes them.

    y = x W + b,    W (d, Q + K + V),    node = attention(y).

What such a layer gave in the original follows from what it read, so it is fitted as a lean layer is
(`onnxprune.reconstruction.narrow`): the original's x are its targets.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from numpy.typing import NDArray

from onnxprune.files.bodies import is_joint
from onnxprune.graph.analysis import Analysis
from onnxprune.reconstruction.chosen import chosen_rows
from onnxprune.reconstruction.layers import Site, around, sites
from onnxprune.reconstruction.seen import Around
from onnxprune.reconstruction.stored import Codec
from onnxprune.reconstruction.views import View, view_of

__all__ = ["is_inner", "with_inner"]

#: Nodes that begin with the product of what they read and a matrix -> the input that is added to it.
_INNER = {("com.microsoft", "Attention"): 2}


@dataclass(frozen=True)
class _InnerView(View):
    """A view of a layer inside of a node.

    Attributes
    ----------
    given : int
        Channels of what the node gives, which are none of the layer's.
    """

    given: int = 1

    def positions(self, output: NDArray[Any]) -> int:
        """Return how many positions an output of the node has, over the batch."""
        return int(output.size // self.given)


def with_inner(analysis: Analysis) -> list[Site]:
    """Return the layers of a model that can be fitted, those inside of nodes among them, in topological order.

    For callers that ask a layer for no output of its own but where it isn't lean. In models with branches there are
    none inside: what they read isn't there in every batch.
    """
    found = sites(analysis)
    if any(is_joint(node) for node in analysis.model.proto.graph.node):
        return found
    graph, rows = around(analysis), chosen_rows(analysis)
    inside = [site for number in range(len(graph.nodes)) if (site := _inner(graph, number)) is not None]
    inside = [
        replace(site, chosen=site.x in rows) for site in inside if site.weight not in analysis.model.fixed
    ]
    return sorted([*found, *inside], key=lambda site: site.number)


def is_inner(site: Site) -> bool:
    """Whether a layer is only the beginning of its node."""
    return isinstance(site.view, _InnerView)


def _inner(graph: Around, number: int) -> Site | None:
    """Return the layer inside of a node; None where there is none of floats that are its own."""
    applied = graph.nodes[number]
    node = applied.node
    slot = _INNER.get((node.domain, node.op))
    if slot is None or applied.row is None or node.inputs[0] in graph.model:
        return None
    weight, bias = _own(graph, node.inputs[1]), None
    if node.has(slot):
        bias = _own(graph, node.inputs[slot])
    made = node.out_shapes[0]
    if weight is None or (node.has(slot) and bias is None) or made is None:
        return None
    plain = view_of(
        replace(
            node, op="MatMul", domain="", shapes=node.shapes[:2], constant=(False, True), values=(None, None),
            inputs=node.inputs[:2],
        )
    )  # fmt: skip
    if plain is None:
        return None
    parts = {field.name: getattr(plain, field.name) for field in fields(plain)}
    view = _InnerView(**{**parts, "bias_slot": slot}, given=made[-1])
    title = graph.model.proto.graph.node[graph.model.order[number]].name or weight.name
    adder = (number, slot) if bias is not None else None
    return Site(
        number, title, view, node.inputs[0], node.outputs[0], weight, number, bias, bias is not None, adder, None,
        lean=True,
    )  # fmt: skip


def _own(graph: Around, name: str) -> Codec | None:
    """Return a constant of floats that one node alone reads as it lies in the file."""
    stored = graph.constant(name)
    return stored[0] if stored is not None and stored[0].exact and graph.alone(name) else None
