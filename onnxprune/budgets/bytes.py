"""Bytes of the model's files, external data included: ``bytes=0.5``, ``bytes=20MB``."""

from __future__ import annotations

from onnxprune.allocation.costs import Costs, Figures, Pair, Setting, instance_terms
from onnxprune.graph.memory import element_bytes
from onnxprune.model import Model

__all__ = ["UNIT", "UNITS", "costs", "counted", "measured"]

#: Of what is measured.
UNIT = "B"
UNITS = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}


def costs(setting: Setting) -> list[Costs]:
    """Return the bytes of the weights; what a cut changes of all else in the files is seen when it is `counted`."""
    terms = instance_terms(setting.analysis, lambda name: element_bytes(setting.analysis, name))
    weight_costs = Costs(setting.losses, terms)
    weight_costs.fixed += setting.bytes - weight_costs.total({})
    return [weight_costs]


def counted(model: Model) -> float:
    """Return the bytes of a model that was cut."""
    return model.nbytes


def measured(report: Figures) -> Pair:
    """Return the bytes of the files before and after."""
    return report.before.bytes, report.after.bytes
