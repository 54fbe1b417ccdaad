"""Units that zeros have killed: what the pass ``shrink`` would now remove."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune import registry
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Model
from onnxprune.sparsity.weights import Target

__all__ = ["has_dead", "note"]


def has_dead(model: Model, targets: Sequence[Target]) -> bool:
    """Whether a layer reads an input with zeros only, or has an output that is zeros only (but for its bias)."""
    for target in targets:
        alive = ~target.layout.view(target.zeros(np.asarray(model.weight(target.name))))
        if not alive.any((0, 1, 3)).all() or not alive.any((2, 3)).all():
            return True
    return False


def note(model: Model, targets: Sequence[Target]) -> str:
    """Say how many units ``shrink`` would remove; empty where there are none."""
    if not has_dead(model, targets):
        return ""
    try:
        found = registry.load("onnxprune.passes", "shrink").shrink(model, verify=False)
    except OnnxPruneError:  # it is only a hint
        return ""
    units = sum(found.removed.values())
    if not units:
        return ""
    where = f"in {len(found.removed)} groups"
    return f"{units} units are dead now: 'onnxprune run OUT SMALL --passes shrink' removes them, {where}."
