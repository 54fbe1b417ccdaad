"""Where the part of each expert in its layer's output can be read: gate weight times output, before parts are summed.

Of a mixture that runs all experts, what is summed over their axis; of one that looks weights of the chosen up, what is
summed over the chosen, beside their numbers; of experts that are written out, what is added for each. A fused mixture
keeps it inside: there the scores are read, which say what weights it chooses with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied
from onnxprune.ops import Trait

__all__ = ["Contribution", "contributions"]


@dataclass(frozen=True)
class Contribution:
    """What to read of one layer of experts.

    Attributes
    ----------
    form : str
        "all": a tensor with the axis of experts; "chosen": one with an axis of the chosen; "own": one for each
        expert; "scores": scores before the choice; "values": what was chosen by, if that is more than the numbers.
    tensors : tuple of str
        What is summed, and what it is multiplied by within the sum, if anything.
    axis : int
        Of the experts, or the chosen, in the first tensor.
    ids : str
        The numbers of the chosen; empty where they aren't needed.
    experts : tuple of int
        With "own": the expert of each tensor.
    chosen : int
        How many are chosen.
    shares : bool
        With "scores": whether the weights of the chosen are divided by their sum.
    """

    form: str
    tensors: tuple[str, ...]
    axis: int = -1
    ids: str = ""
    experts: tuple[int, ...] = ()
    chosen: int = 1
    shares: bool = False


def contributions(analysis: Analysis) -> dict[int, Contribution]:
    """Return what to read of each layer of experts, by the root of its axis.

    Parameters
    ----------
    analysis : Analysis
        In which experts are units (`onnxprune.graph.choices.opened`).
    """
    coupling, found = analysis.coupling, dict[int, Contribution]()
    for root, chosen in coupling.least.items():
        passages = [p for p in coupling.passages if p.root == root]
        own = [(name, p.element) for p in passages for name in _added(analysis, p.through)]
        if own:
            names, experts = zip(*own, strict=True)
            found[root] = Contribution("own", names, experts=experts, chosen=chosen)
        else:
            one = _of_choice(analysis, root, chosen)
            if one is not None:
                found[root] = one
    return found


def _added(analysis: Analysis, through: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Yield what one expert adds, or writes, where nothing would go through."""
    for number, slot in through:
        node = analysis.coupling.nodes[number].node
        if Trait.ELEMENTWISE in node.traits:
            yield from (name for at, name in enumerate(node.inputs) if at != slot)
        else:
            yield node.inputs[-1]  # updates


def _of_choice(analysis: Analysis, root: int, chosen: int) -> Contribution | None:
    """Return what to read of a layer whose experts are one axis."""
    coupling = analysis.coupling
    find, nodes = coupling.space.find, coupling.nodes
    for applied in nodes:
        row, node = applied.row, applied.node
        chooses = row is not None and row.fewest and row.lowest and not row.places
        if row is not None and chooses and root in map(find, applied.letters.values()):
            slot = next(iter(row.lowest.values()))
            if find((applied.ins[slot] or (-1,))[-1]) == root:
                shares = bool(node.attr("normalize_routing_weights", 0))
                return Contribution("scores", (node.inputs[slot],), chosen=chosen, shares=shares)
    wide = [found for applied in nodes for found in _sums(analysis, applied, lambda d: find(d) == root)]
    wide = [one for one in wide if one[0] > 1]
    if wide:
        _, names, axis = max(wide, key=lambda one: one[0])
        return Contribution("all", names, axis, chosen=chosen)
    for number, applied in enumerate(nodes):
        row = applied.row
        for slot, letter in () if row is None else row.places.items():
            if row is not None and row.fewest and find(applied.letters[letter]) == root:
                ids, values = applied.node.outputs[slot], applied.node.outputs[0]
                summed = _over_chosen(analysis, number, ids, chosen)
                if summed is not None:
                    return Contribution("chosen", *summed, ids=ids, chosen=chosen)
                return Contribution("values", (values,) if slot else (), ids=ids, chosen=chosen)
    return None


def _sums(
    analysis: Analysis, applied: Applied, is_axis: Callable[[int], bool]
) -> Iterator[tuple[int, tuple[str, ...], int]]:
    """Yield what a node sums over an axis: elements for each of its positions and token, names, axis."""
    node = applied.node
    linear = Trait.LINEAR in node.traits and Trait.ZEROS in node.traits
    if not (linear or Trait.GEMM in node.traits) or any(node.constant[: 1 if linear else 2]):
        return
    for slot, axis in applied.contracted:
        dims = applied.ins[slot] or ()
        if slot < 2 and is_axis(dims[axis]):
            names = (node.inputs[slot], *(() if linear else (node.inputs[1 - slot],)))
            yield (1 if len(dims) < 3 else node.shape(slot)[-1 if axis != len(dims) - 1 else -2]), names, axis


def _over_chosen(analysis: Analysis, start: int, ids: str, chosen: int) -> tuple[tuple[str, ...], int] | None:
    """Return the first sum over the chosen behind a choice whose operand has a part for each of them and more."""
    coupling = analysis.coupling
    count, behind = prod(analysis.tracer.types[ids][1] or ()), {ids}
    for applied in coupling.nodes[start + 1 :]:
        node = applied.node
        if behind.isdisjoint(node.inputs) or Trait.SIZE in node.traits:
            continue
        for elements, names, axis in _sums(analysis, applied, lambda d: coupling.space.sizes[d] == chosen):
            shape = analysis.tracer.types[names[0]][1] or ()
            if elements > 1 and axis == len(shape) - 2 and prod(shape[: axis + 1]) == count:
                return names, axis
        behind.update(name for name in node.outputs if name)
    return None
