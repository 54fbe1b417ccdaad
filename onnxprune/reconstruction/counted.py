"""Which groups are counted by more than the layers that are fitted.

A model that is being fitted still has all channels. Layers that are fitted stop reading those that go by their fits.
But a norm, or an average over channels, counts them: of a stream that loses half of its channels an RMS norm gives
about 1/sqrt(2) of what it gives in the cut model, and each layer behind it would be fitted to inputs that are too
small. So do products of activations, and layers that can't be fitted, such as an LSTM. While layers are fitted such
nodes read masked copies, as in the masked twin of law 1 (`onnxprune.proof.twin`); the weights stay as they are, so that
what a layer reads still tells what those channels gave.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.ops import Trait

__all__ = ["counted"]


def counted(analysis: Analysis, groups: Sequence[Group], layers: Collection[int]) -> dict[str, int]:
    """Return the groups whose channels other nodes sum over, with the position of the first one.

    Parameters
    ----------
    analysis : Analysis
    groups : sequence of Group
    layers : collection of int
        Positions of the nodes that are fitted.
    """
    find, first = analysis.coupling.space.find, dict[int, int]()
    for number, applied in enumerate(analysis.coupling.nodes):
        if number in layers or Trait.MOVEMENT in applied.node.traits:  # a Slice leaves channels out, too
            continue
        for slot, axis in applied.contracted:
            first.setdefault(find((applied.ins[slot] or ())[axis]), number)
    found = {}
    for group in groups if first else ():
        roots = analysis.grouping.dead({group.name: np.arange(1)})
        numbers = [first[root] for root in roots if root in first]
        if numbers:
            found[group.name] = min(numbers)
    return found
