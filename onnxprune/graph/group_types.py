"""What criteria and budgets see of a dependency group.

Plain data, so that a criterion or a budget needs neither the graph nor an op table.

Index spaces: a *unit* (``0 .. units - 1``) is the smallest thing that can be cut, such as a channel, a head or a whole
group of a grouped convolution. A *position* is an index on one axis of one tensor, in the original model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

#: The kind of groups whose units are experts.
EXPERTS = "experts"

__all__ = ["EXPERTS", "Extent", "Group", "Indices", "Member"]


@dataclass(frozen=True, eq=False)
class Member:
    """The slices of one weight that go when units of a group go.

    Attributes
    ----------
    tensor : str
        Name of the weight (initializer, or the output of a Constant node).
    axis : int
        Axis of that weight, not negative.
    index : int64[k]
        Positions on that axis, in the original model.
    unit : int64[k]
        The unit that owns each of these positions.
    role : str
        What the weight is to its op: ``weight``, ``bias``, ``scale``, ``mean``, ``var`` or ``data``.
    contracted : bool
        True where the axis is read and summed over (a consumer), False where it is produced.
    """

    tensor: str
    axis: int
    index: Indices
    unit: Indices
    role: str
    contracted: bool


@dataclass(frozen=True, eq=False)
class Extent:
    """One axis of an activation or weight whose length shrinks with the group.

    Attributes
    ----------
    axis_id : int
        Equal for equal axes, so that groups which share an axis (a concatenation) can be counted together.
    size : int
        Length of the axis over all groups, frozen positions included.
    per_unit : int64[units]
        How many positions on it each unit holds.
    label : str
        ``tensor:axis``, for people.
    """

    axis_id: int
    size: int
    per_unit: Indices
    label: str

    def needs(self, positions: int) -> int:
        """Return how many units must stay so that the axis keeps so many positions, whichever they are."""
        held = self.per_unit[self.per_unit > 0]
        return min(-(-positions // int(held.min(initial=positions))), self.per_unit.size)


@dataclass(frozen=True, eq=False)
class Group:
    """What must be cut together, unit by unit.

    Attributes
    ----------
    name : str
        Unique and stable over runs, such as ``layer1.0.conv1.weight:0``; by a module where the exporter has given its
        weight a number only, such as ``model.layers.0.mlp.gate_proj:1``.
    units : int
        Number of units.
    kind : str
        ``channels``, ``heads``, ``groups``, ...
    members : tuple of Member
        Every slice of every weight that goes with a unit.
    extents : tuple of Extent
        Every axis that shrinks.
    component : int
        Groups with the same number are coupled through a shared axis.
    params : int64[units]
        Parameters in the slices that go with a unit.
    macs : float64[units]
        Multiply-accumulate operations of these.
    inexact : bool
        True where a cut changes an average (opt-in only).
    alternative : bool
        True where the same axes are cut by default through other groups (whole heads rather than head width).
    tensor : str
        Its name by a weight in any case, as older plans have it.
    least : int
        How many units must stay.
    params_again, macs_again : int, float
        What ``params`` and ``macs`` count once more, for another unit: where rows and columns of a matrix both go.
    """

    name: str
    units: int
    kind: str
    members: tuple[Member, ...]
    extents: tuple[Extent, ...]
    component: int
    params: Indices
    macs: NDArray[np.float64]
    inexact: bool = False
    alternative: bool = False
    tensor: str = ""
    least: int = 1
    params_again: int = 0
    macs_again: float = 0.0

    @property
    def all_params(self) -> int:
        """Parameters that go when the whole group goes."""
        return int(self.params.sum()) - self.params_again

    @property
    def all_macs(self) -> int:
        """Multiply-accumulate operations that go when the whole group goes."""
        return round(float(self.macs.sum()) - self.macs_again)

    @property
    def stepped(self) -> bool:
        """Whether kernels like some numbers of units more than others."""
        return self.kind != EXPERTS
