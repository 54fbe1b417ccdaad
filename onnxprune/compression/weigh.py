"""How much a loss counts at the outputs, found by trials on few samples.

A loss is a share of what its layer feeds, and that may be a part of little weight: a layer inside a residual branch, or
one whose errors the next nonlinearity swallows. So each layer is rounded alone, and its loss counts the more, the more
the outputs move for each unit of it (`HEED`). Layers that are refitted afterwards absorb part of an early loss: at
depth ``d`` (0 at the first layer that can be fitted, 1 at the last) it counts ``exp(tilt d)`` times that, and whole
fits choose the tilt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np

from onnxprune.allocation.moves import moved
from onnxprune.calibration.agreement import Outputs, distance
from onnxprune.calibration.samples import Samples
from onnxprune.compression.curves import Choice, choose
from onnxprune.compression.fitting import Layers
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.compression import CompressOptions
from onnxprune.pruning.weighing import STEEPEST, TILTS, few_of

__all__ = ["by_trials"]

#: Whole fits that are tried, and positions that are used of a layer, for each regressor, and in any case.
TRIALS, ROWS, LEAST = 4, 32, 1 << 15
#: Power of what the outputs move by: layers behind one that is rounded are fitted again, and take part of it back.
HEED = 0.5


def by_trials(
    run: Run[CompressOptions],
    base: Model,
    layers: Layers,
    choices: Mapping[str, Sequence[Choice]],
    budget: float,
) -> dict[str, float]:
    """Return what the loss of each fitted weight counts; nothing where it can't be tried.

    Parameters
    ----------
    run : Run
        Learns it as a note.
    base : Model
    layers : Layers
    choices : mapping
        Weight -> the grids that there are for it.
    budget : float
        Bytes of all of them.
    """
    few, last = few_of(layers.samples), len(layers.sites) - 1
    if few is None or last < 1 or choose(choices, budget) is None:
        return {}
    if layers.dear:
        run.notes.append(
            "losses of deep layers count as those of the first: trial fits of layers so large take too long"
        )
        return {}
    quick, judge = few
    settings = replace(layers.settings, most=ROWS, least=LEAST)
    rough = Layers(layers.analysis, quick, layers.sites, settings, lambda _: None)
    dense, numbers = Outputs(base, judge), count(1)
    with run.stage("weigh"):
        run.say("weigh: each layer alone")
        alone = _alone(rough, choose(choices, budget) or {}, partial(_moved, dense, judge))

    def weights(tilt: float) -> dict[str, float]:
        steep = {site.weight: float(np.exp(tilt * n / last)) for n, site in enumerate(layers.sites)}
        return {name: alone.get(name, 1.0) * each for name, each in steep.items()}

    def tried(point: tuple[float, ...]) -> float:
        (tilt,) = point
        run.say(f"weigh {next(numbers)}/{TRIALS}: trial fit")
        chosen = choose(choices, budget, weights(tilt)) or {}
        model = base.fork()
        rough.carry(model, {name: choice for name, choice in chosen.items() if not choice.kept})
        return distance(dense, Outputs(model, judge, room=0))

    with run.stage("weigh"):
        (best,) = moved(tried, (0.0,), [(tilt,) for tilt in TILTS], [(-STEEPEST, STEEPEST)], TRIALS)
    found = weights(best)
    times = max(found.values()) / min(found.values())
    run.notes.append(f"by trials a loss counts up to {times:.3g} times as much as another")
    return found


def _moved(dense: Outputs, judge: Samples, model: Model) -> float:
    """Return how far the outputs move, in the unit of losses: `distance` is about the square of a squared error."""
    return float(np.sqrt(distance(dense, Outputs(model, judge, room=0))))


def _alone(layers: Layers, chosen: Mapping[str, Choice], moves: Callable[[Model], float]) -> dict[str, float]:
    """Return what a loss of each layer counts by how far the outputs move, one on average (of the logarithms)."""
    wanted = {name: choice for name, choice in chosen.items() if not choice.kept}
    each = {name: (moves(model), loss) for name, model, loss in layers.each_alone(wanted)}
    worths = {name: far / loss for name, (far, loss) in each.items() if far > 0 and loss > 0}
    usual = float(np.exp(np.mean(np.log([*worths.values()])))) if worths else 1.0
    return {name: (worth / usual) ** HEED for name, worth in worths.items()}
