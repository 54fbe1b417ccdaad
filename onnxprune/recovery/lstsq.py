"""Recovery by least squares: the weights that best reach the original's outputs from what is left.

References
----------
He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.2.
"""

from __future__ import annotations

from onnxprune.reconstruction.layer import RIDGES, VARIANTS

__all__ = ["RIDGES", "VARIANTS"]
