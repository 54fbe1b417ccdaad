"""Weights that no fit serves and descent moves: those of recurrent layers, which are no regressions."""

from __future__ import annotations

from onnxprune.graph.analysis import Analysis
from onnxprune.ops import FLOATS, Trait

__all__ = ["loose"]


def loose(analysis: Analysis) -> dict[str, int]:
    """Return the weights of floats that recurrent layers hold, and the position of the node that reads each.

    Parameters
    ----------
    analysis : Analysis
    """
    model = analysis.model
    return {
        name: number
        for number, applied in enumerate(analysis.coupling.nodes)
        if Trait.RECURRENT in applied.node.traits
        for name in applied.node.inputs[1:4]
        if name in model and model.info(name).elem_type in FLOATS
    }
