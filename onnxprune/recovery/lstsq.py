"""Recovery by least squares: the weights that best reach the original's outputs from what is left.

References
----------
He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.2.
"""

from __future__ import annotations

__all__ = ["RIDGES", "VARIANTS"]

#: What `onnxprune.recovery._sequence` may choose from for each layer, by its held-out error.
VARIANTS = frozenset({"kept", "bias", "lstsq"})
#: Ridges, as shares of the regressors' mean variance.
RIDGES: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
