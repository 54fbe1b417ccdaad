"""Layer after layer onto the grids that were chosen: each is refitted, rounded, and those after it make up for it.

For a layer with moments ``H`` (d, d), ``G`` (d, O) of its present inputs and the original's outputs, the weights that
are rounded are the ridge regression ``W* = (H + lam)^-1 (G + lam W0)``, with the ridge that held-out samples like best;
what rounding loses is weighed by ``H`` (`onnxprune.compression.rounding`), and the bias follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.compression.curves import COSTLY, Choice, Rounds, narrowed
from onnxprune.compression.forms import dequantised, step_of, stored_step
from onnxprune.compression.rounding import MOST, Alone, Rounder, counts, pieces
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.reconstruction.evidence import Evidence, moments_of
from onnxprune.reconstruction.grouped import loss_of
from onnxprune.reconstruction.layer import Settings, weights_of, write
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.least_squares import Fit, Problem, error_of, ridge_of
from onnxprune.reconstruction.walk import Walk

__all__ = ["LARGEST", "SAMPLE", "Gridded", "Layers", "alone", "some_of"]

Array = NDArray[Any]
Matrix = NDArray[np.float64]

#: Inputs of the widest layer that is fitted: its moments take 2 GB.
LARGEST = 12288
#: Values of a weight that are looked at for what it loses, where no sample tells of it.
SAMPLE = 1 << 18
#: Products of numbers, of solving for and of rounding the weights of all layers, from where on a fit of all takes over
#: a minute of one processor.
DEAR = 2.5e11
#: Ridges of the moments that rounding is weighed by, as shares of the inputs' mean variance: the first, or below ENOUGH
#: rows for each regressor the one that samples held out like best, unless rounding costs too much.
DAMPINGS = (1e-2, 1e-1, 1.0)
ENOUGH = 20
RIDGES = (1e-3, 1e-2, 1e-1)
#: Bits of a fitted bias's fraction that are kept at most, and what rounding it may add to the error of its output, as a
#: share: a small net has a third as many bytes of biases as of weights, and most of their bits say nothing.
FRACTION, ADDED = 11, 0.01


@dataclass(frozen=True)
class Gridded:
    """How a weight lies on its grid; the weight itself is in the model.

    Attributes
    ----------
    step : float array
        Of the weight's type, broadcast against it.
    count : int64 array
        How often each number of steps comes, see `onnxprune.compression.rounding.counts`.
    loss : float
        Squared error of the layer's output on samples that were held out, as a share of what it feeds; of a weight
        that no sample tells of its own, see `onnxprune.compression.curves`.
    """

    step: Array
    count: NDArray[np.int64]
    loss: float

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the greatest number of steps."""
        there = np.flatnonzero(self.count) - MOST - 1
        return int(there.min(initial=0)), int(there.max(initial=0))


def rounder_of(problems: list[Problem], share: float, judge: list[Problem] | None = None) -> Rounder:
    """Return what rounds a layer's weights by the moments of its blocks; inputs without variance count a little."""
    parts = []
    for problem in problems:
        h = problem.h.copy()
        h[np.diag_indices_from(h)] += ridge_of(h, share)
        parts.append(h)
    return Rounder(np.stack(parts), None if judge is None else np.stack([problem.h for problem in judge]))


def damping_of(train: list[Problem], unseen: list[Problem], w: Matrix, choice: Choice | None = None) -> float:
    """Return the ridge with which rounding by samples for fitting loses least on others, see `DAMPINGS`.

    Parameters
    ----------
    train, unseen : list of Problem
        Of each block.
    w : float64[B, d, O]
    choice : Choice, optional
        The grid; by default steps of a standard deviation.
    """
    if not unseen[0].n or train[0].n >= ENOUGH * w.shape[1] or w.size * w.shape[1] >= COSTLY:
        return DAMPINGS[0]
    choice = choice or Choice(0.0, 0.0, float(np.std(w)) or 1.0, 0.0)

    def lost(share: float) -> float:
        rounder = rounder_of(train, share, unseen)
        k, step = rounded(w, rounder, choice)
        return rounder.loss(k * step - w)

    return min(DAMPINGS, key=lost)


def rounded(w: Array, rounds: Rounds, choice: Choice) -> tuple[Array, Array]:
    """Return steps, int8 as ``w``, and their length, broadcast against it."""
    step = np.array(choice.step) if choice.step else narrowed(w, rounds, choice.ends)
    return rounds.steps(w, step, choice.price, choice.ends), step


def some_of(weight: Array, most: int) -> Matrix:
    """Return about so many values of a weight, float64[d, outputs]; its first axis counts the outputs."""
    rows = weight.reshape(len(weight), -1)
    stride = max(-(-weight.size // most), 1)
    some = rows[::stride] if len(rows) >= 4 * stride else rows[:, ::stride]
    return np.asarray(some.T, np.float64)


def alone(weight: Array, choice: Choice) -> tuple[Array, Gridded]:
    """Put a weight on a grid that no sample tells of, piece by piece; return its numbers of steps, int8."""
    rows, rounds = weight.reshape(len(weight), -1), Alone()
    step: Array = np.full((1, 1), choice.step)
    if not choice.step:
        each = [narrowed(np.asarray(rows[p], np.float64).T, rounds, choice.ends) for p in pieces(rows.shape)]
        step = np.concatenate(each, axis=1).T
    kept = stored_step(step, weight.dtype)
    k = rounds.steps(rows, kept.astype(np.float64), choice.price, choice.ends)
    lost = square = 0.0
    for p in pieces(rows.shape):
        part = np.asarray(rows[p], np.float64)
        lost += rounds.loss(k[p] * (kept[p] if len(kept) > 1 else kept).astype(np.float64) - part)
        square += rounds.loss(part)
    axes = (len(step), *(1,) * (weight.ndim - 1))
    return k.reshape(weight.shape), Gridded(kept.reshape(axes), counts(k), lost / (square or 1.0))


@dataclass
class Layers:
    """The layers of a model that can be fitted on samples, and what is known of them.

    Attributes
    ----------
    analysis : Analysis
    samples : Samples
    sites : list of Site
        In order.
    settings : Settings
    say : callable
    """

    analysis: Analysis
    samples: Samples
    sites: list[Site]
    settings: Settings
    say: Callable[[str], None]
    fits: dict[str, Gridded] = field(default_factory=dict)

    @property
    def dear(self) -> bool:
        """Whether fitting all layers once takes minutes."""
        model, total = self.analysis.model, 0.0
        for site in self.sites:
            width, weights = float(site.view.width), prod(model.info(site.weight).dims)
            total += width * (site.view.blocks * width**2 + 2 * weights)
        return total > DEAR

    def originals(self) -> Iterator[tuple[Site, Matrix, Rounder, float]]:
        """Yield layers with their weights [B, d, O], what rounds them, and the unit of their loss, in the original."""
        walk = Walk.of(self.analysis, [], self.samples, self.settings, self.sites)
        seen = 0
        for stretch in walk.stretches(self.sites):
            self.say(f"look {seen + 1}/{len(self.sites)}: {stretch[0].name}")
            seen += len(stretch)
            for site, evidence in zip(stretch, walk.originals(stretch), strict=True):
                matrices, centred = weights_of(site, self.analysis.model)[0], site.adder is not None
                train, unseen = (
                    moments_of(of(centred=centred)) for of in (evidence.train, evidence.held_out)
                )
                share = damping_of(train, unseen, matrices)
                rounder = rounder_of(train, share, unseen if unseen[0].n else None)
                yield site, matrices, rounder, evidence.spread or 1.0

    def each_alone(self, choices: Mapping[str, Choice]) -> Iterator[tuple[str, Model, float]]:
        """Yield weights, the original with that weight alone on its grid, and the loss of its layer."""
        walk = Walk.of(self.analysis, [], self.samples, self.settings, self.sites)
        for stretch in walk.stretches(self.sites):
            for site, evidence in zip(stretch, walk.originals(stretch), strict=True):
                if site.weight in choices:
                    model = self.analysis.model.fork()
                    yield site.weight, model, _fit(site, evidence, model, choices[site.weight]).loss

    def carry(self, model: Model, choices: Mapping[str, Choice]) -> dict[str, Gridded]:
        """Put weights on their grids in a model, in place; return them."""
        done: dict[str, Gridded] = {}
        walk = Walk.of(self.analysis, [model], self.samples, self.settings, self.sites)
        for n, site in enumerate(self.sites):
            choice = choices.get(site.weight)
            if choice is None:
                walk.done(site)
                continue
            self.say(f"fit {n + 1}/{len(self.sites)}: {site.name}")
            (evidence,) = walk.evidence(site, spread=True)
            walk.done(site)
            done[site.weight] = _fit(site, evidence, model, choice)
        return done


def _fit(site: Site, evidence: Evidence, model: Model, choice: Choice) -> Gridded:
    centred, view = site.adder is not None, site.view
    train, unseen = (moments_of(of(centred=centred)) for of in (evidence.train, evidence.held_out))
    prior, biases = weights_of(site, model)

    def refitted(problems: list[Problem], share: float) -> Matrix:
        """Fit with a ridge that pulls to the weights as they are; they stay where it is 0."""
        each = zip(problems, prior, strict=True)
        return np.stack([p.solve(np.arange(len(w)), share, w) if share else w for p, w in each])

    best, least, fit = 0.0, np.inf, prior
    for share in (0.0, *RIDGES):  # one at a time: those of a wide layer take as much as its moments
        tried = refitted(train, share)
        error = _error(unseen, list(tried), biases, centred)
        if error < least:
            best, least, fit = share, error, tried
    damping = damping_of(train, unseen, fit, choice)
    whole = moments_of(evidence.whole(centred=centred))
    wanted = refitted(whole, best)
    k, step = rounded(wanted, rounder_of(whole, damping), choice)
    each = np.asarray(view.pack(np.broadcast_to(step, wanted.shape)))
    old = model.weight(site.weight)
    steps = stored_step(step_of(each.reshape(old.shape)), old.dtype)
    whole_steps = np.rint(
        np.asarray(view.pack(k * step)).reshape(old.shape) / step_of(each.reshape(old.shape))
    )
    values = dequantised(whole_steps.astype(np.int8), steps, old.dtype)
    matrices = view.unpack(values.astype(np.float64))
    fits = [Fit(w, _bias(p, w) if centred else b) for p, w, b in zip(whole, matrices, biases, strict=True)]
    write(model, site, fits)
    model.put(site.weight, values)
    loss = loss_of(unseen, fits)
    return Gridded(steps, counts(whole_steps), loss / (evidence.spread or 1.0))


def _error(problems: list[Problem], matrices: list[Matrix], biases: Matrix, centred: bool) -> float:
    each = zip(problems, matrices, biases, strict=True)
    return loss_of(problems, [Fit(w, p.my - p.mx @ w if centred else b) for p, w, b in each])


def _bias(problem: Problem, w: Matrix) -> Matrix:
    """Return the bias that makes the means agree, with as short a fraction as its output's error leaves sense in."""
    exact = problem.my - problem.mx @ w
    _, exponent = np.frexp(exact)
    error = error_of(problem, Fit(w, exact))  # of whole steps s that are rounded it is s^2 / 12
    step = np.floor(np.log2(np.sqrt(12 * ADDED * np.maximum(error, 1e-30))))
    step = np.maximum(step.astype(np.int64), exponent - FRACTION)
    return np.asarray(np.ldexp(np.rint(np.ldexp(exact, -step)), step))
