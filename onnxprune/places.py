"""Where models lie: their files, and outputs that would replace them."""

from __future__ import annotations

from pathlib import Path

from onnxprune.errors import OutputError
from onnxprune.files.external import is_external, parse
from onnxprune.files.protowalk import tensors
from onnxprune.model import Model

__all__ = ["data_files", "refuse_overwrite", "same", "size_in_bytes"]


def refuse_overwrite(model: Model, output: Path | None, in_place: bool) -> None:
    """Refuse to write over the input, before any work is done.

    Raises
    ------
    OutputError
        If the output is the input under any name, or can't be a file.
    """
    if output is None:
        return
    if model.path is not None and not in_place and output.exists() and output.samefile(model.path):
        raise OutputError(
            f"The output {str(output)!r} is the input itself; give another name, or --in-place to replace it."
        )
    if any(same(output, path) for path in data_files(model)):
        raise OutputError(f"The output {str(output)!r} is the input's external data; give another name.")
    if output.is_dir():
        raise OutputError(f"The output {str(output)!r} is a folder; give the name of a file.")
    if not output.absolute().parent.is_dir():
        raise OutputError(
            f"The output {str(output)!r} is to be in a folder that doesn't exist; create it first."
        )


def size_in_bytes(model: Model) -> int:
    """Return the size of a model's files, external data included, or of the complete model where it is in memory."""
    if model.path is None or model.edited:  # what was cut still knows the path that it came from
        return model.nbytes
    return model.path.stat().st_size + sum(path.stat().st_size for path in data_files(model))


def data_files(model: Model) -> list[Path]:
    """Return the files that hold a model's external data."""
    folder = Path() if model.path is None else model.path.parent
    found = {parse(tensor, place).path for place, tensor in tensors(model.proto) if is_external(tensor)}
    return [folder / name for name in sorted(found)]


def same(one: Path, other: Path) -> bool:
    """Return whether two paths are one file."""
    return one.exists() and other.exists() and one.samefile(other)
