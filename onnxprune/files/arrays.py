"""Arrays that people give, in ``.npz``, ``.npy`` and ``.pb`` files: looked at before they are unpacked.

A few kilobytes unpack to gigabytes. So names, shapes and types are read first, from the heads of the arrays; what
nobody asked for is never unpacked, nor what takes more memory than there may be.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.errors import CalibrationError
from onnxprune.files.external import is_external
from onnxprune.files.sizes import check_size
from onnxprune.wall import board as wall

__all__ = ["read_folder", "read_npz", "read_tensor", "reading", "refuse_pipe"]

#: Of the memory that may be used, what arrays of a file may take.
SHARE = 0.5

Array = NDArray[Any]


@contextmanager
def reading(what: str, kind: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one sentence.

    Parameters
    ----------
    what : str
        The file.
    kind : str
        What it should be, with an article.

    Raises
    ------
    CalibrationError
    """
    try:
        with wall.stage(f"Reading {what!r}", times=4, code=CalibrationError.exit_code):
            yield
    except (CalibrationError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib, numpy and protobuf have no common base but this
        if "allow_pickle" in str(error):
            raise CalibrationError(
                f"{what!r} can't be read as {kind}: it holds Python objects, which aren't read; save texts as "
                "array.astype(str), and arrays of several lengths with a script.py:load_data, a dictionary for each."
            ) from error
        if isinstance(error, FileNotFoundError):
            raise CalibrationError(
                f"{what!r} can't be read as {kind}: there is no such file; give an .npz file of arrays."
            ) from error
        raise CalibrationError(
            f"{what!r} can't be read as {kind} ({str(error).rstrip('.') or type(error).__name__}); give an .npz "
            "file of arrays."
        ) from error


def refuse_pipe(path: Path) -> None:
    """Refuse what can be read but once: arrays are looked at before they are read.

    Raises
    ------
    CalibrationError
        If it is a pipe or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CalibrationError(
            f"{str(path)!r} is a pipe or a device, which can be read but once; save it as a file, and give that."
        )


def read_npz(path: Path, admit: Callable[[list[str]], None]) -> dict[str, Array]:
    """Return the arrays of an ``.npz`` file; one of an ``.npy``, which has no name, under an empty one.

    Parameters
    ----------
    path : Path
    admit : callable
        Is given the names, if there are some, and raises where they are not those that are wanted.

    Raises
    ------
    CalibrationError
        If the file holds arrays that don't fit the memory or their own heads.
    """
    refuse_pipe(path)
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if not zipped:
        _afford(_head(path), str(path))  # or the reason why it is no .npy
        return {"": np.load(path, allow_pickle=False)}
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        admit(list(members))
        total = 0
        for name, info in members.items():
            with archive.open(info) as file:
                total += _needed(file, info.file_size, f"{name!r} of {str(path)!r}")
        _afford(total, str(path))
    with np.load(path, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


def read_folder(folder: Path, admit: Callable[[list[str]], None]) -> dict[str, Array]:
    """Return the arrays of the ``.npy`` files of a folder, by the names of the files; see `read_npz`."""
    files = {file.stem: file for file in sorted(folder.glob("*.npy"))}
    admit(list(files))
    _afford(sum(_head(file) for file in files.values()), str(folder))
    return {name: np.load(file, allow_pickle=False) for name, file in files.items()}


def read_tensor(file: Path) -> tuple[str, Array]:
    """Return the name and the values of a tensor in a ``.pb`` file.

    Raises
    ------
    CalibrationError
        If it is none.
    """
    with reading(str(file), "a tensor"):
        tensor = onnx.TensorProto()
        tensor.ParseFromString(file.read_bytes())
        if is_external(tensor):
            raise CalibrationError(f"{str(file)!r} has its data elsewhere; give a tensor that holds it.")
        check_size(tensor, f"the tensor in {str(file)!r}")
        return tensor.name, numpy_helper.to_array(tensor)


def _head(file: Path) -> int:
    with file.open("rb") as stream:
        return _needed(stream, file.stat().st_size, repr(str(file)))


def _needed(stream: Any, length: int, what: str) -> int:
    """Return the bytes of an array by its head, compared with those that are there."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    need = int(prod(shape)) * dtype.itemsize
    if not dtype.hasobject and need != length - stream.tell():
        raise CalibrationError(
            f"The array {what} of shape {shape} and type {dtype} needs {need:,} bytes, but there are "
            f"{length - stream.tell():,}; the file is damaged."
        )
    return need


def _afford(total: int, what: str) -> None:
    most = wall.allowed() * SHARE
    if total > most:
        raise CalibrationError(
            f"The arrays of {what!r} take {total / 1e6:,.0f} MB, more than the {most / 1e6:,.0f} MB that there may "
            "be of them; give fewer, or allow more with --max-memory."
        )
