"""Cut channels, exactly: ``prune{ratio=0.5}``, or ``prune{target=macs=0.5}``.

The options are those of ``onnxprune prune``, in their Python spelling (docs/options.md); a list such as ``ignore`` is
written with bars, ``ignore=conv1|head``.
"""

from __future__ import annotations

from typing import Unpack

from onnxprune import api
from onnxprune.journey.passes import Passed
from onnxprune.model import Model
from onnxprune.options.pruning import OptionFields

__all__ = ["run"]


def run(model: Model, **options: Unpack[OptionFields]) -> Passed:
    """Return a pruned model, and the report.

    Parameters
    ----------
    model : Model
    **options
        See `onnxprune.Options`: ``ratio``, or ``target``, and others.

    Raises
    ------
    OnnxPruneError
        As `onnxprune.prune`.
    """
    result = api.prune(model, **options)
    return Passed(result.pruned, result.report)
