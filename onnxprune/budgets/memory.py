"""Peak memory of one sample: activations alive at once, and all weights: ``memory=0.7``, ``memory=50MB``.

See `onnxprune.graph.memory` for what the estimate counts. The peak is the largest of many sums, one for each moment
of the run; each is a cost of its own, and all of them must stay within the budget.
"""

from __future__ import annotations

from onnxprune.allocation.costs import Costs, Figures, Pair, Setting, Term, instance_terms
from onnxprune.graph.memory import element_bytes, moments, weight_bytes

__all__ = ["UNIT", "UNITS", "costs", "measured"]

#: Of what is measured.
UNIT = "B"
UNITS = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}


def costs(setting: Setting) -> list[Costs]:
    """Return one cost for each moment: the activations alive at it, and all weights."""
    analysis = setting.analysis
    weights = Costs(setting.losses, instance_terms(analysis, lambda name: element_bytes(analysis, name)))
    weights.fixed += weight_bytes(analysis) - weights.total({})
    dims, share = analysis.coupling.dims, analysis.coupling.space.share
    moment_costs = []
    for names in moments(analysis):
        alive = [Term(dims[n], element_bytes(analysis, n) * share(dims[n])) for n in names]
        moment_costs.append(Costs(setting.losses, [*weights.terms, *alive], weights.fixed))
    return moment_costs


def measured(report: Figures) -> Pair:
    """Return the estimates before and after."""
    return report.before.memory, report.after.memory
