"""Samples as they come from a user's own code, whatever that does.

A script may end the process, fail, or change the folder; a reader may have no end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import CalibrationError, did_you_mean
from onnxprune.files.arrays import SHARE
from onnxprune.wall import board as wall

__all__ = ["admits", "bounded", "call", "name_hint", "refuse_key"]

Feed = dict[str, Any]

#: Samples that a reader may give one by one where nobody said how many are wanted.
MOST = 20_000


def admits(inputs: Mapping[str, onnx.ValueInfoProto], labels: str | None) -> Callable[[list[str]], None]:
    """Return what refuses names of arrays before they are read."""
    known = {*inputs, *(f"input_{i}" for i in range(len(inputs))), labels}

    def admit(names: list[str]) -> None:
        unknown = [name for name in names if name not in known]
        if unknown:
            if labels:
                refuse_key(labels, names, inputs)
            raise CalibrationError(
                f"The samples have {unknown[0]!r}, which is no input of the model; the model's inputs are "
                f"{', '.join(inputs)}.{name_hint(unknown[0], inputs)}"
            )

    return admit


def refuse_key(labels: str, names: list[str], inputs: Collection[str]) -> None:
    """Refuse a key of labels that isn't there where another array is no input, which may be what is meant.

    Raises
    ------
    CalibrationError
    """
    others = [name for name in names if name not in inputs]
    if others and labels not in names:
        raise CalibrationError(
            f"The samples have no array {labels!r} of labels, as --labels names it, but {', '.join(map(repr, others))}"
            f", which is no input of the model.{did_you_mean(labels, others)}"
        )


def name_hint(unknown: str, inputs: Collection[str]) -> str:
    """Return what to do about an array that is no input: the name that was meant, or how to give it one."""
    meant = did_you_mean(unknown, inputs)
    if meant or not inputs:
        return meant
    name = next(iter(inputs))
    way = f"np.savez('samples.npz', {name}=array)" if name.isidentifier() else f"{{{name!r}: array}}"
    return f" Save it under such a name, as in {way}; labels are named with --labels."


def bounded(feeds: Iterator[Feed], most: int | None) -> Iterator[Feed]:
    """Yield what a reader gives, as long as it fits the memory and may end."""
    total = count = 0
    with wall.stage("Reading the samples", times=1e9, code=CalibrationError.exit_code):  # the user's own time
        for feed in feeds:
            count += 1
            total += sum(a.nbytes if isinstance(a, np.ndarray) else 0 for a in feed.values())
            if total > wall.allowed() * SHARE or (most is None and count > MOST):
                raise CalibrationError(
                    f"The samples don't end: {count:,} were read, {total / 1e6:,.0f} MB of them; say with --samples "
                    "how many shall be used."
                )
            yield feed


def call(script: Path, name: str) -> Any:
    """Return what a function of a script returns; readers and iterators are read in the folder that we are in.

    Raises
    ------
    CalibrationError
        If there is no such function, or it fails or ends the process.
    """
    spec = importlib.util.spec_from_file_location(f"onnxprune_samples_{script.stem}", script)
    if spec is None or spec.loader is None or not script.is_file():
        raise CalibrationError(f"There is no script {str(script)!r} to take samples from.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with _steady(script, name):
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise CalibrationError(f"{str(script)!r} has no function {name}() to take samples from.")
        given = getattr(module, name)
        given = given() if callable(given) else given
    if (
        hasattr(given, "__getitem__")
        and hasattr(given, "__len__")
        and _is_one(given)
        and not _is_array(given)
    ):
        given = map(given.__getitem__, range(len(given)))  # a data set is read as a reader is
    plain = given is None or isinstance(given, (str, os.PathLike, Mapping, list, tuple)) or _is_one(given)
    return given if plain else _read(given, script, name)


def _is_one(given: Any) -> bool:
    """Whether it is no reader: an array, a tensor, a data set or a function."""
    return _is_array(given) or not (hasattr(given, "get_next") or hasattr(given, "__iter__"))


def _is_array(given: Any) -> bool:
    return hasattr(given, "__array__")


@contextlib.contextmanager
def _steady(script: Path, name: str) -> Iterator[None]:
    """Let a script import what lies beside it, and leave the folder and the paths as they were."""
    here, beside = os.getcwd(), str(script.parent.absolute())
    sys.path.insert(0, beside)
    try:
        yield
    except CalibrationError:
        raise
    except (Exception, SystemExit) as error:  # anything can go wrong in a user's script
        raise CalibrationError(f"{str(script)!r} gives no samples: {name}() fails with {error!r}.") from error
    finally:
        os.chdir(here)
        if beside in sys.path:
            sys.path.remove(beside)


def _read(reader: Any, script: Path, name: str) -> Iterator[Any]:
    with _steady(script, name):
        entries = iter(reader.get_next, None) if hasattr(reader, "get_next") else iter(reader)
    while True:
        with _steady(script, name):
            try:
                entry = next(entries)
            except StopIteration:
                return
        yield entry
