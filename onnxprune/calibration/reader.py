"""Samples for onnxruntime's own quantiser, which asks for them batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from onnxprune.calibration.samples import Samples, load_samples
from onnxprune.files.foreign import Source
from onnxprune.model import Model

__all__ = ["SampleReader", "reader"]


class SampleReader:
    """A ``CalibrationDataReader`` of onnxruntime: ``get_next`` gives a batch, and None after the last.

    Parameters
    ----------
    graph : GraphProto
        Whose inputs they are for.
    given : path, text, dict, iterable of dicts, or reader
        See `onnxprune.calibration.samples`.
    samples : int, optional
        The most that are used.
    seed : int
        Of a random choice.
    labels : str, optional
        Key of an array of labels beside the inputs, which no model takes.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        given: Any,
        samples: int | None = None,
        seed: int = 0,
        labels: str | None = None,
    ) -> None:
        self.loaded: Samples = load_samples(graph, given, most=samples, seed=seed, labels=labels).cut_into(1)
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch; None where there is none."""
        return next(self._batches, None)

    def rewind(self) -> None:
        """Begin again."""
        self._batches: Iterator[dict[str, Any]] = iter(self.loaded.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield what is left."""
        return self._batches

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.loaded.batches)


def reader(
    source: Source | Model,
    calib: Any,
    *,
    samples: int | None = None,
    seed: int = 0,
    labels: str | None = None,
) -> SampleReader:
    """Return samples in the form that onnxruntime's quantiser takes: a ``CalibrationDataReader``.

    Parameters
    ----------
    source : path, ModelProto or Model
        Whose inputs they are for.
    calib : path, dict, iterable of dicts, or reader
        As for `prune`.
    samples : int, optional
        The most that are used.
    seed : int
        Of a random choice.
    labels : str, optional
        Key of an array of labels beside the inputs, which is left out.

    Raises
    ------
    CalibrationError
        If they can't be read, or don't fit the model.
    """
    return SampleReader(Model.load(source).proto.graph, calib, samples, seed, labels)
