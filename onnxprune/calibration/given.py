"""Arrays in every form that people hold them in, brought into one: dictionaries by the names of the inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError, OnnxPruneError
from onnxprune.runtime.binding import declared

__all__ = ["Feed", "InOrder", "Picked", "by_name", "each", "source_of", "told", "typed"]

Feed = dict[str, Any]  # arrays, or lists of them for inputs that are sequences


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


def by_name(inputs: Iterable[str], feed: Feed) -> Feed:
    """Return test data of the onnx package, which has no names (input_0, input_1, ...), by those of the inputs."""
    names = list(inputs)
    numbered = [f"input_{i}" for i in range(len(names))]
    if set(feed) != set(numbered) or set(feed) & set(names):
        return feed
    return {name: feed[number] for name, number in zip(names, numbered, strict=True)}


def told(missing: Sequence[str], unknown: Sequence[str]) -> str:
    """Return what is wrong with names of given arrays: the first that is no input, and the first that isn't there."""
    said = [f"have {name!r}, which is no input of the model" for name in unknown[:1]]
    return ", and ".join([*said, *(f"lack {name!r}" for name in missing[:1])])
