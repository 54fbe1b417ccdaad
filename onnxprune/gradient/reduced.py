"""Gradients of a label-free loss over samples, reduced in the graph before they are given out.

For a batch ``x`` with outputs ``y = f(x)`` a gradient ``dL/dy`` is drawn (`onnxprune.gradient.seeds`), and what it
gives for each tensor ``a`` that is asked for is reduced by the caller's nodes: ``reduce(dL/da)``, such as its sum over
positions, or its second moment, the ``G`` of K-FAC's ``A (x) G``.

References
----------
Martens, Grosse, arXiv 1503.05671, equation 1; for convolutions Grosse, Martens, arXiv 1602.01407, equation 35.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.errors import CalibrationError
from onnxprune.gradient.build import Reduce, Wanted, differentiable_output, gradient_model
from onnxprune.gradient.floats import in_floats
from onnxprune.gradient.seeds import Seeds
from onnxprune.gradient.tape import NoGradient
from onnxprune.graph.analysis import Analysis

__all__ = ["reduced"]

Array = NDArray[Any]
Matrix = NDArray[np.float64]
#: Samples whose outputs are looked at for what the output is.
FIRST = 256


def reduced(
    analysis: Analysis,
    samples: Samples,
    wanted: Sequence[Wanted],
    reduce: Reduce,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    seeds: Seeds | None = None,
) -> Iterator[dict[Wanted, Matrix]]:
    """Yield what gradients are reduced to, batch by batch.

    Parameters
    ----------
    analysis : Analysis
    samples : Samples
    wanted : sequence
        Tensors, or edges of the graph, see `gradient_model`.
    reduce : callable
        (tape, what was wanted, gradient) -> the tensor that is given out, see `gradient_model`.
    seed : int
        Of the draws: the same seed and samples give the same bits.
    say : callable, optional
        Told of progress.
    seeds : Seeds, optional
        Draws the gradients of the output, where what that is needs no look at it; ``seed`` isn't used then.

    Yields
    ------
    dict
        What was wanted -> float64 of the shape that `reduce` gives; zero for what doesn't reach the output.

    Raises
    ------
    CalibrationError
        If an op on the way has no gradient, the model fails on the samples, or a gradient isn't finite.
    """
    analysis, samples = in_floats(analysis, samples)
    output = differentiable_output(analysis)
    try:
        extended = gradient_model(analysis, wanted, output, reduce)
    except NoGradient as error:
        raise CalibrationError(f"The gradients fail on the samples: {error}.") from error
    outputs = (np.asarray(values[output]) for values in stream_of(analysis.model, samples).each([output]))
    first = [] if seeds is not None else _first(outputs, samples.counts)
    drawn = Seeds.of(first, seed) if seeds is None else seeds

    def seeded() -> Iterator[dict[str, Array]]:
        for number, y in enumerate(chain(first, outputs), 1):
            if say is not None:
                say(f"gradients {number}/{len(samples.batches)}")
            yield {extended.seed: drawn.draw(y)}

    backward = stream_of(extended.model, samples, what="The model's gradient")
    for values in backward.each(beside=seeded()):
        gradients = {name: np.asarray(values[made], np.float64) for name, made in extended.gradients.items()}
        if not all(np.isfinite(gradient).all() for gradient in gradients.values()):
            raise CalibrationError(
                "A gradient is NaN or infinite on the samples; look for broken samples, or use a criterion that needs "
                "no gradients."
            )
        yield gradients


def _first(outputs: Iterator[Array], counts: Sequence[int]) -> list[Array]:
    """Take the outputs of the first batches."""
    taken, seen = [], 0
    for count in counts:
        taken.append(next(outputs))
        seen += count
        if seen >= FIRST:
            break
    return taken
