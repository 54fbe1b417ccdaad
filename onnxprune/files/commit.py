"""The one writer: files appear together and complete, or not at all, and nothing that others need goes.

A `Commit` takes files under temporary names, all of which begin alike (see `holding.PREFIX`) and go with it. When it
ends well they take their places, in an order in which a process that is killed at any moment leaves models that load:
data first, under names that nothing has; then reports and plans; the model last, by one replacement. What came before
is taken back if a step fails. Signals wait meanwhile.

Within `together` all that is written joins one commit, so a report that can't be written keeps its model from being
replaced.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TypeVar

from onnxprune.errors import OutputError
from onnxprune.files.disk import claim, resemble, send, status_of, sync, take_back
from onnxprune.files.holding import (
    PREFIX,
    cleaning,
    locked,
    remove_orphans,
    signals_deferred,
    temporary,
)
from onnxprune.files.reading import check_unchanged, forget
from onnxprune.files.target import check, place_of, stream_of
from onnxprune.wall import board as wall

__all__ = [
    "Commit",
    "alone",
    "refusal",
    "sweep",
    "tell",
    "together",
    "write_text",
    "written",
]

_log = logging.getLogger("onnxprune.files")

T = TypeVar("T")

_NOTHING = "; nothing was left behind."

_current: ContextVar[Commit | None] = ContextVar("commit", default=None)
_aside: ContextVar[bool] = ContextVar("aside", default=False)
_written: list[Path] = []


def written() -> list[Path]:
    """Return what this process has put in its place, the latest last; of what was written `alone` see `tell`.

    Some may be gone since, as what was written into temporary folders is.
    """
    return list(_written)


def tell(folder: Path) -> None:
    """Let a folder stand for the files in it, which were written `alone`, where it is told what was written."""
    _written.append(folder)


def sweep(folder: Path, pid: int) -> list[Path]:
    """Remove what a process that was killed has left in a folder, and return what that was.

    Only files and folders that `temporary` named for this process go; it must be gone.
    """
    gone = []
    for path in folder.glob(f"{PREFIX}{pid}-*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        gone.append(path)
    return gone


class Commit:
    """Files that appear together, or not at all; made by `together`."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._temporaries: list[Path] = []
        self._folders: set[Path] = set()
        self._cleared: set[Path] = set()
        self._fresh: list[tuple[Path, Path]] = []
        self._sides: list[tuple[Path, Path]] = []
        self._models: list[tuple[Path, Path]] = []
        self._streams: list[tuple[int | str, bytes]] = []
        self._after: list[Callable[[], None]] = []
        self._made: list[Path] = []
        self._sizes: dict[Path, int] = {}

    def temporary(self, folder: Path) -> Path:
        """Return the name of a file or folder that goes with this commit, unless it is moved to a place.

        The folder that it is to be in is made, see `folder`.
        """
        if not self._temporaries:
            self._stack.enter_context(cleaning())
        self.folder(folder)
        if folder not in self._cleared:
            self._cleared.add(folder)
            remove_orphans(folder)
        path = temporary(folder)
        self._stack.enter_context(wall.litter(path))
        self._temporaries.append(path)
        return path

    def write(
        self, folder: Path, fill: Callable[[IO[bytes]], T], like: os.stat_result | None
    ) -> tuple[Path, T]:
        """Write a temporary file, down to the disk.

        Parameters
        ----------
        folder : Path
        fill : callable
            Writes.
        like : stat_result or None
            The file whose mode and owner it gets; a new file's otherwise.

        Returns
        -------
        tuple
            Its path, and what `fill` returned.
        """
        path = self.temporary(folder)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        try:
            with open(handle, "wb") as file:
                value = fill(file)
                file.flush()
                os.fsync(file.fileno())
            resemble(path, like)
        except OSError:
            with contextlib.suppress(OSError):  # the room may be needed at once
                path.unlink()
            raise
        return path, value

    def lock(self, folder: Path) -> None:
        """Keep other processes from placing models in a folder until this commit ends."""
        if folder not in self._folders:
            self._folders.add(folder)
            self.folder(folder)
            self._stack.enter_context(locked(folder))

    def fresh(self, path: Path, target: Path) -> None:
        """Let a temporary file take a name that nothing has."""
        self._fresh.append((path, target))

    def model(self, path: Path, target: Path, after: Callable[[], None] | None = None) -> None:
        """Let a temporary file take the place of a model, after all else; then something may be done."""
        self._models.append((path, target))
        if after is not None:
            self.after(after)

    def size(self, target: Path, nbytes: int) -> None:
        """Note how large a model and its data will be; see `staged_size`."""
        self._sizes[target] = nbytes

    def after(self, action: Callable[[], None]) -> None:
        """Let something be done when all is in its place."""
        self._after.append(action)

    def folder(self, path: Path) -> None:
        """Make a folder and those above it; they go again if nothing is put there."""
        missing = [place for place in (path, *path.parents) if not place.is_dir()]
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            self._made.append(place)

    def text(self, path: Path, text: str) -> None:
        """Let a text take the place of a file, or go to a device or a pipe.

        Raises
        ------
        OutputError
            If it can't be written.
        """
        check(path, f"The file {str(path)!r}", stream=True)
        into, data = stream_of(path), text.encode(errors="backslashreplace")
        if into is not None:
            self._streams.append((into, data))
            return
        self.file(path, lambda file: file.write(data))

    def file(self, path: Path, fill: Callable[[IO[bytes]], object]) -> None:
        """Let what is written by a function take the place of a file that is no model.

        Raises
        ------
        OutputError
            If it can't be written.
        """
        check(path, f"The file {str(path)!r}")
        from onnxprune.files.beside import (
            refuse_data,  # imports onnx, which who only asks what was written needn't
        )

        refuse_data(path, f"The file {str(path)!r}", for_model=False)
        place = place_of(path)
        if self.names(place):
            raise OutputError(f"{str(path)!r} is written already by the same run; give another name.")
        self._sides.append((self.write(place.parent, fill, status_of(place))[0], place))

    def names(self, path: Path) -> bool:
        """Whether a file of this commit is to have a name."""
        return any(path == target for _, target in self._all())

    def taken(self, path: Path) -> bool:
        """Whether a file of this commit is to have a name, or any file has it."""
        return os.path.lexists(path) or self.names(path)

    def _all(self) -> list[tuple[Path, Path]]:
        return [*self._fresh, *self._sides, *self._models]

    def place(self) -> None:
        """Put all files in their places.

        Raises
        ------
        OSError
            If one can't be; then none is.
        ModelError
            If what they were made from has changed meanwhile.
        """
        check_unchanged()
        for into, data in self._streams:
            send(into, data)
        with signals_deferred():
            self._place()
            if not _aside.get():
                _written.extend(target for _, target in (*self._sides, *self._models))
            for done in self._after:
                done()

    def _place(self) -> None:
        undo: list[Callable[[], None]] = []
        try:
            for path, target in self._fresh:
                undo.append(lambda path=path, target=target: take_back(path, target))  # type: ignore[misc]
                claim(path, target)
            sync(target.parent for _, target in self._fresh)
            for path, target in self._sides:
                undo.append(self._restoring(path, target))
                os.replace(path, target)
            for path, target in self._models:
                os.replace(path, target)
        except BaseException:
            if not self._models or os.path.lexists(self._models[-1][0]):
                for step in reversed(undo):
                    with contextlib.suppress(OSError):
                        step()
            raise
        forget(target for _, target in self._all())
        for _, target in (*self._sides, *self._models):
            _log.info("wrote %s", target)
        with contextlib.suppress(OSError):
            sync(target.parent for _, target in (*self._sides, *self._models))

    def _restoring(self, path: Path, target: Path) -> Callable[[], None]:
        """Return what brings the old file back to a place, which a new one may have taken."""
        backup = self.temporary(target.parent) if target.exists() else None
        if backup is not None:
            try:
                os.link(target, backup)
            except OSError:
                shutil.copy2(target, backup)

        def restore() -> None:
            if os.path.lexists(path):
                return
            if backup is None:
                target.unlink()
            else:
                os.replace(backup, target)

        return restore

    def close(self) -> list[str]:
        """Remove what is still temporary, and return what couldn't be removed."""
        left = []
        with self._stack, signals_deferred():
            for path in self._temporaries:
                try:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
                except OSError as error:
                    left.append(f"{str(path)!r} can't be removed: {error.strerror or error}")
            for path in reversed(self._made):
                with contextlib.suppress(OSError):  # it isn't empty: then it is needed
                    path.rmdir()
        return left

    @property
    def name(self) -> str:
        """What is written, for a message."""
        targets = [target for _, target in (*self._models, *self._sides)]
        return repr(str(targets[0])) if targets else "file"


@contextlib.contextmanager
def together() -> Iterator[Commit]:
    """Yield the commit that all within the block joins; it is carried out at the end of the outermost block.

    Raises
    ------
    OutputError
        If the files can't be written.
    """
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    commit = Commit()
    mark = _current.set(commit)
    failure: OutputError | None = None
    left: list[str] = []
    try:
        yield commit
        try:
            commit.place()
        except OSError as error:
            raise refusal(commit.name, error) from error
    except OutputError as error:
        failure = error
    finally:
        _current.reset(mark)
        left = commit.close()
    if failure is not None:
        if left:
            text = str(failure).replace(_NOTHING, f"; {', '.join(left)}.")
            raise OutputError(text) from failure
        raise failure
    if left:
        warnings.warn("; ".join(left), stacklevel=3)


def staged_size(path: Path) -> int | None:
    """Return the bytes of a model and its data that wait to be put in their places; None where none wait."""
    commit = _current.get()
    return None if commit is None else commit._sizes.get(place_of(path))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let what is written within a block take its place at once, also within `together`."""
    mark, quiet = _current.set(None), _aside.set(True)
    try:
        yield
    finally:
        _current.reset(mark)
        _aside.reset(quiet)


def refusal(name: str, error: OSError) -> OutputError:
    """Return the error for a file that can't be written; nothing of it may be there."""
    return OutputError(f"The output {name} can't be written: {error.strerror or error}{_NOTHING}")


def write_text(path: Path, text: str) -> None:
    """Write a small file, complete or not at all; with others, within `together`.

    Raises
    ------
    OutputError
        If it can't be written.
    """
    with together() as files:
        try:
            files.text(path, text)
        except OSError as error:
            raise refusal(repr(str(path)), error) from error
