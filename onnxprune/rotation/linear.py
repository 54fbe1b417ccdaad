"""Groups whose units can be mixed: what lies between their makers and their readers is linear and treats all alike.

Two kinds are found. A *stream* runs from layers that make it, through sums, means and changes of shape, to layers that
read it: the values of an attention head, or the residual sum of linear bottlenecks. A *product* ends where two sides of
it are multiplied: queries and keys. In both an invertible matrix may be put on one side and its inverse on the other.

Rules:

1. A layer is a `Site` whose weight and bias nobody else reads, and which isn't grouped.
2. Every weight that the group touches belongs to one of these layers; each unit owns as many channels of it as any
   other. The n-th of them, in ascending order, is its channel in head n.
3. Between layers there are only ops that move or average positions of their first input, sums of two parts of the
   group, and products with one number. A MatMul of two activations passes one of them on, or is the end where both
   belong to the group.
4. A group may be both, where one layer makes queries, keys and values and they have one width. Its heads are then taken
   to be those of queries first, of keys, and of values; a model in which they aren't doesn't pass the comparison with
   the original that follows (`onnxprune.rotation.basis`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied
from onnxprune.graph.group_types import Group, Member
from onnxprune.graph.select import pick
from onnxprune.model import Model
from onnxprune.ops import Trait
from onnxprune.reconstruction.layer import stretchable
from onnxprune.reconstruction.layers import Readers, Site, around, readers, sites
from onnxprune.reconstruction.products import Mixable, Side
from onnxprune.reconstruction.seen import Around

__all__ = ["find", "widths_for_heads"]

Ints = NDArray[np.int64]

#: Of the MACs that go with heads this share goes with their widths, or heads stay.
NEARLY = 0.9


class _Unmixable(ValueError):
    """A group that can't be mixed."""


def find(analysis: Analysis, groups: Sequence[Group], layers: Sequence[Site], read: Readers) -> list[Mixable]:
    """Find the groups whose units can be mixed.

    Parameters
    ----------
    analysis : Analysis
    groups : sequence of Group
        Of those that cut the same channels in other units the first counts.
    layers : sequence of Site
        The layers of the model that can be fitted.
    read : dict
        Group -> layers that read it.
    """
    graph = around(analysis)
    by_weight = {s.weight: s for s in layers if not s.more and _settable(s, analysis.model)}
    result: list[Mixable] = []
    taken: set[tuple[str, int]] = set()
    for group in groups:
        try:
            mixables = _Look(analysis, group, by_weight, read, graph).mixable()
        except _Unmixable:
            continue
        made = {(s.site.weight, int(c)) for m in mixables for s in m.makers for c in s.at.flat}
        if not made & taken:
            taken |= made
            result += mixables
    return result


def widths_for_heads(
    analysis: Analysis, groups: list[Group], ignore: Sequence[str], align: int
) -> list[Group]:
    """Return the groups with whole heads exchanged for head widths, where these can be mixed.

    Mixed, the width of all heads can be cut with less loss than whole heads. Where a part of the heads has a width that
    stays, such as values that are normalised within each head, heads stay, since widths would leave too much.

    Parameters
    ----------
    analysis : Analysis
    groups : list of Group
        As picked; a component without its default stays as it is.
    ignore : sequence of str
        Regular expressions, see `onnxprune.graph.select`.
    align : int
        Step of widths: a head narrower than two steps stays whole.
    """
    chosen = {g.component for g in groups if not g.alternative}
    beside = [g for g in analysis.grouping.groups if g.alternative and g.component in chosen]
    if not beside:
        return groups
    allowed = pick(analysis.grouping, ignore, [f"^{re.escape(g.name)}$" for g in beside])
    layers = sites(analysis)
    mixable = {m.group for m in find(analysis, allowed, layers, readers(layers, allowed))}
    wide = {g.name for g in allowed if g.units >= 2 * align and g.kind == "head width"}
    kept = {g.component for g in beside if g.name not in mixable & wide}
    whole, widths = _macs([g for g in groups if not g.alternative]), _macs(beside)
    swapped = {c for c in widths if c not in kept and widths[c] >= NEARLY * whole[c]}
    return [g for g in groups if g.component not in swapped] + [g for g in beside if g.component in swapped]


def _macs(groups: Sequence[Group]) -> Counter[int]:
    """Return component -> MACs that go with its groups."""
    total = Counter[int]()
    for group in groups:
        total[group.component] += int(group.macs.sum())
    return total


class _Look:
    """One group, from its layers to what lies between them."""

    def __init__(
        self, analysis: Analysis, group: Group, by_weight: Mapping[str, Site], read: Readers, graph: Around
    ) -> None:
        self.model, self.coupling, self.group = analysis.model, analysis.coupling, group
        try:  # what the loss of one unit touches is what belongs to the group
            self.touched = analysis.grouping.dead({group.name: [0]}).keys()
        except ValueError as error:
            raise _Unmixable from error
        self.makers = {
            m.tensor: self._maker(by_weight[m.tensor], m)
            for m in group.members
            if not m.contracted and m.tensor in by_weight and _bias(by_weight[m.tensor]) != m.tensor
        }
        self.readers = [
            Side(site, _at_rows(rows[0], site.view.taps))
            for site, rows in read.get(group.name, ())
            if _settable(site, analysis.model)
        ]
        self.graph = graph

    def mixable(self) -> list[Mixable]:
        """Return the group as a stream, a product, or both."""
        ours = {n for s in self.makers.values() for n in (*s.site.codec.tensors, _bias(s.site))}
        theirs = {n for s in self.readers for n in s.site.codec.tensors}
        if any(m.tensor not in (theirs if m.contracted else ours) for m in self.group.members):
            raise _Unmixable
        both = {(m.tensor, m.axis) for m in self.group.members if m.tensor in theirs}
        if len(both) > len({tensor for tensor, _ in both}):  # a layer that reads the group and makes it
            raise _Unmixable
        products = self._between()
        sides, ends, name = tuple(self.makers.values()), tuple(self.readers), self.group.name
        if not sides or not (products or ends) or len(products) > 1:
            raise _Unmixable
        if not products:
            return [_fitting(Mixable(name, sides, ends))]
        if not ends:
            return [_fitting(Mixable(name, *self._pair(products[0]), products[0]))]
        queries, keys, values = _thirds(sides, ends)
        return [_fitting(Mixable(name, queries, keys, products[0])), _fitting(Mixable(name, values, ends))]

    def _maker(self, site: Site, member: Member) -> Side:
        weight, view = self.model.weight(site.weight), site.view
        shared = _bias(site) and not (site.own and self.model.weight(_bias(site)).size == view.outputs)
        if member.axis == view.weight_axis or weight.shape[member.axis] != view.outputs or shared:
            raise _Unmixable
        return Side(site, _heads([np.sort(member.index[member.unit == u]) for u in range(self.group.units)]))

    def _in(self, dims: Sequence[int] | None) -> bool:
        return dims is not None and any(self.coupling.space.find(d) in self.touched for d in dims)

    def _between(self) -> list[int]:
        """Check all nodes that the group touches; return those that multiply two sides of it."""
        ends = {s.site.number: set(s.site.codec.tensors) for s in self.readers}
        layers = (s.site for s in (*self.makers.values(), *self.readers))
        own = {n for site in layers for n in _within(site, self.graph)} - ends.keys()
        products = []
        for number, applied in enumerate(self.coupling.nodes):
            inside, outside = [self._in(d) for d in applied.ins], any(self._in(d) for d in applied.outs)
            if number in own or not (any(inside) or outside):
                continue
            if number in ends:
                rest = {n for n, i in zip(applied.node.inputs[2:], inside[2:], strict=True) if i}
                if inside[:2] != [True, True] or not rest <= ends[number]:
                    raise _Unmixable
            elif applied.node.op == "MatMul" and inside == [True, True] and not outside:
                products.append(number)
            elif not _treats_alike(applied, inside, outside=outside):
                raise _Unmixable
        return products

    def _pair(self, product: int) -> tuple[tuple[Side, ...], tuple[Side, ...]]:
        """Return the layers on either side of a product; the halves of one that makes both."""
        first, second = (self._sources(n) for n in self.coupling.nodes[product].node.inputs)
        if not first & second:
            return tuple(self.makers[n] for n in sorted(first)), tuple(self.makers[n] for n in sorted(second))
        if first != second or len(first) != 1:
            raise _Unmixable
        (whole,) = (self.makers[n] for n in first)
        half = len(whole.at) // 2
        queries, keys = _parts(whole, half, half)
        return queries, keys

    def _sources(self, name: str) -> set[str]:
        """Return the weights of the layers that a tensor of the group comes from."""
        ends = {s.site.y: weight for weight, s in self.makers.items()}
        made = {n: a for a in self.coupling.nodes for n in a.node.outputs}
        sources, seen, todo = set(), set(), [name]
        while todo:
            name = todo.pop()
            if name in ends:
                sources.add(ends[name])
            elif name in made and name not in seen:
                todo += [
                    n for n, d in zip(made[name].node.inputs, made[name].ins, strict=True) if self._in(d)
                ]
            seen.add(name)
        return sources


def _settable(site: Site, model: Model) -> bool:
    """Whether any matrix can take the place of a layer's weight: floats, or integers whose scales are its own."""
    plain = site.view.blocks == 1 and not site.view.factors
    return plain and (site.exact or stretchable(site, model))


def _within(site: Site, graph: Around) -> set[int]:
    """Return the nodes between what a layer reads and what it makes, with those that store its weight."""
    found, todo = set[int](), [site.y]
    while todo:
        made = graph.maker.get(name := todo.pop())
        if name != site.x and made is not None and made not in found:
            found.add(made)
            todo += graph.nodes[made].node.inputs
    return found


def _bias(site: Site) -> str:
    return "" if site.bias is None else site.bias.name


def _treats_alike(applied: Applied, inside: Sequence[bool], *, outside: bool) -> bool:
    """Whether a node that a group runs through is linear in it, and the same for all of its units."""
    node = applied.node
    if node.domain not in ("", "ai.onnx"):
        return False
    still = node.traits & (Trait.MOVEMENT | Trait.LINEAR | Trait.SIZE) and node.op != "Concat"
    if still or node.op == "Cast":
        return inside[0] and not any(inside[1:])
    if node.op in ("Add", "Sub"):
        return all(inside) and node.shapes[0] == node.shapes[1]
    if node.op in ("Mul", "Div"):
        other = node.shapes[1] if inside[0] else node.shapes[0]
        alone = inside == [True, False] or (node.op == "Mul" and inside == [False, True])
        return alone and other is not None and int(np.prod(other)) == 1
    return node.op == "MatMul" and sum(inside) == 1 and outside


def _parts(whole: Side, *counts: int) -> tuple[tuple[Side, ...], ...]:
    """Divide the heads of a layer among what it makes."""
    if sum(counts) != len(whole.at) or not all(counts):
        raise _Unmixable
    ends = np.cumsum(counts)
    return tuple((Side(whole.site, whole.at[end - n : end]),) for n, end in zip(counts, ends, strict=True))


def _thirds(makers: Sequence[Side], readers: Sequence[Side]) -> tuple[tuple[Side, ...], ...]:
    """Return queries, keys and values; there are as many queries as heads that are read."""
    queries = len(readers[0].at)
    if len(makers) != 1:
        raise _Unmixable
    others = (len(makers[0].at) - queries) // 2
    return _parts(makers[0], queries, others, others)


def _heads(channels: Sequence[Ints]) -> Ints:
    """Return int64[heads, units] of the channels of each unit."""
    if len({len(c) for c in channels}) != 1 or not len(channels[0]):
        raise _Unmixable
    return np.stack(channels, axis=1)


def _at_rows(rows: Sequence[Ints], taps: int) -> Ints:
    return _heads([np.unique(r // taps) for r in rows])


def _fitting(mixable: Mixable) -> Mixable:
    """Refuse sides whose heads don't fit each other."""
    left, right = ({len(s.at) for s in sides} for sides in (mixable.left, mixable.right))
    if len(left) != 1 or len(right) != 1 or max(*left, *right) % min(*left, *right):
        raise _Unmixable
    return mixable
