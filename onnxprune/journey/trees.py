"""Folders in and out: a model of Triton or Hugging Face with all that belongs to it.

``prune FOLDER OUT``, where the folder holds a model, or several that belong together, and OUT is no ``.onnx`` file,
writes each to the same place in OUT, and copies all other files there as they are.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from onnxprune.errors import OutputError
from onnxprune.files.commit import together
from onnxprune.files.foreign import models_in, path_of
from onnxprune.files.target import place_of
from onnxprune.journey.genai import NAME
from onnxprune.journey.output import data_files
from onnxprune.model import Model

__all__ = ["check_config", "model_in", "several_in", "with_folder", "with_models"]


def model_in(source: Any, output: Path | None) -> Path | None:
    """Return where the result goes: in a folder, where a folder is given and one is wanted; else the output itself.

    Raises
    ------
    ModelError
        If the folder holds no model, or several.
    OutputError
        If the output is in the folder, or the folder in it.
    """
    if not _is_tree(source, output):
        return output
    assert output is not None
    _apart(source, output)
    return output / path_of(source).relative_to(source)


def _apart(source: Any, output: Path) -> None:
    one, other = place_of(Path(source)), place_of(output)
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise OutputError(
            f"The folder {str(output)!r} and that of the model are in each other; give another one for the result."
        )


def several_in(source: Any, output: Path | None) -> dict[str, Path]:
    """Return the models of a folder that has several, by their names in it, where a folder is wanted; else none."""
    if not _is_tree(source, output):
        return {}
    root = Path(source)
    models = models_in(root)
    return {m.relative_to(root).as_posix(): m for m in models} if len(models) > 1 else {}


def check_config(source: Any, output: Path | None, changed: Iterable[str]) -> None:
    """Refuse to copy a `config.pbtxt` that names inputs or outputs whose sizes have changed.

    Raises
    ------
    OutputError
        With what to do instead.
    """
    names = set(changed)
    if not names or not _is_tree(source, output):
        return
    for path in sorted(Path(source).rglob("config.pbtxt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        named = sorted(names & set(re.findall(r"""\bname\s*:\s*["']([^"']*)["']""", text)))
        if named:
            raise OutputError(
                f"{str(path)!r} gives the sizes of {named[0]!r}, which have changed; prune the .onnx file by its name, "
                "and write the sizes that are printed into a copy of that file."
            )


@contextlib.contextmanager
def with_models(source: Path, models: Iterable[Path], output: Path) -> Iterator[None]:
    """Let what lies beside several models of a folder follow them, at the end of the block; all is one commit."""
    _apart(source, output)
    with _following(source, models, output):
        yield


@contextlib.contextmanager
def with_folder(source: Any, output: Path | None) -> Iterator[Path | None]:
    """Give the place of the result, and at the end of the block let what lies beside the model follow it.

    All is one commit, so nothing is left where the block fails.
    """
    place = model_in(source, output)
    if not _is_tree(source, output):
        yield place
        return
    assert output is not None
    with _following(Path(source), [path_of(source)], output):
        yield place


@contextlib.contextmanager
def _following(root: Path, models: Iterable[Path], output: Path) -> Iterator[None]:
    own = {place_of(path) for model in models for path in (model, *data_files(Model.load(model)))}
    others = [p for p in sorted(root.rglob("*")) if p.is_file() and place_of(p) not in own and p.name != NAME]
    with together() as files:
        yield
        for path in others:
            files.file(output / path.relative_to(root), partial(_copy, path))


def _copy(path: Path, file: IO[bytes]) -> None:
    with path.open("rb") as source:
        shutil.copyfileobj(source, file)


def _is_tree(source: Any, output: Path | None) -> bool:
    """Whether a folder is given and one is wanted."""
    given = isinstance(source, (str, Path)) and Path(source).is_dir()
    return given and output is not None and (output.is_dir() or output.suffix.lower() != ".onnx")
