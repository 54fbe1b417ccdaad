"""How much a loss counts by its depth, found by trials on few samples.

A layer's loss at depth ``d`` (0 at the first layer that can be fitted, 1 at the last) counts ``exp(tilt d)``: layers
that are refitted afterwards absorb part of an early loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from onnxprune.allocation.moves import moved
from onnxprune.calibration.agreement import Outputs, distance
from onnxprune.compression.curves import Choice, choose
from onnxprune.compression.fitting import Layers
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.compression import CompressOptions
from onnxprune.pruning.weighing import STEEPEST, TILTS, few_of

__all__ = ["by_depth"]

#: Fits that are tried, and positions that are used of a layer, for each regressor, and in any case.
TRIALS, ROWS, LEAST = 4, 32, 1 << 15


def by_depth(
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

    def weights(tilt: float) -> dict[str, float]:
        return {site.weight: float(np.exp(tilt * n / last)) for n, site in enumerate(layers.sites)}

    def tried(point: tuple[float, ...]) -> float:
        (tilt,) = point
        run.say(f"weigh {next(numbers)}/{TRIALS}: trial fit")
        chosen = choose(choices, budget, weights(tilt)) or {}
        model = base.fork()
        rough.carry(model, {name: choice for name, choice in chosen.items() if not choice.kept})
        return distance(dense, Outputs(model, judge, room=0))

    with run.stage("weigh"):
        (best,) = moved(tried, (0.0,), [(tilt,) for tilt in TILTS], [(-STEEPEST, STEEPEST)], TRIALS)
    run.notes.append(f"losses of the deepest layer count {np.exp(best):.3g} times those of the first")
    return weights(best) if best else {}
