"""A model and its data file: under which name the data goes, so that at no moment a model stands beside data that isn't
its own, and the same result has the same bytes whatever was there before. See docs/decisions/0012-commit.md.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from onnxprune.errors import OutputError
from onnxprune.files.beside import own, readers
from onnxprune.files.commit import Commit
from onnxprune.files.disk import sync
from onnxprune.files.target import same

__all__ = ["drop", "equal", "like", "place_pair"]

_BLOCK = 1 << 24  # bytes compared at a time

#: Writes a model whose data has a name; returns the temporary file and its sha256.
Render = Callable[[str], tuple[Path, str]]


def place_pair(
    files: Commit, target: Path, data: Path | None, render: Render, taken: Iterable[Path] = ()
) -> str:
    """Let a model and its data take their places.

    Parameters
    ----------
    files : Commit
    target : Path
        Of the model, by no link.
    data : Path or None
        A temporary file.
    render : callable
    taken : iterable of Path
        Files whose names the data must not have.

    Returns
    -------
    str
        sha256 of the model.
    """
    files.lock(target.parent)
    old = own(target)
    if data is None:
        path, digest = render("")
        files.size(target, path.stat().st_size)
        files.model(path, target, partial(drop, target, old))
        return digest
    home, is_there, through = _choose(files, target, data, old, [*taken])
    path, digest = render(home.name)
    files.size(target, path.stat().st_size + data.stat().st_size)
    rest = [name for name in old if name != home.name]
    if through is None:
        if not is_there:
            files.fresh(data, home)
        files.model(path, target, partial(drop, target, rest))
        return digest
    first, first_digest = render(through.name)
    files.fresh(data, through)
    try:
        with data.open("rb") as file:
            copy, _ = files.write(data.parent, partial(shutil.copyfileobj, file, length=_BLOCK), data.stat())
    except OSError:  # there is no room for it
        files.model(first, target, partial(drop, target, old))
        return first_digest
    files.model(first, target, partial(_go_home, target, through, home, (copy, path)))
    files.after(partial(drop, target, rest))
    return digest


def _choose(
    files: Commit, target: Path, data: Path, old: list[str], taken: list[Path]
) -> tuple[Path, bool, Path | None]:
    """Return the data's name in the end, whether it is there with the same bytes, and the name before, if any."""
    folder = target.parent
    names = (folder / f"{target.name}{number}.data" for number in ("", *(f".{n}" for n in range(1, 1000))))
    for home in names:
        if any(same(home, other) for other in taken):
            continue
        if not files.taken(home):
            return home, False, None
        if not _is_plain(home) or files.names(home):
            continue
        alone = _unread(home, target)
        if (home.name in old or alone) and home.stat().st_nlink == 1 and equal(data, home):
            return home, True, None
        if home.name in old and alone:
            through = next(name for name in names if not files.taken(name))
            # Windows doesn't replace a file that is mapped
            return (through, False, None) if os.name == "nt" else (home, False, through)
    raise OutputError(
        f"The output {str(target)!r} has 1,000 data files already; remove those that nothing reads."
    )


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _unread(path: Path, but: Path | None = None) -> bool:
    """Whether surely no model beside a file reads it."""
    try:
        return not readers(path, but)
    except OSError:
        return False


def _go_home(target: Path, through: Path, home: Path, temporaries: tuple[Path, Path]) -> None:
    """Give the data the name that it has in the end.

    The model that reads it under its first name stays until one that reads a copy under the last can be put there. (A
    second name wouldn't do: onnx refuses data that has two.)
    """
    copy, model = temporaries
    try:
        os.replace(copy, home)
        sync([target.parent])
        os.replace(model, target)
        sync([target.parent])
    except OSError as error:
        raise OutputError(
            f"The output {str(target)!r} is written and whole, but its data stays in {through.name!r}, since that "
            f"can't become {home.name!r}: {error.strerror or error}; a report names another hash."
        ) from error
    _remove(through)


def drop(target: Path, names: Iterable[str]) -> None:
    """Remove data files of the model that was here before, unless a model beside them reads them."""
    for name in names:
        path = target.parent / name
        if _is_plain(path) and _unread(path):
            _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"{str(path)!r} isn't needed any more, but can't be removed: {error.strerror or error}.",
            stacklevel=2,
        )


def like(target: Path) -> os.stat_result | None:
    """Return the file whose mode and owner the data of a new model gets: the old data, or else the old model."""
    for path in (*(target.parent / name for name in own(target)), target):
        with contextlib.suppress(OSError):
            return path.stat()
    return None


def equal(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        return all(chunk == b.read(_BLOCK) for chunk in iter(lambda: a.read(_BLOCK), b""))
