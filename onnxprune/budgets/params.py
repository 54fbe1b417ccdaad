"""Parameters: elements of floating-point and quantised weights: ``params=0.5``, ``params=3M``."""

from __future__ import annotations

from onnxprune.allocation.costs import Costs, Figures, Pair, Setting, instance_terms
from onnxprune.graph.size import count_parameters
from onnxprune.model import Model

__all__ = ["UNITS", "costs", "counted", "measured"]

UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


def costs(setting: Setting) -> list[Costs]:
    """Return the number of elements of each weight; what no node reads stays."""
    model = setting.analysis.model
    terms = instance_terms(setting.analysis, setting.analysis.numbers.__getitem__)
    weight_costs = Costs(setting.losses, terms)
    weight_costs.fixed += count_parameters(model) - weight_costs.total({})
    return [weight_costs]


def counted(model: Model) -> float:
    """Return the parameters of a model that was cut, and perhaps fitted: biases may be new."""
    return count_parameters(model)


def measured(report: Figures) -> Pair:
    """Return the parameters before and after."""
    return report.before.parameters, report.after.parameters
