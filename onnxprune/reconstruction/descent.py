"""Descent on the weights of a few layers: Adam on mini-batches, judged by samples that it doesn't see.

With the gradient ``g`` of the loss by a weight ``W`` (d, O), and coordinates ``Q`` (d, d) from the layer's inputs,
``X^T X = Q diag(s) Q^T``, step k is

    m <- b1 m + (1 - b1) Q^T g,    u <- b2 u + (1 - b2) (Q^T g)^2,
    W <- W - rate * rms(W_start) * Q [ s / (s + 0.001 mean(s)) * (m / (1 - b1^k)) / sqrt(u / (1 - b2^k)) ],

and ``rate`` falls along a cosine. Adam divides each coordinate of the gradient by its size. The inputs of a layer are
strongly correlated (the taps of a convolution above all), so the coordinates in which that says most are the
eigenvectors of their second moments: there a layer of least squares falls apart into one problem for each coordinate.
But Adam goes as far along coordinates of which the samples say nothing, where it follows noise; there steps are
shortened, by the factor in ``s``.

References
----------
Kingma, Ba, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980, algorithm 1. Vyas et al., "SOAP: Improving
and Stabilizing Shampoo using Adam", arXiv 2409.11321, algorithm 3 (here on the inputs' side alone, with the basis
fixed).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.gradient.loss import LossModel
from onnxprune.model import Model
from onnxprune.progress import Milestone
from onnxprune.reconstruction.evidence import HELD
from onnxprune.reconstruction.pace import Pace
from onnxprune.reconstruction.views import View
from onnxprune.runtime.session import CPU, Session, open_session

__all__ = ["Basis", "Data", "Taught", "Teacher", "descend"]

Array = NDArray[Any]
Weights = dict[str, Array]

#: Decay of the means of gradients and of their squares.
BETAS = 0.9, 0.999
#: A relative error below which nothing is done.
EXACT = 1e-8
#: A relative error from which on the rate is the full one; below it, it falls with the root of the error.
LARGE = 0.1
#: Added to the size of a gradient: that of a channel that nobody hears is so small that its square isn't even a number
#: any more, and a step is a gradient over that root.
NOTHING = 1e-18
#: Steps between two texts of progress.
TOLD = 10
#: Along a coordinate in which a layer's inputs are this small (second moment, as a share of the mean over coordinates)
#: steps are half as long, and shorter still below.
UNSEEN = 1e-3


@dataclass
class Data:
    """What layers read and what they shall give.

    Attributes
    ----------
    parts : list of dict
        Input of a loss model -> array, with samples along axis 0 where batches may have any size.
    counts : list of int
        Samples of each part.
    free : bool
        Whether batches may have any size.
    most : int
        Samples of one run, where batches may have any size.
    judges : int, optional
        Only of the first so many samples some are held out; all by default.
    """

    parts: list[dict[str, Array]]
    counts: list[int]
    free: bool
    most: int = 1 << 30
    judges: int | None = None

    def __post_init__(self) -> None:
        """Hold out every so many samples."""
        self.ends: NDArray[Any] = np.cumsum(self.counts)
        units = np.arange(sum(self.counts) if self.free else len(self.parts))
        judges = (
            units if self.judges is None else units[(units + 1 if self.free else self.ends) <= self.judges]
        )
        self.held: NDArray[np.int64] = judges[judges % HELD == HELD - 1]
        self.train: NDArray[np.intp] = np.setdiff1d(units, self.held)
        #: What may be learned from: all that isn't held out, and where others are beside those that judge, these alone.
        self.lessons = [self.train]
        if len(judges) < len(units):
            self.lessons.append(np.setdiff1d(judges, self.held))
        #: Samples of each unit.
        self.each: int = 1 if self.free else max(self.counts, default=1)

    def lesson(self, units: Sequence[int], rng: np.random.Generator) -> list[dict[str, Array]]:
        """Return the feeds of a step."""
        return self.feeds(units)

    def feeds(self, units: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Array]]:
        """Return samples (or batches of the model's own size) as feeds of as few runs as can be."""
        if not self.free:
            return [self.parts[i] for i in units]
        runs = [np.asarray(units[i : i + self.most]) for i in range(0, len(units), self.most)]
        return [self._picked(run) for run in runs]

    def _picked(self, units: NDArray[np.int64]) -> dict[str, Array]:
        """Return some samples, wherever they lie."""
        if len(self.parts) == 1:
            return {name: array[units] for name, array in self.parts[0].items()}
        at = np.searchsorted(self.ends, units, side="right")
        rows = units - (self.ends - self.counts)[at]
        places = list(zip(at.tolist(), rows.tolist(), strict=True))
        return {
            name: np.stack([self.parts[part][name][row] for part, row in places]) for name in self.parts[0]
        }


class Teacher:
    """The original, which says what goals should be.

    Parameters
    ----------
    model : Model
    targets : dict
        Goal -> the input of a loss model that it shall be near to.
    own : collection of str
        Inputs of the loss model that are none of the original's.
    take : callable
        Tensors -> what of them a cut model still has.
    provider : str
        Execution provider.
    """

    targets: dict[str, str]
    own: Collection[str]
    take: Callable[[dict[str, Array]], dict[str, Array]]
    session: Session

    def __init__(
        self, model: Model, targets: dict[str, str], own: Collection[str],
        take: Callable[[dict[str, Array]], dict[str, Array]], provider: str = CPU,
    ) -> None:  # fmt: skip
        self.targets, self.own, self.take = targets, own, take
        self.session = open_session(model, targets, provider=provider, prepack=True, optimise=True)

    def teach(self, given: dict[str, Array]) -> dict[str, Array]:
        """Return samples with their targets."""
        inputs = {n: a for n, a in given.items() if n not in self.own}
        goals = self.take(self.session.run(inputs, list(self.targets)))
        return {**self.take(given), **{self.targets[n]: a for n, a in goals.items()}}


@dataclass
class Taught(Data):
    """Samples whose targets are computed when they are asked for.

    Attributes
    ----------
    teacher : Teacher
    change : callable, optional
        (samples, rng) -> other samples, for steps alone.
    """

    teacher: Teacher = field(kw_only=True)
    change: Callable[[dict[str, Array], np.random.Generator], dict[str, Array]] | None = None

    def lesson(self, units: Sequence[int], rng: np.random.Generator) -> list[dict[str, Array]]:
        """Return samples with their targets, changed at random."""
        change = self.change
        if change is None:
            return self.feeds(units)
        return [self.teacher.teach(change(feed, rng)) for feed in super().feeds(units)]

    def feeds(self, units: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Array]]:
        """Return samples with their targets, a few at a time."""
        return [self.teacher.teach(feed) for feed in super().feeds(units)]


@dataclass(frozen=True)
class Basis:
    """Coordinates of a layer's weight: the eigenvectors of the second moments of its inputs.

    Attributes
    ----------
    view : View
    axes : float32[blocks, width, width]
        Eigenvectors in columns.
    pace : float32[blocks, width, 1]
        Length of steps along each, 1 where inputs are large and 0 where there are none.
    shape : tuple of int
        Of the weight.
    """

    view: View
    axes: Array
    pace: Array
    shape: tuple[int, ...]

    #: Positions of the inputs that are looked at, for each regressor, and at least.
    ROWS = 30, 4096

    @classmethod
    def of(cls, view: View, shape: tuple[int, ...], x: Array, rows: NDArray[np.int64], seed: int) -> Basis:
        """Look at a layer's inputs.

        Parameters
        ----------
        view : View
        shape : tuple of int
            Of the weight.
        x : array
            The layer's input over some samples.
        rows : int64
            Output positions that count.
        seed : int
            Of the choice among them.
        """
        most = cls.rows(view)
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        found = view.x(x, rows)
        moments = np.matmul(found.transpose(0, 2, 1), found).astype(np.float64)
        return cls.from_moments(view, shape, moments)

    @classmethod
    def rows(cls, view: View) -> int:
        """Return how many positions of a layer's inputs are looked at, at most."""
        return max(cls.ROWS[0] * view.width, cls.ROWS[1])

    @classmethod
    def from_moments(cls, view: View, shape: tuple[int, ...], moments: NDArray[np.float64]) -> Basis:
        """Take the coordinates from the second moments of a layer's inputs, float64[blocks, width, width]."""
        sizes, axes = np.linalg.eigh(moments)
        sizes = np.maximum(sizes, 0.0)
        pace = sizes / np.maximum(sizes + UNSEEN * sizes.mean(axis=1, keepdims=True), 1e-30)
        return cls(view, axes.astype(np.float32), pace[:, :, None].astype(np.float32), shape)

    def turn(self, weight: Array) -> Array:
        """Return a weight, or its gradient, in these coordinates."""
        return np.asarray(
            np.matmul(self.axes.transpose(0, 2, 1), self.view.unpack(weight.reshape(self.shape)))
        )

    def back(self, turned: Array) -> Array:
        """Return the weight that has these coordinates."""
        return np.ascontiguousarray(self.view.pack(np.matmul(self.axes, turned))).reshape(self.shape)


class _Adam:
    """The state of Adam, each tensor in its own coordinates."""

    def __init__(self, start: Weights, bases: Mapping[str, Basis]) -> None:
        self.start, self.bases = start, bases
        self.now = {n: self._turned(n, np.array(w, np.float32)) for n, w in start.items()}
        self.scale = {n: float(np.sqrt(np.mean(np.square(w)))) or 1e-3 for n, w in self.now.items()}
        self.mean = {n: np.zeros_like(w) for n, w in self.now.items()}
        self.square = {n: np.zeros_like(w) for n, w in self.now.items()}
        self.steps = 0

    def _turned(self, name: str, array: Array) -> Array:
        return self.bases[name].turn(array) if name in self.bases else array

    def weights(self) -> Weights:
        """Return the weights as they are by now."""
        found = {n: self.bases[n].back(w) if n in self.bases else w for n, w in self.now.items()}
        return {n: w.astype(self.start[n].dtype) for n, w in found.items()}

    def step(self, gradients: Mapping[str, Array], rate: float) -> None:
        """Go a step down."""
        self.steps += 1
        first, second = (1 - beta**self.steps for beta in BETAS)
        for name, gradient in gradients.items():
            slope = self._turned(name, gradient)
            self.mean[name] += (1 - BETAS[0]) * (slope - self.mean[name])
            self.square[name] += (1 - BETAS[1]) * (slope * slope - self.square[name])
            size = np.sqrt(self.square[name] / second) + NOTHING
            pace = self.bases[name].pace if name in self.bases else 1.0
            self.now[name] -= (rate * self.scale[name] / first) * pace * self.mean[name] / size


def descend(
    found: LossModel,
    start: Weights,
    data: Data,
    bases: Mapping[str, Basis],
    pace: Pace,
    seed: int,
    provider: str = CPU,
    say: Callable[[str], None] | None = None,
) -> tuple[Weights, float, float]:
    """Return the weights of least loss that descent came by, and that loss for each sample before and after.

    Parameters
    ----------
    found : LossModel
    start : dict
        The weights that it begins with.
    data : Data
        Losses are taken on the samples that it holds out.
    bases : mapping
        Weight -> the coordinates that it goes down in; its own for those that aren't here.
    pace : Pace
    seed : int
        Of the mini-batches.
    provider : str
        Execution provider.
    say : callable, optional
        Told of progress every few steps.

    Raises
    ------
    RunError
        If onnxruntime fails.
    """
    session, judge = (
        open_session(m, provider=provider, prepack=True, optimise=True) for m in (found.model, found.forward)
    )
    best, least = start, _judged(judge, found, start, data)
    before = least
    if before < EXACT:
        return best, before, least
    size = max(pace.size(len(data.train) * data.each) // data.each, 1)
    top = pace.rate * min(np.sqrt(before / LARGE), 1.0)
    rng = np.random.default_rng(seed)
    adam = _Adam(start, bases)
    left: list[int] = []
    for step in range(pace.steps):
        while len(left) < size:
            left += rng.permutation(data.train).tolist()
        chosen, left = left[:size], left[size:]
        gradients = _gradients(
            session, found, dict(found.settle(adam.weights())), data.lesson(sorted(chosen), rng)
        )
        adam.step(gradients, top * 0.5 * (1 + np.cos(np.pi * step / pace.steps)))
        if (step + 1) * pace.looks % pace.steps < pace.looks:
            weights = dict(found.settle(adam.weights()))
            loss = _judged(judge, found, weights, data)
            if loss < least:
                best, least = weights, loss
        if say is not None and (step + 1) % TOLD == 0 and step + 1 < pace.steps:
            text = f"error {least:.4f}, {before:.4f} before"
            say(Milestone.of("descend", text, step + 1, [1.0] * pace.steps))
    return (best, before, least) if pace.looks else (dict(found.settle(adam.weights())), before, least)


def _judged(session: Session, found: LossModel, weights: Weights, data: Data, most: int = 64) -> float:
    """Return the loss for each sample that is held out."""
    total = 0.0
    for first in range(0, len(data.held), most):
        for feed in data.feeds(data.held[first : first + most]):
            total += float(session.run({**weights, **feed}, [found.loss])[found.loss])
    return total / max(len(data.held) * data.each, 1)


def _gradients(
    session: Session, found: LossModel, weights: Weights, feeds: Sequence[dict[str, Array]]
) -> dict[str, Array]:
    total: dict[str, Array] = {}
    for feed in feeds:
        got = session.run({**weights, **feed}, list(found.gradients.values()))
        for name, output in found.gradients.items():
            gradient = np.asarray(got[output]).reshape(weights[name].shape)
            total[name] = total[name] + gradient if name in total else gradient
    return total
