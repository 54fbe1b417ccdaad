"""The front door to zeros: ``onnxprune.sparsify``, and what ``onnxprune inspect --sparsity`` shows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Unpack

from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.options.sparsity import SparseFields, SparseOptions
from onnxprune.pruning.journey import Progress, Source
from onnxprune.sparsity import inspection, journey
from onnxprune.sparsity.inspection import SparsityInspection
from onnxprune.sparsity.journey import SparseResult

__all__ = ["inspect_sparsity", "sparsify"]


def sparsify(
    source: Source,
    output: str | os.PathLike[str] | None = None,
    options: SparseOptions | None = None,
    *,
    pattern: str | None = None,
    progress: Progress | None = None,
    **fields: Unpack[SparseFields],
) -> SparseResult:
    """Put zeros into the weights of a model, in a pattern, and write it if an output is given.

    Parameters
    ----------
    source : path, ModelProto or Model
    output : path, optional
        Without it the result stays in memory, as ``SparseResult.model``.
    options : SparseOptions, optional
    pattern : str, optional
        Such as ``"2:4"``; replaces that of ``options``.
    progress : callable, optional
        Is told the name of each stage.
    **fields
        The other fields of `SparseOptions`, such as ``sparsity=0.7``; they replace those of ``options``.

    Returns
    -------
    SparseResult
        With the ``model`` (a ModelProto) and the ``report``.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`; nothing is written then.
    """
    given: dict[str, Any] = {**({} if pattern is None else {"pattern": pattern}), **fields}
    try:
        settings = SparseOptions(**given) if options is None else dataclasses.replace(options, **given)
    except TypeError as error:
        raise UsageError(
            f"{str(error).partition(') ')[2] or error}; see 'onnxprune sparsify --help'."
        ) from error
    return journey.sparsify(Model.load(source), None if output is None else Path(output), settings, progress)


def inspect_sparsity(source: Source) -> SparsityInspection:
    """Say which weights have zeros, in which patterns along which axis, and what runtimes make of them.

    Parameters
    ----------
    source : path, ModelProto or Model
    """
    return inspection.inspect_sparsity(Model.load(source))
