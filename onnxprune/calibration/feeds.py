"""Given arrays, checked against the model's inputs and cut into batches that the model takes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.calibration.given import told, typed
from onnxprune.calibration.reading import name_hint
from onnxprune.errors import CalibrationError, many
from onnxprune.runtime.binding import declared
from onnxprune.runtime.session import FROM_NUMPY

__all__ = ["check", "count_of", "counted_axes", "joined", "lie_first", "parts", "sample_axes", "taken"]

Array = NDArray[Any]
Batch = dict[str, Array]
Inputs = Mapping[str, onnx.ValueInfoProto]
Axes = Mapping[str, tuple[int | str, ...] | None]
#: Input -> the axis along which its samples lie.
Along = Mapping[str, int]

#: Samples to a batch where the model leaves the batch free.
BATCH = 64

#: What a batch is called, wherever it lies; and where inputs differ along axis 0, as points may be called so, too.
_BATCH = re.compile(r"batch|^bs?$", re.IGNORECASE)
_BATCH_BEHIND = re.compile(r"batch|^(bs?|n)$", re.IGNORECASE)


def count_of(batch: Batch, along: Along | None = None) -> int:
    """Return how many samples a batch holds, see `counted_axes`: where nothing is known, as many as along axis 0."""
    if along is None:
        return max((len(a) for a in batch.values() if a.ndim), default=1)
    return max((a.shape[along[n]] for n, a in batch.items() if a.ndim and n in along), default=1)


def counted_axes(inputs: Inputs, outputs: Iterable[onnx.ValueInfoProto] = ()) -> Along | None:
    """Return along which axis of each input one run's samples are counted; None where that isn't known.

    Where samples can be cut, that is along these axes (`sample_axes`). Else it is what all inputs have in common, a
    name or a size: the 1 of ``[1, time, width]`` beside a state ``[2, 1, width]`` of two layers. Where that is a size
    which no output has, such as the colours of a picture without a batch, a run is one sample, and no axis counts.
    """
    outputs = list(outputs)
    if (along := sample_axes(inputs, outputs)) is not None:
        return along
    known = _known(inputs)
    if not known:
        return None
    first, *others = (
        [a if isinstance(a, str) or n < len(own) - 1 else None for n, a in enumerate(own)]
        for own in known.values()
    )  # a size that comes last is a width
    common = next((a for a in first if a is not None and all(a in other for other in others)), None)
    if common is None:
        return None
    ends = [declared(value) for value in outputs]
    known_ends = bool(ends) and all(end is not None and all(isinstance(a, int) for a in end) for end in ends)
    if (
        common != 1
        and isinstance(common, int)
        and known_ends
        and not any(common in (end or ()) for end in ends)
    ):
        return {}
    return {n: a.index(common) for n, a in known.items()}


def taken(batch: Batch, at: Any, along: Along | None = None) -> Batch:
    """Return some samples of a batch; numbers without axes are for all of them."""
    return {
        n: a[(slice(None),) * (along[n] if along else 0) + (at,)] if a.ndim else a for n, a in batch.items()
    }


def joined(
    batches: Sequence[Batch], counts: Sequence[int], most: int, along: Along
) -> tuple[list[Batch], list[int]]:
    """Return neighbouring batches in one, as far as their other axes agree, of so many samples at most."""
    parts, sums = list[list[Batch]](), list[int]()
    for batch, count in zip(batches, counts, strict=True):
        if parts and sums[-1] + count <= most and _alike(parts[-1][0], batch, along):
            parts[-1].append(batch)
            sums[-1] += count
        else:
            parts.append([batch])
            sums.append(count)
    return [_one(part, along) for part in parts], sums


def _alike(one: Batch, other: Batch, along: Along) -> bool:
    """Whether two batches can be one: numbers for all samples are the same, arrays differ in how many they have."""
    return one.keys() == other.keys() and all(
        np.array_equal(a, b) if not a.ndim else _beside(a, along[n]) == _beside(b, along[n])
        for n, a in one.items()
        for b in (other[n],)
    )


def _beside(array: Array, axis: int) -> tuple[Any, ...]:
    return (array.dtype, *array.shape[:axis], *array.shape[axis + 1 :])


def _one(part: Sequence[Batch], along: Along) -> Batch:
    if len(part) == 1:
        return part[0]
    return {n: np.concatenate([b[n] for b in part], along[n]) if a.ndim else a for n, a in part[0].items()}


def sample_axes(inputs: Inputs, outputs: Iterable[onnx.ValueInfoProto] = ()) -> dict[str, int] | None:
    """Return along which axis of each input samples lie; None where the model doesn't take batches of any size.

    Along the one axis that all inputs call the batch, such as that of ``[time, batch, width]`` beside a state
    ``[layers, batch, width]``, or that a state among the outputs has where it has no axis of time; else along axis 0
    where that is dynamic in all of them. Numbers have no axes.
    """
    known = _known(inputs)
    if not known:
        return None
    shared = set.intersection(*({s for s in a if isinstance(s, str)} for a in known.values()))
    name = _BATCH if len({a[0] for a in known.values()}) == 1 else _BATCH_BEHIND
    called = [s for s in shared if name.search(s) and all(a.count(s) == 1 for a in known.values())]
    if len(called) == 1:
        return {n: a.index(called[0]) for n, a in known.items()}
    first = lie_first(inputs) and all(isinstance(a[0], str) for a in known.values())
    if first and (behind := _behind_time(known, [own for v in outputs if (own := declared(v))])):
        return {n: a.index(behind) for n, a in known.items()}
    return dict.fromkeys(known, 0) if first else None


def _behind_time(known: Mapping[str, tuple[int | str, ...]], ends: list[tuple[int | str, ...]]) -> str | None:
    """Return the name of the second axis of all inputs, if a state [layers, batch, width] has it without the first."""
    names = {a[:2] for a in known.values()}
    time, batch = next(iter(names)) if len(names) == 1 and len(next(iter(names))) == 2 else ("", "")
    if not isinstance(batch, str) or not isinstance(time, str) or _BATCH_BEHIND.search(time) or not batch:
        return None
    states = [
        e for e in ends if len(e) == 3 and isinstance(e[0], int) and e[1] == batch and isinstance(e[2], int)
    ]
    return batch if states and all(batch in e for e in ends) else None


def _known(inputs: Inputs) -> dict[str, tuple[int | str, ...]]:
    """Return the axes of the inputs that have some; nothing where those of one aren't known."""
    axes = {n: declared(v) for n, v in inputs.items()}
    return {} if None in axes.values() else {n: a for n, a in axes.items() if a}


def lie_first(inputs: Inputs) -> bool:
    """Whether samples may lie along axis 0 of all inputs.

    A name that is the first axis of one input and a later one of another, such as the batch in a sequence that has time
    first and in its state, says that they don't. Numbers have no axes, and serve all samples.
    """
    axes = [declared(v) or () for v in inputs.values()]
    later = {name for a in axes for name in a[1:] if isinstance(name, str)}
    return not any(a[0] in later for a in axes if a)


def check(inputs: Inputs, feed: Batch) -> None:
    """Refuse arrays that aren't the model's inputs; in place, brings them to the form that onnxruntime takes.

    Raises
    ------
    CalibrationError
        If a name, a rank or a type doesn't fit.
    """
    missing, unknown = [n for n in inputs if n not in feed], [n for n in feed if n not in inputs]
    if missing or unknown:
        what = told(missing, unknown)
        hint = name_hint(unknown[0], missing or inputs) if unknown else ""
        raise CalibrationError(f"The samples {what}; the model's inputs are {', '.join(inputs)}.{hint}")
    for name, value in inputs.items():
        feed[name] = _checked(name, value, feed[name])


def _checked(name: str, value: onnx.ValueInfoProto, given: Array) -> Array:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = str(kind or "of no type").removesuffix("_type")
        raise CalibrationError(
            f"The model's input {name!r} is {what}, which samples can't hold; leave out --calib."
        )
    elem = value.type.tensor_type.elem_type
    known = onnx.TensorProto.DataType.Name(elem).lower()
    if elem not in FROM_NUMPY:
        raise CalibrationError(
            f"The model's input {name!r} is {known}, which onnxruntime doesn't take from numpy; leave out --calib."
        )
    array, axes = typed(given, elem), declared(value)
    wanted = onnx.helper.tensor_dtype_to_np_dtype(elem)
    if array.dtype != wanted:
        what = known if elem == onnx.TensorProto.STRING else str(wanted)
        raise CalibrationError(
            f"The samples' {name!r} are {array.dtype}, but the model's input is {what}; convert them"
            f"{'' if elem == onnx.TensorProto.STRING else f', array.astype({what!r})'}."
        )
    if array.dtype == object and not all(isinstance(text, str) for text in array.ravel()):
        raise CalibrationError(f"The samples' {name!r} must be texts, but some are not; convert them.")
    if axes is not None and array.ndim not in (len(axes), len(axes) + 1):
        shape = ",".join(map(str, axes))
        way = _missing_axis(array.shape, axes)
        raise CalibrationError(
            f"The samples' {name!r} have {array.ndim} axes, but the model's has ({shape}){way}."
        )
    return array


def _missing_axis(shape: tuple[int, ...], axes: tuple[int | str, ...]) -> str:
    """Say which axis an array lacks: one of one element, where the others are the model's, or that of samples."""
    if len(shape) != len(axes) - 1:
        return ""
    fits = [
        n
        for n, own in enumerate(axes)
        if n
        and own == 1
        and all(isinstance(a, str) or a == b for a, b in zip(axes[:n] + axes[n + 1 :], shape, strict=True))
    ]
    if not fits:
        return f"; where {shape} is one sample, give it an axis in front, array[None]"
    last = fits[0] == len(axes) - 1
    way = "array[..., None]" if last else f"array[{':, ' * fits[0]}None]"
    return f"; one of 1 is missing, which {way} adds"


def parts(
    inputs: Inputs, feed: Batch, most: int | None, seed: int, labels: Array | None, along: Along | None
) -> Iterator[tuple[Batch, Array | None]]:
    """Cut arrays of many samples, which lie along these axes, into batches of the model's size.

    ``along`` is None where the model doesn't take batches of any size, and empty where a run has no batch.

    Raises
    ------
    CalibrationError
        If their lengths or shapes don't fit.
    """
    axes = {n: declared(v) for n, v in inputs.items()}
    for part, at, given in _cut(axes, feed, most, seed, along):
        for name, array in part.items():
            _check_shape(name, array.shape, axes[name], feed[name].shape, bool(along))
        if labels is not None and at is not None and len(labels) != given:
            raise CalibrationError(
                f"The labels don't go with the samples: {many(len(labels), 'label')} for {many(given, 'sample')}; give "
                "one for each."
            )
        yield part, None if labels is None else (labels if at is None else labels[at])


def _cut(
    axes: Axes, feed: Batch, most: int | None, seed: int, along: Along | None
) -> Iterator[tuple[Batch, NDArray[np.int64] | None, int]]:
    """Yield batches, each with the numbers of its samples, None where all is one batch, and how many are given."""
    stacked = {n for n, a in axes.items() if a is not None and feed[n].ndim == len(a) + 1}
    held = None if stacked or along is not None else _held(axes, feed)
    lie = {n: 0 if n in stacked else (along or held or {}).get(n, 0) for n, a in feed.items() if a.ndim}
    fixed = {own for n, at in lie.items() if (a := axes[n]) and isinstance(own := a[at], int)}
    size = BATCH if along else next(iter(fixed)) if len(fixed) == 1 and along is None else 0
    if stacked:
        size = 1
        if len(stacked) < len(feed):
            _check_beside(axes, feed, stacked, lie)
    else:
        _check_lengths(feed, axes, size, lie)
    lengths = {feed[n].shape[axis] for n, axis in lie.items()}
    if size == 0 or len(lengths) != 1:
        yield feed, None, 0
        return
    step, given = 1 if stacked or along else size, lengths.pop()
    picked = _pick(given // step * step, most, seed, step)
    for i in range(0, len(picked), size):
        at = picked[i : i + size]
        one = taken(feed, at, lie)
        yield {n: np.asarray(a[0]) if n in stacked else a for n, a in one.items()}, at, given


def _held(axes: Axes, feed: Batch) -> Along | None:
    """Return where arrays hold many batches of a fixed size: each along the one axis where it is too long.

    So does a state ``[2, 1, width]`` of two layers hold those of 40 runs as ``[2, 40, width]``. One of them is longer
    along axis 0, or along one of size 1 behind another, as time; else a picture that is too high would hold several.
    """
    known = {n: a for n, a in axes.items() if a}
    pairs = {n: list(zip(feed[n].shape, a, strict=True)) for n, a in known.items()}
    longer = {
        n: [i for i, (size, axis) in enumerate(p) if isinstance(axis, int) and axis != size]
        for n, p in pairs.items()
    }
    if None in axes.values() or any(len(at) != 1 for at in longer.values()):
        return None
    lie = {n: at[0] for n, at in longer.items()}
    inner = {
        n: known[n][at] == 1 and at < len(known[n]) - 1 for n, at in lie.items()
    }  # what is last is a width
    if not any(at == 0 or (inner[n] and known[n][0] != 1) for n, at in lie.items()):
        return None
    sizes = {pairs[n][at] for n, at in lie.items()}
    return lie if len(sizes) == 1 and all(size > int(axis) for size, axis in sizes) else None


def _check_beside(axes: Axes, feed: Batch, stacked: set[str], lie: Along) -> None:
    """Refuse arrays of which some have an axis of samples in front, and others can't be cut along theirs."""
    first = min(stacked)
    for name, array in feed.items():
        own = axes[name]
        fits = (
            name in stacked or not array.ndim or own is None or isinstance(own[lie[name]], str) or own[0] == 1
        )
        if not fits or (array.ndim and array.shape[lie[name]] != len(feed[first])):
            raise CalibrationError(
                f"The samples' {first!r} have an axis more than the model's input, one entry for each sample, but "
                f"{name!r} have the shape {array.shape}; give {len(feed[first])} of each, along an axis in front."
            )


def _check_lengths(feed: Batch, axes: Axes, size: int, lie: Along) -> None:
    """Refuse arrays of one batch axis that hold different numbers of samples, and those that fill no batch."""
    first, *others = lie or ("",)
    for name in others:
        own, other = axes[first], axes[name]
        shared = own and other and own[lie[first]] == other[lie[name]]
        count, counted = feed[first].shape[lie[first]], feed[name].shape[lie[name]]
        if shared and count != counted:
            alone = name if counted == 1 else first if count == 1 else ""
            again = f"np.repeat(array, {max(count, counted)}, axis={lie[alone]})" if alone else ""
            way = f"give {alone!r} for each of them, as by {again}" if alone else "give as many of each"
            raise CalibrationError(
                f"There are {count} samples of {first!r}, but {counted} of {name!r}; {way}, or, where "
                "samples don't lie along axis 0 of both, the shapes of one run with --input-shape."
            )
    shortest = min((feed[n].shape[axis] for n, axis in lie.items()), default=size)
    if shortest < size and all(a and a[0] == size for a in axes.values()):
        raise CalibrationError(
            f"There {'is' if shortest == 1 else 'are'} {many(shortest, 'sample')}, but the model "
            f"takes {size} at a time; give at least one batch."
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


def _check_shape(
    name: str,
    shape: tuple[int, ...],
    axes: tuple[int | str, ...] | None,
    given: tuple[int, ...],
    free: bool,
) -> None:
    """Refuse a batch of another shape than the model's, told by that of the array that was given.

    Runs may lie behind each other along an axis in the middle; not where there is one of the batch, nor along widths.
    """
    for at, (size, axis) in enumerate(itertools.zip_longest(shape, axes if axes is not None else shape)):
        if isinstance(axis, int) and size != axis:
            said = ",".join(map(str, axes or ()))
            runs = (
                not free and len(given) == len(axes or ()) and at < len(given) - 1 and given[at] > axis == 1
            )
            way = "; where these are many runs, give each input an axis in front, an entry for each" * runs
            raise CalibrationError(
                f"The samples' {name!r} have the shape {given}, but the model's input has ({said}){way}."
            )
