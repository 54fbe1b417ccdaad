"""Open a model: from a path, bytes or a ModelProto, to a light proto and the payloads of its tokens, checked.

The checks are all made before anything written in C++ but the protobuf parser sees the model: its structure
(`checks`), the size of every tensor (`sizes`), and where external data is (`external`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.files import checks, wire
from onnxprune.files.external import Folder, is_external
from onnxprune.files.foreign import path_of, plain
from onnxprune.files.payload import Payload
from onnxprune.files.protowalk import tensors
from onnxprune.files.reading import identity
from onnxprune.files.schema import check_schemas
from onnxprune.files.sizes import check_dense, check_size
from onnxprune.files.store import DETACH_ABOVE, Store, new_token, token_of
from onnxprune.files.target import STDOUT
from onnxprune.files.texts import check_texts
from onnxprune.wall import board as wall

__all__ = ["Opened", "is_model", "open_model"]

_Found = dict[str, tuple[NDArray[np.uint8], int]]  # token -> the bytes, and the field they are in


@dataclass(frozen=True)
class Opened:
    """A model as opened.

    Attributes
    ----------
    store : Store
    source : uint8[n] or None
        The bytes of the input, where there are any.
    origin : tuple
        The light proto of the input, serialised, and its payloads.
    files : mapping
        The file and its data files -> the `identity` of each, from before it was mapped.
    """

    store: Store
    source: NDArray[np.uint8] | None
    origin: tuple[bytes, Mapping[str, Payload]]
    files: Mapping[Path, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all that was opened, external data too."""
        beside = 0 if self.store.folder is None else self.store.folder.nbytes
        return len(self.origin[0]) + sum(data.nbytes for data in self.store.payloads.values()) + beside


def open_model(source: Any, base_dir: Path | None) -> Opened:
    """Open a model and check it; see `Model.load`."""
    folder = None if base_dir is None else Folder(base_dir)
    source = plain(source)
    if isinstance(source, onnx.ModelProto):
        try:
            data = source.SerializeToString(deterministic=True)
        except (EncodeError, ValueError):  # over 2 GB
            return _admit(*_light_copy(source), folder, None)
        return _from_bytes(np.frombuffer(data, np.uint8), "The given ModelProto", folder)
    if isinstance(source, bytes):
        return _from_bytes(np.frombuffer(source, np.uint8), "The given bytes object", folder)
    path = path_of(source)
    known = identity(path)
    data = _map_file(path)
    wall.grow(weights=len(data))
    with wall.stage(f"Reading {str(path)!r}"):
        opened = _from_bytes(data, repr(str(path)), folder or Folder(path.parent, path.resolve().parent))
    return replace(opened, files={path: known, **opened.files})


def is_model(path: Path) -> bool:
    """Whether a file has the form of an ONNX model, with a graph in it; nothing more is checked."""
    try:
        data = _map_file(path)
        with wall.stage(f"Reading {str(path)!r}"):
            light, _ = wire.split(data.data, DETACH_ABOVE, lambda _: b"")
            return bool(onnx.ModelProto.FromString(light).HasField("graph"))
    except (ModelError, wire.WireError, DecodeError):
        return False


def _from_bytes(data: NDArray[np.uint8], what: str, folder: Folder | None) -> Opened:
    try:
        light, spans = wire.split(data.data, DETACH_ABOVE, lambda _: new_token().encode())
        proto = onnx.ModelProto.FromString(light)
    except (wire.WireError, DecodeError) as error:
        if (by := _unpacked_by(data)) is not None:
            raise ModelError(
                f"{what} is packed; unpack it by {by}, and go on with what that gives."
            ) from error
        raise ModelError(
            f"{what} isn't an ONNX model{_looks_like(data)}, or is truncated ({error}); give a "
            "complete .onnx file."
        ) from error
    payloads = {token.decode(): (data[s.start : s.start + s.length], s.field) for token, s in spans.items()}
    return _admit(proto, payloads, folder, data)


def _admit(
    proto: onnx.ModelProto, payloads: _Found, folder: Folder | None, source: NDArray[np.uint8] | None
) -> Opened:
    """Check a light proto, and note what its tokens stand for."""
    check_texts(proto)
    checks.check(proto)
    check_schemas(proto)
    store = Store(proto, folder, {})
    for place, tensor in tensors(proto):
        token = token_of(tensor)
        data, slot = payloads.get(token or "", (None, 0))
        if token is not None and data is None:
            raise ModelError(
                f"The data of {place} belongs to another Model, because this is the light proto "
                "of a Model (Model.proto); pass that Model itself, or its to_proto()."
            )
        check_size(tensor, place, None if data is None else len(data))
        check_dense(place.dense, place)
        if token is not None and data is not None:
            store.payloads[token] = Payload(data, tuple(tensor.dims), tensor.data_type, slot)
        elif is_external(tensor):
            store.payload(tensor, place)  # checks the location and the length
    origin = proto.SerializeToString(deterministic=True), dict(store.payloads)
    return Opened(store, source, origin, {} if folder is None else folder.mapped)


def _light_copy(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, _Found]:
    """A light copy of a proto that is too large to be serialised: its large initializers are taken out."""
    light, payloads = onnx.ModelProto(), _Found()
    for descriptor, value in proto.ListFields():
        if descriptor.name != "graph":
            _set(light, descriptor.name, value)
    for descriptor, value in proto.graph.ListFields():
        if descriptor.name != "initializer":
            _set(light.graph, descriptor.name, value)
    for tensor in proto.graph.initializer:
        twin = light.graph.initializer.add()
        raw = tensor.raw_data if tensor.HasField("raw_data") else b""
        for descriptor, value in tensor.ListFields():
            if descriptor.name != "raw_data":
                _set(twin, descriptor.name, value)
        if len(raw) > DETACH_ABOVE:
            token = new_token()
            payloads[token] = (np.frombuffer(raw, np.uint8), wire.RAW_DATA)
            twin.raw_data = token.encode()
        elif tensor.HasField("raw_data"):
            twin.raw_data = raw
    return light, payloads


def _set(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto, name: str, value: object) -> None:
    target = getattr(message, name)
    if hasattr(target, "MergeFrom"):  # a message, or repeated
        target.MergeFrom(value)
    else:
        setattr(message, name, value)


def _map_file(path: Path) -> NDArray[np.uint8]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{str(path)!r} is a folder; name the .onnx file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{str(path)!r} isn't a file; name a .onnx file.")
        if status.st_size == 0:
            raise ModelError(f"{str(path)!r} is empty; give a complete .onnx file.")
        # Windows doesn't replace a mapped file, so there --in-place must have it in memory.
        return np.fromfile(path, np.uint8) if os.name == "nt" else np.memmap(path, np.uint8, mode="r")
    except OSError as error:
        if str(path) == STDOUT:
            raise ModelError(
                "A model can't be read from standard input, since its data may be beside it; name a .onnx file."
            ) from error
        raise ModelError(
            f"{str(path)!r} can't be read: {error.strerror or error}; give a .onnx file."
        ) from error


def _unpacked_by(data: NDArray[np.uint8]) -> str | None:
    """Return the command that unpacks a file: a zstd frame, behind one with our record or alone, or a gzip."""
    head = data[:4].tobytes()
    if head[1:] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "'onnxprune decompress'"
    if head == b"\x28\xb5\x2f\xfd":
        return "'zstd -d'"
    return "'gunzip'" if head.startswith(b"\x1f\x8b\x08") else None


def _looks_like(data: NDArray[np.uint8]) -> str:
    head = data[:64].tobytes()
    known = {
        b"PK\x03\x04": "a zip archive (a PyTorch checkpoint, perhaps)",
        b"\x89HDF": "an HDF5 file (Keras, perhaps)",
        b"version https://git-lfs": "a Git LFS pointer, so the real file is still to be fetched",
        b"<": "a web page or XML",
        b"{": "JSON",
    }
    kind = next((text for magic, text in known.items() if head.startswith(magic)), None)
    if kind is None and head[4:8] in (b"TFL3", b"ORTM"):
        kind = "a TensorFlow Lite model" if head[4:8] == b"TFL3" else "a model in ORT format"
    return f" but looks like {kind}" if kind else ""
