"""Who reads a data file: the models that lie beside it."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

from onnxprune.errors import OutputError
from onnxprune.files import wire
from onnxprune.files.external import is_external
from onnxprune.files.holding import PREFIX
from onnxprune.files.protowalk import tensors
from onnxprune.files.target import is_data_of, place_of, same

__all__ = ["locations", "own", "readers", "refuse_data"]

#: How a packed model begins, see `onnxprune.compression.record`.
_PACKED = b"P*M\x18"
_LARGE = 1024  # bytes; of weights that are not looked at
#: Forms of models that are searched for the name of a data file, not parsed.
_OTHER_FORMS = (".onnxtxt", ".textproto", ".prototxt", ".pbtxt", ".txtpb", ".onnxjson", ".json", ".ort")


def locations(path: Path) -> frozenset[str] | None:
    """Return where a model says that its weights are; None if the file is no ONNX model.

    Raises
    ------
    OSError
        If it can't be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return None
    data = np.memmap(path, np.uint8, mode="r")
    try:
        light, _ = wire.split(data.data, _LARGE, lambda _: b"\0")
        proto = onnx.ModelProto.FromString(light)
    except (wire.WireError, DecodeError, RecursionError):
        return None
    if not proto.HasField("graph"):
        return None
    outside = (tensor for _, tensor in tensors(proto) if is_external(tensor))
    return frozenset(e.value for tensor in outside for e in tensor.external_data if e.key == "location")


def readers(path: Path, but: Path | None = None) -> list[str]:
    """Return the names of the files in a file's folder that read it as external data, or may do so.

    Parameters
    ----------
    path : Path
        A file that is there.
    but : Path, optional
        A model that doesn't count.
    """
    names = []
    for entry in sorted(os.scandir(path.parent), key=lambda entry: entry.name):
        other = path.parent / entry.name
        if entry.name.startswith(PREFIX) or same(other, path) or (but is not None and same(other, but)):
            continue
        if _reads(other, path):
            names.append(entry.name)
    return names


def refuse_data(path: Path, what: str, *, for_model: bool = True) -> None:
    """Refuse to replace a file that a model beside it reads, and a model by anything else.

    Parameters
    ----------
    path : Path
    what : str
        How the sentence begins, such as ``The output 'x.onnx'``.
    for_model : bool
        Whether a model is to be written; in the place of JSON and pages anything may.

    Raises
    ------
    OutputError
        If the file is one of these.
    """
    place = place_of(path)
    if not place.is_file() or _is_ours(place):
        return
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        if locations(place) is None:
            names = readers(place)
        elif not for_model:
            raise OutputError(f"{what} is an ONNX model; give another name.")
    if names:
        raise OutputError(f"{what} holds weights of {names[0]!r} beside it; give another name.")


def _is_ours(path: Path) -> bool:
    """Whether a file is a report, a page or a packed model."""
    try:
        with path.open("rb") as file:
            return file.read(4).startswith((b"{", b"<", _PACKED))
    except OSError:
        return False


def _reads(model: Path, path: Path) -> bool:
    suffix = model.suffix.lower()
    try:
        if not model.is_file():
            return False
        if suffix in _OTHER_FORMS:
            return _mentions(model, path.name)
        places = locations(model) or frozenset()
    except (OSError, ValueError):
        return suffix == ".onnx"  # it can't be asked, so it may
    roots = {model.parent, model.resolve().parent}
    return any(same(root / place, path) for root in roots for place in places)


def _mentions(path: Path, name: str) -> bool:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(os.fsencode(name)) >= 0


def own(model: Path) -> list[str]:
    """Return the names of the data files that a model reads and that are named after it: ``<model>.data`` and
    ``<model>.N.data``, where neither it nor they have other names.
    """
    names = []
    with contextlib.suppress(OSError, ValueError):
        if model.stat().st_nlink > 1:  # another folder may have the same model, and links to its data
            return []
        for name in sorted(locations(model) or ()):
            path = model.parent / name
            if is_data_of(path, model) and "/" not in name and stat.S_ISREG(path.lstat().st_mode):
                names.append(name)
    return names
