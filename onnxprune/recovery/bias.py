"""Recovery by the bias alone: what the removed channels gave on average is added to it."""

from __future__ import annotations

__all__ = ["RIDGES", "VARIANTS"]

#: What `onnxprune.reconstruction.layer` may choose from for each layer.
VARIANTS = frozenset({"kept", "bias"})
RIDGES: tuple[float, ...] = ()
