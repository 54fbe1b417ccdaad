"""Samples for several models: given to each by its name, or of one source, where each finds its own inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnxprune.calibration.given import InOrder, Picked, each, source_of
from onnxprune.calibration.reading import bounded
from onnxprune.calibration.samples import is_synthetic, read_path
from onnxprune.errors import CalibrationError, did_you_mean
from onnxprune.runtime.binding import real_inputs

__all__ = ["dealt"]


def dealt(
    given: Any,
    graphs: Mapping[str, onnx.GraphProto],
    *,
    most: int | None = None,
    seed: int = 0,
    labels: str | None = None,
) -> dict[str, Any]:
    """Return the samples of each model that has some.

    Parameters
    ----------
    given : object
        By name: a mapping from models to samples of any form, texts ``NAME=SAMPLES``, or a folder in which files or
        folders are called like the models, as in ``encoder_model.npz``. Of one source: all else that gives arrays
        with names; a model whose inputs are all among them gets these. Synthetic samples are made up for each.
    graphs : mapping
        Name of each model, its file in the folder -> its graph.
    most, seed, labels
        As for `onnxprune.calibration.samples.load_samples`.

    Raises
    ------
    CalibrationError
        If a name is that of no model, or no model finds its inputs.
    """
    if is_synthetic(given):
        return dict.fromkeys(graphs, given)
    known = _names(graphs)
    for way in (_by_mapping, _by_texts, _by_folder):
        named = way(given, known)
        if named:
            return {known[name]: samples for name, samples in named.items()}
    return _found(given, graphs, most, seed, labels)


def _names(models: Iterable[str]) -> dict[str, str]:
    """Return what models may be called -> their files: whole, without the suffix, or a part that no other has."""
    names: dict[str, str | None] = {}
    for model in models:
        path = Path(model)
        parts = {path.stem, *(part for part in path.parts[:-1])}
        for name in parts:
            names[name] = None if name in names else model
    whole = {name: model for model in models for name in (model, Path(model).with_suffix("").as_posix())}
    return {name: model for name, model in names.items() if model is not None} | whole


def _by_mapping(given: Any, known: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not any(name in known for name in given):
        return {}
    return {_checked(str(name), known): samples for name, samples in given.items()}


def _by_texts(given: Any, known: Mapping[str, str]) -> dict[str, Any]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        return {}
    pairs = [text.partition("=") for text in texts]
    if len(pairs) == 1 and (pairs[0][0] not in known) and (not pairs[0][1] or Path(texts[0]).exists()):
        return {}  # a path, or a script and its function
    named: dict[str, Any] = {}
    for text, (name, equals, samples) in zip(texts, pairs, strict=True):
        if not equals or not samples:
            raise CalibrationError(f"Several --calib are each MODEL=SAMPLES; got {text!r}.")
        if _checked(name, known) in named:
            raise CalibrationError(f"--calib {name}=... is there twice; give each model its samples once.")
        named[name] = samples
    return named


def _checked(name: str, known: Mapping[str, str]) -> str:
    if name not in known:
        raise CalibrationError(
            f"--calib names {name!r}, but the folder's models are {', '.join(sorted({*known.values()}))}."
            f"{did_you_mean(name, known)}"
        )
    return name


def _by_folder(given: Any, known: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(given, (str, os.PathLike)) or not Path(given).is_dir():
        return {}
    named: dict[str, tuple[str, str]] = {}
    for name in sorted(
        known, key=lambda name: (-len(name), name)
    ):  # the whole name tells more than a part of it
        for path in (Path(given) / f"{name}.npz", Path(given) / name):
            if path.exists() and known[name] not in named:
                named[known[name]] = name, str(path)
    return dict(named.values())


def _found(
    given: Any, graphs: Mapping[str, onnx.GraphProto], most: int | None, seed: int, labels: str | None
) -> dict[str, Any]:
    """Return samples of one source by the names of their arrays."""
    feeds = list(bounded(each(given, lambda path: read_path(path, seed, _admit), "Samples"), most))
    if any(isinstance(feed, InOrder) for feed in feeds):
        raise CalibrationError(
            f"Arrays without names can't tell which of {', '.join(graphs)} they are for; give them by name, as in "
            "--calib MODEL=SAMPLES."
        )
    keys = {key for feed in feeds for key in feed}
    shares: dict[str, Any] = {}
    missing: dict[str, list[str]] = {}
    for model, graph in graphs.items():
        inputs = [value.name for value in real_inputs(graph)]
        missing[model] = [name for name in inputs if name not in keys]
        if not missing[model]:
            own = {*inputs, labels}
            picked = [{key: array for key, array in feed.items() if key in own} for feed in feeds]
            shares[model] = Picked([feed for feed in picked if feed], source_of(given))
    if not shares:
        lacks = "; ".join(f"{model} lacks {', '.join(names)}" for model, names in missing.items())
        raise CalibrationError(
            f"The samples have {', '.join(sorted(keys)) or 'no arrays'}, which are the inputs of no model in the "
            f"folder: {lacks}. Give each its own, as in --calib MODEL=SAMPLES."
        )
    return shares


def _admit(names: list[str]) -> None:
    """Let any array in: which model it is for is seen when all are read."""
