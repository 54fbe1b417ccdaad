"""Experts: a unit is a position on the axis that a router chooses from, with all weights that are stacked along it.

Of each token a router gives every expert a score, the greatest ``k`` are chosen, and their numbers pick weights. An
expert whose score is the least number there is is never chosen while ``k`` others are left, and weighs nothing where
scores become shares. With ``keep`` the experts that stay and ``m`` the scores in which the others are the least number,

    choose(take(scores, keep)) = choose(m),    share(take(scores, keep)) = take(share(m), keep),

numbers of experts counted anew. `cut` computes the left sides on shorter stacks of weights, and a router with as many
outputs fewer; `masked` the right ones, a mask in front of whatever chooses or weighs (`Row.lowest`). A softmax over all
experts before the choice is one over those that stay, on both sides.

Which axes are the same experts follows from the numbers of the chosen, wherever they go (`onnxprune.graph.choices`).
"""

from __future__ import annotations

from onnxprune.cut.rewrite import Rewritten, rewrite
from onnxprune.granularity import Removed
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.choices import opened
from onnxprune.graph.group_types import EXPERTS, Group
from onnxprune.model import Model
from onnxprune.proof.twin import twin

__all__ = ["cut", "groups", "masked"]


def groups(analysis: Analysis) -> list[Group]:
    """Return a group for each layer of experts, none where nothing chooses or its numbers are read otherwise."""
    return [group for group in opened(analysis).grouping.groups if group.kind == EXPERTS]


def masked(analysis: Analysis, removed: Removed) -> Model:
    """Return the original in which these experts have the least scores; the two share their weights.

    Raises
    ------
    ValueError
        If fewer experts would be left than are chosen.
    """
    analysis = opened(analysis)
    return twin(analysis, analysis.grouping.dead(removed))


def cut(analysis: Analysis, removed: Removed) -> Rewritten:
    """Return the model without these experts; it shares the weights that stay whole with the original.

    Raises
    ------
    ValueError
        As `masked`, or if a tensor would not get the shape that the cut implies.
    """
    analysis = opened(analysis)
    dead = analysis.grouping.dead(removed)
    return rewrite(analysis.model, analysis.coupling, analysis.tracer, dead, analysis.other_values())
