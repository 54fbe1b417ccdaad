"""Fuse a normalisation, or a second layer, into the layer before it: ``fuse``.

Rules:

1. A BatchNormalization by given statistics goes into the layer whose output it alone reads: Conv, ConvTranspose, Gemm,
   MatMul with the Add behind it, and their kin. The layer gets a bias where it had none and can have one.
2. Two layers with nothing between become one where one of them looks at single positions (1x1), if that takes fewer
   multiply-accumulates and no more weights. A pair that was made narrow on purpose stays two.
3. Where the second layer looks at windows with a border of zeros, the first one's bias must be zero: else it isn't
   the same at the border, and they stay two.
4. Weights that others read too, that are computed, quantised or stored as halves stay, and so do grouped pairs.
5. The result is compared with the model in onnxruntime, at several sizes of the dynamic axes; what differs by more than
   rounding is put back, and named.
6. Model-local functions are inlined if anything is fused; weights that nothing was fused into keep their bytes.

What `prune` cuts and samples fit is the same either way, and onnxruntime fuses most of this itself as it loads a model.
The pass is for runtimes that don't, and for what comes after it in a list, which has fewer things in its way.
"""

from __future__ import annotations

from onnxprune.journey.passes import Passed
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options, Shapes
from onnxprune.rotation import fusion

__all__ = ["run"]


def run(
    model: Model, *, norms: bool = True, layers: bool = True, input_shapes: Shapes | None = None
) -> Passed:
    """Return a model with fewer layers, and the report.

    Parameters
    ----------
    model : Model
    norms, layers : bool
        Whether to fuse normalisations, and pairs of layers.
    input_shapes
        As in `onnxprune.Options`.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`.
    """
    opened = Run.open(model, Options(ratio=0, input_shapes=input_shapes or {}))
    outcome = fusion.fuse(opened, norms=norms, layers=layers)
    return Passed(outcome.changed, outcome.report)
