"""Write a model so that the output appears complete or not at all, and the input isn't touched.

Everything is written under a temporary name in the folder of the output, flushed to the disk, and renamed:
the data file first, the model last. Where both exist already, the old model is removed before its data is
replaced, so that at no moment a model stands beside data that isn't its own.

- An unedited model is a copy of the input, byte for byte. Its external data keeps its name: in another folder
  the data files are copied, in the same folder they are shared. Where another file already has such a name,
  the data is written as if the model were edited.
- An edited model with external data gets one data file of its own, ``<output name>.data``, tensor by tensor. What
  onnxruntime reads while it loads a model (see `stays_inline`) is in the model all the same.
- In place, the new data file gets a name that the input doesn't use, and the input's data file is removed if
  it's named after the model (``<model name>.data``); another may belong to other models too, and stays.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import onnx

from onnxprune.errors import OutputError
from onnxprune.files.external import is_external, point, stays_inline
from onnxprune.files.payload import Payload, from_array
from onnxprune.files.protowalk import tensors
from onnxprune.files.store import Piece, Store, joined, stored, strip

__all__ = ["MOST_EMBEDDED", "Job", "save"]

MOST_EMBEDDED = 1_900_000_000  # bytes; a larger model goes to external data, protobuf's limit being 2^31
_MOVE_ABOVE = 1024  # bytes; what then goes there
_COPY = 1 << 24  # bytes at a time
_PAGE, _SMALL = 4096, 64  # bytes; tensors of a page or more start on one, so that they can be mapped


@dataclass(frozen=True)
class Job:
    """What to write where.

    Attributes
    ----------
    path : Path
        The output.
    source : Path or None
        The input.
    in_place : bool
        Whether the output may be the input.
    threshold : int or None
        Bytes from which embedded initializers become external.
    pristine : list or None
        The pieces of the input, if the model is unedited.
    """

    path: Path
    source: Path | None
    in_place: bool
    threshold: int | None
    pristine: list[Piece] | None


class _Files:
    """Files that appear together, or not at all."""

    def __init__(self) -> None:
        self._open: list[tuple[Path, Path, IO[bytes]]] = []

    def __enter__(self) -> _Files:
        return self

    def create(self, target: Path) -> IO[bytes]:
        temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
        file = temporary.open("xb")
        self._open.append((temporary, target, file))
        return file

    def commit(self) -> None:
        """Rename all to their names, in the order of their creation."""
        for _, _, file in self._open:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        *data, (_, model, _) = self._open
        if any(target.exists() for _, target, _ in data):
            model.unlink(missing_ok=True)
        placed: list[Path] = []
        try:
            for temporary, target, _ in self._open:
                os.replace(temporary, target)
                placed.append(target)
        except BaseException:
            for target in placed:
                target.unlink(missing_ok=True)
            raise
        for folder in {target.parent for target in placed}:
            _sync_folder(folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for temporary, _, file in self._open:
            file.close()
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(store: Store, job: Job) -> str:
    """Write a model.

    Returns
    -------
    str
        sha256 of the model's file, in hexadecimal.

    Raises
    ------
    OutputError
        If the output would overwrite the input, or can't be written; nothing is left behind then.
    """
    try:
        _refuse(store, job)
        if job.pristine is not None and job.threshold is None:
            copies = _copies(store, job)
            if copies is not None:
                return _copy(job, job.pristine, copies)
        return _write(store, job)
    except OSError as error:
        raise OutputError(
            f"The output {str(job.path)!r} can't be written: {error.strerror or error}; "
            "nothing was left behind."
        ) from error


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _sources(store: Store) -> dict[str, Path]:
    return {} if store.folder is None else store.folder.files()


def _refuse(store: Store, job: Job) -> None:
    path = job.path
    if job.source is not None and not job.in_place and _same(path, job.source):
        raise OutputError(
            f"The output {str(path)!r} is the input itself; give another name, or --in-place to replace it."
        )
    for location, real in _sources(store).items():
        if _same(path, real):
            raise OutputError(
                f"The output {str(path)!r} is the input's external data {location!r}; give another name."
            )
    if path.is_dir():
        raise OutputError(f"The output {str(path)!r} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise OutputError(
            f"The output {str(path)!r} is to be in a folder that doesn't exist; create it first."
        )


def _emit(file: IO[bytes], pieces: Iterable[Piece]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        data = stored(piece)
        digest.update(data)
        file.write(data)
    return digest.hexdigest()


def _equal(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        return all(chunk == b.read(_COPY) for chunk in iter(lambda: a.read(_COPY), b""))


def _copies(store: Store, job: Job) -> dict[Path, Path] | None:
    """Data file -> where an unedited model needs it; None where another file is in the way."""
    needed: dict[Path, Path] = {}
    for location, real in _sources(store).items():
        target = job.path.parent / location
        if _same(target, real):
            continue
        if _same(target, job.path) or target.is_symlink() or (target.exists() and not _equal(real, target)):
            return None
        if not target.exists():
            needed[target] = real
    return needed


def _copy(job: Job, pieces: list[Piece], copies: dict[Path, Path]) -> str:
    if job.source is not None and _same(job.path, job.source):
        return hashlib.sha256(stored(pieces[0])).hexdigest()  # in place, and nothing to change
    with _Files() as files:
        for target, real in copies.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with real.open("rb") as file:
                copy = files.create(target)
                for chunk in iter(lambda: file.read(_COPY), b""):
                    copy.write(chunk)
        digest = _emit(files.create(job.path), pieces)
        files.commit()
    return digest


def _data_name(store: Store, job: Job) -> str:
    """A name for the data file that is neither the input nor its data."""
    taken = [*_sources(store).values(), *([job.source] if job.source is not None else [])]
    names = (f"{job.path.name}{number}.data" for number in ("", *(f".{n}" for n in range(1, len(taken) + 2))))
    return next(name for name in names if not any(_same(job.path.parent / name, other) for other in taken))


def _is_embedded(tensor: onnx.TensorProto) -> bool:
    return not is_external(tensor) and tensor.data_type != onnx.TensorProto.STRING


def _outside(
    store: Store, proto: onnx.ModelProto, threshold: int | None
) -> list[tuple[onnx.TensorProto, Payload]]:
    """The tensors that go to the data file, in the order of the graph."""
    external = [(t, store.payload(t, place)) for place, t in tensors(proto) if is_external(t)]
    found = [(t, data) for t, data in external if data is not None and not _brought_in(t, data)]
    if threshold is None:
        length, _ = joined(proto.SerializeToString(deterministic=True), store.payloads)
        threshold = _MOVE_ABOVE if length > MOST_EMBEDDED else None
    if threshold is not None:
        inner = (tensor for tensor in proto.graph.initializer if _is_embedded(tensor))
        outer = ((t, data) for t in inner if (data := _data(store, t)).nbytes >= max(threshold, 1))
        found += [(t, data) for t, data in outer if not stays_inline(t, data.nbytes)]
    return found


def _brought_in(tensor: onnx.TensorProto, data: Payload) -> bool:
    """Embed an external tensor that onnxruntime must find in the model; whether it was one."""
    if not stays_inline(tensor, data.nbytes):
        return False
    strip(tensor)
    tensor.raw_data = data.stored().tobytes()
    return True


def _data(store: Store, tensor: onnx.TensorProto) -> Payload:
    data = store.payload(tensor, tensor.name)
    return from_array(store.array(tensor, tensor.name), tensor.data_type) if data is None else data


def _layout(outside: list[tuple[onnx.TensorProto, Payload]], name: str) -> list[tuple[int, Payload]]:
    """Point the tensors into the data file, and give the offset of each; what was shared stays shared."""
    end, placed = 0, dict[tuple[int, int], int]()
    out: list[tuple[int, Payload]] = []
    for tensor, data in outside:
        key = (data.data.ctypes.data, data.nbytes) if not data.cuts and data.nbytes else (id(data), -1)
        if key not in placed:
            step = _PAGE if data.nbytes >= _PAGE else _SMALL
            placed[key] = -(-end // step) * step
            end = placed[key] + data.nbytes
            out.append((placed[key], data))
        point(tensor, name, placed[key], data.nbytes)
    return out


def _emit_data(file: IO[bytes], layout: list[tuple[int, Payload]]) -> None:
    end = 0
    for offset, data in layout:
        file.write(bytes(offset - end))
        file.write(stored(data))
        end = offset + data.nbytes


def _write(store: Store, job: Job) -> str:
    proto = onnx.ModelProto()
    proto.CopyFrom(store.proto)
    outside = _outside(store, proto, job.threshold)
    name = _data_name(store, job)
    layout = _layout(outside, name)
    _, pieces = joined(proto.SerializeToString(deterministic=True), store.payloads)
    old = _old_data(store, job, name)
    with _Files() as files:
        if layout:
            _emit_data(files.create(job.path.parent / name), layout)
        digest = _emit(files.create(job.path), pieces)
        files.commit()
    for path in old:
        path.unlink(missing_ok=True)
    return digest


def _old_data(store: Store, job: Job, name: str) -> list[Path]:
    """The data files named after the input, which nothing needs once that is replaced."""
    if job.source is None or job.path.absolute() != job.source.absolute() or job.path.stat().st_nlink > 1:
        return []
    mine = re.compile(re.escape(job.path.name) + r"(\.[0-9]+)?\.data")
    return [job.path.parent / x for x in _sources(store) if x != name and mine.fullmatch(x)]
