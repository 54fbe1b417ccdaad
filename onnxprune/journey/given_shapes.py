"""Sizes of dynamic axes from what the user gives anyway, where no guess fits the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx

from onnxprune.calibration.feeds import taken
from onnxprune.calibration.inputs import feeds
from onnxprune.calibration.samples import is_synthetic, load_samples
from onnxprune.errors import ModelError
from onnxprune.journey.run import Run
from onnxprune.runtime.binding import Shape

__all__ = ["bound"]

_T = TypeVar("_T")

#: Samples of a batch, where the model leaves it free.
FEW = 2


def bound(run: Run[Any], analyse: Callable[[Mapping[str, Shape]], _T]) -> _T:
    """Analyse a model with the sizes that the user says, then with guesses, then with those of inputs or samples.

    Parameters
    ----------
    run : Run
        Its options get the shapes with which it worked, if they are those of the samples, and its notes say so.
    analyse : callable
        Takes input shapes.

    Raises
    ------
    ModelError
        If the shapes of the graph don't agree with any of them.
    """
    options = run.options
    try:
        return analyse(options.input_shapes)
    except ModelError:
        shapes = {} if options.input_shapes else _shapes(run.model.proto.graph, options)
        if not shapes:
            raise
        result = analyse(shapes)
    run.options = dataclasses.replace(options, input_shapes=shapes)
    run.notes.append(
        "dynamic axes have the sizes that the samples have: none that were guessed fit the graph"
    )
    return result


def _shapes(graph: onnx.GraphProto, options: Any) -> dict[str, Shape]:
    """Return the shapes of the first of the given inputs, or else samples; none of what can be read but once."""
    given, calib = getattr(options, "inputs", None), options.calib
    if given is not None and not isinstance(given, Iterator) and not hasattr(given, "get_next"):
        return _sizes(feeds(graph, given)[0])
    if calib is None or isinstance(calib, Iterator) or is_synthetic(calib) or hasattr(calib, "get_next"):
        return {}
    samples = load_samples(graph, calib, labels=options.labels)
    first = samples.batches[0]
    return _sizes(taken(first, slice(FEW), samples.along) if samples.along else first)


def _sizes(feed: Mapping[str, Any]) -> dict[str, Shape]:
    if not all(isinstance(a, np.ndarray) and a.size for a in feed.values()):
        return {}
    return {name: a.shape for name, a in feed.items()}
