"""Where a run reads and writes: all its paths, compared before any work."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from onnxprune.errors import OutputError
from onnxprune.files import commit
from onnxprune.files.beside import refuse_data
from onnxprune.files.external import is_external, parse
from onnxprune.files.protowalk import tensors
from onnxprune.files.target import (
    STDOUT,
    check,
    check_data,
    check_link,
    is_data_of,
    place_of,
    same,
    stream_of,
)
from onnxprune.model import Model
from onnxprune.options.compression import SUFFIX
from onnxprune.report.forms import form_of

__all__ = [
    "Sides",
    "data_files",
    "declared",
    "refuse_overwrite",
    "refuse_sides",
    "refuse_suffix",
    "same",
    "size_in_bytes",
    "size_of_output",
]


#: How the name of what is written begins where it is one of several models.
MEMBER = "OUT of "


@dataclass(frozen=True)
class Sides:
    """What a command reads and writes beside a model.

    Attributes
    ----------
    writes : mapping
        Option -> path, such as that of ``--report``; None where it isn't given.
    reads : mapping
        The same, of what is read: files, or folders with all that is in them.
    """

    writes: Mapping[str, Path] = field(default_factory=dict)
    reads: Mapping[str, Path] = field(default_factory=dict)


_declared: ContextVar[Sides] = ContextVar("sides", default=Sides())  # noqa: B039 - it is frozen


@contextlib.contextmanager
def declared(sides: Sides, source: str | None, output: str | None, *, joined: bool = True) -> Iterator[None]:
    """Say what a command reads and writes; all of it is written together at the end of the block.

    Parameters
    ----------
    sides : Sides
    source, output : str or None
        The model, and where the result goes.
    joined : bool
        Whether all is one commit; otherwise each result is one.

    Raises
    ------
    OutputError
        If a path can't be written, or two are the same file.
    """
    reads = {**sides.reads, **({} if not source else {"the input": Path(source)})}
    mark = _declared.set(Sides(sides.writes, sides.reads))
    try:
        if output:
            check(Path(output), f"The output {output!r}", probe=True)
            _refuse_reads(Path(output), sides.reads)
        seen: list[Path] = [Path(output)] if output else []
        for path in sides.writes.values():
            check(path, repr(str(path)), stream=True, probe=True)
            if stream_of(path) is None and any(alike(path, other) for other in seen):
                raise OutputError(f"{str(path)!r} is asked for twice; give each output a name of its own.")
            if output and is_data_of(path, Path(output)):
                raise OutputError(f"{str(path)!r} is kept for the output's data; give another name.")
            _refuse_reads(path, reads)
            seen.append(path)
        with commit.together() if joined else contextlib.nullcontext():
            yield
    finally:
        _declared.reset(mark)


def _refuse_reads(path: Path, reads: Mapping[str, Path]) -> None:
    for what, other in reads.items():
        if alike(path, other) or (other.is_dir() and path.exists() and _inside(path, other)):
            said = f"{what}" if what.startswith("the ") else f"what {what} reads"
            raise OutputError(f"{str(path)!r} is {said}; give another name.")


def _inside(path: Path, folder: Path) -> bool:
    return place_of(path).is_relative_to(place_of(folder))


def alike(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file, or would if it were there."""
    if same(one, other):
        return True
    a, b = place_of(one), place_of(other)
    if a == b:
        return True
    return _folded(a) == _folded(b) and a.parent.is_dir() and _ignores_case(a.parent)


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def _ignores_case(folder: Path) -> bool:
    """Whether a folder, or one of those above it, is also there with other letters."""
    swapped = Path(str(folder).swapcase())
    return swapped != folder and same(folder, swapped)


def refuse_overwrite(
    model: Model,
    output: Path | None,
    in_place: bool | None,
    external_threshold: int | None = None,
    *,
    packed: bool = False,
) -> None:
    """Refuse to write over the input, or over what others need, before any work is done.

    Parameters
    ----------
    model : Model
    output : Path or None
    in_place : bool or None
        None where the command can't do it.
    external_threshold : int or None
        See `Model.save`.
    packed : bool
        Whether a packed file is to be written, not a model.

    Raises
    ------
    OutputError
        If the output is the input under any name, its data, another model's data, can't be a file, or a model
        with the name of a packed file, which neither onnxruntime nor `decompress` would take for what it is.
    """
    refuse_sides(model)
    if output is None:
        return
    what = f"The output {str(output)!r}"
    if model.path is not None and not in_place and alike(output, model.path):
        replaced = "" if in_place is None else ", or --in-place to replace it"
        raise OutputError(f"{what} is the input itself; give another name{replaced}.")
    if any(alike(output, path) for path in data_files(model)):
        raise OutputError(f"{what} is the input's external data; give another name.")
    if not packed:
        refuse_suffix(output)
    check(output, what, probe=True)
    has_data = bool(data_files(model)) or external_threshold is not None
    if has_data:
        check_data(output)
    check_link(output, has_data)
    refuse_data(output, what)


def refuse_suffix(output: Path) -> None:
    """Refuse a model in a file whose name says that it is packed.

    Raises
    ------
    OutputError
        If it is.
    """
    if output.suffix == SUFFIX:
        raise OutputError(
            f"The output {str(output)!r} is to be a model, and its name that of a packed file; give a name that ends "
            "in .onnx, and pack that by 'onnxprune compress'."
        )


def refuse_sides(model: Model) -> None:
    """Refuse reports, plans and pages that would replace a model's data, before any work is done.

    Raises
    ------
    OutputError
        If one would.
    UsageError
        If a report is to be in a form that there isn't.
    """
    data = data_files(model)
    for what, path in _declared.get().writes.items():
        if any(alike(path, other) for other in data):
            raise OutputError(f"{str(path)!r} is the input's external data; give another name.")
        refuse_data(path, repr(str(path)), for_model=what.startswith(MEMBER))
        if what == "--report" and str(path) != STDOUT:
            form_of(path)


def size_in_bytes(model: Model) -> int:
    """Return the size of a model's files, external data included, or of the complete model where it is in memory."""
    if model.path is None or model.edited:  # what was cut still knows the path that it came from
        return model.nbytes
    return model.path.stat().st_size + sum(path.stat().st_size for path in data_files(model))


def size_of_output(path: Path) -> int:
    """Return the size of a result's files; they may still wait to be put in their places."""
    staged = commit.staged_size(path)
    return size_in_bytes(Model.load(path)) if staged is None else staged


def data_files(model: Model) -> list[Path]:
    """Return the files that hold a model's external data."""
    folder = Path() if model.path is None else model.path.parent
    paths = {parse(tensor, place).path for place, tensor in tensors(model.proto) if is_external(tensor)}
    return [folder / name for name in sorted(paths)]
