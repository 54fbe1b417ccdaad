"""How much an error in each group matters at the model's end, found by looks.

A loss curve says what a cut costs at the layers that read the group. What it costs at the model's outputs depends on
what follows: layers that are refitted afterwards absorb part of an early error, nothing absorbs a late one, and the
errors of a residual stream are summed over all that read it, though they are one error seen many times. So each group
is looked at: it alone is cut, about as far as the curves by themselves would cut it, the layers from there on are
fitted on few samples, and the squared relative error of the outputs is taken on as many others, see
`onnxprune.calibration.ends`. Where it lost r units its errors weigh

    w = d / e(r),    d = |f'(x) - f(x)|^2 / |f(x)|^2,    e = its curve,

so that the sum of weighed errors is, to the second order, what the whole cut costs at the end. Looks need no labels.
Where there are more groups than looks, neighbours in depth are looked at together, those of the smallest errors first.

What layers absorb of one cut they don't absorb of many at once. So a few trial fits of whole cuts say how far looks are
to be believed, and whether errors weigh more with depth besides: ``w^a exp(tilt * depth)`` in the place of ``w``.

What this gives beside a weight that grows with depth: docs/decisions/0007-tilt.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.moves import moved
from onnxprune.calibration.ends import Ends, ends_of
from onnxprune.calibration.frontier import mean_size
from onnxprune.cut.put_back import Removed
from onnxprune.errors import NothingToPrune
from onnxprune.graph.size import macs_of_run
from onnxprune.journey.run import Run
from onnxprune.options.pruning import Options

if TYPE_CHECKING:
    from onnxprune.calibration.samples import Samples
    from onnxprune.graph.analysis import Analysis
    from onnxprune.reconstruction.least_squares import Curve
    from onnxprune.reconstruction.sequential import Calibration

__all__ = ["SHARED", "STEEPEST", "TILTS", "bundles", "depths", "few_of", "looked", "weights_of"]

Ints = NDArray[np.int64]

#: What errors of groups that many layers read weigh, before anything was looked at: they reach everything after them.
SHARED = 4.0
#: Samples of looks, of which a quarter is fitted on and the rest judges (half, where they are few); fewer, but the
#: least, where one pass of them through the model would take more multiplications than this.
LOOK_SAMPLES, LEAST_SAMPLES, LOOK_MACS = 256, 64, 1 << 36
#: Positions used of a layer, for each regressor.
LOOK_ROWS = 8
#: Fewer samples than this tell nothing of that kind.
ENOUGH = 32
#: Layers that a look fits, beside those that lose channels: behind them little is left to absorb.
FOLLOW = 12
#: A look takes at least this share of a group's units.
LEAST = 0.1
#: No group weighs more times the mean, or less: what few samples can tell.
MOST = 16.0
#: Looks for each trial fit of a whole cut.
EACH = 4
#: Steps by which errors weigh more with depth, and the steepest slope of that.
TILTS, STEEPEST = (1.5, -1.5, 0.75, -0.75), 4.5
#: A step by which looks are believed less.
LESS = -0.5


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


def weights_of(
    run: Run[Options], calibration: Calibration, samples: Samples, choose: Callable[[dict[str, float]], Removed]
) -> dict[str, float]:  # fmt: skip
    """Return what the errors of each group weigh: by gradients in a language model, else by looks.

    Parameters
    ----------
    run : Run
        Learns it as a note.
    calibration : Calibration
        With a curve for each group.
    samples : Samples
        That fits may see.
    choose : callable
        Weights -> units that go.
    """
    from onnxprune.pruning.worth import priced  # gradients are loaded where they are asked for

    weights = {n: SHARED if len(layers) > 1 else 1.0 for n, layers in calibration.places.items()}
    if worth := priced(run, calibration, samples):
        return {name: weight * worth.get(name, 1.0) for name, weight in weights.items()}
    if not run.options.trials or samples.count < ENOUGH or len(calibration.curves) < 2:
        return weights
    try:
        removed = choose(weights)
    except NothingToPrune:
        return weights
    cuts = {
        name: cut
        for name, curve in calibration.curves.items()
        if name in weights and len(cut := _cut(curve, len(removed.get(name, ()))))
    }
    if not cuts:
        return weights
    base = calibration.analysis
    most = _bearable(base, samples)
    few = few_of(samples, max(most // 4, ENOUGH), most)
    if few is None:
        return weights
    errors = {
        name: weights[name] * float(calibration.curves[name].error[len(cut)]) for name, cut in cuts.items()
    }
    quick, judge = few
    layers = {use.number for s in calibration.sites for use in s.uses}
    rough, dense = calibration.on(quick, LOOK_ROWS), Ends(base.model, judge, ends_of(base, layers))
    deep = depths(calibration.places, [s.number for s in calibration.sites])
    parts = bundles(errors, deep, run.options.trials)

    def far(names: Sequence[str]) -> float:
        return dense.distance(rough.fit({name: cuts[name] for name in names}, follow=FOLLOW).model)

    numbers, most = count(1), run.options.trials // EACH

    def tell(what: str) -> None:
        run.say(f"weigh {next(numbers)}/{len(parts) + most}: {what}")

    with run.stage("weigh"):
        factors = looked(errors, parts, far, tell)

        def weighed(point: tuple[float, ...]) -> dict[str, float]:
            belief, tilt = point
            return {
                name: weight * factors.get(name, 1.0) ** belief * float(np.exp(tilt * deep[name]))
                for name, weight in weights.items()
            }

        def whole(point: tuple[float, ...]) -> float:
            tell("trial fit")
            try:
                return dense.distance(rough.fit(choose(weighed(point))).model)
            except NothingToPrune:
                return np.inf

        moves = [(LESS, 0.0), *((0.0, tilt) for tilt in TILTS)]
        best = moved(whole, (1.0, 0.0), moves, [(0.0, 1.0), (-STEEPEST, STEEPEST)], most)
    found = weighed(best)
    low, high = (pick(found, key=lambda n: found[n]) for pick in (min, max))
    run.notes.append(
        f"Errors at {high!r} weigh {found[high] / found[low]:.3g} times those at {low!r}, by {len(parts)} looks at the "
        "outputs without one group or a few."
    )
    return found


def looked(
    errors: Mapping[str, float], parts: Sequence[Sequence[str]], far: Callable[[Sequence[str]], float],
    say: Callable[[str], None],
) -> dict[str, float]:  # fmt: skip
    """Return by how much the errors of each name are more at the end than they seem, about the mean.

    Parameters
    ----------
    errors : mapping
        Name -> what its cut seems to cost.
    parts : sequence of sequences of str
        What is looked at together.
    far : callable
        Names -> how far the outputs are without what is cut of these; NaN where that can't be told.
    say : callable
        Told of what is looked at before each look.

    Examples
    --------
    >>> true = {"a": 2.0, "b": 8.0, "c": 0.5}
    >>> looked(dict.fromkeys("abc", 1.0), ["a", "b"], lambda names: sum(true[n] for n in names), print)
    a
    b
    {'a': 0.5, 'b': 2.0}
    """
    found: dict[str, float] = {}
    for names in parts:
        say(names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
        distance = far(names)
        if np.isfinite(distance):
            found |= dict.fromkeys(names, max(distance, 1e-300) / sum(errors[n] for n in names))
    if not found:
        return {}
    mean = float(np.exp(np.mean(np.log([*found.values()]))))
    return {name: float(np.clip(each / mean, 1 / MOST, MOST)) for name, each in found.items()}


def bundles(errors: Mapping[str, float], depth: Mapping[str, float], most: int) -> list[list[str]]:
    """Return names in at most so many parts, each of neighbours in depth, those of small errors together.

    Examples
    --------
    >>> bundles({"a": 1.0, "b": 1.0, "c": 9.0}, {"c": 1.0, "b": 0.5, "a": 0.0}, 2)
    [['a', 'b'], ['c']]
    """
    parts = [[name] for name in sorted(errors, key=lambda n: depth[n])]
    while len(parts) > max(most, 1):
        sums = [sum(errors[n] for n in part) for part in parts]
        at = min(range(len(parts) - 1), key=lambda n: sums[n] + sums[n + 1])
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def few_of(
    samples: Samples, fitted: int | None = None, most: int = LOOK_SAMPLES
) -> tuple[Samples, Samples] | None:
    """Return few samples for rough fits and others to judge them by; None where there aren't enough.

    Parameters
    ----------
    samples : Samples
    fitted : int, optional
        At most so many are fitted on; half of them without it, and never more.
    most : int
        Of all.
    """
    if samples.count < ENOUGH:
        return None
    few = samples.few(most)
    quick, judge = few.split(1 - min(0.5, (fitted or few.count) / few.count))
    return None if judge is None else (quick, judge)


def _bearable(analysis: Analysis, samples: Samples) -> int:
    """Return how many samples looks may take, by what one pass of them costs."""
    each = macs_of_run(analysis.coupling) * mean_size(analysis, samples)
    return int(np.clip(LOOK_MACS / max(each, 1.0), LEAST_SAMPLES, LOOK_SAMPLES))


def _cut(curve: Curve, chosen: int) -> Ints:
    """Return the units that a look takes, of which the curve knows an error; none if there are none."""
    known = np.flatnonzero(np.isfinite(curve.error) & (curve.error > 0))
    if not known.size:
        return np.zeros(0, np.int64)
    wanted = max(chosen, round(LEAST * len(curve.order)), 1)
    at = min(int(np.searchsorted(known, wanted)), known.size - 1)
    return np.sort(curve.order[: int(known[at])])
