"""Channel regression: keep the units that explain the layers' outputs best, taken one by one.

The greedy variant: from nothing, the unit is added that lowers the error of a refit most. Needs calibration samples.

References
----------
He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017 (there by lasso); greedily as in
Luo, Wu, Lin, "ThiNet", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.reconstruction.least_squares import Consumer, Curve, error_of, refit

__all__ = ["READS", "curve"]

READS = "moments"


def curve(consumers: Sequence[Consumer], least: int) -> Curve:
    """Return the order in which units go, and the error after each.

    Parameters
    ----------
    consumers : sequence of Consumer
        All layers that read the group.
    least : int
        Units that stay.
    """
    units = len(consumers[0].rows)
    forward: list[int] = []
    parts = [_Forward(c) for c in consumers]
    while len(forward) < units:
        rest = [u for u in range(units) if u not in forward]
        gains = np.sum([part.gains(rest) for part in parts], axis=0)
        best = rest[int(np.argmax(gains))]
        forward.append(best)
        for part in parts:
            part.take(best)
    order = np.asarray(forward[::-1], np.int64)
    error = np.full(units + 1, np.inf)
    full = _error(consumers, np.sort(order))
    for gone in range(units - max(least, 0) + 1):
        if units - gone:
            error[gone] = max(_error(consumers, np.sort(order[gone:])) - full, 0.0)
    return Curve(order, np.maximum.accumulate(error))


class _Forward:
    """What is left of the covariances after the chosen units are regressed out."""

    def __init__(self, consumer: Consumer) -> None:
        self.rows, self.unit = consumer.rows, consumer.unit
        self.h, self.g = consumer.problem.h.copy(), consumer.problem.g.copy()
        live = self.h.diagonal()[self.h.diagonal() > 0]
        self.lam = 1e-3 * float(live.mean()) if live.size else 1.0

    def gains(self, units: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        gains = np.zeros(len(units))
        for n, u in enumerate(units):
            rows = self.rows[u]
            block = self.h[np.ix_(rows, rows)] + self.lam * np.eye(len(rows))
            gains[n] = (self.g[rows] * np.linalg.solve(block, self.g[rows])).sum()
        return gains / self.unit

    def take(self, unit: int) -> None:
        rows = self.rows[unit]
        block = self.h[np.ix_(rows, rows)] + self.lam * np.eye(len(rows))
        column = self.h[:, rows]
        outputs = self.g.shape[1]
        step = np.linalg.solve(block, np.hstack([self.g[rows], column.T]))
        self.g -= column @ step[:, :outputs]
        self.h -= column @ step[:, outputs:]


def _error(consumers: Sequence[Consumer], kept: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    total = 0.0
    for c in consumers:
        owned = np.concatenate([*c.rows])
        free = np.setdiff1d(np.arange(len(c.problem.h)), owned)
        rows = np.sort(np.concatenate([free, *(c.rows[int(u)] for u in kept)]))
        total += float(error_of(c.problem, refit(c.problem, rows, 1e-3)).sum()) / c.unit
    return total
