"""Latency of one run on this machine, as `onnxprune.latency` predicts it: ``latency=0.6``, ``latency=4ms``."""

from __future__ import annotations

from onnxprune.budgets._costs import Costs, Setting, Term

__all__ = ["UNITS", "costs"]

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def costs(setting: Setting) -> list[Costs]:
    """Return the predicted seconds: a staircase for each product of lengths that a kernel's time grows with."""
    predictor = setting.predictor()
    products, fixed = predictor.products()
    terms = [Term(dims, weight, predictor.product(dims)) for dims, weight in products.items()]
    return [Costs(setting.losses, terms, fixed)]
