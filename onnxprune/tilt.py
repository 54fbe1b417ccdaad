"""How much an error in each group matters: a tilt along the depth of the model, found by trials on few samples.

A loss curve says what a cut costs at the layer that reads the group. What it costs at the model's output depends on
what follows: layers that are refitted afterwards absorb part of an early error, and nothing absorbs a late one (or, in
a plain chain, early errors grow on their way). So the error of a group at depth ``d`` (0 at the first layer that can be
fitted, 1 at the last) weighs ``exp(tilt * d)``, and the tilt is what makes the output of a trial fit come nearest to
the original's, on samples that the trial's fits have not seen. Trials need no labels.

Random search over one weight for each group, as in SPDY (arXiv 2201.13096), was tried from there and found nothing
better in 24 trials; see docs/decisions/0007-tilt.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

__all__ = ["SHARED", "depths", "search", "weights"]

#: Errors of groups that many layers read weigh this much more: their errors reach everything after them.
SHARED = 4.0
#: First step of the search; half of it is the last.
STEP = 1.5
#: Samples are few, so a step must come this much nearer to be taken.
CLEAR = 0.95
#: No tilt is steeper.
STEEPEST = 4.5


def depths(readers: Mapping[str, Sequence[int]], layers: Sequence[int]) -> dict[str, float]:
    """Return how deep each group is read, 0 at the first layer and 1 at the last.

    Parameters
    ----------
    readers : mapping
        Group -> positions of the layers that read it.
    layers : sequence of int
        Positions of all layers that can be fitted, ascending.
    """
    place = {number: n / max(len(layers) - 1, 1) for n, number in enumerate(layers)}
    return {name: float(np.mean([place[n] for n in mine])) for name, mine in readers.items()}


def weights(readers: Mapping[str, Sequence[int]], layers: Sequence[int], tilt: float) -> dict[str, float]:
    """Return the weight of each group's errors under a tilt."""
    deep = depths(readers, layers)
    return {
        n: (SHARED if len(mine) > 1 else 1.0) * float(np.exp(tilt * deep[n])) for n, mine in readers.items()
    }


def search(distance: Callable[[float], float], trials: int) -> float:
    """Return the tilt of least distance, by steps uphill from none and then half a step to either side.

    Parameters
    ----------
    distance : callable
        Tilt -> how far a trial's output is from the original's; infinite where it can't be tried.
    trials : int
        Calls at most; with none the tilt is 0.

    Examples
    --------
    >>> search(lambda tilt: (tilt - 2.0) ** 2, 8)
    2.25
    >>> search(lambda tilt: (tilt + 1.0) ** 2, 3), search(abs, 0)
    (-1.5, 0.0)
    """
    seen: dict[float, float] = {}

    def tried(tilt: float) -> float:
        if tilt not in seen:
            if len(seen) >= trials or abs(tilt) > STEEPEST:
                return np.inf
            seen[tilt] = distance(tilt)
        return seen[tilt]

    best = 0.0
    for step in (STEP, STEP / 2):
        tried(best)
        for way in (step, -step):
            while tried(best + way) < CLEAR * seen.get(best, np.inf):
                best += way
    return best
