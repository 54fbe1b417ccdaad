"""Inputs that the user gives to verify on, as runs of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx

from onnxprune.calibration.feeds import parts
from onnxprune.calibration.given import Feed, InOrder, by_name, each, told, typed
from onnxprune.calibration.samples import read_path
from onnxprune.errors import CalibrationError, did_you_mean
from onnxprune.runtime.binding import declared, real_inputs
from onnxprune.wall import board as wall

__all__ = ["MOST", "feeds"]

Inputs = Mapping[str, onnx.ValueInfoProto]

#: No more runs than this are made of what is given.
MOST = 16


def feeds(graph: onnx.GraphProto, given: Any) -> list[Feed]:
    """Bring given inputs into the form that onnxruntime takes.

    Parameters
    ----------
    graph : GraphProto
        Whose inputs they are for.
    given : path, dict, array, iterable of these, reader, or function that returns one
        All that samples may be (`onnxprune.calibration.samples`), and lists of arrays for inputs that are sequences.
        Arrays of many runs, with an axis in front or several times the model's own batch, are cut into runs; those of
        a batch of any size are one run.

    Raises
    ------
    CalibrationError
        If names, ranks or sizes don't fit the model, or a file can't be read.
    """
    if given is None:
        return []
    inputs = {v.name: v for v in real_inputs(graph)}
    runs: list[Feed] = []
    for feed in each(given, lambda path: read_path(path, 0, _admits(inputs), "inputs"), "Inputs"):
        feed = feed.named(inputs) if isinstance(feed, InOrder) else by_name(inputs, feed)
        _check_names(inputs, feed)
        _check_values(feed)
        wall.grow(inputs=sum(a.nbytes for a in feed.values() if isinstance(a, np.ndarray)))
        feed = {name: _form(value, feed[name]) for name, value in inputs.items()}
        runs += islice(_runs(inputs, feed), MOST - len(runs))
        if len(runs) >= MOST:
            break
    if not runs:
        raise CalibrationError(
            "The given inputs are empty; give at least one array for each input of the model."
        )
    return runs


def _admits(inputs: Inputs) -> Any:
    """Return what refuses names of arrays before they are read."""
    numbered = {f"input_{i}" for i in range(len(inputs))}
    return lambda names: None if set(names) == numbered else _check_known(inputs, names)


def _check_known(inputs: Inputs, names: Collection[str]) -> None:
    unknown, missing = [n for n in names if n not in inputs], [n for n in inputs if n not in names]
    if missing or unknown:
        what = told(missing, unknown)
        hint = did_you_mean(unknown[0], missing or inputs) if unknown else ""
        raise CalibrationError(f"The given inputs {what}; the model's inputs are {', '.join(inputs)}.{hint}")


def _check_names(inputs: Inputs, feed: Feed) -> None:
    _check_known(inputs, feed)
    for name, array in feed.items():
        axes = declared(inputs[name])
        if (
            axes is not None
            and isinstance(array, np.ndarray)
            and array.ndim not in (len(axes), len(axes) + 1)
        ):
            shape = ",".join(map(str, axes))
            raise CalibrationError(
                f"The given input {name!r} has {array.ndim} axes, but the model's has ({shape})."
            )


def _form(value: onnx.ValueInfoProto, given: Any) -> Any:
    """Return what onnxruntime takes, and refuse texts for numbers and numbers for texts."""
    if not value.type.HasField("tensor_type") or not isinstance(given, np.ndarray):
        return given
    elem = value.type.tensor_type.elem_type
    array = typed(given, elem)
    text = array.dtype == object and all(isinstance(entry, str) for entry in array.ravel())
    if (elem == onnx.TensorProto.STRING) != text or array.dtype.kind in "USV":
        known = onnx.TensorProto.DataType.Name(elem).lower()
        raise CalibrationError(
            f"The given input {value.name!r} is {given.dtype}, but the model's is {known}; convert it."
        )
    return array


def _check_values(feed: Feed) -> None:
    """Refuse inputs of which no value is a number: whatever a model makes of them, it says nothing."""
    for name, array in feed.items():
        real = isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size
        if real and not np.isfinite(array).any():
            raise CalibrationError(
                f"The given input {name!r} has no finite value, so nothing can be verified on it; give real inputs."
            )


def _runs(inputs: Inputs, feed: Feed) -> Iterator[Feed]:
    """Cut arrays of many runs; sequences and absent values are of one."""
    if not all(isinstance(array, np.ndarray) for array in feed.values()):
        yield feed
        return
    for run, _ in parts(inputs, feed, None, 0, None, None):
        yield run
