"""Which computed tensors it helps to fold: those that layers read, that sum over channels, or that keep axes whole."""

from __future__ import annotations

from collections.abc import Collection

from onnx import TensorProto

from onnxprune.graph.computed import Computed, Finder
from onnxprune.graph.coupling import Coupling, Dims
from onnxprune.graph.folding import Folded
from onnxprune.graph.groups import Grouping
from onnxprune.ops import Trait, traits_of

__all__ = ["frozen_ends", "helps", "is_float", "small_enough", "summed_ends", "weight_ends"]

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_WEIGHTS = frozenset({"weight", "bias", "scale", "mean", "var"})
#: A weight that is folded for a fit may take so many times the bytes of those that go with it.
GROWTH = 1.25


def weight_ends(finder: Finder, coupling: Coupling) -> list[str]:
    """Return the computed tensors that layers read as their weights, where the file doesn't grow by folding them."""
    read: set[str] = set()
    for applied in coupling.nodes:
        row, node = applied.row, applied.node
        if row is None or any(o in finder.maker for o in node.outputs):
            continue
        for slot, name in enumerate(node.inputs):
            role = row.roles[slot] if slot < len(row.roles) else "data"
            if name in finder.maker and (role in _WEIGHTS or (bool(applied.macs) and slot < 2)):
                read.add(name)
    return [n for n in finder.ends() if n in read and is_float(finder, n) and small_enough(finder.of(n))]


def is_float(finder: Finder, name: str) -> bool:
    """Whether a computed tensor may be a weight that is fitted or scored."""
    return finder.tracer.types[name][0] in _FLOATS


def small_enough(computed: Computed) -> bool:
    """Whether a file doesn't grow by more than a little if it holds a tensor instead of what makes it."""
    return computed.nbytes <= GROWTH * computed.gone


def summed_ends(finder: Finder, grouping: Grouping) -> list[str]:
    """Return the computed tensors that a sum or a norm over channels that can be cut goes into.

    With fewer channels the norm of a weight is another one, and what is left would no longer be what it was.
    """
    sums = {
        output
        for a in grouping.coupling.nodes
        if not a.macs
        and Trait.MOVEMENT not in traits_of(a.node.op, a.node.domain)  # what takes a slice sums nothing
        if any(_is_open(grouping, (a.ins[slot] or ())[axis]) for slot, axis in a.contracted)
        for output in a.node.outputs
        if output in finder.maker
    }
    numbers = {finder.maker[name] for name in sums}
    return (
        [n for n in finder.ends() if is_float(finder, n) and numbers & set(finder.of(n).nodes)]
        if sums
        else []
    )


def frozen_ends(finder: Finder, grouping: Grouping) -> list[str]:
    """Return the computed tensors with axes that can't be cut, or not exactly."""
    ends = []
    for name in finder.ends():
        shape = finder.tracer.types[name][1] or ()
        wide = {axis for axis, size in enumerate(shape) if size > 1}
        if is_float(finder, name) and wide - _opened(grouping, name).keys():
            ends.append(name)
    return ends


def helps(name: str, folded: Folded, before: Grouping, after: Grouping) -> bool:
    """Whether a tensor that is folded lets be cut what is no smaller than what the file grows by."""
    was, now = _opened(before, name), _opened(after, name)
    roots = {root for axis in now.keys() - was.keys() for root in now[axis]}
    computed = folded.tensors[name]
    return bool(roots) and computed.nbytes - computed.gone <= _worth(after, folded, name, roots)


def _opened(grouping: Grouping, name: str) -> dict[int, set[int]]:
    """Return the axes of a tensor of which something can be cut exactly, each with the roots of its dims."""
    axes: dict[int, set[int]] = {}
    for dims in _uses(grouping.coupling, name):
        for axis, dim in enumerate(dims):
            if _is_open(grouping, dim):
                axes.setdefault(axis, set()).add(grouping.coupling.space.find(dim))
    return axes


def _worth(again: Grouping, folded: Folded, name: str, roots: Collection[int]) -> int:
    """Return the bytes of the other weights that can be cut along some dims; of those folded, what was there before."""
    space, names = again.coupling.space, set[str]()
    for instance in again.coupling.instances:
        if instance.tensor != name and any(space.find(d) in roots for d in instance.dims):
            names.add(instance.tensor)
    own = folded.tensors
    return sum(own[n].gone if n in own else folded.model.info(n).nbytes for n in names)


def _uses(coupling: Coupling, name: str) -> list[Dims]:
    return [i.dims for i in coupling.instances if i.tensor == name] or [coupling.dims.get(name, ())]


def _is_open(grouping: Grouping, dim: int) -> bool:
    """Whether something of a dim can be cut exactly."""
    space = grouping.coupling.space
    root = space.find(dim)
    units = [(f.solution, f.solution.units_of(root, space.sizes[root])) for f in grouping.families]
    return any(not solution.inexact[unit[unit >= 0]].all() for solution, unit in units)  # of nothing all are
