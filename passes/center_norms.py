"""LayerNorm to RMS norm, without loss: ``center_norms``.

Rules:

1. The mean that LayerNorm takes off is taken off by those that write what it reads: layers, tables and constants
   (`onnxprune.rotation.streams` says which streams these are, and why another one stays).
2. Each norm becomes RMSNormalization, or below opset 23 the ops that onnxruntime fuses to one, and an Add of its bias.
3. Norms that would have to take the mean off themselves stay; `prune` makes them RMS norms where it cuts them.
4. The result is compared with the model in onnxruntime, at several sizes of the dynamic axes; if it differs by more
   than rounding, the model stays as it is, and the report says why.
5. Model-local functions are inlined if anything is changed; other weights keep their bytes.

References
----------
Ashkboos et al., SliceGPT, arXiv 2401.15024, section 3.2; Jiang et al., Pre-RMSNorm and Pre-CRMSNorm transformers,
arXiv 2305.14858.
"""

from __future__ import annotations

from onnxprune.journey.passes import Passed
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options, Shapes
from onnxprune.rotation import centring

__all__ = ["run"]


def run(model: Model, *, input_shapes: Shapes | None = None) -> Passed:
    """Return a model whose LayerNorms are RMS norms where they can be, and the report.

    Parameters
    ----------
    model : Model
    input_shapes
        As in `onnxprune.Options`.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`.
    """
    outcome = centring.center(Run.open(model, Options(ratio=0, input_shapes=input_shapes or {})))
    return Passed(outcome.changed, outcome.report)
