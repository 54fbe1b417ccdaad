"""Recovery by blocks: least squares layer by layer, and then the layers between two narrow places together.

What follows the least squares is `onnxprune.blockwise`: descent without labels, toward what these layers gave in the
original.

References
----------
Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, section 3.
"""

from __future__ import annotations

__all__ = ["BLOCKWISE", "RIDGES", "VARIANTS"]

#: What `onnxprune.recovery._sequence` may choose from for each layer, by its held-out error.
VARIANTS = frozenset({"kept", "bias", "lstsq"})
#: Ridges, as shares of the regressors' mean variance.
RIDGES: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
#: Blocks follow.
BLOCKWISE = True
