"""What criteria share: which weights of a group count, how they are read, and norms over them for each unit.

Which weights count. Every matrix that a unit has a slice of, on the producers' side (its filter) and on the consumers'
(what reads it), each once however often it is listed. Vectors (biases, scales, statistics) don't count: they say
little of a unit's worth and their scale isn't that of the matrices. A group that has nothing else is judged by its
vectors.

How they are made comparable. A group's tensors differ in size (a unit's filter may hold 4608 weights and its
reader 64) and in scale (BatchNorm undoes any). So the sums of each tensor are divided by their mean over the units, and
a unit's sum is the mean over the tensors that it is in: each tensor has one vote. The final scores are divided by
their mean over the group, so a score of 0.5 is "half as large as its group's average" in every group, which is what
``--scope global`` ranks.

How they are read. In blocks of a few megabytes, as views where the type allows, so that a memory-mapped weight of
any size costs no memory of its own. A block is ``(A, k, B)``: the cut axis in the middle, all before it and all after
it flattened.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.group_types import EXPERTS, Group, Indices, Member

__all__ = [
    "BLOCK",
    "Floats",
    "ScoreWarning",
    "Weight",
    "by_mean",
    "keep_strange",
    "mean_sums",
    "norm",
    "positions",
    "real",
    "sums_of",
    "unit_positions",
    "weights_of",
]

Floats = NDArray[np.float64]
Weight = Callable[[str], NDArray[Any]]

#: Elements of a block: small enough for a processor's cache.
BLOCK = 1 << 19
#: Roles of vectors that never say how much a unit matters, if there is anything else.
_MINOR = frozenset({"bias", "mean", "var", "quant", "shape", "unread"})
#: Customary zero points of unsigned quantised weights; the true ones aren't part of a group.
_MIDDLE = {"uint2": 2, "uint4": 8, "uint8": 128, "uint16": 32768}
#: Below this, float32 may have lost a square in the numbers too small for it.
_TINY = 1e-30


class ScoreWarning(UserWarning):
    """A criterion couldn't judge a group, or a unit, as asked; the text says what it did instead."""


def weights_of(group: Group, weight: Weight) -> list[tuple[Member, NDArray[Any]]]:
    """Return the members that count, with their weights: see the module's text.

    Parameters
    ----------
    group : Group
    weight : callable
        Name -> values.
    """
    seen: set[tuple[str, int, bytes, bytes]] = set()
    ranked: list[tuple[int, Member, NDArray[Any]]] = []
    for member in group.members:
        key = (member.tensor, member.axis, member.index.tobytes(), member.unit.tobytes())
        if key not in seen and member.index.size:
            seen.add(key)
            array = weight(member.tensor)
            ranked.append((_rank(member, array), member, array))
    best = min((rank for rank, _, _ in ranked), default=0)
    return [(member, array) for rank, member, array in ranked if rank == best]


def _rank(member: Member, array: NDArray[Any]) -> int:
    """Return 0 for matrices, 1 for vectors that multiply, 2 for the rest, 3 for bytes that hold several values."""
    if member.role == "packed":  # what its scales say is worth more than the sum of its bytes
        return 3
    wide = sum(size > 1 for size in array.shape) > 1
    if member.role in _MINOR:
        return 2
    if member.role == "scale":
        return 1
    return 0 if wide or (member.role == "weight" and array.ndim > 1) else 1


def norm(group: Group, weight: Weight, power: float) -> Floats:
    """Return the Lp norm of each unit over its weights, tensors weighted alike, divided by the group's mean.

    Parameters
    ----------
    group : Group
    weight : callable
        Name -> values.
    power : float
        p, above 0.

    Returns
    -------
    float64[units]
        Of mean 1; infinity for units with weights that aren't finite.

    Raises
    ------
    ValueError
        If p isn't above 0.
    """
    if not power > 0:
        raise ValueError(f"A norm needs a power above 0; got {power}.")
    with np.errstate(over="ignore", invalid="ignore"):
        return by_mean(keep_strange(group, mean_sums(group, weight, power) ** (1 / power)))


def mean_sums(group: Group, weight: Weight, power: float) -> Floats:
    """Return the sum of ``|w| ** power`` of each unit in each tensor, relative to the tensor's mean, averaged over
    tensors; not finite where a weight isn't. A group without weights gives ones.
    """
    total, votes, alone = (np.zeros(group.units) for _ in range(3))
    for member, array in weights_of(group, weight):
        sums = sums_of(member, array, group.units, power)
        owning = np.bincount(member.unit, minlength=group.units) > 0
        if (
            group.kind == EXPERTS and owning.sum() == 1
        ):  # each has tensors of its own: together they have one vote
            alone += sums
            continue
        total[owning] += by_mean(sums[owning])
        votes += owning
    if alone.any():
        total, votes = total + by_mean(alone), votes + 1
    return np.divide(total, votes, out=np.ones(group.units), where=votes > 0)


def by_mean(values: Floats) -> Floats:
    """Divide by the mean of the finite values.

    Examples
    --------
    >>> by_mean(np.array([1.0, 3.0, np.inf])), by_mean(np.zeros(2))
    (array([0.5, 1.5, inf]), array([0., 0.]))
    """
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max(initial=0.0))
    if largest == 0:
        return values
    return values / largest / float((finite / largest).mean())  # in two steps: the sum may not overflow


def keep_strange(group: Group, scores: Floats) -> Floats:
    """Return scores with infinity, "never cut", for units whose weights aren't finite, and warn of them.

    What such a unit does can't be judged, and a model that holds one may well rely on it.
    """
    strange = np.flatnonzero(~np.isfinite(scores))
    if not strange.size:
        return scores
    shown = ", ".join(map(str, strange[:5])) + (", ..." if strange.size > 5 else "")
    text = f"{strange.size} of {group.units} units of {group.name!r} hold NaN or infinite weights and are kept: {shown}"
    warnings.warn(text, ScoreWarning, stacklevel=3)
    kept = scores.copy()
    kept[strange] = np.inf
    return kept


def real(array: NDArray[Any]) -> NDArray[Any]:
    """Return values as float32 or float64: as they are, or converted.

    Unsigned quantised integers are taken relative to the middle of their range.

    Examples
    --------
    >>> real(np.array([128, 130], np.uint8))
    array([0., 2.], dtype=float32)
    """
    if array.dtype in (np.float32, np.float64):
        return array
    values = array.astype(np.float32)
    middle = _MIDDLE.get(array.dtype.name, 0)
    return values - np.float32(middle) if middle else values


def positions(member: Member, array: NDArray[Any]) -> NDArray[Any]:
    """Return the positions of a member as ``(A, k, B)``, in the order of ``member.index``; a view if it can be.

    Parameters
    ----------
    member : Member
        With k positions.
    array : ndarray
        Its weight.
    """
    index, block = member.index, _three(member, array)
    if not index.size:
        return block[:, :0]
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == index.size and (index.size == 1 or bool((np.diff(index) == 1).all())):
        return block[:, first : last + 1]
    return block[:, index]


def _three(member: Member, array: NDArray[Any]) -> NDArray[Any]:
    before, after = prod(array.shape[: member.axis]), prod(array.shape[member.axis + 1 :])
    return array.reshape(before, array.shape[member.axis], after)


def sums_of(member: Member, array: NDArray[Any], units: int, power: float) -> Floats:
    """Return the sum of ``|w| ** power`` of each unit in one weight, float64[units]."""
    index = member.index
    first, last = int(index.min()), int(index.max()) + 1
    block = _three(member, array)[:, first:last]  # a view, also of positions that are a bit scattered
    if last - first > 2 * index.size:
        block, index, first = block[:, index - first], np.arange(index.size), 0
    every: Floats = np.zeros(block.shape[1])
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for part, at in _parts(block):
            every[at] += _block_sums(real(part), power)
    return np.bincount(member.unit, weights=every[index - first], minlength=units).astype(np.float64)


def _parts(block: NDArray[Any]) -> Iterator[tuple[NDArray[Any], slice]]:
    """Cut ``(A, k, B)`` into blocks along its first axis or, where that is 1, along the others."""
    before, size, after = block.shape
    if before == 1:
        step, wide = max(1, BLOCK // max(1, after)), BLOCK
        for first in range(0, size, step):
            for left in range(0, after, wide):
                yield (
                    block[:, first : first + step, left : left + wide],
                    slice(first, min(first + step, size)),
                )
        return
    step = max(1, BLOCK // max(1, size * after))
    for first in range(0, before, step):
        yield block[first : first + step], slice(0, size)


def _block_sums(values: NDArray[Any], power: float) -> Floats:
    sums = _power_sums(values, power)
    if values.dtype == np.float32 and power > 1:
        bad = ~((sums > _TINY) & np.isfinite(sums))  # perhaps only float32 overflowed, or lost small numbers
        if bad.any():
            sums[bad] = _power_sums(values[:, bad].astype(np.float64), power)
    return sums


def _power_sums(values: NDArray[Any], power: float) -> Floats:
    """Sum ``|w| ** power`` of ``(A, k, B)`` over A and B."""
    before, size, after = values.shape
    sums: Floats
    if power == 2:
        if before == 1:
            sums = np.einsum("kb,kb->k", values[0], values[0]).astype(np.float64)
            return sums
        flat = values.reshape(before, size * after)  # a view: one long sum of rows, whatever B is
        sums = np.einsum("am,am->m", flat, flat).reshape(size, after).sum(axis=1, dtype=np.float64)
        return sums
    raised = np.abs(values)
    if power == 0.5:
        np.sqrt(raised, out=raised)
    elif power != 1:
        np.power(raised, power, out=raised)
    summed = raised[0] if before == 1 else raised.sum(axis=0)
    sums = summed.sum(axis=1, dtype=np.float64)
    return sums


def unit_positions(unit: Indices, units: int) -> list[tuple[Indices, Indices]]:
    """Return, for k = 0, 1, ..., the units that own at least k + 1 positions, and where their k-th lies in ``unit``.

    Examples
    --------
    >>> [(u.tolist(), at.tolist()) for u, at in unit_positions(np.array([0, 0, 1]), 2)]
    [([0, 1], [0, 2]), ([0], [1])]
    """
    order = np.argsort(unit, kind="stable")
    count = np.bincount(unit, minlength=units)
    first = np.cumsum(count) - count
    positions = []
    for k in range(int(count.max(initial=0))):
        owners = np.flatnonzero(count > k)
        positions.append((owners, order[first[owners] + k]))
    return positions
