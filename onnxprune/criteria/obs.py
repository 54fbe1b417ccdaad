"""Optimal brain surgeon for whole units: the one goes whose loss costs least after all others are refitted.

Needs calibration samples. The error of every kept count comes out of one pass.

References
----------
Hassibi and Stork, NIPS 1992; structured with downdates as in OSSCAR (arXiv 2403.12983) and ZipLM (arXiv 2302.04089).
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.reconstruction.least_squares import Consumer, Curve
from onnxprune.reconstruction.obs import obs

__all__ = ["READS", "SWAPS", "curve"]

READS = "moments"
#: Its curve promises the best units, so where one layer alone reads them, exchanges are tried as well.
SWAPS = True


def curve(consumers: Sequence[Consumer], least: int) -> Curve:
    """Return the order in which units go, and the error after each.

    Parameters
    ----------
    consumers : sequence of Consumer
        All layers that read the group.
    least : int
        Units that stay.
    """
    return obs([(c.problem, c.rows) for c in consumers], [1 / c.unit for c in consumers], least=least)
