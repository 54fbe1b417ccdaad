"""Inputs that the user gives, as dictionaries that fit the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError, OnnxPruneError, did_you_mean
from onnxprune.files.arrays import read_folder, read_npz, reading
from onnxprune.runtime.binding import declared, real_inputs
from onnxprune.wall import board as wall

__all__ = ["MOST", "InOrder", "Picked", "each", "feeds", "source_of", "told", "typed"]

#: No more feeds than this are made of one file.
MOST = 16

Feed = dict[str, Any]  # arrays, or lists of them for inputs that are sequences


def feeds(graph: onnx.GraphProto, given: Any) -> list[Feed]:
    """Bring given inputs into the form that onnxruntime takes.

    Parameters
    ----------
    graph : GraphProto
        Whose inputs they are for.
    given : path, dict, array, iterable of these, reader, or function that returns one
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
    values = {v.name: v for v in real_inputs(graph)}
    axes = {name: declared(value) for name, value in values.items()}
    batches: list[Feed] = []
    for feed in each(given, lambda path: [_read(Path(path), axes)], "Inputs"):
        feed = feed.named(values) if isinstance(feed, InOrder) else feed
        _check_names(axes, feed)
        _check_values(feed)
        wall.grow(inputs=sum(a.nbytes for a in feed.values() if isinstance(a, np.ndarray)))
        for name in feed:
            feed[name] = _form(values[name], feed[name])
        batches += _batches(axes, feed)
        if len(batches) >= MOST:
            break
    if not batches:
        raise CalibrationError(
            "The given inputs are empty; give at least one array for each input of the model."
        )
    return batches[:MOST]


def each(given: Any, read: Callable[[str], Iterable[Feed]], what: str) -> Iterator[Feed]:
    """Yield one dictionary of arrays after the other from whatever people hold them in.

    Parameters
    ----------
    given : path, mapping, object with ``get_next()``, array, tuple of arrays, iterable of these, or function of one
        An array without a name makes a `InOrder`.
    read : callable
        What reads a path.
    what : str
        What they are called in an error.

    Raises
    ------
    CalibrationError
        If it is none of these.
    """
    try:
        yield from _each(given, read, what)
    except (OnnxPruneError, MemoryError):
        raise
    except Exception as error:  # anything can go wrong in a user's reader
        raise CalibrationError(f"{what} can't be read: the reader fails with {error!r}.") from error


def _each(given: Any, read: Callable[[str], Iterable[Feed]], what: str) -> Iterator[Feed]:
    if isinstance(given, (str, os.PathLike)):
        yield from read(str(given))
    elif isinstance(given, Mapping):
        yield {str(n): _array(a) for n, a in given.items()}
    elif hasattr(given, "get_next"):
        while (feed := given.get_next()) is not None:
            yield {str(n): _array(a) for n, a in feed.items()}
    elif _is_array(given) or (isinstance(given, tuple) and given and all(map(_is_array, given))):
        yield InOrder.of(given)
    elif isinstance(given, Iterable) or (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        for feed in given if isinstance(given, Iterable) else map(given.__getitem__, range(len(given))):
            yield _entry(feed, what)
    elif callable(given):
        yield from _each(given(), read, what)
    else:
        raise CalibrationError(f"{what} can't be read from a {type(given).__name__}; give {_FORMS}.")


#: What samples may be, in a message.
_FORMS = "a path, arrays, dictionaries of arrays, an iterable of these (such as a DataLoader), or a function of one"


class Picked(list[Feed]):
    """What one of several models takes of samples that were read."""

    def __init__(self, feeds: Iterable[Feed], source: str) -> None:
        super().__init__(feeds)
        self.source = source


def source_of(given: Any) -> str:
    """Return where samples come from, for people."""
    if isinstance(given, Picked):
        return given.source
    return str(given) if isinstance(given, (str, os.PathLike)) else type(given).__name__


class InOrder(dict[str, Any]):
    """Arrays without names, in the order of the model's inputs, and perhaps their labels after them."""

    @classmethod
    def of(cls, given: Any) -> InOrder:
        """Return one array, or several."""
        arrays = given if isinstance(given, (tuple, list)) else (given,)
        return cls({f"input_{number}": _array(one) for number, one in enumerate(arrays)})

    def named(self, inputs: Mapping[str, onnx.ValueInfoProto], labels: str | None = None) -> Feed:
        """Return the arrays by the names of the inputs; one more than there are inputs is that of the labels.

        Items of a data set have no axis for the batch, and get one.

        Raises
        ------
        CalibrationError
            If there are more or fewer.
        """
        arrays = list(self.values())
        if len(arrays) not in (len(inputs), len(inputs) + 1):
            raise CalibrationError(
                f"Arrays without names are the model's inputs in their order, {', '.join(inputs)}, and perhaps labels "
                f"after them; got {len(arrays)}."
            )
        feed = dict(zip(inputs, arrays, strict=False))
        axes = {name: declared(value) for name, value in inputs.items()}
        items = [a is not None and len(a) > 0 and np.ndim(feed[n]) == len(a) - 1 for n, a in axes.items()]
        if items and all(items):
            feed = {name: array[None] for name, array in feed.items()}
            arrays[-1] = arrays[-1][None]
        if labels and len(arrays) > len(inputs):
            feed[labels] = arrays[-1]
        return feed


def _entry(feed: Any, what: str) -> Feed:
    if isinstance(feed, Mapping):
        return {str(n): _array(a) for n, a in feed.items()}
    parts = feed if isinstance(feed, (tuple, list)) else (feed,)
    if (
        not parts
        or not _is_array(parts[0])
        or not all(_is_array(p) or isinstance(p, (int, float)) for p in parts)
    ):
        raise CalibrationError(
            f"{what} must be arrays or dictionaries of arrays; got a {type(feed).__name__}."
        )
    return InOrder.of(feed)


def _is_array(given: Any) -> bool:
    """Whether something is an array or a tensor of any library."""
    return hasattr(given, "__array__") or hasattr(given, "detach")


def _array(given: Any) -> Any:
    """Return an array; a list of arrays is a sequence and None an optional value that is absent, and both stay."""
    if isinstance(given, list) and any(isinstance(e, np.ndarray) or hasattr(e, "detach") for e in given):
        return [_array(entry) for entry in given]
    if hasattr(given, "detach"):  # a tensor of torch: gradients and other devices are no arrays
        given = given.detach().cpu().numpy()
    return given if given is None else np.asarray(given)


def typed(array: NDArray[Any], elem: int) -> NDArray[Any]:
    """Return an array in the form that onnxruntime takes for an element type, where only the form differs.

    Texts become Python's; a number without axes gets the type if it keeps its value; numbers in the other order of
    bytes are turned; bytes that numpy knows no type for (bfloat16 in a file of numpy's) are taken for what is asked.
    Anything else comes back as it is.
    """
    if elem == onnx.TensorProto.STRING:
        return np.char.decode(array, "utf-8").astype(object) if array.dtype.kind == "S" else _texts(array)
    if elem not in onnx.TensorProto.DataType.values() or elem == onnx.TensorProto.UNDEFINED:
        return array
    wanted = onnx.helper.tensor_dtype_to_np_dtype(elem)
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize == wanted.itemsize:
        return array.view(wanted)
    if not array.dtype.isnative and array.dtype.newbyteorder("=") == wanted:
        return array.astype(wanted)
    if array.ndim == 0 and array.dtype.kind in "iuf" and wanted.kind in "iuf" and array.dtype != wanted:
        with np.errstate(all="ignore"):
            there = array.astype(wanted)
        close = array.dtype.kind == wanted.kind == "f" and np.isclose(there, array, rtol=1e-2, equal_nan=True)
        return there if close or there == array else array
    return array


def _texts(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(object) if array.dtype.kind == "U" else array


def _read(path: Path, axes: Mapping[str, Any]) -> Feed:
    def admit(names: list[str]) -> None:
        _check_known(axes, names)

    with reading(str(path), "inputs"):
        return read_folder(path, admit) if path.is_dir() else read_npz(path, admit)


def told(missing: Sequence[str], unknown: Sequence[str]) -> str:
    """Return what is wrong with names of given arrays: the first that is no input, and the first that isn't there."""
    said = [f"have {name!r}, which is no input of the model" for name in unknown[:1]]
    return ", and ".join([*said, *(f"lack {name!r}" for name in missing[:1])])


def _check_known(axes: Mapping[str, Any], names: Collection[str]) -> None:
    unknown, missing = [n for n in names if n not in axes], [n for n in axes if n not in names]
    if missing or unknown:
        what = told(missing, unknown)
        hint = did_you_mean(unknown[0], missing or axes) if unknown else ""
        raise CalibrationError(f"The given inputs {what}; the model's inputs are {', '.join(axes)}.{hint}")


def _check_names(axes: Mapping[str, Any], feed: Feed) -> None:
    _check_known(axes, feed)
    for name, array in feed.items():
        if axes[name] is not None and isinstance(array, np.ndarray) and array.ndim != len(axes[name]):
            shape = ",".join(map(str, axes[name]))
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


def _batches(axes: Mapping[str, Any], feed: Feed) -> list[Feed]:
    """Split arrays that hold several batches of a fixed size."""
    batch = {
        n: a[0] for n, a in axes.items() if a and isinstance(a[0], int) and isinstance(feed[n], np.ndarray)
    }
    counts = {feed[n].shape[0] / size for n, size in batch.items()}
    count = counts.pop() if len(counts) == 1 and len(batch) == sum(map(bool, axes.values())) else 1.0
    parts = [feed]
    if count > 1 and count == int(count):
        parts = [
            {n: a[k * batch[n] : (k + 1) * batch[n]] if n in batch else a for n, a in feed.items()}
            for k in range(min(int(count), MOST))
        ]
    for part in parts:
        for name, array in part.items():
            for at, axis in enumerate(axes[name] or () if isinstance(array, np.ndarray) else ()):
                if isinstance(axis, int) and array.shape[at] != axis:
                    shape = ",".join(map(str, axes[name]))
                    raise CalibrationError(
                        f"The given input {name!r} has the shape {array.shape}, "
                        f"but the model's has ({shape})."
                    )
    return parts
