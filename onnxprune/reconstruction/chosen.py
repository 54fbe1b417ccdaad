"""Rows that a model's own values choose: of no use for a fit, since two models choose others.

A mixture of experts that is written out gathers for each expert the tokens that chose it (NonZero, Gather). A layer
there reads as many rows as tokens came. In a model that is cut the router may choose otherwise, so its rows aren't
those of the original, and what the layer gave there says nothing about what it should give here.
"""

from __future__ import annotations

from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied
from onnxprune.ops import Trait

__all__ = ["chosen_rows"]


def chosen_rows(analysis: Analysis) -> set[str]:
    """Return the tensors whose lengths follow from what layers give, and what is computed from these lengths.

    An op whose length depends on values (trait ``BY_DATA``) begins it. It ends where an output has all axes of a first
    input that isn't such a tensor: what is written into rows of it.
    """
    find, dims = analysis.coupling.space.find, analysis.coupling.dims
    matrices = {name for name, weight in analysis.tracer.weights.items() if len(weight.shape) > 1}
    learned, chosen = set[str](), set[str]()

    def same_axes(applied: Applied, name: str) -> bool:
        first, own = dims.get(applied.node.inputs[0] if applied.node.inputs else ""), dims.get(name)
        return first is not None and own is not None and [*map(find, first)] == [*map(find, own)]

    for applied in analysis.coupling.nodes:
        node, traits = applied.node, applied.node.traits
        read = {*node.inputs, *(captured(applied.proto) if applied.proto.attribute else ())} - {""}
        begins = Trait.BY_DATA in traits and not learned.isdisjoint(read)
        layer = bool(applied.macs) and not matrices.isdisjoint(read)
        for name in filter(None, node.outputs):
            if layer or (Trait.SIZE not in traits and not learned.isdisjoint(read)):
                learned.add(name)
            if begins or (
                not chosen.isdisjoint(read) and (node.inputs[0] in chosen or not same_axes(applied, name))
            ):
                chosen.add(name)
    return chosen
