"""Recovery by blocks: least squares layer by layer, and then the layers between two narrow places together.

What follows the least squares is `onnxprune.blockwise`: descent without labels, toward what these layers gave in the
original.

References
----------
Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, section 3.
"""

from __future__ import annotations

from onnxprune.reconstruction.layer import RIDGES, VARIANTS

__all__ = ["BLOCKWISE", "RIDGES", "VARIANTS"]

#: Blocks follow.
BLOCKWISE = True
