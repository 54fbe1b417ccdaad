"""Inputs that the user gives, as dictionaries that fit the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError
from onnxprune.graph.binding import declared, real_inputs

__all__ = ["MOST", "each", "feeds"]

#: No more feeds than this are made of one file.
MOST = 16

Feed = dict[str, NDArray[Any]]


def feeds(graph: onnx.GraphProto, given: Any) -> list[Feed]:
    """Bring given inputs into the form that onnxruntime takes.

    Parameters
    ----------
    graph : GraphProto
        Whose inputs they are for.
    given : path, dict, iterable of dicts, or reader
        A path leads to an ``.npz`` file or a folder of ``.npy`` files, one array for each input; arrays that
        hold several times the model's fixed batch are split into batches. A reader has ``get_next()``, as
        onnxruntime's ``CalibrationDataReader``.

    Raises
    ------
    CalibrationError
        If names, ranks or sizes don't fit the model, or a file can't be read.
    """
    if given is None:
        return []
    axes = {v.name: declared(v) for v in real_inputs(graph)}
    found: list[Feed] = []
    for feed in each(given, lambda path: [_read(Path(path))], "Inputs"):
        _check_names(axes, feed)
        found += _batches(axes, feed)
        if len(found) >= MOST:
            break
    if not found:
        raise CalibrationError(
            "The given inputs are empty; give at least one array for each input of the model."
        )
    return found[:MOST]


def each(given: Any, read: Callable[[str], Iterable[Feed]], what: str) -> Iterator[Feed]:
    """Yield one dictionary of arrays after the other from whatever people hold them in.

    Parameters
    ----------
    given : path, mapping, object with ``get_next()`` or iterable of mappings
    read : callable
        What reads a path.
    what : str
        What they are called in an error.

    Raises
    ------
    CalibrationError
        If it is none of these.
    """
    if isinstance(given, (str, os.PathLike)):
        yield from read(str(given))
    elif isinstance(given, Mapping):
        yield {str(n): np.asarray(a) for n, a in given.items()}
    elif hasattr(given, "get_next"):
        while (feed := given.get_next()) is not None:
            yield {str(n): np.asarray(a) for n, a in feed.items()}
    elif isinstance(given, Iterable):
        for feed in given:
            if not isinstance(feed, Mapping):
                raise CalibrationError(f"{what} must be dictionaries of arrays; got a {type(feed).__name__}.")
            yield {str(n): np.asarray(a) for n, a in feed.items()}
    else:
        raise CalibrationError(
            f"{what} can't be read from a {type(given).__name__}; give a path or dictionaries of arrays."
        )


def _read(path: Path) -> Feed:
    try:
        if path.is_dir():
            return {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise CalibrationError(
                f"{str(path)!r} holds one array without a name; give an .npz with one array for each input."
            )
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(
            f"{str(path)!r} can't be read as inputs: {error}; give an .npz file of arrays."
        ) from error


def _check_names(axes: Mapping[str, Any], feed: Feed) -> None:
    missing, unknown = [n for n in axes if n not in feed], [n for n in feed if n not in axes]
    if missing or unknown:
        what = f"lack {missing[0]!r}" if missing else f"have {unknown[0]!r}, which is no input of the model"
        raise CalibrationError(f"The given inputs {what}; the model's inputs are {', '.join(axes)}.")
    for name, array in feed.items():
        if axes[name] is not None and array.ndim != len(axes[name]):
            shape = ",".join(map(str, axes[name]))
            raise CalibrationError(
                f"The given input {name!r} has {array.ndim} axes, but the model's has ({shape})."
            )


def _batches(axes: Mapping[str, Any], feed: Feed) -> list[Feed]:
    """Split arrays that hold several batches of a fixed size."""
    batch = {n: a[0] for n, a in axes.items() if a and isinstance(a[0], int)}
    counts = {feed[n].shape[0] / size for n, size in batch.items()}
    count = counts.pop() if len(counts) == 1 and len(batch) == len(axes) else 1.0
    parts = [feed]
    if count > 1 and count == int(count):
        parts = [
            {n: a[k * batch[n] : (k + 1) * batch[n]] for n, a in feed.items()}
            for k in range(min(int(count), MOST))
        ]
    for part in parts:
        for name, array in part.items():
            for at, axis in enumerate(axes[name] or ()):
                if isinstance(axis, int) and array.shape[at] != axis:
                    shape = ",".join(map(str, axes[name]))
                    raise CalibrationError(
                        f"The given input {name!r} has the shape {array.shape}, "
                        f"but the model's has ({shape})."
                    )
    return parts
