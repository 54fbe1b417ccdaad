"""What a loss counts in a language model, by the squares of gradients at its end.

The loss of a layer is a share of the variance of what it feeds, so it counts the worth of that
(`onnxprune.pruning.worth`). A weight ``w`` that no layer fits, such as a table of words, loses a share ``L`` of its own
squares: each value moves by ``e^2 = L mean(w^2)``. For gradients ``g_r`` in the rows of what reads it, that costs

    a lookup     sum over r of |g_r|^2 e^2,
    a product    sum over r of |g_r|^2 |x_r|^2 e^2    with rows x_r of its other input,

and a table that is also the head costs both. All are twice the divergence of the next token's distribution, so none
needs to be weighed against another by trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from onnxprune.compression.fitting import SAMPLE, Layers, some_of
from onnxprune.compression.parts import Part
from onnxprune.errors import CalibrationError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import uses_of
from onnxprune.graph.vocabulary import says_ids
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.ops import Trait
from onnxprune.ops.traits import moved
from onnxprune.options.compression import CompressOptions
from onnxprune.pruning.worth import Steepness, Watched, of_groups, of_tensors
from onnxprune.reconstruction.seen import Uses
from onnxprune.reconstruction.taker import factors_of

__all__ = ["by_gradients"]


def by_gradients(run: Run[CompressOptions], layers: Layers, parts: Sequence[Part]) -> dict[str, float]:
    """Return what the loss of each weight counts, one on average (of the logarithms); empty for other models.

    Parameters
    ----------
    run : Run
        Learns it as a note, or why it can't be told.
    layers : Layers
    parts : sequence of Part
        Weights whose loss is a share of their own squares, if no layer fits them.
    """
    analysis = layers.analysis
    if not says_ids(analysis):
        return {}
    model, fitted = analysis.model, {site.weight: site for site in layers.sites}
    uses = uses_of(analysis.coupling)
    reads = {part.name: list(_reads(analysis, uses, part.name)) for part in parts if part.name not in fitted}
    places = {name: Watched(-1) for each in reads.values() for read in each for name in read if name}
    places |= {
        site.goal[0]: Watched(site.view.out_axis, partial(factors_of, site)) for site in fitted.values()
    }
    try:
        with run.stage("weigh"):
            found = of_tensors(analysis, places, layers.samples, run.options.seed, run.say)
    except CalibrationError as error:
        why = str(error).split(";", 1)[0].rstrip(".")
        run.notes.append(f"gradients don't tell what losses count, and trial fits do instead: {why}")
        return {}
    worths = {name: found[site.goal[0]].worth for name, site in fitted.items()}
    worths |= {name: _alone(model, name, each, found) for name, each in reads.items()}
    known = {name: worth for name, worth in worths.items() if worth > 0}
    if not known:
        return {}
    times = max(known.values()) / min(known.values())
    run.notes.append(f"by gradients of the output a loss counts up to {times:.3g} times as much as another")
    return of_groups(known, {name: [name] for name in known})


def _alone(model: Model, name: str, reads: Sequence[tuple[str, str]], found: dict[str, Steepness]) -> float:
    """Return what a loss of all squares of a weight costs where it is read."""
    square = float(np.mean(np.square(some_of(np.asarray(model.weight(name)), SAMPLE))))
    each = (found[y].steep * (found[x].loud / max(found[x].spread.n, 1) if x else 1.0) for y, x in reads)
    return square * sum(each)


def _reads(analysis: Analysis, uses: Uses, name: str) -> Iterator[tuple[str, str]]:
    """Yield what lookups and products make of a weight, and the other input of a product."""
    for number, slot in uses.get(name, ()):
        node = analysis.coupling.nodes[number].node
        if Trait.LOOKUP in node.traits:
            yield from [(node.outputs[0], "")] if slot == 0 else []
        elif slot in moved(node.op, len(node.inputs), node.domain):
            yield from _reads(analysis, uses, node.outputs[0])
        elif Trait.GEMM in node.traits and slot < 2 and node.inputs[1 - slot] not in analysis.model:
            yield node.outputs[0], node.inputs[1 - slot]
