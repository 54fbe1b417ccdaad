"""Latency of one run on this machine, as `onnxprune.latency` predicts it: ``latency=0.6``, ``latency=4ms``."""

from __future__ import annotations

from onnxprune.allocation.costs import Costs, Figures, Pair, Setting, Term
from onnxprune.options.target import WITHIN

__all__ = ["UNIT", "UNITS", "costs", "measured", "near"]

#: Of what is measured.
UNIT = "s"
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def costs(setting: Setting) -> list[Costs]:
    """Return the predicted seconds: a staircase for each product of lengths that a kernel's time grows with."""
    predictor = setting.predictor()
    products, fixed = predictor.products()
    terms = [Term(dims, weight, predictor.product(dims)) for dims, weight in products.items()]
    return [Costs(setting.losses, terms, fixed)]


def measured(report: Figures) -> Pair:
    """Return the seconds of a run before and after, where they were timed."""
    if report.latency is None:
        return None, None
    seconds = float(report.latency["seconds"])
    return seconds * float(report.latency["ratio"]), seconds


def near(report: Figures) -> float:
    """Return how much of a budget holds: times differ, and what the last measurement leaves open isn't a miss."""
    assert report.latency is not None, "only what was timed is judged"
    return max(WITHIN, float(report.latency["interval"][1]) / float(report.latency["ratio"]))
