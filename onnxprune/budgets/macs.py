"""Multiply-accumulates of one sample at the bound input shapes: ``macs=0.5``, ``macs=200M``."""

from __future__ import annotations

from onnxprune.allocation.costs import Costs, Figures, Pair, Setting, node_terms

__all__ = ["UNITS", "costs", "measured"]

UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def costs(setting: Setting) -> list[Costs]:
    """Return the cost of each axis length: the products of the letters of each op's row."""
    return [Costs(setting.losses, node_terms(setting.analysis))]


def measured(report: Figures) -> Pair:
    """Return the MACs before and after."""
    return report.before.macs, report.after.macs
