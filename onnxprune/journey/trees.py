"""Folders in and out: a model of Triton or Hugging Face with all that belongs to it.

``prune FOLDER OUT``, where the folder holds one model and OUT is no ``.onnx`` file, writes the model to the same place
in OUT, and copies all other files there as they are.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from onnxprune.errors import OutputError
from onnxprune.files.commit import together
from onnxprune.files.foreign import path_of
from onnxprune.files.target import place_of
from onnxprune.journey.genai import NAME
from onnxprune.journey.output import data_files
from onnxprune.model import Model

__all__ = ["model_in", "with_folder"]


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
    one, other = place_of(Path(source)), place_of(output)
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise OutputError(
            f"The folder {str(output)!r} and that of the model are in each other; give another one for the result."
        )
    return output / path_of(source).relative_to(source)


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
    root, model = Path(source), path_of(source)
    own = {place_of(path) for path in (model, *data_files(Model.load(model)))}
    others = [p for p in sorted(root.rglob("*")) if p.is_file() and place_of(p) not in own and p.name != NAME]
    with together() as files:
        yield place
        for path in others:
            files.file(output / path.relative_to(root), partial(_copy, path))


def _copy(path: Path, file: IO[bytes]) -> None:
    with path.open("rb") as source:
        shutil.copyfileobj(source, file)


def _is_tree(source: Any, output: Path | None) -> bool:
    """Whether a folder is given and one is wanted."""
    given = isinstance(source, (str, Path)) and Path(source).is_dir()
    return given and output is not None and (output.is_dir() or output.suffix.lower() != ".onnx")
