"""Cut channels, exactly: ``prune{ratio=0.5}``.

The options are those of ``onnxprune prune``, in their Python spelling (docs/options.md); a list such as ``ignore`` is
written with bars, ``ignore=conv1|head``.
"""

from __future__ import annotations

from typing import Unpack

from onnxprune import api
from onnxprune.journey.passes import Passed
from onnxprune.model import Model
from onnxprune.options.pruning import MoreFields

__all__ = ["run"]


def run(model: Model, *, ratio: float, **options: Unpack[MoreFields]) -> Passed:
    """Return a pruned model, and the report.

    Parameters
    ----------
    model : Model
    ratio : float
        Share of the units of every group to remove, ``0 <= ratio < 1``.
    **options
        See `onnxprune.Options`.

    Raises
    ------
    OnnxPruneError
        As `onnxprune.prune`.
    """
    result = api.prune(model, ratio=ratio, **options)
    return Passed(result.pruned, result.report)
