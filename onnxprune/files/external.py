"""External data: weights that lie in files beside the model, read safely.

A location is a path out of an untrusted file. The rule is onnxruntime's own: it must be relative, hold no
``..``, and its real path must be within the folder of the model or within the folder of the model's real
path. The latter is the layout of the Hugging Face cache, where ``snapshots/<revision>/model.onnx`` and its
data are symlinks into ``blobs``. Hard links are fine. Nothing is read but the declared range, and that must
be just as long as the tensor.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.files.reading import identity

__all__ = ["Folder", "Location", "is_external", "parse", "point", "stays_inline"]

_KEYS = ("location", "offset", "length", "checksum")
_SHAPES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
_SMALL, _MOST_SHAPE = 128, 1 << 20  # bytes; onnxruntime's own writer keeps what is below 128 in the model


@dataclass(frozen=True)
class Location:
    """Where an external tensor says that its data is: a relative path, and bytes."""

    path: str
    offset: int
    length: int | None


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor says that its data is in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def stays_inline(tensor: onnx.TensorProto, nbytes: int) -> bool:
    """Whether the model itself must hold a tensor, since shapes may hang on its values.

    onnxruntime reads sizes, axes, pads, repeats, scales and depths when it loads a model, and refuses the model if
    they are external. No op has to be known for that: what says a shape is a list of integers, or a few numbers.
    """
    listed = len(tensor.dims) <= 1 and tensor.data_type in _SHAPES and nbytes <= _MOST_SHAPE
    return listed or nbytes < _SMALL


def parse(tensor: onnx.TensorProto, what: object) -> Location:
    """Read the ``external_data`` entries of a tensor.

    Raises
    ------
    ModelError
        If an entry is unknown, doubled, not a number where one is due, or if there is no location.
    """
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise ModelError(
                f"The external data of {what} gives {entry.key!r} twice, so it's unclear what to read."
            )
        if entry.key not in _KEYS and not entry.key.startswith("prepacked"):
            raise ModelError(
                f"The external data of {what} has an unknown key {entry.key!r}; onnxruntime "
                f"knows {', '.join(_KEYS)} and refuses the file too."
            )
        entries[entry.key] = entry.value
    if not entries.get("location"):
        raise ModelError(f"The data of {what} is said to be external, but no location is given.")
    for key in ("offset", "length"):
        if key in entries and not re.fullmatch(r"[0-9]{1,18}", entries[key]):
            raise ModelError(
                f"The external data of {what} has {key} {entries[key]!r}, where a number of bytes is due."
            )
    length = entries.get("length")
    offset = int(entries.get("offset", 0))
    return Location(entries["location"], offset, None if length is None else int(length))


def point(tensor: onnx.TensorProto, location: str, offset: int = 0, length: int | None = None) -> None:
    """Make a tensor external, with its data at a place; drops data that it holds itself."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "uint64_data", "double_data"):
        tensor.ClearField(field)
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    values = (
        {"location": location}
        if length is None
        else {"location": location, "offset": str(offset), "length": str(length)}
    )
    for key, value in values.items():
        tensor.external_data.add(key=key, value=value)


class Folder:
    """The folder of a model, and memory maps of the data files in it.

    Parameters
    ----------
    folder : Path
        Where locations are relative to.
    real : Path, optional
        The folder of the model's real path, if the model itself is a symlink.

    Attributes
    ----------
    mapped : dict
        Data file -> its `identity` when it was mapped.
    """

    def __init__(self, folder: Path, real: Path | None = None) -> None:
        self.path = folder
        self._roots = {Path(os.path.realpath(root)) for root in (folder, real) if root is not None}
        self.mapped: dict[Path, Any] = {}
        self._maps: dict[str, NDArray[np.uint8]] = {}
        self._real: dict[str, str] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the data files that were named so far, as they lie on disk."""
        return sum(os.path.getsize(real) for real in set(self._real.values()))

    def resolve(self, location: str, what: object) -> Path:
        """The real path of a location.

        Raises
        ------
        ModelError
            If the location leads out of the folder, or to no regular file.
        """
        if location in self._real:
            return Path(self._real[location])
        parts = re.split(r"[/\\]", location)
        if "\0" in location or ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:", location):
            raise ModelError(
                f"The external data of {what} is at {location!r}, which leads out of the "
                "model's folder; only files in that folder are read."
            )
        real = Path(os.path.realpath(self.path / location))
        if not any(real.is_relative_to(root) for root in self._roots):
            raise ModelError(
                f"The external data of {what} is at {location!r}, a link to {str(real)!r} outside of the "
                "model's folder; a link may lead to the folder of the model's own real path (as in the "
                "Hugging Face cache) but to no other, so copy the file beside the model."
            )
        try:
            problem = "" if real.is_file() else "isn't a file" if real.exists() else "doesn't exist"
        except OSError as error:
            raise ModelError(
                f"The external data of {what} at {location[:80]!r} can't be read: {error.strerror or error}."
            ) from error
        if problem:
            raise ModelError(
                f"The external data of {what} should be at {str(self.path / location)!r}, which "
                f"{problem}; put it there, beside the model."
            )
        self._real[location] = str(real)
        return real

    def map(self, location: str, what: object) -> NDArray[np.uint8]:
        """The bytes of a data file, mapped and not read."""
        real = self.resolve(location, what)
        known = self._maps.get(str(real))
        if known is None:
            try:
                self.mapped[real] = identity(real)
                empty = real.stat().st_size == 0
                known = np.empty(0, np.uint8) if empty else np.memmap(real, np.uint8, mode="r")
            except OSError as error:
                raise ModelError(
                    f"The external data of {what} at {str(real)!r} can't be read: {error.strerror or error}."
                ) from error
            self._maps[str(real)] = known
        return known

    def span(self, tensor: onnx.TensorProto, nbytes: int, what: object) -> NDArray[np.uint8]:
        """The bytes of an external tensor that holds `nbytes` of them.

        Raises
        ------
        ModelError
            If the location is unsafe, or the range isn't just as long as the tensor, or isn't in the file.
        """
        place = parse(tensor, what)
        if place.length is not None and place.length != nbytes:
            raise ModelError(
                f"The external data of {what} is {place.length} bytes long, but its dimensions "
                f"and type need {nbytes}; the file is damaged or was made by a faulty tool."
            )
        data = self.map(place.path, what)
        if place.offset + nbytes > len(data):
            raise ModelError(
                f"The external data of {what} is {nbytes} bytes from byte {place.offset} of "
                f"{place.path!r}, but that file ends at byte {len(data)}; it's truncated or not "
                "the file that belongs to this model."
            )
        return data[place.offset : place.offset + nbytes]

    def files(self) -> dict[str, Path]:
        """Location -> real path, of every data file that was looked up."""
        return {location: Path(real) for location, real in sorted(self._real.items())}
