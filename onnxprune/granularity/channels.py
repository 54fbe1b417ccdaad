"""Channels: a unit is an index, or a block of indices, of an axis: a channel, a neuron, a head, a group.

Which axes are the same channels follows from the op table (`onnxprune.ops`); the space of axes finds the units
(`onnxprune.graph.groups`). For an operator that sums over an axis, law 1 is

    sum_{k kept} x_k w_k  =  sum_k m_k x_k w_k,    m_k = 1 if k is kept, else 0.

`cut` computes the left side on smaller weights, `masked` the right side with a mask on one operand of each sum.
"""

from __future__ import annotations

from onnxprune.cut.rewrite import Rewritten, rewrite
from onnxprune.granularity import Removed
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.model import Model
from onnxprune.proof.twin import twin

__all__ = ["cut", "groups", "masked"]


def groups(analysis: Analysis) -> list[Group]:
    """Return the dependency groups of a model: axes that must lose the same channels."""
    return list(analysis.grouping.groups)


def masked(analysis: Analysis, removed: Removed) -> Model:
    """Return the original with these channels zeroed where they are read; the two share their weights.

    Raises
    ------
    ValueError
        If the channels aren't closed under the model's couplings, or an axis would lose all of its elements.
    """
    return twin(analysis, analysis.grouping.dead(removed))


def cut(analysis: Analysis, removed: Removed) -> Rewritten:
    """Return the model with smaller weights; it shares those that stay whole with the original.

    Raises
    ------
    ValueError
        As `masked`, or if a tensor would not get the shape that the cut implies.
    """
    dead = analysis.grouping.dead(removed)
    return rewrite(analysis.model, analysis.coupling, analysis.tracer, dead, analysis.other_values())
