"""What a weight costs and loses on each grid, and the choice of a grid for every weight under one budget of bytes.

With steps ``s`` of the grid of weight ``l``, ``B_l(s)`` bytes and a loss ``E_l(s)``, choose

    minimise  sum over l of E_l(s_l)    so that    sum over l of B_l(s_l) <= B.

``E_l`` is the squared error of the layer's output as a share of the variance of what it feeds, as in the loss curves of
channels and zeros; of a weight that no sample tells of, its own squared error as a share of its squares. ``B_l`` is the
entropy of the steps, where an entropy coder follows, else what whole or half bytes take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.knapsack import allocate
from onnxprune.compression.rounding import MOST, Ends, bits_of, counts

__all__ = ["ENDS", "Choice", "Rounds", "by_bits", "by_entropy", "choose", "narrowed"]

Matrix = NDArray[np.float64]
Weights = NDArray[np.floating]

ENDS = (-MOST, MOST)
#: Steps that are tried beside the finest, in standard deviations of the weights; few where a rounding takes long.
KNOTS, FEW = (0.25, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0), (0.7, 1.4, 2.8)
COSTLY = 3e8
#: Steps that are chosen from: so many for each doubling.
FINE = 8
#: What a bit may cost, as a share of what it costs by finer steps (measured: beyond it, zeros are taken that cost more
#: than a wider step everywhere).
PRICE = 0.7
#: A layer may lose so much of its output's variance and no more.
WORST = 0.5
#: Scales that are tried for a fixed number of steps, as shares of the one that reaches the largest weight.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


class Rounds(Protocol):
    """Puts weights on a grid, see `onnxprune.compression.rounding`."""

    @property
    def diagonal(self) -> Matrix | None:
        """The strength of each input; None where all count alike."""

    def loss(self, gap: Weights) -> float:
        """Return what a gap loses."""

    def steps(self, w: Weights, step: Matrix, price: float, ends: Ends) -> NDArray[np.int8]:
        """Return the numbers of steps."""


@dataclass(frozen=True)
class Choice:
    """One grid for one weight.

    Attributes
    ----------
    nbytes : float
        That the weight takes, coded where it is coded.
    loss : float
        See the module.
    step : float
        Of the grid; 0 where each output has its own.
    price : float
        Of a bit, in the unit of `Rounds.loss`.
    ends : pair of int
    kept : bool
        Whether the weight stays as it is instead.
    """

    nbytes: float
    loss: float
    step: float
    price: float
    ends: Ends = ENDS
    kept: bool = False


def by_entropy(
    w: Weights, rounds: Rounds, unit: float, size: int, largest: float | None = None
) -> list[Choice]:
    """Return the grids for a weight that an entropy coder writes, the finest first.

    Parameters
    ----------
    w : float array [..., d, O]
        The weights, or some of them.
    rounds : Rounds
    unit : float
        What a loss is divided by.
    size : int
        Of the whole weight.
    largest : float, optional
        Of its values, without signs; else that of ``w``.
    """
    spread = float(np.std(w))
    largest = float(np.abs(w).max(initial=0.0)) if largest is None else largest
    if not largest > 0:
        return [Choice(0.0, 0.0, 1.0, 0.0)]
    least, whole = largest / MOST, size / w.size
    tried = KNOTS if w.size * w.shape[-2] < COSTLY else FEW
    knots = np.array([least, *(m * spread for m in tried if m * spread > 1.4 * least)])
    k = rounds.steps(w, np.array(spread), 0.0, ENDS)
    share = rounds.loss(k * spread - w) / spread**2
    bits, losses, prices = [], [], []
    for step in knots:
        price = PRICE * 2 * np.log(2) * share * step**2 / w.size
        k = rounds.steps(w, np.array(step), price, ENDS)
        bits.append(bits_of(counts(k)) * whole)
        losses.append(max(rounds.loss(k * step - w) * whole / unit, 1e-30))
        prices.append(price)
    levels = np.exp2(np.arange(np.log2(knots[0]), np.log2(knots[-1]) + 1e-9, 1 / FINE))
    x, at = np.log2(knots), np.log2(levels)
    sizes = np.interp(at, x, np.minimum.accumulate(bits)) / 8
    rises = np.exp(np.interp(at, x, np.log(np.maximum.accumulate(losses))))
    worth = np.exp(np.interp(at, x, np.log(np.maximum(prices, 1e-300))))
    each = np.stack([sizes, rises, levels, worth], axis=1).tolist()
    choices = [Choice(nbytes, loss, step, price) for nbytes, loss, step, price in each]
    return [c for c in choices if c.loss <= WORST] or choices[:1]


def narrowed(w: Weights, rounds: Rounds, ends: Ends) -> Matrix:
    """Return a step for each output, float64[..., 1, O], such that the steps between the ends lose least.

    Each output has its own, since they are judged alone: as nearest steps, whose squared error is least.
    """
    largest = np.abs(w).max(axis=-2, keepdims=True).astype(np.float64)
    largest = np.where(largest > 0, largest, 1.0)
    best, least = largest / ends[1], np.full(largest.shape, np.inf)
    diagonal = rounds.diagonal
    for share in SHARES:
        step = share * largest / ends[1]
        gap = np.square(np.clip(np.rint(w / step), *ends) * step - w)
        error = (gap if diagonal is None else gap * diagonal[..., None]).sum(axis=-2, keepdims=True)
        best, least = np.where(error < least, step, best), np.minimum(error, least)
    return best


def by_bits(
    w: Weights, rounds: Rounds, unit: float, size: int, forms: Sequence[tuple[float, Ends]]
) -> list[Choice]:
    """Return the grids of so many bits for a weight, with a step for each output, the finest first.

    Parameters
    ----------
    w, rounds, unit, size
        As for `by_entropy`.
    forms : sequence of (bits, ends)
    """
    choices = []
    for bits, ends in forms:
        step = narrowed(w, rounds, ends)
        k = rounds.steps(w, step, 0.0, ends)
        loss = rounds.loss(k * step - w) * size / w.size / unit
        choices.append(Choice(bits * size / 8 + 4 * step.size, loss, 0.0, 0.0, ends))
    return choices


def choose(
    choices: Mapping[str, Sequence[Choice]], budget: float, weights: Mapping[str, float] | None = None
) -> dict[str, Choice] | None:
    """Choose a grid for each weight so that the losses' sum is least within a budget of bytes; None where none is.

    Parameters
    ----------
    choices : mapping
        Weight -> the grids that there are for it.
    budget : float
    weights : mapping, optional
        Weight -> what its loss counts, 1 where it isn't there.
    """
    worth = weights or {}
    costs = [np.array([c.nbytes for c in each]) for each in choices.values()]
    losses = [np.array([c.loss for c in each]) * worth.get(n, 1.0) for n, each in choices.items()]
    at = allocate(costs, losses, budget)
    return None if at is None else {name: choices[name][n] for name, n in zip(choices, at, strict=True)}
