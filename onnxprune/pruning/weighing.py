"""How much an error in each group matters: by its depth, and by whether many layers read it; found by trials.

A loss curve says what a cut costs at the layers that read the group. What it costs at the model's output depends on
what follows: layers that are refitted afterwards absorb part of an early error, and nothing absorbs a late one (or, in
a plain chain, early errors grow on their way). So the error of a group at depth ``d`` (0 at the first layer that can be
fitted, 1 at the last) weighs ``exp(tilt * d)``. And the errors of a group that many layers read, such as a residual
stream, are summed over them, though they are one error seen many times: they weigh ``shared`` times as much.

Both are what makes the output of a trial fit come nearest to the original's, on samples that the trial's fits have not
seen. Trials need no labels.

Random search over one weight for each group, as in SPDY (arXiv 2201.13096), was tried from there and found nothing
better in 24 trials; see docs/decisions/0007-tilt.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.cut.put_back import Removed
from onnxprune.errors import NothingToPrune
from onnxprune.journey.run import Run
from onnxprune.options.pruning import Options

if TYPE_CHECKING:
    from onnxprune.calibration.samples import Samples
    from onnxprune.reconstruction.sequential import Calibration

__all__ = ["SHARED", "Weighing", "by_trials", "depths", "few_of", "search", "weights"]

#: What errors of groups that many layers read weigh, to begin with: they reach everything after them. It was found on
#: convolutional residual nets; in transformers a fraction of it is better.
SHARED = 4.0
#: Each step of its search divides it by this.
FEWER = 4.0
#: Samples of a trial fit, and as many again to judge it; and positions used of a layer, for each regressor.
TRIAL_SAMPLES, TRIAL_ROWS = 128, 8
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
    return {name: float(np.mean([place[n] for n in numbers])) for name, numbers in readers.items()}


@dataclass(frozen=True)
class Weighing:
    """What errors weigh.

    Attributes
    ----------
    tilt : float
        Errors at the deepest layer weigh ``exp(tilt)`` times those at the first.
    shared : float
        Those of groups that several layers read weigh this much more.
    """

    tilt: float = 0.0
    shared: float = SHARED


def weights(
    readers: Mapping[str, Sequence[int]], layers: Sequence[int], weighing: Weighing
) -> dict[str, float]:
    """Return the weight of each group's errors."""
    deep = depths(readers, layers)
    return {
        n: (weighing.shared if len(numbers) > 1 else 1.0) * float(np.exp(weighing.tilt * deep[n]))
        for n, numbers in readers.items()
    }


def search(distance: Callable[[Weighing], float], trials: int, *, many: bool) -> Weighing:
    """Return the weighing of least distance: first its tilt, by steps uphill from none and then half a step.

    Parameters
    ----------
    distance : callable
        Weighing -> how far a trial's output is from the original's; infinite where it can't be tried.
    trials : int
        Calls at most for the tilt, and as many for what is shared; with none nothing is tried.
    many : bool
        Whether several layers read any group.

    Examples
    --------
    >>> search(lambda w: (w.tilt - 2.0) ** 2, 8, many=False)
    Weighing(tilt=2.25, shared=4.0)
    >>> search(lambda w: (w.tilt + 1.0) ** 2 + w.shared, 3, many=True)
    Weighing(tilt=-1.5, shared=0.25)
    """
    if trials <= 0:
        return Weighing()
    seen: dict[Weighing, float] = {}

    def better(asked: Weighing, than: Weighing, most: int) -> bool:
        for one in (than, asked):
            if one not in seen:
                if len(seen) >= most or abs(one.tilt) > STEEPEST:
                    return False
                seen[one] = distance(one)
        return seen[asked] < CLEAR * seen[than]

    best = Weighing()
    for step in (STEP, STEP / 2):
        for way in (step, -step):
            while better(next_ := replace(best, tilt=best.tilt + way), best, trials):
                best = next_
    most = len(seen) + trials - 1
    while many and better(next_ := replace(best, shared=best.shared / FEWER), best, most):
        best = next_
    return best


def by_trials(
    run: Run[Options], calibration: Calibration, samples: Samples, choose: Callable[[Weighing], Removed]
) -> Weighing:
    """Return how errors of different groups weigh: that under which trial fits on few samples come nearest.

    Parameters
    ----------
    run : Run
        Learns it as a note.
    calibration : Calibration
    samples : Samples
        That fits may see.
    choose : callable
        Weighing -> units that go.
    """
    from onnxprune.calibration.agreement import Outputs, distance

    trials, few = run.options.trials, few_of(samples)
    if trials == 0 or few is None or len(calibration.curves) < 2:
        return Weighing()
    quick, judge = few
    rough = calibration.on(quick, TRIAL_ROWS)
    many = any(len(layers) > 1 for layers in rough.places.values())
    most = 2 * trials - 1 if many else trials
    with run.stage("weigh"):
        dense, numbers = Outputs(run.model, judge), count(1)

        def tried(weighing: Weighing) -> float:
            run.say(f"weigh {next(numbers)}/{most}: trial fit")
            try:
                fitted = rough.fit(choose(weighing))
            except NothingToPrune:
                return np.inf
            return distance(dense, Outputs(fitted.model, judge, room=0))

        best = search(tried, trials, many=many)
    shared = f", those of groups that many layers read {best.shared:g} times others" if many else ""
    run.notes.append(
        f"Errors of the deepest layer weigh {np.exp(best.tilt):.3g} times those of the first{shared}."
    )
    return best


def few_of(samples: Samples) -> tuple[Samples, Samples] | None:
    """Return few samples for trial fits and as many to judge them by; None where there aren't enough."""
    wanted = min(2 * TRIAL_SAMPLES, max(samples.count // 2, 32))
    if samples.count < wanted:
        return None
    quick, judge = samples.few(min(wanted, samples.count - 1)).split(0.5)
    return None if judge is None else (quick, judge)
