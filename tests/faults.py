"""Calls of the operating system that fail, or after which the process is dead, one after the other."""

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from onnxprune.files import disk

#: What changes a disk, and what brings it there.
CALLS = (
    "replace",
    "rename",
    "link",
    "unlink",
    "remove",
    "mkdir",
    "rmdir",
    "fsync",
    "chmod",
    "chown",
    "open",
    "write",
)


class Dead(BaseException):
    """The process was killed."""


class Faults:
    """Counts calls, and breaks one of them.

    Parameters
    ----------
    at : int or None
        Which call, from 0; None only counts.
    error : BaseException
        What it raises; `Dead`, and every later call raises it too, as if the process were no more.
    after : bool
        Whether the call has been done by then.
    """

    def __init__(self, at: int | None, error: BaseException, after: bool = False) -> None:
        self.at, self.error, self.after = at, error, after
        self.calls: list[str] = []

    def run(self, name: str, call: Callable[..., Any], *given: Any, **more: Any) -> Any:
        number = len(self.calls)
        self.calls.append(name)
        if self.at is None or number < self.at:
            return call(*given, **more)
        if number == self.at:
            if self.after:
                with suppress(OSError):
                    call(*given, **more)
            raise self.error
        if isinstance(self.error, Dead):
            raise self.error
        return call(*given, **more)


class _Writer(io.BufferedWriter):
    faults: Faults

    def write(self, data: Any) -> int:
        done: int = self.faults.run("write", super().write, data)
        return done


@contextmanager
def breaking(faults: Faults) -> Iterator[Faults]:
    """Let calls of this process go through `faults`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            if name not in ("open", "write"):
                patch.setattr(os, name, _through(faults, name, getattr(os, name)))
        plain, wrapped = os.open, builtins.open

        def opening(path: Any, flags: int, *given: Any, **more: Any) -> int:
            if flags & os.O_CREAT:
                made: int = faults.run("open", plain, path, flags, *given, **more)
                return made
            return plain(path, flags, *given, **more)

        def writer(file: Any, mode: str = "r", *given: Any, **more: Any) -> Any:
            if mode != "wb":
                return wrapped(file, mode, *given, **more)
            found = _Writer(io.FileIO(file, "wb"))
            found.faults = faults
            return found

        rename = disk.rename_new

        def renaming(path: Path, target: Path) -> bool:
            done: bool = faults.run("rename_new", rename, path, target)
            return done

        patch.setattr(disk, "rename_new", renaming)
        patch.setattr(os, "open", opening)
        patch.setattr("onnxprune.files.commit.open", writer, raising=False)
        yield faults


def _through(faults: Faults, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **more: faults.run(name, call, *given, **more)
