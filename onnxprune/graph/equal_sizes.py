"""Dynamic axes that are equally long wherever the model runs, though the model calls them otherwise.

An exporter that is told nothing gives the batch of each input a name of its own. A Reshape says more: it runs only
where what it reads has as many elements as its target, and if the quotient of both is that of two dynamic axes, these
are equal in every run. Nodes in bodies say nothing, since a branch that isn't taken demands nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import permutations
from math import prod

from onnxprune.graph.coupling import Applied
from onnxprune.graph.lengths import stand_in
from onnxprune.graph.sizes import Sizes
from onnxprune.ops.bodies import DOMAIN

__all__ = ["Declared", "renamed"]

#: Input -> its axes, a size or the name of a dynamic one; None where even the rank is open.
Declared = Mapping[str, Sequence[int | str] | None]
#: Names of dynamic axes up to which pairs are looked at.
MOST = 40


def renamed(nodes: Sequence[Applied], sizes: Sizes, declared: Declared) -> Declared | None:
    """Return the inputs' axes with one name for those that must be equal; None where no two more must.

    Parameters
    ----------
    nodes : sequence of Applied
        Of the whole graph, visited by `sizes`.
    sizes : Sizes
    declared : mapping
        As `sizes` was told.
    """
    names = dict.fromkeys(a for axes in declared.values() for a in axes or () if isinstance(a, str))
    if not 2 <= len(names) <= MOST or any(applied.node.domain == DOMAIN for applied in nodes):
        return None
    quotients = {
        Fraction(stand_in("axis", a), stand_in("axis", b)): (a, b) for a, b in permutations(names, 2)
    }
    for quotient in _quotients(nodes, sizes):
        if quotient in quotients:
            one, other = sorted(quotients[quotient])
            return {
                name: axes if axes is None else [one if axis == other else axis for axis in axes]
                for name, axes in declared.items()
            }
    return None


def _quotients(nodes: Iterable[Applied], sizes: Sizes) -> Iterable[Fraction]:
    """Yield for each Reshape that asks for something how many elements it reads, over those of its target."""
    for applied in nodes:
        if applied.node.op != "Reshape" or applied.node.domain:
            continue
        read, made = (sizes.length(name) for name in (applied.node.inputs[0], applied.node.outputs[0]))
        if read is None or made is None:
            continue
        before, after = (prod(map(Fraction, lengths)) for lengths in (read, made))
        if after and before != after:
            yield Fraction(before) / after
