"""Fluctuation: units whose activation varies little, weighed by their weights, go first; the bias takes over the mean.

Needs calibration samples.

References
----------
An, Zhao, Yu, Tang, Wang, "Fluctuation-based Adaptive Structured Pruning" (FLAP), arXiv 2312.11983, equation 5.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    scores = [c.problem.h.diagonal() * (c.w**2).sum(axis=1) for c in consumers]
    return ranked(consumers, scores, least)
