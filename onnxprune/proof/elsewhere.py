"""Compare two models that should compute the same, at the bound sizes of the dynamic axes and at others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.proof.branches import MOST, choices, decided
from onnxprune.proof.compare import Difference, worst
from onnxprune.proof.interior import compare_any, steps
from onnxprune.proof.sizes import SizeTrials
from onnxprune.runtime.binding import Shape
from onnxprune.runtime.session import Feeds, RunError, open_session

__all__ = ["apart", "resized"]


def apart(
    analysis: Analysis, one: Model, other: Model, feeds: Callable[[Mapping[str, Shape]], Feeds],
    differ: Callable[[Any, Any, float], Difference] = compare_any,
) -> tuple[float, str]:  # fmt: skip
    """Return the greatest relative difference of two models' outputs, and at which sizes it is.

    Parameters
    ----------
    analysis : Analysis
        Of the first.
    one, other : Model
    feeds : callable
        Makes inputs of these shapes.
    differ : callable
        (an output of the first, the same of the second, what it may differ by besides) -> how far they are apart.

    Raises
    ------
    RunError
        If the first can't be run at the bound sizes, or the second where the first can.
    """
    sessions = [open_session(model) for model in (one, other)]
    own = steps(a.node for a in analysis.coupling.nodes)
    greatest, where = 0.0, ""

    def attempt(shapes: Mapping[str, Shape], sizes: Mapping[str, int]) -> str:
        nonlocal greatest, where
        given = feeds(shapes)
        try:
            want = sessions[0].run(given)
        except RunError as reason:
            return str(reason)
        have = sessions[1].run(given)
        error = worst(differ(want[name], have[name], own.get(name, 0.0)) for name in want).error
        if not error <= greatest:
            greatest, where = error, ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        return ""

    sizes = SizeTrials(analysis, attempt)
    why = attempt(analysis.inputs, sizes.bound)
    if why:
        raise RunError(why)
    sizes.run()
    for together in choices(one)[:MOST]:
        choice = {name: then for wanted in together for name, then in wanted.items()}
        sessions = [open_session(decided(model, choice)) for model in (one, other)]
        attempt(analysis.inputs, sizes.bound)  # branches that contradict each other don't run
    return greatest, where


def resized(feeds: Feeds, shapes: Mapping[str, Shape]) -> Feeds:
    """Return inputs of other shapes made of given ones: cut off, or said again from the beginning."""
    arrays = {}
    for name, array in feeds.items():
        for axis, size in enumerate(shapes[name]):
            array = np.take(array, np.arange(size), axis=axis, mode="wrap")
        arrays[name] = array
    return arrays
