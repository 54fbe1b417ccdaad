"""Weights times the norm of what they multiply: units of small sum of ``|w| * ||x||`` go first.

Needs calibration samples.

References
----------
Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.reconstruction.least_squares import Consumer, Curve, ranked

__all__ = ["READS", "curve"]

READS = "moments"


def curve(consumers: Sequence[Consumer], least: int) -> Curve:
    """Return the order in which units go, and the sum of what went.

    Parameters
    ----------
    consumers : sequence of Consumer
        All layers that read the group.
    least : int
        Units that stay.
    """
    scores = []
    for c in consumers:
        norm = np.sqrt(np.maximum(c.problem.h.diagonal() + c.problem.mx**2, 0))
        scores.append(np.abs(c.w).sum(axis=1) * norm)
    return ranked(consumers, scores, least)
