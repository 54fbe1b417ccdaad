"""No recovery: the layers keep their weights."""

from __future__ import annotations

__all__ = ["RIDGES", "VARIANTS"]

#: What `onnxprune.reconstruction.layer` may choose from for each layer.
VARIANTS = frozenset({"kept"})
RIDGES: tuple[float, ...] = ()
