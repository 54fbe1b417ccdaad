"""Put zeros into weights, in a pattern: ``sparsify{pattern=2:4}``.

The options are those of ``onnxprune sparsify``, in their Python spelling (docs/options.md); a list such as ``only`` is
written with bars, ``only=conv1|head``. The graph and all shapes stay; with samples (``calib``) the other weights are
refitted.
"""

from __future__ import annotations

from typing import Unpack

from onnxprune import api
from onnxprune.journey.passes import Passed
from onnxprune.model import Model
from onnxprune.options.sparsity import SparseFields

__all__ = ["run"]


def run(model: Model, *, pattern: str, **options: Unpack[SparseFields]) -> Passed:
    """Return a model with zeros, and the report.

    Parameters
    ----------
    model : Model
    pattern : str
        Such as ``"2:4"``.
    **options
        The other options of `onnxprune.options.sparsity.SparseOptions`. Shapes of inputs, which come with every list of
        passes, only count where samples or a search for an order need them.

    Raises
    ------
    OnnxPruneError
        As `onnxprune.sparsify`.
    """
    if not options.get("permute") and options.get("calib") is None:
        options.pop("input_shapes", None)
    result = api.sparsify(model, pattern=pattern, **options)
    return Passed(result.sparse, result.report)
