"""Why axes are frozen, in words and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import onnx

from onnxprune.graph.coupling import Coupling
from onnxprune.graph.groups import Frozen
from onnxprune.ops import Trait, traits_of
from onnxprune.runtime.binding import declared, real_inputs

__all__ = ["carried", "plain_reason", "reasons", "worth_telling"]

#: How the reasons of axes of inputs and outputs begin.
_ENDS = "axis of the graph"
#: Names that a sentence lists.
_NAMED = 8
#: What nobody would expect to be cut, and every convolution has.
_OF_COURSE = "the positions of a"


def plain_reason(reason: str) -> str:
    """Return a reason without the names of nodes and tensors in it."""
    return re.sub(r"\s*'[^']*'", "", reason)


def reasons(frozen: Iterable[Frozen]) -> list[tuple[str, int]]:
    """Return why axes are frozen, names left out, with how often; see `worth_telling` for the order.

    Examples
    --------
    >>> reasons([Frozen(name, 0, f"axis of the graph output '{name}'") for name in "yz"])
    [('axis of the graph output', 2)]
    """
    counted = Counter(plain_reason(f.reason) for f in frozen).most_common()
    return sorted(counted, key=lambda line: worth_telling(*line))


def worth_telling(reason: str, count: int) -> tuple[bool, int]:
    """Return what reasons are sorted by: the most frequent first, and last what nobody would expect to be cut.

    Examples
    --------
    >>> worth_telling("axis of the graph output", 2) < worth_telling("the positions of a convolution (Conv)", 9)
    True
    """
    return reason.startswith(_OF_COURSE), -count


def carried(graph: onnx.GraphProto, coupling: Coupling) -> list[str]:
    """Say that units of recurrent layers stay since callers carry their states, where ``--open-io`` lets them go.

    That is so where the axis of the units is one of fixed size of an input and of an output, and nothing but these
    keeps it. Nothing is said where there is none.

    Parameters
    ----------
    graph : GraphProto
    coupling : Coupling
        Of its nodes.
    """
    space = coupling.space
    weights = {
        space.find(dim)
        for applied in coupling.nodes
        if Trait.RECURRENT in traits_of(applied.node.op, applied.node.domain)
        for dims in applied.ins[1:3]
        for dim in dims or ()
    }
    ends, others = (
        {space.find(d) for d, _, _, why in space.locks if why.startswith(_ENDS) is own}
        for own in (True, False)
    )
    found: list[dict[str, set[int]]] = []
    for values in (real_inputs(graph), graph.output):
        dims = {v.name: zip(declared(v) or (), coupling.dims.get(v.name, ()), strict=False) for v in values}
        roots = {n: {space.find(d) for size, d in own if isinstance(size, int)} for n, own in dims.items()}
        found.append({n: own & weights & ends - others for n, own in roots.items()})
    both = set[int]().union(*found[0].values()) & set[int]().union(*found[1].values())
    names = [n for side in found for n, own in side.items() if own & both]
    if not names:
        return []
    listed = ", ".join(map(repr, names[:_NAMED])) + ", ..." * (len(names) > _NAMED)
    pattern = "|".join(map(re.escape, names[:_NAMED]))
    return [
        f"units of recurrent layers stay since callers give and take their states ({listed}): --open-io "
        f"'^({pattern})$' lets these shrink, and the units go."
    ]
