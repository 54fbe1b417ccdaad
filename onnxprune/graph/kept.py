"""What stays of every dim once a cut is decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.files.protowalk import captured
from onnxprune.graph.coupling import Applied, Coupling, Dims
from onnxprune.graph.passage import Passage

__all__ = ["Indices", "Kept", "Masks", "NodeCut", "read_by"]

Indices = NDArray[np.int64]
Masks = Mapping[int, NDArray[np.bool_]]


def read_by(applied: Applied) -> set[str]:
    """Return the tensors that a node reads, those of its bodies among them."""
    return {*applied.node.inputs, *(captured(applied.proto) if applied.proto.attribute else ())} - {""}


@dataclass
class Kept:
    """What stays of every dim.

    Attributes
    ----------
    word : str
        What is said of copies of shared weights, in their names.
    gone : frozenset of str
        Inputs and outputs of the model that went with units.
    """

    word: ClassVar[str] = "pruned"

    coupling: Coupling
    dead: Masks
    gone: frozenset[str] = frozenset()
    _kept: dict[int, Indices] = field(default_factory=dict)

    def root(self, dim: int) -> int:
        """Return the root of a dim."""
        return self.coupling.space.find(dim)

    def cut(self, dim: int) -> bool:
        """Whether a dim loses anything."""
        return self.root(dim) in self.dead

    def reached(self, changed: Callable[[Applied], bool] | None = None) -> set[str]:
        """Return the tensors that something which loses units, or a node that has ``changed``, is on the way to."""
        gone = {root for root, mask in self.dead.items() if np.any(mask)}
        found: set[str] = set()
        for applied in self.coupling.nodes:
            dims = (d for some in (*applied.ins, *applied.outs) for d in some or ())
            if (
                read_by(applied) & found
                or any(self.root(d) in gone for d in dims)
                or (changed is not None and changed(applied))
            ):
                found.update(applied.node.outputs)
        return found

    def indices(self, dim: int) -> Indices:
        """Indices that stay, ascending."""
        root = self.root(dim)
        if root not in self._kept:
            mask = self.dead.get(root)
            size = self.coupling.space.sizes[root]
            self._kept[root] = np.arange(size) if mask is None else np.flatnonzero(~mask)
        return self._kept[root]

    def size(self, dim: int) -> int:
        """Number of indices that stay."""
        root = self.root(dim)
        return self.indices(root).size if root in self.dead else self.coupling.space.sizes[root]

    def macs(self, applied: Applied) -> float:
        """Multiply-accumulates of a node, of one sample (`onnxprune.graph.per_sample`)."""
        share = self.coupling.space.share
        return sum(prod(map(self.size, dims)) * share(dims) for dims in applied.macs)

    def shape(self, dims: Dims) -> tuple[int, ...]:
        """Return what stays of each dim."""
        return tuple(self.size(d) for d in dims)

    def axes(self, dims: Dims) -> dict[int, Indices]:
        """Axis -> indices that stay, for the axes that are cut."""
        return {axis: self.indices(dim) for axis, dim in enumerate(dims) if self.cut(dim)}

    @property
    def passages(self) -> list[Passage]:
        """What is there for elements alone that go."""
        return [
            p
            for p in self.coupling.passages
            if self.root(p.root) in self.dead and self.dead[self.root(p.root)][p.element]
        ]

    def take(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what stays of the values of tensors, by name; what isn't cut is the same object.

        Axes count from the back: a batch of one may have been squeezed.
        """
        left = {name: value for name, value in values.items() if name not in self.gone}
        for name in left:
            dims = self.coupling.dims.get(name, ())
            for axis, kept in self.axes(dims).items():
                left[name] = np.take(left[name], kept, axis=axis - len(dims))
        return left


class NodeCut:
    """What an emitter may ask (`onnxprune.ops.Cut`)."""

    applied: Applied
    sizes: Kept

    def __init__(self, applied: Applied, kept: Kept) -> None:
        self.applied, self.sizes = applied, kept

    def kept(self, slot: int, axis: int) -> Indices:
        """Indices kept on an input's axis."""
        return self.sizes.indices((self.applied.ins[slot] or ())[axis])

    def kept_out(self, slot: int, axis: int) -> Indices:
        """Indices kept on an output's axis."""
        return self.sizes.indices((self.applied.outs[slot] or ())[axis])

    def new_shape(self, slot: int) -> tuple[int, ...]:
        """Shape of an input after the cut."""
        return self.sizes.shape(self.applied.ins[slot] or ())

    def new_out_shape(self, slot: int) -> tuple[int, ...]:
        """Shape of an output after the cut."""
        return self.sizes.shape(self.applied.outs[slot] or ())
