"""Which positions of which weights a cut removes, for plans and reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.cut.rewrite import WeightCut
from onnxprune.graph.coupling import Coupling

__all__ = ["TensorCut", "copies_of", "cuts_of"]


@dataclass(frozen=True)
class TensorCut:
    """Positions that go from one axis of one weight, in the original's numbering."""

    tensor: str
    axis: int
    removed: tuple[int, ...]


def cuts_of(coupling: Coupling, dead: Mapping[int, NDArray[np.bool_]]) -> list[TensorCut]:
    """Return which positions of which weights go, for all uses of each weight.

    Parameters
    ----------
    coupling : Coupling
    dead : mapping
        Root dim -> which of its indices go.

    Returns
    -------
    list of TensorCut
        In the order of the weights. A shared vector whose uses differ is listed with what all of them lose,
        if anything.
    """
    space = coupling.space
    lost: defaultdict[str, list[dict[int, NDArray[np.bool_]]]] = defaultdict(list)
    for instance in coupling.instances:
        if instance.uses or instance.outer:
            roots = ((axis, space.find(dim)) for axis, dim in enumerate(instance.dims))
            lost[instance.tensor].append({axis: dead[root] for axis, root in roots if root in dead})
    cuts = []
    for tensor, uses in lost.items():
        for axis in sorted(set.intersection(*(set(u) for u in uses))):
            mask = np.logical_and.reduce([u[axis] for u in uses])
            if mask.any():
                cuts.append(TensorCut(tensor, axis, tuple(np.flatnonzero(mask).tolist())))
    return cuts


def copies_of(cuts: Sequence[WeightCut]) -> list[dict[str, Any]]:
    """Return the report's lines on shared vectors that got copies."""
    return [
        {
            "tensor": c.tensor,
            "copy": c.copy,
            "axis": c.axis,
            "removed": [int(i) for i in c.removed],
            "nodes": list(c.nodes),
        }
        for c in cuts
        if c.copy
    ]
