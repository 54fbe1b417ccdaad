"""Let whole experts of a mixture go: ``drop_experts{ratio=0.5}``.

Rules:

1. A unit is an expert, with its column of the router; as many stay as the router chooses for a token.
2. Which go says a criterion by the weights, or samples, on which experts that are seldom chosen count little.
3. The result equals the model whose router can't choose the same experts, and is compared with it in onnxruntime.
4. No other channel goes: that is for ``prune``.
"""

from __future__ import annotations

from typing import Unpack

from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.journey.passes import Passed
from onnxprune.model import Model
from onnxprune.options.pruning import OptionFields

__all__ = ["run"]


def run(model: Model, **options: Unpack[OptionFields]) -> Passed:
    """Return a model with fewer experts, and the report.

    Parameters
    ----------
    model : Model
    **options
        See `onnxprune.Options`.

    Raises
    ------
    OnnxPruneError
        As `onnxprune.prune`.
    """
    for name in {"granularity", "drop"} & options.keys():
        raise UsageError(f"The pass 'drop_experts' chooses {name} itself; leave it out.")
    options["granularity"] = "experts"
    result = api.prune(model, **options)
    return Passed(result.pruned, result.report)
