"""Reorder the channels of dependency groups, without loss, so that N:M zeros take less.

Which channels are neighbours along the inputs of a layer is an accident of training. A dependency group says what
must be reordered together: the outputs, biases and statistics of what produces a channel, and the inputs of all that
consume it. Nothing is added to the graph, so the order costs nothing at run time.

Rules:

1. Units change places with units that look alike from inside (`onnxprune.permutation.symmetry`); the finished
   permutation is checked against every relation of the graph.
2. A stripe is M channels that are neighbours along the inputs of every layer that counts. Channels whose positions make
   no whole stripe stay where they are. Layers that the group's stripes don't fit (a Flatten behind pixels) don't
   count in the search, but they do in the gain.
3. A group's order is taken only if all its layers together keep more by it.
4. The result is compared with the model in onnxruntime, as `onnxprune.verify` does it; a group whose order fails is put
   back, and named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.cut.put_back import Failed, most
from onnxprune.cut.writer import Writer
from onnxprune.errors import VerificationError, many
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.group_types import Group, Member
from onnxprune.graph.groups import Family
from onnxprune.model import Model
from onnxprune.permutation.search import kept, search
from onnxprune.permutation.symmetry import Order, Orders, broken, symmetry_of
from onnxprune.proof.verify import verify
from onnxprune.runtime.binding import Shape
from onnxprune.runtime.inputs import Trial

__all__ = ["Gain", "Permuted", "permute"]

Array = NDArray[Any]
Indices = NDArray[np.int64]
#: What says how much each element of a weight matters: arrays by name, or a function of the name (None: no matter).
Saliency = Mapping[str, Array] | Callable[[str], Array | None]


@dataclass(frozen=True)
class Gain:
    """What the order of one group brings.

    Attributes
    ----------
    group : str
    moved, units : int
        Channels that stand elsewhere now, of how many.
    weights : tuple of str
        The weights that keep more or less by it: those that are summed over the group.
    total, before, after : float
        Saliency of these weights: all of it, and what N:M keeps of it in the old and in the new order.
    """

    group: str
    moved: int
    units: int
    weights: tuple[str, ...]
    total: float
    before: float
    after: float

    @property
    def won(self) -> float:
        """Share of what N:M would have lost that is kept now."""
        lost = self.total - self.before
        return (self.after - self.before) / lost if lost > 0 else 0.0


@dataclass
class Permuted:
    """A model in another order.

    Attributes
    ----------
    model : Model
        The model itself where nothing is gained.
    gains : dict
        Group -> `Gain`.
    refused : dict
        Group -> why it keeps its order.
    order : dict
        Weight -> axis -> which index of the original stands where, for the weights that were reordered in place.
    error : float
        Greatest relative difference from the original, NaN where nothing was moved or compared.
    """

    model: Model
    gains: dict[str, Gain] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    order: dict[str, dict[int, Indices]] = field(default_factory=dict)
    error: float = float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return the gains and the refusals as plain JSON values."""
        return {
            "groups": [{**vars(g), "weights": list(g.weights), "won": g.won} for g in self.gains.values()],
            "refused": [{"group": name, "reason": reason} for name, reason in self.refused.items()],
            "law1": None if np.isnan(self.error) else self.error,
        }

    def text(self, pattern: str) -> list[str]:
        """Return what the order brings, in sentences."""
        gains = self.gains.values()
        total, before, after = (sum(getattr(g, name) for g in gains) for name in ("total", "before", "after"))
        reasons = Counter(self.refused.values())
        kept_orders = [f"order kept: {count} x {reason}" for reason, count in reasons.most_common(3)]
        if not total:
            return ["order: no group of channels got another one", *kept_orders]
        return [
            f"order: another one for {many(len(gains), 'group')} of channels, by which {pattern} takes "
            f"{1 - after / total:.2%} instead of {1 - before / total:.2%} of what matters in the weights summed over "
            f"them; greatest relative difference to the old order {self.error:.1e}",
            *kept_orders,
        ]


def permute(
    model: Model,
    saliency: Saliency,
    pattern: tuple[int, int],
    *,
    input_shapes: Mapping[str, Shape] | None = None,
    rounds: int = 300,
    seed: int = 0,
    check: bool = True,
) -> Permuted:
    """Reorder channels so that N:M keeps more of the weights that are summed over them.

    Parameters
    ----------
    model : Model
        Without local functions; it isn't changed.
    saliency : mapping or callable
        Weight -> array of its shape, not negative. Weights without one have no say. Layers that share a group are added
        up as they are.
    pattern : (int, int)
        N and M: N of M stay.
    input_shapes : mapping, optional
        Input -> shape, for dynamic axes.
    rounds : int
        Effort for each group, see `onnxprune.permutation.search.search`.
    seed : int
    check : bool
        Compare with the model in onnxruntime.

    Returns
    -------
    Permuted

    Raises
    ------
    ModelError
        If the shapes of the model don't agree.

    References
    ----------
    Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021.
    """
    analysis = analyse(
        model, input_shapes=input_shapes, allow_inexact=True, runs=Trial(model) if check else None
    )
    plan = _Plan(analysis, saliency if callable(saliency) else saliency.get, pattern)
    for family in analysis.grouping.families:
        plan.add(family, rounds, seed)
    result = Permuted(model, refused=plan.refused)
    if not plan.orders:
        return result

    def attempt(names: Sequence[str]) -> tuple[Model, Order, float]:
        return _carried_out(analysis, _joined([plan.orders[n] for n in names]), check)

    try:
        (result.model, order, result.error), back = most(list(plan.orders), attempt)
    except VerificationError as error:
        result.refused |= dict.fromkeys(plan.orders, str(error))
        return result
    result.refused |= back
    result.gains = {name: gain for name, gain in plan.gains.items() if name not in back}
    for instance in analysis.coupling.instances:
        moved = order.axes(instance.dims)
        if moved and instance.tensor in result.model and sum(n > 1 for n in order.shape(instance.dims)) > 1:
            result.order[instance.tensor] = moved
    return result


def _joined(orders: Sequence[Orders]) -> dict[int, Indices]:
    """Do several permutations one after the other."""
    joined: dict[int, Indices] = {}
    for one in orders:
        for root, order in one.items():
            joined[root] = joined[root][order] if root in joined else order
    return joined


def _carried_out(analysis: Analysis, orders: Orders, check: bool) -> tuple[Model, Order, float]:
    """Return the model in another order, the order, and how far its outputs are from the model's."""
    order = Order(analysis.coupling, orders)
    writer = Writer(analysis.model, analysis.coupling, order)
    writer.slice_weights()
    writer.drop_dead()
    if not check:
        return writer.model, order, float("nan")
    proof = verify(analysis, {}, writer.model, kept=order)
    if not proof.passed:
        raise Failed("; ".join(proof.failures or proof.notes) or proof.status)
    return writer.model, order, proof.max_relative_error


class _Plan:
    """Orders of groups, one by one."""

    def __init__(
        self, analysis: Analysis, saliency: Callable[[str], Array | None], pattern: tuple[int, int]
    ) -> None:
        self.analysis, self.saliency = analysis, saliency
        self.keep, self.of = pattern
        self.orders: dict[str, dict[int, Indices]] = {}
        self.gains: dict[str, Gain] = {}
        self.refused: dict[str, str] = {}

    def add(self, family: Family, rounds: int, seed: int) -> None:
        """Find the orders of a family's groups."""
        space = self.analysis.coupling.space
        symmetry = symmetry_of(space, family)
        taken = {root for orders in self.orders.values() for root in orders}  # by another choice of factors
        for group in family.groups:
            sides = self._sides(group)
            if not sides:
                continue
            numbers = family.numbers[group.name]
            source = np.arange(group.units)
            reason = f"fewer than two whole stripes of {self.of} channels"
            for alike in np.unique(symmetry.alike[numbers]):
                units = np.flatnonzero(symmetry.alike[numbers] == alike)
                counting, stripes = self._stripes(units, sides)
                if len(stripes) > 1:
                    reason = "no order keeps more"
                    matrix = np.concatenate([side.rows(stripes) for side in counting])
                    source[stripes.ravel()] = stripes.ravel()[
                        search(matrix, self.keep, self.of, rounds=rounds, seed=seed)
                    ]
            if (source == np.arange(group.units)).all():
                self.refused[group.name] = reason
                continue
            whole = np.arange(symmetry.alike.size)
            whole[numbers] = numbers[source]
            orders = symmetry.orders(space, whole)
            if taken & orders.keys():
                self.refused[group.name] = "its axes have a new order along another factor"
            else:
                self._take(group, sides, source, orders)

    def _take(
        self, group: Group, sides: Sequence[_Side], source: Indices, orders: dict[int, Indices]
    ) -> None:
        """Take an order if it holds and gains."""
        why = broken(self.analysis.coupling.space, orders)
        pattern = (self.keep, self.of)
        before, after = (sum(s.kept(pattern, o) for s in sides) for o in (np.arange(source.size), source))
        if not why and after <= before:
            why = "no order keeps more"
        if why:
            self.refused[group.name] = why
            return
        self.orders[group.name] = orders
        moved = int((source != np.arange(source.size)).sum())
        weights = tuple(dict.fromkeys(s.member.tensor for s in sides))
        total = sum(s.total for s in sides)
        self.gains[group.name] = Gain(group.name, moved, group.units, weights, total, before, after)

    def _sides(self, group: Group) -> list[_Side]:
        """Return the layers that are summed over a group and have a say, the heaviest first."""
        sides = []
        for member in group.members:
            values = self.saliency(member.tensor) if member.contracted else None
            if values is not None and values.shape[member.axis] >= self.of:
                sides.append(_Side(member, np.moveaxis(values, member.axis, -1), self.of, group.units))
        return sorted(sides, key=lambda side: -side.matrix.size)

    def _stripes(self, units: Indices, sides: Sequence[_Side]) -> tuple[list[_Side], Indices]:
        """Return the layers that count, and stripes of units that are M neighbours in each of them.

        A layer whose stripes would leave less than half of those that there are doesn't count.
        """
        counting: list[_Side] = []
        best = np.zeros((0, self.of), np.int64)
        for side in sides:
            stripes = _whole_stripes(units, [s.stripe[units] for s in (*counting, side)], self.of)
            if len(stripes) and 2 * len(stripes) >= len(best):
                counting, best = [*counting, side], stripes
        return counting, best


def _whole_stripes(units: Indices, blocks: Sequence[Indices], of: int) -> Indices:
    """Return the sets of M units that are in the same blocks everywhere."""
    key = np.concatenate(blocks, axis=1)
    _, inverse, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    full = (count[inverse] == of) & (key >= 0).all(axis=1)
    at = np.flatnonzero(full)
    return units[at[np.argsort(inverse[at], kind="stable")]].reshape(-1, of)


class _Side:
    """One layer's view of a group: its saliency with the group's axis last, and where the units are on it."""

    def __init__(self, member: Member, matrix: Array, of: int, units: int) -> None:
        self.member, self.matrix = member, matrix
        size = matrix.shape[-1]
        by_unit = np.lexsort((member.index, member.unit))
        each = np.bincount(member.unit, minlength=units)
        #: Positions of each unit in ascending order, -1 behind the last.
        self.positions = np.full((units, int(each.max(initial=0))), -1, np.int64)
        owner = member.unit[by_unit]
        self.positions[owner, np.arange(owner.size) - np.searchsorted(owner, owner)] = member.index[by_unit]
        inside = (self.positions >= 0) & (self.positions < size // of * of)
        #: Stripe of each position, -1 where it is in none.
        self.stripe = np.where(inside, self.positions // of, -1)

    def rows(self, stripes: Indices) -> Array:
        """Return a matrix with a column for each unit of the stripes, a row for each output, tap and position."""
        taken = self.matrix[..., self.positions[stripes.ravel()]]  # ..., units, positions
        return np.moveaxis(taken, -2, -1).reshape(-1, stripes.size)

    def kept(self, pattern: tuple[int, int], source: Indices) -> float:
        """Return what N:M keeps if units take the places of others; the tail is kept anyway and not counted."""
        keep, of = pattern
        order = np.arange(self.matrix.shape[-1])
        own, others = self.positions, self.positions[source]
        moved = own != others
        order[own[moved]] = others[moved]
        full = order.size // of * of
        return kept(self.matrix.reshape(-1, order.size), order[:full], keep, of)

    @property
    def total(self) -> float:
        """All of its saliency."""
        return float(self.matrix.sum(dtype=np.float64))
