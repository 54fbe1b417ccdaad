"""Passes of onnx-ir, so that pruning is one step of a chain of `onnx_ir.passes`.

>>> from onnx_ir.passes import Sequential  # doctest: +SKIP
>>> Sequential(PrunePass(ratio=0.5), SparsifyPass(pattern="2:4"))(model)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune import api
from onnxprune.integrations import base_of
from onnxprune.options.declare import settings_of
from onnxprune.options.pruning import Options
from onnxprune.options.sparsity import SparseOptions

__all__ = ["PrunePass", "SparsifyPass"]

if TYPE_CHECKING:  # it may not be there
    from onnxprune.pruning.journey import Result
    from onnxprune.sparsity.journey import SparseResult

    class FunctionalPass:
        """That of onnx-ir."""

else:
    FunctionalPass = base_of("onnx_ir.passes", "FunctionalPass", "onnx-ir", "onnx-ir")


class PrunePass(FunctionalPass):
    """Cut channels out of a model, proved against the masked original.

    Parameters
    ----------
    options : Options, optional
    **fields
        The fields of `onnxprune.Options`, such as ``ratio=0.5``; they replace those of ``options``.

    Attributes
    ----------
    report : Report or None
        Of the last model.
    """

    def __init__(self, options: Options | None = None, **fields: Any) -> None:
        self.options = settings_of(Options, options, fields)
        self.report: Any = None

    def call(self, model: Any) -> Any:
        """Return the pruned model; the given one stays as it is.

        Raises
        ------
        OnnxPruneError
            As `onnxprune.prune` does.
        """
        result = api.prune(model, None, self.options)
        self.report = result.report
        return _result(result)


class SparsifyPass(FunctionalPass):
    """Set weights of a model to zero in a pattern; see `PrunePass`, with the fields of `onnxprune.sparsify`."""

    def __init__(self, options: SparseOptions | None = None, **fields: Any) -> None:
        self.options = settings_of(SparseOptions, options, fields)
        self.report: Any = None

    def call(self, model: Any) -> Any:
        """Return the model with zeros; the given one stays as it is."""
        result = api.sparsify(model, None, self.options)
        self.report = result.report
        return _result(result)


def _result(result: Result | SparseResult) -> Any:
    ir, changed = import_module("onnx_ir"), result.changed
    modified = changed.edited or changed.sha256 != result.report.sha256["input"]
    return import_module("onnx_ir.passes").PassResult(ir.from_proto(result.model), modified=modified)
