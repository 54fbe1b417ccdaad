"""Where a file can be written: links followed, devices told from files; what can't be is refused before the work."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

from onnxprune.errors import OutputError
from onnxprune.files.holding import signals_deferred, temporary

__all__ = ["STDOUT", "check", "check_data", "check_link", "is_data_of", "place_of", "same", "stream_of"]

#: Means standard output, wherever a file to be written is named.
STDOUT = "-"
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self|[0-9]+))/fd/([0-9]+)")
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}


def stream_of(path: Path) -> int | str | None:
    """Return what a path that is no place for a file leads to: a descriptor of this process, or a device or pipe by
    its path, or ``-`` for standard output; None where a file is, or can be.
    """
    if str(path) == STDOUT:
        return STDOUT
    text = os.path.abspath(path)
    for _ in range(40):  # as many links as systems follow
        if text in _STANDARD:
            return _STANDARD[text]
        if match := _DESCRIPTOR.fullmatch(text):
            return int(match[1])
        if not os.path.islink(text):
            break
        text = os.path.normpath(os.path.join(os.path.dirname(text), os.readlink(text)))
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else str(path)


def place_of(path: Path) -> Path:
    """Return the file that a path leads to, by no link; it needn't be there."""
    return Path(os.path.realpath(path))


def same(one: Path, other: Path) -> bool:
    """Whether two paths are one file that is there."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def check(path: Path, what: str, *, stream: bool = False, probe: bool = False) -> None:
    """Refuse a path to which no file can be written.

    Parameters
    ----------
    path : Path
    what : str
        How the sentence begins, such as ``The output 'x.onnx'``.
    stream : bool
        Whether a device or a pipe is as good.
    probe : bool
        Try it, with an empty file that goes at once.

    Raises
    ------
    OutputError
        Says why.
    """
    try:
        _check(path, what, stream)
        if probe and stream_of(path) is None:
            with signals_deferred():
                trial = temporary(_there(place_of(path).parent))
                os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                trial.unlink()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{what} can't be written: {why}; nothing was left behind.") from error


def _there(folder: Path) -> Path:
    """Return a folder, or the nearest above it that is there: the others are made when something is written."""
    return next(
        place for place in (folder, *folder.parents) if os.path.lexists(place) or place == place.parent
    )


def check_data(path: Path) -> None:
    """Refuse the place of a model that can't have its data beside it.

    Raises
    ------
    OutputError
        Says why.
    """
    place = place_of(path)
    data = place.with_name(f"{place.name}.data")
    if not data.name.isprintable() and any(0xD800 <= ord(char) < 0xE000 for char in data.name):
        raise OutputError(
            f"The output's data file would be {data.name!r}, whose name is no UTF-8, and a model can't hold that; give "
            "the output another name."
        )
    try:
        is_folder = stat.S_ISDIR(os.lstat(data).st_mode)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise OutputError(
            f"The output's data file {data.name!r} can't be written: {getattr(error, 'strerror', error)}; nothing was "
            "left behind."
        ) from error
    if is_folder:
        raise OutputError(
            f"The output's data file would be {str(data)!r}, which is a folder; give the output another name."
        )


def is_data_of(path: Path, model: Path) -> bool:
    """Whether a path may become the data file of a model: ``<model>.data``, or ``<model>.N.data``."""
    data, place = place_of(path), place_of(model)
    pattern = re.escape(place.name) + r"(\.[1-9][0-9]*)?\.data"
    return data.parent == place.parent and re.fullmatch(pattern, data.name) is not None


def check_link(path: Path, has_data: bool) -> None:
    """Refuse a link as the place of a model that would not be found whole, or would change what others have.

    Parameters
    ----------
    path : Path
    has_data : bool
        Whether data files will be beside the model: then the link must be beside what it leads to.

    Raises
    ------
    OutputError
        Says why.
    """
    place, given = place_of(path), place_of(path.parent)
    if place.parent == given:
        return
    if place.parent.name == "blobs" and "snapshots" in given.parts:
        raise OutputError(
            f"The output {str(path)!r} is a link into a cache of downloads, whose files other revisions share; give "
            "another name."
        )
    if has_data:
        raise OutputError(
            f"The output {str(path)!r} is a link to {str(place)!r} in another folder, and data beside one isn't beside "
            "the other; give the name of the file itself, or remove the link."
        )


def _check(path: Path, what: str, stream: bool) -> None:
    into = stream_of(path)
    if into is not None:
        if into == STDOUT and not stream:
            raise OutputError(
                f"{what} is standard output, and a model needs a file, since its data may be beside it; give the "
                "name of a file."
            )
        if not stream:
            raise OutputError(
                f"{what} is a device or a pipe, where a file is needed; give the name of a file."
            )
        if into == STDOUT:
            return
        if isinstance(into, int):
            os.fstat(into)  # is it open?
            return
        mode = os.stat(path).st_mode
        if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
            raise OutputError(f"{what} is a socket or a disk; give the name of a file.")
        if not os.access(path, os.W_OK):
            raise OutputError(f"{what} can't be written: Permission denied; give another name.")
        return
    place = place_of(path)
    folder = _there(place.parent)
    if folder != place.parent and os.path.islink(path):
        raise OutputError(f"{what} is a link into a folder that doesn't exist; create it first.")
    if not folder.is_dir():
        raise OutputError(f"{what} is to be below {str(folder)!r}, which is no folder; give another name.")
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        status = None
    if status is None:
        pass
    elif stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{what} is a folder; give the name of a file.")
    elif stat.S_ISLNK(status.st_mode):
        raise OutputError(f"{what} is a link that leads in a circle; give another name.")
    elif not os.access(place, os.W_OK):
        raise OutputError(
            f"{what} can't be written: it is read-only; give another name, or make it writable."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{what} can't be written: its folder {str(folder)!r} is read-only; give another folder."
        )
    if status is not None and _sticks(status, folder.stat()):
        raise OutputError(
            f"{what} can't be replaced: it is another user's, in a folder of many; give another name."
        )


def _sticks(file: os.stat_result, folder: os.stat_result) -> bool:
    """Whether a file is in a folder such as /tmp, and somebody else's."""
    if sys.platform == "win32" or not folder.st_mode & stat.S_ISVTX:
        return False
    user = os.geteuid()
    return user not in (0, file.st_uid, folder.st_uid)
