"""Put weights on coarse grids within a budget of bytes: ``quantize{target=bytes=0.3 calib=samples.npz}``.

Rules:

1. Zeros and bits of each weight are one choice, shared over the model so that they cost least; samples say what each
   costs, and what stays is fitted.
2. The result is a model that stock onnxruntime loads: integers behind DequantizeLinear where the opset has what it
   takes. Packed files are for ``onnxprune compress``.
3. Activations stay floats, and nothing is promised of speed: the file gets smaller.
4. Graph and shapes stay; with samples the report says how far outputs moved.
"""

from __future__ import annotations

from typing import Unpack

from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.journey.passes import Passed
from onnxprune.model import Model
from onnxprune.options.compression import CompressFields

__all__ = ["run"]


def run(model: Model, **options: Unpack[CompressFields]) -> Passed:
    """Return a model with smaller weights, and the report.

    Parameters
    ----------
    model : Model
    **options
        See `onnxprune.options.compression.CompressOptions`; ``target`` must be one of them.

    Raises
    ------
    OnnxPruneError
        As `onnxprune.api.compress`.
    """
    if options.get("target") is None:
        raise UsageError("The pass 'quantize' needs 'target', as in quantize{target=bytes=0.3}.")
    if options.get("to", "onnx") != "onnx":
        raise UsageError(
            "The pass 'quantize' gives a model for the next pass, so its 'to' is onnx; leave it out."
        )
    options["to"] = "onnx"
    result = api.compress(model, **options)
    return Passed(result.compressed, result.report)
