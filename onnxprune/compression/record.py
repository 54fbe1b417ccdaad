"""What a ``.zst`` says of what is in it: a record in a skippable frame, which ``zstd -d`` passes over.

::

    magic 0x184D2A50 (4 bytes, little endian) | length (4 bytes) | record (JSON) | zstd frame | empty skippable frame

The last one, of 8 bytes, is there so that no part of the file can be missing unnoticed.

The frame unpacks to one ``.onnx`` with all its weights inside, or, where that would be more than protobuf holds, to a
tar of the model and its data files.

References
----------
Collet and Kucherawy, RFC 8878, sections 3.1.1 (frames) and 3.1.2 (skippable frames).
"""

from __future__ import annotations

import json
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from onnxprune.errors import ModelError

__all__ = ["END", "PackedFile", "Packing"]

_MAGIC, _FRAME = 0x184D2A50, b"\x28\xb5\x2f\xfd"
#: How a file ends.
END = struct.pack("<II", _MAGIC, 0)
#: A record is as short as the names in it; a longer one is none.
_LONGEST = 1 << 20
#: How far from the end of a file that of what was written is looked for.
_NEAR = 1 << 16
_BLOCK = 512


@dataclass(frozen=True)
class PackedFile:
    """One file.

    Attributes
    ----------
    name : str
        The model's, or a data file's as the model names it.
    nbytes : int
    sha256 : str
    """

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Packing:
    """What is in a ``.zst``.

    Attributes
    ----------
    members : tuple of PackedFile
        The model first.
    sha256 : str
        Of what the frame unpacks to: the model, or the tar.
    """

    members: tuple[PackedFile, ...]
    sha256: str

    @property
    def is_tar(self) -> bool:
        """Whether the frame unpacks to a tar."""
        return len(self.members) > 1

    @property
    def nbytes(self) -> int:
        """Bytes that the frame unpacks to."""
        return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in self.parts())

    def parts(self) -> Iterator[bytes | PackedFile]:
        """Yield what the frame unpacks to, in order: bytes as they are, and files."""
        if not self.is_tar:
            yield self.members[0]
            return
        for member in self.members:
            header = tarfile.TarInfo(member.name)
            header.size = member.nbytes
            yield header.tobuf(format=tarfile.GNU_FORMAT)
            yield member
            yield bytes(-member.nbytes % _BLOCK)
        yield bytes(2 * _BLOCK)

    def frame(self) -> bytes:
        """Return the skippable frame."""
        files = [{"name": m.name, "bytes": m.nbytes, "sha256": m.sha256} for m in self.members]
        values = {"onnxprune": 1, "bytes": self.nbytes, "sha256": self.sha256, "files": files}
        text = json.dumps(values, separators=(",", ":")).encode()
        return struct.pack("<II", _MAGIC, len(text)) + text

    @classmethod
    def read(cls, file: IO[bytes], path: Path) -> Packing:
        """Read the record at the beginning of a file, and leave the file at the frame.

        Raises
        ------
        ModelError
            If there is no such record, or it isn't sound.
        """
        head = file.read(8)
        if head[:4] == _FRAME:
            raise ModelError(
                f"{str(path)!r} is a .zst without a record by onnxprune, so nothing says how large it may become or "
                "what it must be; unpack it with 'zstd -d' if you know where it comes from."
            )
        magic, length = struct.unpack("<II", head) if len(head) == 8 else (0, 0)
        if magic != _MAGIC or not 0 < length <= _LONGEST:
            raise ModelError(f"{str(path)!r} is no file that 'onnxprune compress' has written.")
        text = file.read(length)
        _check_end(file, path)
        try:
            return _packing(json.loads(text))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(
                f"{str(path)!r} is damaged: its record can't be read; get the file again."
            ) from error


def _check_end(file: IO[bytes], path: Path) -> None:
    """Refuse a file that doesn't end as it was written; what stands behind its end tells one that is longer."""
    at = file.tell()
    size = file.seek(0, 2)
    file.seek(max(size - _NEAR, 0))
    _, mark, behind = file.read().rpartition(END)
    file.seek(at)
    if not mark:
        raise ModelError(
            f"{str(path)!r} doesn't end as it was written: its end is missing or changed; get the file again."
        )
    if behind:
        raise ModelError(
            f"{str(path)!r} has more behind its end than was written (bytes: {len(behind):,}); get the file again."
        )


def _packing(values: Any) -> Packing:
    if values["onnxprune"] != 1:
        raise ValueError("another version of the record")
    members = tuple(
        PackedFile(_name(f["name"]), _size(f["bytes"]), _hash(f["sha256"])) for f in values["files"]
    )
    packing = Packing(members, _hash(values["sha256"]))
    if not members or len({m.name for m in members}) < len(members) or packing.nbytes != values["bytes"]:
        raise ValueError("files and sizes contradict each other")
    return packing


def _name(name: Any) -> str:
    """Return the name of a file below the model's folder; any other is refused."""
    path = PurePosixPath(name)
    wrong = path.is_absolute() or ".." in path.parts or str(path) != name or not path.name
    if wrong or not name.isprintable() or "\\" in name or ":" in name:
        raise ValueError("a name that leads elsewhere")
    return str(name)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("no size")
    return value


def _hash(value: Any) -> str:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("no sha256")
    return str(value)
