"""Files that are read for as long as the work takes: weights are mapped and not copied, so whoever writes into such a
file meanwhile changes what is decided, proved and written, each at another moment. Nothing is written then.

What a run reads is noted by `rely` within a block of `reading`; a commit looks at all of it before anything takes its
place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from onnxprune.errors import ModelError, OutputError
from onnxprune.files.disk import status_of

__all__ = ["check_unchanged", "forget", "identity", "reading", "rely"]

_relied: ContextVar[dict[Path, Any] | None] = ContextVar("relied", default=None)


def identity(path: Path) -> Any:
    """Return what tells a file from what it is after any change; None where there is none."""
    status = status_of(path)
    return status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Note what is relied on within the outermost of these blocks; an error that came of a change is told as one.

    Raises
    ------
    ModelError
        If the block fails, and a file was changed.
    """
    if _relied.get() is not None:
        yield
        return
    mark = _relied.set({})
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        check_unchanged(error)
        raise
    finally:
        _relied.reset(mark)


def rely(files: Mapping[Path, Any]) -> None:
    """Note files that are read from now on, with the `identity` of each when it was opened.

    What was replaced before, and not written into, is still mapped as it was.
    """
    noted = _relied.get()
    if noted is None:
        return
    for path, known in files.items():
        now = identity(path)
        if now is not None and known is not None and now[:2] == known[:2]:
            noted.setdefault(path, known)


def forget(paths: Iterable[Path]) -> None:
    """Note that files were replaced by ourselves."""
    noted, ours = _relied.get() or {}, set(paths)
    for path in [one for one in noted if one.resolve() in ours]:
        del noted[path]


def check_unchanged(cause: BaseException | None = None) -> None:
    """Refuse to go on where a file that is relied on was changed or replaced; one that is gone is still mapped.

    Raises
    ------
    ModelError
        If one was.
    """
    for path, known in (_relied.get() or {}).items():
        now = identity(path)
        if now != known and (now is not None or isinstance(cause, FileNotFoundError)):
            what = "was removed" if now is None else "changed"
            raise ModelError(
                f"{str(path)!r} {what} while it was read; wait until nobody writes to it, and run this again."
            ) from cause
