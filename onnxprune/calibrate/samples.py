"""Calibration samples in every form that people have them, checked against the model's inputs.

Forms: an ``.npz`` file; a folder of ``.npy`` files, one for each input; a folder of ``test_data_set_N`` with
``input_K.pb``; ``script.py:load_data``, a function that returns any of the other forms; a reader with ``get_next()``
(onnxruntime's ``CalibrationDataReader``); an iterable of dictionaries; one dictionary of arrays; ``"synthetic"``.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.calibrate.synthetic import synthetic
from onnxprune.errors import CalibrationError
from onnxprune.given import each
from onnxprune.graph.binding import declared, real_inputs
from onnxprune.model import Model
from onnxprune.runtime import CPU, Session, open_session, provider_of

__all__ = ["Asked", "Samples", "load_samples", "samples_for"]

Array = NDArray[Any]
Batch = dict[str, Array]

#: Samples to a batch where the model leaves the batch free.
BATCH = 64


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
    free : bool
        Whether the model takes batches of any size.
    provider : str
        onnxruntime's name of the execution provider that runs them.
    """

    batches: list[Batch]
    counts: list[int]
    labels: Array | None = None
    source: str = ""
    free: bool = False
    provider: str = CPU

    def open(self, model: Model | onnx.ModelProto, extra_outputs: Iterable[str] = ()) -> Session:
        """Open an optimised session for these samples.

        Raises
        ------
        RunError
            If onnxruntime doesn't take the model.
        """
        return open_session(model, extra_outputs, provider=self.provider, prepack=True, optimise=True)

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

    def few(self, most: int) -> Samples:
        """Return the first samples, about so many at most."""
        return self if self.count <= most else self.split(1 - most / self.count)[0]

    def cut_into(self, size: int) -> Samples:
        """Return the same samples in batches of at most this size, where the model leaves it free."""
        pairs = list(zip(self.batches, self.counts, strict=True))
        if not self.free or any(len(a) != n for b, n in pairs for a in b.values()):
            return self
        parts = [
            ({n: a[i : i + size] for n, a in b.items()}, min(size, c - i))
            for b, c in pairs
            for i in range(0, c, size)
        ]
        return replace(self, batches=[b for b, _ in parts], counts=[c for _, c in parts])

    def split(self, share: float) -> tuple[Samples, Samples | None]:
        """Set the last samples aside, about this share; whole batches only where the model fixes their size.

        Returns
        -------
        tuple of Samples, and Samples or None
            None where there are too few to set any aside.
        """
        wanted = max(round(share * self.count), 1)
        number, aside = len(self.batches), 0
        while number > 1 and aside + self.counts[number - 1] <= wanted:
            number -= 1
            aside += self.counts[number]
        first, second = self.batches[:number], self.batches[number:]
        if self.free and aside < wanted < self.count and self.counts[number - 1] > wanted - aside:
            cut = self.counts[number - 1] - (wanted - aside)
            whole = first[-1]
            first = [*first[:-1], {n: a[:cut] for n, a in whole.items()}]
            second = [{n: a[cut:] for n, a in whole.items()}, *second]
        if not second:
            return self, None
        counts = [_count(b) for b in first], [_count(b) for b in second]
        labels = (
            (None, None)
            if self.labels is None
            else (self.labels[: sum(counts[0])], self.labels[sum(counts[0]) :])
        )
        return (
            replace(self, batches=first, counts=counts[0], labels=labels[0]),
            replace(self, batches=second, counts=counts[1], labels=labels[1]),
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
    found = load_samples(
        graph, asked.calib, most=asked.samples, seed=asked.seed, labels=asked.labels, types=types
    )
    return replace(found, provider=provider)


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
    source = str(given) if isinstance(given, str | os.PathLike) else type(given).__name__
    if isinstance(given, str) and given == "synthetic":
        given = synthetic(graph, types or {}, most or 256, seed)
    inputs = {v.name: v for v in real_inputs(graph)}
    batches: list[Batch] = []
    marks: list[Array] = []
    count = 0
    for feed in each(given, lambda path: _read(path, seed), "Samples"):
        mark = feed.pop(labels, None) if labels else None
        _check(inputs, feed)
        parts = list(_parts(inputs, feed, None if most is None else most - count, seed, mark))
        for batch, label in parts:
            batches.append(batch)
            count += _count(batch)
            if label is not None:
                marks.append(np.atleast_1d(label))
        if most is not None and count >= most:
            break
    if not batches:
        raise CalibrationError("There are no calibration samples; give at least one array for each input.")
    if labels and not marks:
        raise CalibrationError(
            f"The samples have no array {labels!r} of labels; name the key that holds them."
        )
    counts = [_count(b) for b in batches]
    found = np.concatenate(marks) if marks else None
    if found is not None and len(found) != sum(counts):
        raise CalibrationError(f"There are {len(found)} labels in {labels!r} for {sum(counts)} samples.")
    free = all((axes := declared(v)) and isinstance(axes[0], str) for v in inputs.values())
    return Samples(batches, counts, found, source, free)


def _mask(batch: Batch) -> Array | None:
    for name, array in batch.items():
        flags = "mask" in name.lower() and array.ndim == 2 and array.dtype.kind in "biu"
        if flags and array.any() and np.isin(array, (0, 1)).all():
            return array.astype(bool)
    return None


def _count(batch: Batch) -> int:
    return max((a.shape[0] for a in batch.values() if a.ndim), default=1)


def _read(text: str, seed: int) -> Iterator[Batch]:
    script, colon, name = text.rpartition(":")
    if colon and script.endswith(".py"):
        yield from each(_call(Path(script), name), lambda path: _read(path, seed), "Samples")
        return
    path = Path(text)
    try:
        if path.is_dir():
            yield from _folder(path)
            return
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise CalibrationError(
                f"{text!r} holds one array without a name; give an .npz with one for each input."
            )
        with loaded:
            yield {n: loaded[n] for n in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(
            f"{text!r} can't be read as samples ({error}); give an .npz file of arrays."
        ) from error


def _folder(path: Path) -> Iterator[Batch]:
    sets = [p for p in path.iterdir() if p.is_dir() and re.fullmatch(r"test_data_set_\d+", p.name)]
    if not sets and any(path.glob("input_*.pb")):
        sets = [path]
    for one in sorted(sets, key=lambda p: int(p.name.rpartition("_")[2]) if p is not path else 0):
        files = sorted(one.glob("input_*.pb"), key=lambda p: int(re.sub(r"\D", "", p.stem) or 0))
        tensors = [_tensor(f) for f in files]
        yield {t.name or f"input_{i}": numpy_helper.to_array(t) for i, t in enumerate(tensors)}
    if not sets:
        arrays = {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        if not arrays:
            raise CalibrationError(
                f"{str(path)!r} holds no .npy files and no test_data_set_0; give one .npy for each input."
            )
        yield arrays


def _tensor(file: Path) -> onnx.TensorProto:
    found = onnx.TensorProto()
    try:
        found.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's errors have no common base but this
        raise CalibrationError(f"{str(file)!r} can't be read as a tensor ({error}).") from error
    return found


def _call(script: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"onnxprune_samples_{script.stem}", script)
    if spec is None or spec.loader is None or not script.is_file():
        raise CalibrationError(f"There is no script {str(script)!r} to take samples from.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise CalibrationError(f"{str(script)!r} has no function {name}() to take samples from.")
        return getattr(module, name)()
    except CalibrationError:
        raise
    except Exception as error:  # anything can go wrong in a user's script
        raise CalibrationError(f"{str(script)!r} gives no samples: {name}() fails with {error!r}.") from error


def _check(inputs: Mapping[str, onnx.ValueInfoProto], feed: Batch) -> None:
    if set(feed) == {f"input_{i}" for i in range(len(inputs))} and not set(feed) & set(inputs):
        for i, name in enumerate(inputs):  # test data without names is in the order of the inputs
            feed[name] = feed.pop(f"input_{i}")
    missing, unknown = [n for n in inputs if n not in feed], [n for n in feed if n not in inputs]
    if missing or unknown:
        what = f"lack {missing[0]!r}" if missing else f"have {unknown[0]!r}, which is no input of the model"
        raise CalibrationError(f"The samples {what}; the model's inputs are {', '.join(inputs)}.")
    for name, array in feed.items():
        axes = declared(inputs[name])
        wanted = onnx.helper.tensor_dtype_to_np_dtype(inputs[name].type.tensor_type.elem_type)
        if array.dtype != wanted:
            raise CalibrationError(
                f"The samples' {name!r} are {array.dtype}, but the model's input is {wanted}; convert them."
            )
        if axes is not None and array.ndim not in (len(axes), len(axes) + 1):
            shape = ",".join(map(str, axes))
            raise CalibrationError(
                f"The samples' {name!r} have {array.ndim} axes, but the model's has ({shape})."
            )


def _parts(
    inputs: Mapping[str, onnx.ValueInfoProto], feed: Batch, most: int | None, seed: int, labels: Array | None
) -> Iterator[tuple[Batch, Array | None]]:
    """Cut arrays of many samples into batches of the model's size."""
    axes = {n: declared(v) for n, v in inputs.items()}
    stacked = all((a := axes[n]) is not None and feed[n].ndim == len(a) + 1 for n in feed)
    fixed = {a[0] for a in axes.values() if a and isinstance(a[0], int)}
    free = all(a and isinstance(a[0], str) for a in axes.values())
    size = BATCH if free else next(iter(fixed)) if len(fixed) == 1 else 0
    lengths = {len(a) for a in feed.values() if a.ndim}
    if stacked:
        size = 1
    else:
        _check_lengths(feed, axes, size)
    if size == 0 or len(lengths) != 1 or (not stacked and any(a.ndim == 0 for a in feed.values())):
        lengths, size = {1}, 1
        picked, parts = np.zeros(1, np.int64), [feed]
    else:
        total = lengths.pop() // size * size if not free else lengths.pop()
        picked = _pick(total, most, seed, 1 if free or stacked else size)
        cuts = [picked[i : i + size] for i in range(0, len(picked), size)]
        parts = [{n: a[c[0]] if stacked else a[c] for n, a in feed.items()} for c in cuts]
    first = 0
    for part in parts:
        for name, array in part.items():
            _check_shape(name, array, axes[name])
        step = 1 if stacked else max(_count(part), 1)
        at = picked[first : first + step]
        yield part, None if labels is None else (labels[at] if len(picked) > 1 else labels)
        first += step


def _check_lengths(feed: Batch, axes: Mapping[str, tuple[int | str, ...] | None], size: int) -> None:
    """Refuse arrays of one batch axis that hold different numbers of samples, and those that fill no batch."""
    first, *others = feed
    for name in others:
        mine, other = axes[first], axes[name]
        shared = mine and other and mine[0] == other[0]
        if shared and len(feed[first]) != len(feed[name]):
            raise CalibrationError(
                f"There are {len(feed[first])} samples of {first!r}, but {len(feed[name])} of {name!r}; give as "
                "many of each."
            )
    shortest = min((len(a) for a in feed.values() if a.ndim), default=size)
    if shortest < size and all(a and a[0] == size for a in axes.values()):
        raise CalibrationError(
            f"There are {shortest} samples, but the model takes {size} at a time; give at least one batch."
        )


def _pick(total: int, most: int | None, seed: int, size: int) -> NDArray[np.int64]:
    """Choose samples, whole batches of ``size`` at a time."""
    groups = total // size
    if most is not None and most < total:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(groups, max(most // size, 1), replace=False))
    else:
        chosen = np.arange(groups)
    return np.asarray((chosen[:, None] * size + np.arange(size)).ravel(), np.int64)


def _check_shape(name: str, array: Array, axes: tuple[int | str, ...] | None) -> None:
    for size, axis in itertools.zip_longest(array.shape, axes if axes is not None else array.shape):
        if isinstance(axis, int) and size != axis:
            shape = ",".join(map(str, axes or ()))
            raise CalibrationError(
                f"The samples' {name!r} have the shape {array.shape}, but the model's input has ({shape})."
            )
