"""Models in other forms than a path, bytes or a ModelProto: a folder, an open file, a model of onnx-ir."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import onnx

from onnxprune.errors import ModelError

__all__ = ["IrModel", "Source", "path_of", "plain"]

#: Files of a folder that a refusal lists.
NAMED = 8


class IrModel(Protocol):
    """A model of the package onnx-ir."""

    ir_version: int

    def clone(self) -> Any:
        """Return a copy."""


#: What a model is made from, besides a `Model`.
Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | onnx.ModelProto | IrModel


def path_of(source: str | os.PathLike[str]) -> Path:
    """Return the file of a model; of a folder, such as one of Triton or Hugging Face, the only one in it.

    Raises
    ------
    ModelError
        If there is none in the folder, or several.
    """
    if not isinstance(source, (str, os.PathLike)) or "\0" in os.fspath(source):
        raise ModelError(
            f"A model is a path, bytes, an open file, a ModelProto, a model of onnx-ir or a Model; got "
            f"{type(source).__name__} {source!r:.60}; export models of a framework to ONNX first."
        )
    path = Path(source)
    if not path.is_dir():
        return path
    models = models_in(path)
    if len(models) == 1:
        return models[0]
    listed = ", ".join(repr(str(m.relative_to(path))) for m in models[:NAMED])
    more = f" and {len(models) - NAMED} more" if len(models) > NAMED else ""
    there = f"there are {listed}{more}" if models else "there is none"
    raise ModelError(f"{str(path)!r} is a folder; name the .onnx file in it: {there}.")


def models_in(folder: Path) -> list[Path]:
    """Return the models of a folder: all .onnx files in it at any depth, as a repository of Triton has them.

    What lies in hidden folders, such as caches, is none. A link that leads nowhere is one, so that it is told.
    """
    models = (path for path in folder.rglob("*") if path.suffix.lower() == ".onnx" and not path.is_dir())
    return sorted(m for m in models if not any(p.startswith(".") for p in m.relative_to(folder).parts))


def plain(source: Any) -> Any:
    """Return what is in an open file as bytes, a model of onnx-ir as a ModelProto, and anything else as it is.

    Raises
    ------
    ModelError
        If a file object can't be read, or gives text.
    """
    if type(source).__module__.partition(".")[0] == "onnx_ir":
        ir = import_module("onnx_ir")
        return ir.to_proto(ir.external_data.load_to_model(source.clone()))
    if not hasattr(source, "read"):
        return source
    try:
        data = source.read()
    except (OSError, ValueError) as error:
        raise ModelError(f"The given file object can't be read: {error}.") from error
    if not isinstance(data, bytes):
        raise ModelError("The given file object gives text; open it in binary mode.")
    return data
