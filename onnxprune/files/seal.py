"""Archives that end with the sha256 of all that is before it, so that a changed byte is seen wherever it is.

A zip has a checksum of each member's data, and none of its own fields. Here the archive's comment, which is its end, is
the sha256 of the file with zeros in that place, in hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["check_seal", "sealed"]

_PIECE = 1 << 20
_EMPTY = b"0" * 64


class _Hashed:
    """Writes on and hashes what is written; it can't go back, so that each byte is written once."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        """Leave the file open, which is another's."""


@contextmanager
def sealed(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Yield an archive that is written to a file, from its present place on, and sealed at the end.

    Parameters
    ----------
    file : file
        Open for writing at its beginning; it can be moved in.
    """
    out = _Hashed(file)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = _EMPTY
        yield archive
    file.seek(-len(_EMPTY), 1)
    file.write(out.digest.hexdigest().encode())


def check_seal(path: Path) -> None:
    """Refuse a file whose end isn't the sha256 of what is before it.

    Raises
    ------
    ValueError
        If it isn't.
    OSError
        If it can't be read.
    """
    left, digest = path.stat().st_size - len(_EMPTY), hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(min(_PIECE, max(left, 0))):
            digest.update(piece)
            left -= len(piece)
        end = file.read()
    digest.update(_EMPTY)
    if end != digest.hexdigest().encode():
        raise ValueError(
            "its sha256 isn't the one at its end: a byte was changed, or it is of another version"
        )
