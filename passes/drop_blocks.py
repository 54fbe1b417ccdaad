"""Let whole residual branches go: ``drop_blocks{calib=samples.npz ratio=0.25}`` or ``drop_blocks{names=layer11}``.

Rules:

1. A unit is a residual branch: the attention or the feed-forward part of a transformer's layer, a block of a
   convolutional net. What the branch adds to its stream is gone, and so are its weights.
2. Which go is said by name, or asked of samples: a share of the branches, those that the output misses least.
3. The result equals the model with the same branches set to zero, and is compared with it in onnxruntime.
4. With samples, what stays is fitted to what the model gave.
"""

from __future__ import annotations

from typing import Unpack

from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.journey.passes import Passed
from onnxprune.model import Model
from onnxprune.options.pruning import OptionFields

__all__ = ["run"]


def run(model: Model, *, names: tuple[str, ...] = (), **options: Unpack[OptionFields]) -> Passed:
    """Return a model with fewer layers, and the report.

    Parameters
    ----------
    model : Model
    names : tuple of str
        Branches that go, by regular expressions; else they are ranked on samples.
    **options
        See `onnxprune.Options`.

    Raises
    ------
    OnnxPruneError
        As `onnxprune.prune`.
    """
    for name in {"granularity", "drop"} & options.keys():
        raise UsageError(f"The pass 'drop_blocks' chooses {name} itself; leave it out.")
    if names:
        options["drop"] = names
    else:
        options["granularity"] = "depth"
    result = api.prune(model, **options)
    return Passed(result.pruned, result.report)
