"""A model in outline, for the report: its layers in order, their sizes before and after, and the groups they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.coupling import Coupling, Instance
from onnxprune.graph.group_types import Group
from onnxprune.graph.kept import Kept

__all__ = ["layers_of", "tensors_of", "thinned"]

#: Points of a curve that are kept for a report.
POINTS = 40


def tensors_of(group: Group) -> list[str]:
    """Return the axes of weights that shrink with a group, as sorted texts ``tensor:axis``."""
    return sorted({f"{m.tensor}:{m.axis}" for m in group.members})


def layers_of(
    coupling: Coupling,
    groups: Collection[Group],
    dead: Mapping[int, NDArray[np.bool_]] | None = None,
) -> list[dict[str, Any]]:
    """Return the nodes that hold a matrix of weights, in the order of execution.

    Parameters
    ----------
    coupling : Coupling
    groups : collection of Group
        Those that may be named.
    dead : mapping, optional
        Root dim -> which of its indices go.

    Returns
    -------
    list of dict
        ``name``, ``op``, ``weight``; ``shape`` of the weight and what is ``left`` of it; ``macs`` (before, after);
        ``writes`` and ``reads``, the names of groups whose channels it makes and sums over.
    """
    kept = Kept(coupling, dead or {})
    makes, sums = _by_tensor(groups)
    instances: dict[int, list[Instance]] = defaultdict(list)
    for instance in coupling.instances:
        for number, _ in instance.uses:
            instances[number].append(instance)
    layers, whole = [], Kept(coupling, {})
    for number, applied in enumerate(coupling.nodes):
        matrices = [i for i in instances[number] if sum(coupling.space.sizes[d] > 1 for d in i.dims) > 1]
        if not matrices:
            continue
        main = matrices[0]
        layers.append(
            {
                "name": applied.node.name or next((n for n in applied.node.outputs if n), ""),
                "op": applied.node.op,
                "weight": main.tensor,
                "shape": [coupling.space.sizes[d] for d in main.dims],
                "left": list(kept.shape(main.dims)),
                "macs": [round(k.macs(applied)) for k in (whole, kept)],
                "writes": _names(makes, matrices),
                "reads": _names(sums, matrices),
            }
        )
    return layers


def _by_tensor(groups: Collection[Group]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    makes: defaultdict[str, list[str]] = defaultdict(list)
    sums: defaultdict[str, list[str]] = defaultdict(list)
    for group in groups:
        for member in group.members:
            (sums if member.contracted else makes)[member.tensor].append(group.name)
    return makes, sums


def _names(of: Mapping[str, Sequence[str]], instances: Sequence[Instance]) -> list[str]:
    return list(dict.fromkeys(name for i in instances for name in of.get(i.tensor, ())))


def thinned(error: Sequence[float] | NDArray[np.float64], most: int = POINTS) -> list[list[float]]:
    """Return a curve as at most ``most`` points (count removed, error), the first and the last finite ones included.

    Examples
    --------
    >>> thinned([0.0, 1.0, 4.0, 9.0, float("inf")], most=3)
    [[0, 0.0], [2, 4.0], [3, 9.0]]
    """
    values = np.asarray(error, np.float64)
    finite = np.flatnonzero(np.isfinite(values))
    if not finite.size:
        return []
    at = np.unique(np.round(np.linspace(0, finite.size - 1, min(most, finite.size))).astype(np.int64))
    return [[int(n), float(f"{values[n]:.4g}")] for n in finite[at]]


def group_line(group: Group, removed: int) -> dict[str, Any]:
    """Return a group's line in a report, with how many of its units went."""
    return {
        "name": group.name,
        "kind": group.kind,
        "units": group.units,
        "removed": removed,
        "params": group.all_params,
        "macs": group.all_macs,
        "inexact": group.inexact,
        "component": group.component,
        "tensors": tensors_of(group),
    }
