"""Widths on steps: how many units may go so that what is left of every axis is a multiple of the step.

The rule, for one group:

1. Width. An axis that only this group shrinks counts with its whole length, frozen positions included. Of an axis
   that several groups share (a concatenation) only the group's own part counts: sums of multiples are multiples, so
   the total is on a step wherever its parts are, and no group has to wait for another.
2. Step. A width of at least twice the asked step takes it; a narrower one takes the widest of half, a quarter, ...
   and 4 that leaves a choice below the width. Narrower steps than 4 gain nothing: onnxruntime's blocked layout asks
   for input channels in fours, whatever its block. A width of 4 or less isn't aligned (unless to 2 or 3).
3. Count. Among the counts that put every axis on its step, the nearest to the asked share; the smaller of two
   equally near; at least something if such a count exists.
4. Where no count does, an axis goes down the steps of 2; if its axes still disagree, the count that satisfies most
   of them is taken within twice the asked share, and else the asked share itself, unaligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.group_types import Indices

__all__ = ["FLOOR", "Axis", "aligned_count", "steps"]

#: The narrowest step that helps onnxruntime.
FLOOR = 4


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis that a group shrinks; equal axes are counted once.

    Attributes
    ----------
    width : int
        Positions that count, see rule 1.
    per_unit : int64[units]
        Positions that each unit holds.
    weight : int
        How many axes this stands for.
    """

    width: int
    per_unit: Indices
    weight: int = 1


def steps(width: int, align: int) -> list[int]:
    """Return the steps to try for a width, widest first; empty where it isn't aligned.

    Parameters
    ----------
    width, align : int
        In channels.

    Examples
    --------
    >>> steps(64, 16), steps(24, 16), steps(16, 16), steps(8, 16), steps(4, 16), steps(64, 1)
    ([16, 8, 4], [8, 4], [8, 4], [4], [], [])
    >>> steps(30, 10), steps(12, 10), steps(9, 2)
    ([10, 5, 4], [5, 4], [2])
    """
    if align <= 1 or width <= min(align, FLOOR):
        return []
    ladder = [align]
    while ladder[-1] % 2 == 0 and ladder[-1] // 2 >= FLOOR:
        ladder.append(ladder[-1] // 2)
    if ladder[-1] > FLOOR:
        ladder.append(FLOOR)
    if len(ladder) > 1 and width < 2 * align:
        ladder = ladder[1:]
    return [step for step in ladder if step < width]


def aligned_count(axes: Sequence[Axis], order: Indices, asked: float, align: int, spare: int) -> int:
    """Return how many units go, see the module's rules.

    Parameters
    ----------
    axes : sequence of Axis
    order : int64[most]
        The units that may go, the first to go first.
    asked : float
        Units that should go.
    align : int
        The asked step, in channels.
    spare : int
        The answer where nothing can be aligned.
    """
    on_steps = [(on, axis.weight) for axis in axes if (on := _on_steps(axis, order, align)) is not None]
    if not on_steps:
        return spare
    together = np.logical_and.reduce([on for on, _ in on_steps])
    if together.any():
        return _nearest(together, asked)
    satisfied: NDArray[np.int64] = np.sum([on * weight for on, weight in on_steps], axis=0)
    satisfied[int(2 * asked) :] = 0  # entry i is the count i + 1
    if not satisfied.any():
        return spare
    return _nearest(satisfied == satisfied.max(), asked)


def _on_steps(axis: Axis, order: Indices, align: int) -> NDArray[np.bool_] | None:
    """Return whether the axis is on a step when the first 1, 2, ... units are gone; None if it doesn't matter."""
    ladder = steps(axis.width, align)
    if not ladder or not order.size:
        return None
    left = axis.width - np.cumsum(axis.per_unit[order])
    for step in ladder:
        on: NDArray[np.bool_] = (left % step == 0) & (left > 0)
        if on.any():
            return on
    return None


def _nearest(allowed: NDArray[np.bool_], asked: float) -> int:
    """Return the allowed count nearest to the asked one; entry i of ``allowed`` is the count i + 1."""
    counts = np.flatnonzero(allowed) + 1
    return int(counts[np.argmin(np.abs(counts - asked))])
