"""Calibration samples in every form that people have them, checked against the model's inputs.

Forms: an ``.npz`` file; a folder of ``.npy`` files, one for each input; a folder of ``test_data_set_N`` with
``input_K.pb``; ``script.py:load_data``, a function that returns any of the other forms; a reader with ``get_next()``
(onnxruntime's ``CalibrationDataReader``); one dictionary of arrays; an array or tensor, or a tuple of them in the order
of the inputs, with labels after them; an iterable of any of these, such as a ``DataLoader`` of ``(x, y)``; a function
that returns one; ``"synthetic"``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.calibration.feeds import (
    Along,
    check,
    count_of,
    counted_axes,
    joined,
    lie_first,
    parts,
    sample_axes,
    taken,
)
from onnxprune.calibration.given import InOrder, by_name, each, source_of
from onnxprune.calibration.labels import classes_of, numbers
from onnxprune.calibration.reading import admits, bounded, call, refuse_key
from onnxprune.calibration.synthetic import synthetic
from onnxprune.errors import CalibrationError, many
from onnxprune.files.arrays import read_folder, read_npz, read_tensor, reading
from onnxprune.runtime.binding import real_inputs
from onnxprune.runtime.session import CPU, provider_of
from onnxprune.wall import board as wall

__all__ = ["ASIDE", "Asked", "Samples", "is_synthetic", "load_samples", "read_path", "samples_for"]

_log = logging.getLogger("onnxprune.calibration")

Array = NDArray[Any]
Batch = dict[str, Array]
#: Samples that a fit needs, since a fifth is held out of it.
LEAST = 5
#: Share of the samples that no fit sees, for the figures of the whole model; and from how many samples on.
ASIDE, FROM = 0.1, 20


@dataclass
class Samples:
    """Batches that a model takes.

    Attributes
    ----------
    batches : list of dict
    counts : list of int
        Samples in each batch.
    labels : array or None
        One for each sample, where a key for them was named.
    source : str
        Where they come from, for people.
    along : mapping or None
        Input -> the axis along which its samples lie; None where the model doesn't take batches of any size.
    provider : str
        onnxruntime's name of the execution provider that runs them.
    judges : int or None
        Only the first so many judge what is made of them; None: all.
    """

    batches: list[Batch]
    counts: list[int]
    labels: Array | None = None
    source: str = ""
    along: Along | None = None
    provider: str = CPU
    judges: int | None = None

    @property
    def free(self) -> bool:
        """Whether batches may have any size, and samples lie along axis 0 of all inputs."""
        return self.along is not None and not any(self.along.values())

    @property
    def valid(self) -> list[Array | None]:
        """For each batch the mask of its sequences, bool[batch, sequence], false for padding; None without one.

        It is an input of integers or booleans whose name says so, such as ``attention_mask``, of nothing but 0 and 1.
        """
        return [_mask(batch) for batch in self.batches]

    @property
    def count(self) -> int:
        """Samples in all."""
        return sum(self.counts)

    @property
    def _can_be_cut(self) -> bool:
        """Whether all inputs have their samples along their axis, but for numbers that serve all of them."""
        along, pairs = self.along, zip(self.batches, self.counts, strict=True)
        return along is not None and all(
            not a.ndim or a.shape[along[name]] == n for b, n in pairs for name, a in b.items()
        )

    def taken(self, take: Callable[[Batch], Batch]) -> Samples:
        """Return the samples with another form of each batch, such as what is left of inputs that were cut."""
        return replace(self, batches=[take(batch) for batch in self.batches])

    def some(self, first: int, stop: int) -> Samples:
        """Return some of the batches, without labels."""
        return replace(self, batches=self.batches[first:stop], counts=self.counts[first:stop], labels=None)

    def first(self, most: int | None) -> Samples:
        """Return the first batches that hold no more than so many samples, without labels; all where it is None."""
        if most is None:
            return self
        return self.some(0, int(np.searchsorted(np.cumsum(self.counts), most, side="right")))

    def few(self, most: int) -> Samples:
        """Return a few samples, about so many at most, spread over all."""
        if self.count <= most:
            return self
        aside = self._aside(1 - most / self.count)
        return self._picked(~aside) if aside.any() else self

    def beside(self, more: Samples) -> Samples:
        """Return these and others behind them, without labels; these alone judge."""
        batches, counts = self.batches + more.batches, self.counts + more.counts
        return replace(self, batches=batches, counts=counts, labels=None, judges=self.count)

    def cut_into(self, size: int) -> Samples:
        """Return the same samples in batches of at most this size, where the model leaves it free."""
        pairs = list(zip(self.batches, self.counts, strict=True))
        if not self._can_be_cut:
            return self
        parts = [
            (taken(b, slice(i, i + size), self.along), min(size, c - i))
            for b, c in pairs
            for i in range(0, c, size)
        ]
        return replace(self, batches=[b for b, _ in parts], counts=[c for _, c in parts])

    def set_aside(self) -> tuple[Samples, Samples | None]:
        """Return the samples to fit on, and those that no fit sees.

        Returns
        -------
        tuple of Samples, and Samples or None
            None where there are too few to set any aside.

        Raises
        ------
        CalibrationError
            If there are too few to fit on.
        """
        if self.count < LEAST:
            raise CalibrationError(
                f"There {'is' if self.count == 1 else 'are'} {many(self.count, 'sample')} only; a fifth is held out of "
                f"every fit, so give {LEAST} at least."
            )
        return self.split(ASIDE) if self.count >= FROM else (self, None)

    def split(self, share: float) -> tuple[Samples, Samples | None]:
        """Set samples aside, about this share, spread over all: sets are often sorted, by class, length or time.

        Whole batches where the model fixes their size.

        Returns
        -------
        tuple of Samples, and Samples or None
            None where there are too few to set any aside.
        """
        aside = self._aside(share)
        return (self._picked(~aside), self._picked(aside)) if aside.any() else (self, None)

    def _aside(self, share: float) -> NDArray[np.bool_]:
        """Return which samples `split` sets aside."""
        wanted = max(round(share * self.count), 1)
        return self._spread(wanted) if self._can_be_cut and wanted < self.count else self._whole(wanted)

    def _spread(self, wanted: int) -> NDArray[np.bool_]:
        """Return which samples are so many, evenly spread."""
        which = np.zeros(self.count, np.bool_)
        which[((np.arange(wanted) + 0.5) * self.count / wanted).astype(np.int64)] = True
        return which

    def _whole(self, wanted: int) -> NDArray[np.bool_]:
        """Return the samples of whole batches, evenly spread, that are so many at most and not all there are."""
        number = len(self.batches)
        most = min(max(int(wanted * number / self.count), 1), number - 1)
        chosen, left = np.zeros(number, np.bool_), wanted
        for place in ((np.arange(most) + 0.5) * number / max(most, 1)).astype(np.int64):
            if self.counts[place] <= left:
                chosen[place], left = True, left - self.counts[place]
        return np.repeat(chosen, self.counts)

    def _picked(self, which: NDArray[np.bool_]) -> Samples:
        """Return some samples, in batches about as large; those that are whole are not copied."""
        batches, counts = [], []
        for batch, part in zip(self.batches, np.split(which, np.cumsum(self.counts)[:-1]), strict=True):
            if part.any():
                batches.append(batch if part.all() else taken(batch, part, self.along))
                counts.append(int(part.sum()))
        if (
            self.along is not None and self._can_be_cut
        ):  # a run, and a sum, costs more than its samples if they are few
            batches, counts = joined(batches, counts, max(self.counts), self.along)
        return replace(
            self, batches=batches, counts=counts, labels=None if self.labels is None else self.labels[which]
        )


class Asked(Protocol):
    """Options that say which samples."""

    @property
    def calib(self) -> Any:
        """Where they are, or they themselves."""

    @property
    def samples(self) -> int | None:
        """The most that are used."""

    @property
    def seed(self) -> int:
        """Of a random choice."""

    @property
    def labels(self) -> str | None:
        """The key of true labels."""

    @property
    def calib_provider(self) -> str:
        """The execution provider that runs them."""


def samples_for(graph: onnx.GraphProto, asked: Asked, types: Mapping[str, tuple[int, ...]]) -> Samples:
    """Read the samples that options ask for; see `load_samples`."""
    provider = provider_of(asked.calib_provider, "--calib-provider")
    samples = load_samples(
        graph, asked.calib, most=asked.samples, seed=asked.seed, labels=asked.labels, types=types
    )
    return replace(samples, provider=provider)


def is_synthetic(given: Any) -> bool:
    """Whether samples are to be made up."""
    return isinstance(given, str) and given == "synthetic"


def load_samples(
    graph: onnx.GraphProto,
    given: Any,
    *,
    most: int | None = None,
    seed: int = 0,
    labels: str | None = None,
    types: Mapping[str, tuple[int, ...]] | None = None,
) -> Samples:
    """Read samples and cut them into batches.

    Parameters
    ----------
    graph : GraphProto
        Whose inputs they are for.
    given : path, text, dict, iterable of dicts, or reader
        See the module.
    most : int, optional
        Samples that are used at most; of a file with more, a random choice.
    seed : int
        Of that choice, and of synthetic samples.
    labels : str, optional
        Key of an array of labels beside the inputs.
    types : mapping, optional
        Input -> shape, for synthetic samples of inputs with dynamic axes.

    Raises
    ------
    CalibrationError
        If they can't be read, or a name, a rank, a size or a type doesn't fit the model.
    """
    if isinstance(given, list) and given and all(isinstance(one, str) and "=" in one for one in given):
        raise CalibrationError(
            f"--calib is given {len(given)} times, for the models of a folder, and this is one model; give it once."
        )
    source = source_of(given)
    if is_synthetic(given):
        given = synthetic(graph, types or {}, most or 256, seed)
    inputs = {v.name: v for v in real_inputs(graph)}
    along, counted = sample_axes(inputs, graph.output), counted_axes(inputs, graph.output)
    cut = along if counted else counted  # nothing to cut along where a run has no batch
    batches: list[Batch] = []
    marks: list[Array] = []
    counts: list[int] = []
    count = 0
    wall.grow(samples=1)
    admit = admits(inputs, labels)
    for feed in bounded(each(given, lambda path: read_path(path, seed, admit), "Samples"), most):
        feed = feed.named(inputs, labels) if isinstance(feed, InOrder) else feed
        mark = None
        if labels and labels in feed:
            mark = classes_of(numbers(feed.pop(labels), labels), labels, graph.output)
        feed = by_name(inputs, feed)
        if labels and mark is None:
            refuse_key(labels, list(feed), inputs)
        check(inputs, feed)
        for batch, label in list(
            parts(inputs, feed, None if most is None else most - count, seed, mark, cut)
        ):
            batches.append(batch)
            # where it isn't known along which axes they lie the labels alone say how many there are
            unknown = along is None and (counted == {} or not lie_first(inputs))
            counts.append(len(label) if label is not None and unknown else count_of(batch, counted))
            count += counts[-1]
            if label is not None:
                marks.append(label)
        if most is not None and count >= most:
            break
    if not batches:
        raise CalibrationError("There are no calibration samples; give at least one array for each input.")
    if labels and not marks:
        raise CalibrationError(
            f"The samples have no array {labels!r} of labels; name the key that holds them."
        )
    if len(shapes := list(dict.fromkeys(mark.shape[1:] for mark in marks))) > 1:
        raise CalibrationError(
            f"The labels {labels!r} have several shapes for one sample, such as {shapes[0]} and {shapes[1]}; give one "
            "number for each."
        )
    label_array = np.concatenate(marks) if marks else None
    if label_array is not None and len(label_array) != sum(counts):
        raise CalibrationError(
            f"The labels {labels!r} don't go with the samples: {many(len(label_array), 'label')} for "
            f"{many(sum(counts), 'sample')}; give one for each."
        )
    _log.info("%d samples in %d batches", sum(counts), len(batches))
    return Samples(batches, counts, label_array, source, along)


def _mask(batch: Batch) -> Array | None:
    for name, array in batch.items():
        flags = "mask" in name.lower() and array.ndim == 2 and array.dtype.kind in "biu"
        if flags and array.any() and np.isin(array, (0, 1)).all():
            return array.astype(bool)
    return None


def read_path(
    text: str, seed: int, admit: Callable[[list[str]], None], what: str = "samples"
) -> Iterator[Batch]:
    """Yield what a path, or a function of a script, gives; ``admit`` refuses names of arrays before they are read."""
    script, colon, name = text.rpartition(":")
    if colon and script.endswith(".py"):
        given = call(Path(script), name)
        yield from each(given, lambda path: read_path(path, seed, admit, what), what.capitalize())
        return
    path = Path(text)
    if path.suffix == ".py":
        raise CalibrationError(
            f"{text!r} is a script; name the function that gives {what}, as in {text}:load_data."
        )
    with reading(text, what):
        batches = list(_folder(path, admit)) if path.is_dir() else [read_npz(path, admit)]
    yield from (InOrder.of(batch[""]) if [*batch] == [""] else batch for batch in batches)


def _folder(path: Path, admit: Callable[[list[str]], None]) -> Iterator[Batch]:
    sets = [p for p in path.iterdir() if p.is_dir() and re.fullmatch(r"test_data_set_\d+", p.name)]
    if not sets and any(path.glob("input_*.pb")):
        sets = [path]
    for one in sorted(sets, key=lambda p: int(p.name.rpartition("_")[2]) if p is not path else 0):
        files = sorted(one.glob("input_*.pb"), key=lambda p: int(re.sub(r"\D", "", p.stem) or 0))
        tensors = [read_tensor(f) for f in files]
        yield {name or f"input_{i}": array for i, (name, array) in enumerate(tensors)}
    if not sets:
        arrays = read_folder(path, admit)
        if not arrays:
            raise CalibrationError(
                f"{str(path)!r} holds no .npy files and no test_data_set_0; give one .npy for each input."
            )
        yield arrays
