"""Optimal brain damage: half the curvature times the square of the weight, off-diagonal curvature left out.

The curvature is that of each layer's own squared error, ``E x^2`` for every weight that multiplies ``x``. Needs
calibration samples.

References
----------
LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989; layer by layer as in Dong, Chen, Pan, arXiv 1705.07565.
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
    scores = [(c.problem.h.diagonal() + c.problem.mx**2) * (c.w**2).sum(axis=1) / 2 for c in consumers]
    return ranked(consumers, scores, least)
