"""Layers that can be fitted, the groups whose channels they read, and the sums that they feed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.stream import Runs
from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import uses_of
from onnxprune.graph.group_types import Group, Member
from onnxprune.model import Model
from onnxprune.reconstruction.chosen import chosen_rows
from onnxprune.reconstruction.seen import Around, as_floats, weight_slot
from onnxprune.reconstruction.stored import Codec, Quantised
from onnxprune.reconstruction.views import View

__all__ = ["Readers", "Site", "ResidualSum", "around", "gone", "readers", "sites", "using"]

Ints = NDArray[np.int64]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class ResidualSum:
    """The residual sum that a layer's output feeds.

    ``sum = other + gain * y + offset`` with ``y`` the layer's output.
    """

    tensor: str
    other: str
    gain: Vector
    offset: Vector
    end: int


@dataclass(frozen=True)
class Site:
    """A layer that can be fitted; where several nodes use its weight, all of them.

    Attributes
    ----------
    number : int
        Position of the node in topological order.
    view : View
    x, y : str
        The activations before and after; ``y`` is after the bias where a node of its own adds it.
    codec : Codec
        How the weight is stored.
    end : int
        Position of the node that makes ``y``.
    bias : Codec or None
        How the constant bias is stored; None where there is none.
    own : bool
        Whether nothing else reads that bias.
    adder : tuple (position, slot) or None
        The input that takes the bias; None where a bias can't be given.
    total : ResidualSum or None
        The residual sum that this layer is the last one to feed.
    clipped : bool
        Whether ``y`` is clipped to integers: what it was before is computed from ``x``.
    given : float64[outputs] or None
        A bias in the node that isn't fitted: each use of the weight has one of its own.
    more : tuple of Site
        Later nodes that use the same weight in the same way: one fit serves all.
    lean : bool
        Whether its outputs are never read, since they follow from what it reads, see `onnxprune.reconstruction.narrow`.
    chosen : bool
        Whether the model itself chooses its rows, see `onnxprune.reconstruction.chosen`.
    scalable : bool
        Whether its weight is of integers whose scales nothing else reads, and those of its bias can follow.
    """

    number: int
    name: str
    view: View
    x: str
    y: str
    codec: Codec
    end: int
    bias: Codec | None
    own: bool
    adder: tuple[int, int] | None
    total: ResidualSum | None
    clipped: bool = False
    given: Vector | None = None
    more: tuple[Site, ...] = ()
    lean: bool = False
    chosen: bool = False
    scalable: bool = False

    @property
    def weight(self) -> str:
        """The stored weight."""
        return self.codec.name

    @property
    def exact(self) -> bool:
        """Whether any weight and bias can be written."""
        return self.codec.exact and (self.bias is None or self.bias.exact)

    @property
    def free(self) -> list[str]:
        """Its weight and its own bias, where any values may be put in their place."""
        if not self.exact:
            return []
        return [self.weight, *([self.bias.name] if self.own and self.bias is not None else [])]

    @property
    def uses(self) -> tuple[Site, ...]:
        """The layer at each node that uses its weight, itself first."""
        return (self, *self.more)

    @property
    def goal(self) -> tuple[str, int]:
        """The tensor that the output of this node becomes part of, and the position of the node that makes it."""
        return (self.total.tensor, self.total.end) if self.total else (self.y, self.end)


#: Group -> the layers that read it, each with the regressors of each unit in each block.
Readers = dict[str, list[tuple[Site, list[list[Ints]]]]]


def sites(analysis: Analysis) -> list[Site]:
    """Find the layers of a model that can be fitted, in topological order of the first node that uses each.

    A weight that several nodes use is one layer where all of them use it alike; else no fit can serve them all. Where
    each has a bias of its own, that stays as it is. What a rewriting has made (`Model.fixed`) is no weight.
    """
    graph, model = _LayerGraph(analysis), analysis.model
    fixed = {n for n, dims in model.fixed.items() if n in model and model.info(n).dims == dims}
    layers = []
    for number, applied in enumerate(graph.nodes):
        slot = weight_slot(applied.node)
        weight = applied.node.inputs[slot] if applied.node.has(slot) else ""
        uses = graph.uses.get(weight, [])
        if len(uses) == 1:
            site = graph.site(number)
        elif uses and uses[0][0] == number:
            site = graph.shared(uses)
        else:
            site = None
        if site is not None and site.weight not in fixed:
            layers.append(replace(site, own=False) if site.bias and site.bias.name in fixed else site)
    rows = chosen_rows(analysis)
    return [replace(s, chosen=True) if any(u.x in rows for u in s.uses) else s for s in layers]


def around(analysis: Analysis) -> Around:
    """Return the graph of a model as a look at its layers needs it."""
    nodes = analysis.coupling.nodes
    outputs = {v.name for v in analysis.model.proto.graph.output}
    inner = (captured(a.proto) for a in nodes if a.proto.attribute)
    return Around(analysis.model, nodes, uses_of(analysis.coupling), outputs.union(*inner))


def seen(layers: Sequence[Site], runs: Runs) -> list[Site]:
    """Return the layers that samples tell of: without nodes in branches that none takes, and without steps of a Loop.

    What a layer is fitted to in one branch serves another that uses the same weight alike; for each step of a Loop
    there is no such thing, nor for rows that a model chooses by what it computes.
    """
    untaken, many = runs.hidden()
    told = []
    for site in layers:
        part = using(site, [use for use in site.uses if use.y not in untaken])
        if part is not None and not site.chosen and not any(use.y in many for use in site.uses):
            told.append(part)
    return told


def using(site: Site, uses: Sequence[Site]) -> Site | None:
    """Return a layer as some of the nodes that use its weight show it; None where these are none."""
    if not uses or len(uses) == len(site.uses):
        return site if uses else None
    return replace(uses[0], own=site.own, more=tuple(uses[1:]))


class _LayerGraph:
    def __init__(self, analysis: Analysis) -> None:
        self.around = around(analysis)
        self.model, self.nodes = analysis.model, self.around.nodes
        self.uses, self.outer, self.maker = self.around.uses, self.around.outer, self.around.maker

    def shared(self, uses: Sequence[tuple[int, int]]) -> Site | None:
        """Return the layer whose weight several nodes use; None where they use it differently."""
        for alone in (False, True):
            uses_alone = [
                self.site(n, alone=alone) if slot == weight_slot(self.nodes[n].node) else None
                for n, slot in uses
            ]
            sites = [s for s in uses_alone if s is not None]
            if len(sites) < len(uses_alone) or not self.theirs(sites[0]) or not _alike(sites, self.model):
                return None
            if len({(s.bias, s.adder is None) for s in sites}) == 1:
                bias = sites[0].bias
                own = (
                    bias is not None
                    and len(self.uses[bias.name]) == len(sites)
                    and bias.name not in self.outer
                )
                return replace(sites[0], own=own, more=tuple(sites[1:]))
        first, *others = [self.plain(s) for s in sites]
        return replace(first, more=tuple(others))

    def theirs(self, site: Site) -> bool:
        """Whether nothing but layers reads a weight, wherever it is read."""
        read = self.nodes[site.number].node.inputs[weight_slot(self.nodes[site.number].node)]
        return not {site.weight, read} & self.outer

    def plain(self, site: Site) -> Site:
        """Return a layer without its bias, which stays as it is."""
        size, given = site.view.blocks * site.view.outputs, None
        if site.bias is not None and not site.clipped:  # else it isn't in what the layer is fitted to
            bias = site.bias.read(self.model).reshape(-1)
            given = np.broadcast_to(bias * site.view.bias_factor, size)
        return replace(site, adder=None, bias=None, own=False, given=given)

    def site(self, number: int, *, alone: bool = False) -> Site | None:
        """Return the layer of a node; alone: without the bias that a node of its own adds."""
        seen = as_floats(self.around, number)
        if seen is None:
            return None
        view, y, end = seen.view, seen.y, seen.end
        adder: tuple[int, int] | None = None
        if view.bias_slot >= 0:
            adder = number, view.bias_slot
        elif not alone:
            following = self.adds_constant(y, view)
            if following is not None:
                adder, (end, _) = following, following
                y = self.nodes[end].node.outputs[0]
        bias, name = seen.bias, seen.bias.name if seen.bias else ""
        if bias is None and adder is not None and self.nodes[adder[0]].node.has(adder[1]):
            name = self.nodes[adder[0]].node.inputs[adder[1]]
            stored = self.around.constant(name, read_alone=False)
            if stored is None:
                return None
            bias = stored[0]
        title = self.model.proto.graph.node[self.model.order[number]].name or seen.codec.name
        total = self.residual(number, y, view)
        own = bias is not None and self.around.alone(bias.name) and self.around.alone(name)
        site = Site(
            number, title, view, seen.x, y, seen.codec, end, bias, own, adder, total, seen.clipped,
            scalable=not seen.clipped and self.scales(seen.codec, bias, own=own),
        )  # fmt: skip
        return site if bias is None or bias.exact or (own and self.fills(bias, view)) else self.plain(site)

    def scales(self, codec: Codec, bias: Codec | None, *, own: bool) -> bool:
        """Whether the scales of a weight can change, and with them those of its bias."""
        if not (isinstance(codec, Quantised) and all(map(self.around.alone, codec.tensors[:2]))):
            return False
        if bias is None or bias.exact:
            return True
        both = isinstance(bias, Quantised) and self.around.alone(bias.scale) and own
        return both and self.model.info(codec.scale).dims == self.model.info(bias.tensors[1]).dims

    def fills(self, bias: Codec, view: View) -> bool:
        """Whether a bias has one value for each output."""
        return prod(bias.shape(self.model)) == view.blocks * view.outputs

    def adds_constant(self, name: str, view: View) -> tuple[int, int] | None:
        """The node that adds a constant vector to a tensor's channels, and the slot that it lies in."""
        name = self.rounded(name)
        number = self.around.sole(name)
        if number is None or self.nodes[number].node.op != "Add":
            return None
        node = self.nodes[number].node
        slot = 1 if node.inputs[0] == name else 0
        shape, size = node.shapes[slot], view.outputs
        if shape is None or self.around.constant(node.inputs[slot], read_alone=False) is None:
            return None
        at = view.out_axis if view.out_axis < 0 else view.out_axis - len(node.shapes[1 - slot] or ())
        fits = len(shape) >= -at and shape[at] == size and int(np.prod(shape)) == size
        return (number, slot) if fits else None

    def rounded(self, name: str) -> str:
        """Follow a tensor through the QuantizeLinear and DequantizeLinear that alone read it."""
        for op in ("QuantizeLinear", "DequantizeLinear"):
            number = self.around.sole(name)
            if (
                number is None
                or self.nodes[number].node.op != op
                or self.nodes[number].node.inputs[0] != name
            ):
                return name
            name = self.nodes[number].node.outputs[0]
        return name

    def residual(self, number: int, name: str, view: View) -> ResidualSum | None:
        size = view.blocks * view.outputs
        gain, offset = np.ones(size), np.zeros(size)
        name = self.rounded(name)
        following = self.around.sole(name)
        while following is not None and self.nodes[following].node.op == "BatchNormalization":
            node = self.nodes[following].node
            if any(n not in self.model for n in node.inputs[1:5]):
                return None
            scale, shift, mean, var = (self.model.weight(n).astype(np.float64) for n in node.inputs[1:5])
            a = scale / np.sqrt(var + float(node.attr("epsilon", 1e-5)))
            gain, offset = gain * a, (offset - mean) * a + shift
            name = node.outputs[0]
            following = self.around.sole(name)
        if following is None or self.nodes[following].node.op != "Add":
            return None
        node = self.nodes[following].node
        shapes = node.shapes
        if len(node.inputs) != 2 or node.inputs[0] == node.inputs[1] or shapes[0] != shapes[1]:
            return None
        other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
        made = self.maker.get(other, -1)
        if other in self.model or made >= number or (np.abs(gain) < 1e-6).any():
            return None
        return ResidualSum(node.outputs[0], other, gain, offset, following)


def _alike(sites: Sequence[Site], model: Model) -> bool:
    """Whether several nodes read a weight as the same matrices."""
    first = sites[0].view
    shape = sites[0].codec.shape(model)
    entries = np.arange(prod(shape)).reshape(shape)
    same = [
        (s.view.weight_axis, s.view.taps, s.view.bias_factor)
        == (first.weight_axis, first.taps, first.bias_factor)
        and np.array_equal(s.view.unpack(entries), first.unpack(entries))
        for s in sites[1:]
    ]
    return all(same)


def readers(
    layers: list[Site], groups: list[Group], *, partly: bool = False, fixed: Collection[str] = ()
) -> Readers:
    """Find the layers that contract each group's channels.

    Parameters
    ----------
    layers : list of Site
    groups : list of Group
    partly : bool
        Return groups, too, with other readers that can't be fitted.
    fixed : collection of str
        Constants that don't count as such readers (`Model.fixed`).

    Returns
    -------
    dict
        Group -> (site, rows) with ``rows[block][unit]`` the regressors that a unit owns in a block.
    """
    by_weight = {s.weight: s for s in layers}
    result: Readers = {}
    for group in groups:
        reads: list[tuple[Site, list[list[Ints]]]] = []
        others = False
        axes = {(m.tensor, m.axis) for m in group.members}
        for member in (m for m in group.members if m.tensor not in fixed):
            if not member.contracted or member.role == "quant":  # scales go with their weight
                continue
            site = by_weight.get(member.tensor)
            if site is not None and site.view.reads(member.axis):
                reads.append((site, _rows(site.view, member, group.units)))
            else:  # where both axes of a weight belong to the group, one of them is what the layer makes
                others |= site is None or not any(t == site.weight and site.view.reads(a) for t, a in axes)
        if reads and (partly or not others):
            result[group.name] = reads
    return result


def _rows(view: View, member: Member, units: int) -> list[list[Ints]]:
    index, unit = member.index, member.unit
    blocks = []
    if view.factors:
        channels = view.channels_at(member.axis, index)
        index, unit = channels.ravel(), np.repeat(unit, channels.shape[1])
    for block in range(view.blocks):
        channel, owner = index, unit
        if view.weight_axis == 0 and view.blocks > 1 and not view.factors:  # the axis runs over all blocks
            inside = index // view.channels == block
            channel, owner = index[inside] % view.channels, unit[inside]
        rows = [channel[owner == u] for u in range(units)]
        blocks.append([(r[:, None] * view.taps + np.arange(view.taps)).ravel() for r in rows])
    return blocks


def gone(readers: Readers, removed: Mapping[str, Ints]) -> dict[str, list[Ints]]:
    """Return which regressors of each layer's blocks go: weight -> one sorted array for each block."""
    result: dict[str, list[list[Ints]]] = {}
    for name, units in removed.items():
        for site, rows in readers.get(name, ()):
            blocks = result.setdefault(site.weight, [[] for _ in rows])
            for block, unit_rows in zip(blocks, rows, strict=True):
                block += [unit_rows[int(u)] for u in units]
    empty = np.zeros(0, np.int64)
    return {w: [np.sort(np.concatenate(b)) if b else empty for b in blocks] for w, blocks in result.items()}
