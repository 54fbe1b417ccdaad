"""Single steps of writing: a name taken, a mode and an owner kept, a folder brought down to the disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError
from onnxprune.files.target import STDOUT, same

__all__ = ["claim", "rename_new", "resemble", "send", "status_of", "sync", "take_back"]

#: Errors of file systems that have no such thing, where that is no harm.
_ABSENT = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES})
#: Where paths of renameat2 begin: in the working directory.
_HERE = -100
_NO_LINKS = _ABSENT | {errno.EPERM, errno.EMLINK, errno.EXDEV}


def status_of(path: Path) -> os.stat_result | None:
    """Return the status of a file, None where there is none."""
    try:
        return path.stat()
    except OSError:
        return None


def resemble(path: Path, like: os.stat_result | None) -> None:
    """Give a file the mode and, where that is allowed, the owner of another; or those of a new file."""
    if like is None:
        os.chmod(path, 0o666 & ~_umask())
        return
    if sys.platform != "win32":
        now = path.stat()
        if (like.st_uid, like.st_gid) != (now.st_uid, now.st_gid):
            with contextlib.suppress(OSError):
                os.chown(path, like.st_uid, like.st_gid)
    os.chmod(path, stat.S_IMODE(like.st_mode) & 0o777)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def claim(path: Path, target: Path) -> None:
    """Give a file a name that nothing has; if something has it, that stays and this fails.

    At no moment has it two names where the platform can do that: onnx refuses data that has.
    """
    if rename_new(path, target):
        return
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.rename(path, target)
        return
    os.unlink(path)


def rename_new(path: Path, target: Path) -> bool:
    """Rename a file if nothing has the new name, in one step; False where there is no such step.

    Raises
    ------
    OSError
        If something has it, or the file can't be renamed.
    """
    call = _renamer()
    if call is None:
        return False
    if call(_HERE, os.fsencode(path), _HERE, os.fsencode(target), 1) == 0:
        return True
    number = ctypes.get_errno()
    if number in _ABSENT:
        return False
    raise OSError(number, os.strerror(number), str(target))


@cache
def _renamer() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None, use_errno=True).renameat2  # of glibc 2.28 and musl 1.2.6
    return None


def take_back(path: Path, target: Path) -> None:
    """Undo `claim`, whichever part of it was done."""
    if same(path, target) or (not os.path.lexists(path) and os.path.lexists(target)):
        os.unlink(target)


def sync(folders: Iterable[Path]) -> None:
    """Bring the names in folders down to the disk, where the file system does that.

    Raises
    ------
    OSError
        If that fails.
    """
    if os.name == "nt":
        return
    for folder in set(folders):
        try:
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise


def send(into: int | str, data: bytes) -> None:
    """Write to a descriptor of this process, or to a device or a pipe."""
    try:
        if into == STDOUT:
            sys.stdout.write(data.decode())
            return
        if isinstance(into, str):
            with open(into, "wb", opener=lambda path, _: os.open(path, os.O_WRONLY)) as file:
                file.write(data)
            return
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        with open(os.dup(into), "wb") as file:
            file.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"{into if isinstance(into, str) else 'Standard output'} can't be written: {error.strerror or error}."
        ) from error
