"""Write a model so that the output appears complete or not at all, and the input isn't touched.

What is written, and under which names; `commit` puts it there.

- An unedited model is a copy of the input, byte for byte. Its external data keeps its name: in another folder
  the data files are copied, in the same folder they are shared. Where another file already has such a name,
  the data is written as if the model were edited.
- An edited model with external data gets one data file of its own, ``<output name>.data``, tensor by tensor; where
  another file has that name, ``<output name>.1.data`` and so on. What onnxruntime reads while it loads a model (see
  `stays_inline`) is in the model all the same.
- Over an older output, or in place, the data file of the old model stays until the new model stands beside its own
  under a name that nothing has; then, if no other model reads the old one, the new one takes its name, and the model is
  replaced once more. So the same result always has the same bytes (docs/decisions/0012-commit.md).
- The old model's data goes at the end, if it's named after it and no other model beside it reads it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import onnx

from onnxprune.errors import OutputError
from onnxprune.files.beside import own
from onnxprune.files.commit import Commit, refusal, together
from onnxprune.files.disk import status_of
from onnxprune.files.external import is_external, point, stays_inline
from onnxprune.files.pair import drop, equal, like, place_pair
from onnxprune.files.payload import Payload, from_array
from onnxprune.files.protowalk import tensors
from onnxprune.files.reading import identity
from onnxprune.files.store import Piece, Store, joined, stored, strip
from onnxprune.files.target import check, check_data, check_link, place_of, same

__all__ = ["MOST_EMBEDDED", "WriteJob", "save"]

MOST_EMBEDDED = 1_900_000_000  # bytes; a larger model goes to external data, protobuf's limit being 2^31
_MOVE_ABOVE = 1024  # bytes; what then goes there
_COPY = 1 << 24  # bytes at a time
_PAGE, _SMALL = 4096, 64  # bytes; tensors of a page or more start on one, so that they can be mapped


@dataclass(frozen=True)
class WriteJob:
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
    seen : dict
        Files of the input, with the `identity` of each when it was read or last written.
    """

    path: Path
    source: Path | None
    in_place: bool
    threshold: int | None
    pristine: list[Piece] | None
    seen: dict[Path, Any]


def save(store: Store, job: WriteJob) -> str:
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
    _refuse(store, job)
    job = replace(job, path=place_of(job.path))
    with together() as files:
        try:
            if job.pristine is not None and job.threshold is None:
                if _is_in_place(job):  # there is nothing to change
                    sizes = [path.stat().st_size for path in (job.path, *_sources(store).values())]
                    files.size(job.path, sum(sizes))
                    return hashlib.sha256(stored(job.pristine[0])).hexdigest()
                files.lock(job.path.parent)
                copies = _copies(store, job, files)
                if copies is not None:
                    return _copy(store, job, copies, files)
            return _write(store, job, files)
        except OSError as error:
            raise refusal(repr(str(job.path)), error) from error


def _sources(store: Store) -> dict[str, Path]:
    return {} if store.folder is None else store.folder.files()


def _refuse(store: Store, job: WriteJob) -> None:
    path = job.path
    what = f"The output {str(path)!r}"
    if job.source is not None and not job.in_place and same(path, job.source):
        raise OutputError(f"{what} is the input itself; give another name, or --in-place to replace it.")
    for location, real in _sources(store).items():
        if same(path, real):
            raise OutputError(f"{what} is the input's external data {location!r}; give another name.")
    check(path, what)
    if _sources(store) or job.threshold is not None:
        check_data(path)
    check_link(path, bool(_sources(store)) or job.threshold is not None)


def _emit(file: IO[bytes], pieces: Iterable[Piece]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        data = stored(piece)
        digest.update(data)
        file.write(data)
    return digest.hexdigest()


def _copies(store: Store, job: WriteJob, files: Commit) -> dict[Path, Path] | None:
    """Data file -> where an unedited model needs it; None where another file is in the way."""
    needed: dict[Path, Path] = {}
    for location, real in _sources(store).items():
        target = job.path.parent / location
        if same(target, real):
            continue
        if place_of(target) == job.path or files.names(target) or target.is_symlink():
            return None
        if target.exists() and not equal(real, target):
            return None
        if not target.exists():
            needed[target] = real
    return needed


def _copy(store: Store, job: WriteJob, copies: dict[Path, Path], files: Commit) -> str:
    for target, real in copies.items():
        files.folder(target.parent)
        with real.open("rb") as source:
            path, _ = files.write(target.parent, partial(shutil.copyfileobj, source, length=_COPY), None)
        files.fresh(path, target)
    old = [name for name in own(job.path) if name not in _sources(store)]
    path, digest = files.write(
        job.path.parent, partial(_emit, pieces=job.pristine or []), status_of(job.path)
    )
    files.model(path, job.path, partial(drop, job.path, old))
    files.size(job.path, path.stat().st_size + sum(x.stat().st_size for x in _sources(store).values()))
    return digest


def _is_embedded(tensor: onnx.TensorProto) -> bool:
    return not is_external(tensor) and tensor.data_type != onnx.TensorProto.STRING


def _outside(
    store: Store, proto: onnx.ModelProto, threshold: int | None
) -> list[tuple[onnx.TensorProto, Payload]]:
    """The tensors that go to the data file, in the order of the graph."""
    external = [(t, store.payload(t, place)) for place, t in tensors(proto) if is_external(t)]
    payloads = [(t, data) for t, data in external if data is not None and not _brought_in(t, data)]
    if threshold is None:
        length, _ = joined(proto.SerializeToString(deterministic=True), store.payloads)
        threshold = _MOVE_ABOVE if length > MOST_EMBEDDED else None
    if threshold is not None:
        inner = (tensor for tensor in proto.graph.initializer if _is_embedded(tensor))
        outer = ((t, data) for t in inner if (data := _data(store, t)).nbytes >= max(threshold, 1))
        payloads += [(t, data) for t, data in outer if not stays_inline(t, data.nbytes)]
    return payloads


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


def _write(store: Store, job: WriteJob, files: Commit) -> str:
    proto = store.closed()
    outside = _outside(store, proto, job.threshold)
    folder, data = job.path.parent, None
    if outside:
        layout = _layout(outside, "")
        data, _ = files.write(folder, partial(_emit_data, layout=layout), like(job.path))

    def render(name: str) -> tuple[Path, str]:
        _layout(outside, name)
        _, pieces = joined(proto.SerializeToString(deterministic=True), store.payloads)
        return files.write(folder, partial(_emit, pieces=pieces), status_of(job.path))

    files.lock(folder)
    _unchanged(job)
    taken = [] if _is_in_place(job) else list(_sources(store).values())
    digest = place_pair(files, job.path, data, render, taken)
    if job.source is not None and _is_in_place(job):
        files.after(partial(_note, job, job.source))
    return digest


def _is_in_place(job: WriteJob) -> bool:
    return job.source is not None and same(job.path, job.source)


def _note(job: WriteJob, source: Path) -> None:
    """Remember that the source was replaced by ourselves."""
    job.seen[source] = identity(source)


def _unchanged(job: WriteJob) -> None:
    """Refuse to replace, in place, what somebody else has written since it was read."""
    is_source = job.source is not None and job.in_place and job.path == place_of(job.source)
    if is_source and identity(job.path) != job.seen.get(job.source or job.path):
        raise OutputError(
            f"The output {str(job.path)!r} has been changed or removed by another program since it was read; look "
            "at it, and run this again."
        )
