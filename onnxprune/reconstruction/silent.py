"""A model that is being fitted still has all channels; here those that go fall silent before the first fit.

Layers that are fitted stop reading them by their fits. Other readers are `unread` first. That is enough where channels
are kept apart, but a norm, or an average over channels, counts them: of a stream that loses half of its channels an RMS
norm gives about 1/sqrt(2) of what it gives in the cut model, and each layer behind it would be fitted to inputs that
are too small. So what writes such channels writes zeros (`mute`), and keeps to it when it is fitted itself.

No other group is treated so: where nothing sums over channels it makes no difference, and a channel that is divided by
its own size must not be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied
from onnxprune.graph.group_types import Group
from onnxprune.model import Model
from onnxprune.ops import Trait
from onnxprune.reconstruction.layers import Site, around
from onnxprune.reconstruction.stored import Codec

__all__ = ["averaged", "codecs_of", "mute", "unread"]

Array = NDArray[Any]

#: Kinds of numpy's types that are floats: those of ml_dtypes are V.
FLOATING = "fV"


def averaged(analysis: Analysis, groups: Sequence[Group]) -> dict[str, int]:
    """Return the groups whose channels a node sums over that has no weight for them, with the first one's position."""
    find, first = analysis.coupling.space.find, dict[int, int]()
    for number, applied in enumerate(analysis.coupling.nodes):
        for root in _summed(applied, find):
            first.setdefault(root, number)
    found = {}
    for group in groups if first else ():
        roots = analysis.grouping.dead({group.name: np.arange(1)})
        numbers = [first[root] for root in roots if root in first]
        if numbers:
            found[group.name] = min(numbers)
    return found


def _summed(applied: Applied, find: Callable[[int], int]) -> set[int]:
    """Return the dims that a node sums over, of activations alone: no weight has them."""
    row = applied.row
    if row is None or row.lowest or Trait.MOVEMENT in applied.node.traits:  # a Slice leaves channels out, too
        return set()
    constant, summed = set[int](), set[int]()
    for slot, axis in applied.contracted:
        (constant if applied.node.constant[slot] else summed).add(find((applied.ins[slot] or ())[axis]))
    return summed - constant


def codecs_of(analysis: Analysis, sites: Iterable[Site]) -> dict[str, Codec]:
    """Return how the quantised weights of layers are stored, and those behind DequantizeLinear, looked up or not."""
    codecs: dict[str, Codec] = {}
    whole = around(analysis)
    for applied in analysis.coupling.nodes:
        stored = whole.constant(applied.node.outputs[0], read_alone=False)
        codec = whole.looked_up(applied.node) if stored is None else stored[0]
        if codec is not None:
            codecs[codec.name] = codec
    return codecs | {c.name: c for site in sites for c in (site.codec, site.bias) if c is not None}


def unread(model: Model, group: Group, units: Sequence[int] | Array, layers: Collection[str]) -> None:
    """Have readers that can't be fitted, such as an LSTM, not read units, in place.

    Parameters
    ----------
    model : Model
    group : Group
    units : int64
        That go.
    layers : collection of str
        Weights that fits write.
    """
    gone = np.isin(np.arange(group.units), units)
    for member in group.members if gone.any() else ():
        old = model.weight(member.tensor)
        if member.contracted and member.tensor not in layers and old.dtype.kind == "f":
            values = np.array(old)
            np.moveaxis(values, member.axis, 0)[member.index[gone[member.unit]]] = 0
            model.put(member.tensor, values)


def mute(
    model: Model,
    group: Group,
    units: Sequence[int] | Array,
    codecs: Mapping[str, Codec],
    only: Collection[str] | None = None,
) -> None:
    """Zero what writes channels of units, in place; integers of which it isn't known what is zero stay.

    Parameters
    ----------
    model : Model
    group : Group
    units : int64
        That go.
    codecs : mapping
        Weight -> how it is stored, see `codecs_of`.
    only : collection of str, optional
        Weights that are looked at; all by default.
    """
    gone = np.isin(np.arange(group.units), units)
    for member in group.members if gone.any() else ():
        if member.contracted or (only is not None and member.tensor not in only):
            continue
        old, codec = model.weight(member.tensor), codecs.get(member.tensor)
        floats = old.dtype.kind in FLOATING
        if not floats and codec is None:
            continue
        values = np.array(old if codec is None or floats else codec.read(model))
        np.moveaxis(values, member.axis, 0)[member.index[gone[member.unit]]] = 0
        if codec is None or floats:
            model.put(member.tensor, values)
        else:
            codec.write(model, values)
