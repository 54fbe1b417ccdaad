"""Zeros with samples: loss curves, one allocation of levels, and fits layer after layer.

With one sparsity ``S`` for the whole model, the level ``s_l`` of each layer solves

    minimise  sum over layers of E_l(s_l)    so that    sum of n_l s_l >= S * sum of n_l

Shapes: ``E_l`` (levels), the rise of layer l's squared error by a method, as a share of the variance of what it feeds;
``n_l`` its number of weights. Then layers are fitted in order: inputs come from the model as it is by then, targets
from the original; where a layer feeds a residual sum it also makes up for what the other branch has lost (see
`onnxprune.reconstruction.walk.Walk`).

References
----------
Frantar and Alistarh, "SPDY", arXiv 2201.13096: levels of layers as a knapsack. Zhu and Gupta, arXiv 1710.01878: the
cubic schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from onnxprune import registry
from onnxprune.allocation.knapsack import allocate
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.options.pattern import Pattern, parse_pattern
from onnxprune.options.sparsity import SparseOptions
from onnxprune.reconstruction.evidence import Evidence, moments_of
from onnxprune.reconstruction.few_rows import steadied
from onnxprune.reconstruction.layer import Settings, weights_of, write
from onnxprune.reconstruction.layers import Site, seen, sites
from onnxprune.reconstruction.walk import Walk
from onnxprune.sparsity.layer import LayerFit, fit_layer
from onnxprune.sparsity.task import Method, Solver, Task
from onnxprune.sparsity.weights import SparseWeight

__all__ = ["Fitter", "cubic", "nearer", "solver_of"]

Matrix = NDArray[np.float64]
#: Sparsities that an allocation chooses from, and the most that a layer may lose.
LEVELS = np.concatenate([np.arange(0, 0.9, 0.025), np.arange(0.9, 0.99, 0.01)])
#: Regressors of the widest layer that is fitted: its moments take 2 GB, and a method works on several copies.
LARGEST = 12288
#: The method of layers that are too large for the one that is asked for, or would take too long in it with all others:
#: their outputs times regressors to its power, in sum. So much takes about ten minutes of a processor.
LARGE, MOST = "sparsegpt", 2e12


def cubic(step: int, steps: int) -> float:
    """Return the share of the final sparsity after a step (Zhu and Gupta, arXiv 1710.01878, equation 1).

    Examples
    --------
    >>> cubic(1, 2), cubic(2, 2)
    (0.875, 1.0)
    """
    return float(1 - (1 - step / steps) ** 3)


def nearer(pattern: Pattern, share: float) -> Pattern:
    """Return the N:M pattern that has this share of the zeros of another.

    Examples
    --------
    >>> nearer(Pattern("1:4", "n:m", 1, 4), 0.4).text
    '3:4'
    """
    if not pattern.fixed:
        return pattern
    keep = pattern.of - round((pattern.of - pattern.keep) * share)
    return Pattern(f"{keep}:{pattern.of}", "n:m", keep, pattern.of)


def method_of(name: str) -> Method:
    """Return a method that reads moments."""
    return cast(Method, registry.load("onnxprune.sparsity.methods", name))


def solver_of(method: Method, task: Task) -> Solver:
    """Return what solves a task by a method; a layer that is too large for it goes to `LARGE`."""
    solver = method.solve(task)
    if solver is None:
        solver = method_of(LARGE).solve(task)
    assert solver is not None, "it refuses no layer"
    return solver


def _without_new_bias(site: Site) -> Site:
    """Return a layer that gets no bias where it had none: the file must not grow."""
    return site if site.bias is not None else replace(site, adder=None)


@dataclass
class Fitter:
    """A model, its samples and its targets.

    Attributes
    ----------
    analysis : Analysis
    samples : Samples
    targets : dict
        Weight -> SparseWeight, those that a layer that can be fitted reads.
    spared : set of str
        Weights that no fit may touch.
    options : SparseOptions
    say : callable
        Is told of each layer.
    """

    analysis: Analysis
    samples: Samples
    targets: Mapping[str, SparseWeight]
    spared: set[str]
    options: SparseOptions
    say: Callable[[str], None]
    levels: dict[str, float] = field(default_factory=dict)
    fits: dict[str, LayerFit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the layers."""
        told = seen(sites(self.analysis), stream_of(self.analysis.model, self.samples))
        layers = [_without_new_bias(s) for s in told if s.weight not in self.spared]
        layers = [s for s in layers if s.view.width <= LARGEST]
        first = next((n for n, s in enumerate(layers) if s.weight in self.targets), len(layers))
        self.sites: list[Site] = layers[first:]
        self.method: Method = method_of(self.options.method)
        self.settings: Settings = Settings(seed=self.options.seed, wide=LARGEST)

    @cached_property
    def dear(self) -> list[str]:
        """Targets that go to another method, or all of them would take too long: those that take longest."""
        pattern, power = parse_pattern(self.options.pattern), self.method.WORK
        if power <= method_of(LARGE).WORK or not (pattern.fixed or pattern.kind == "unstructured"):
            return []
        views = {s.weight: s.view for s in self.sites if s.weight in self.targets}
        work = {n: float(v.blocks * v.outputs) * float(v.width) ** power for n, v in views.items()}
        left, taken = sum(work.values()), list[str]()
        for name in sorted(work, key=lambda name: -work[name]):
            if left <= MOST:
                break
            left -= work[name]
            taken.append(name)
        return taken

    @property
    def fitted(self) -> list[str]:
        """Targets that can be fitted."""
        return [s.weight for s in self.sites if s.weight in self.targets]

    def run(self, pattern: Pattern, sparsity: float) -> Model:
        """Return a model with zeros, its layers fitted."""
        model = self.analysis.model.fork()
        curves = {} if pattern.fixed or self.options.scope == "local" else self._curves(pattern)
        for step in range(1, self.options.steps + 1):
            share = cubic(step, self.options.steps)
            if not pattern.fixed:
                self.levels = self._allocate(curves, pattern, sparsity * share)
            self._pass(model, nearer(pattern, share), f"{step}/{self.options.steps} ")
        return model

    def _solvers(
        self, site: Site, evidence: Evidence, model: Model, pattern: Pattern
    ) -> list[tuple[Solver, float]]:
        """Return what chooses the zeros of each block, and the factor of its errors."""
        view, matrices = site.view, weights_of(site, model)[0]
        method = method_of(LARGE) if site.weight in self.dear else self.method
        alone = list(np.arange(view.width)[:, None])
        centred, solvers = site.adder is not None, []
        sets = evidence.train, evidence.held_out, evidence.whole
        parts = (moments_of(one(centred=centred)) for one in sets)
        for matrix, *problems in zip(matrices, *parts, strict=True):
            problem, factor = steadied(problems, alone, matrix)
            task = Task(problem, matrix, view.channels, view.taps, pattern)
            solvers.append((solver_of(method, task), factor))
        return solvers

    def originals(self) -> Iterator[tuple[Site, Evidence]]:
        """Yield the layers of targets with what is known of their inputs and outputs in the original."""
        todo = [s for s in self.sites if s.weight in self.targets]
        walk = Walk.of(self.analysis, [], self.samples, self.settings, todo)
        seen = 0
        for stretch in walk.stretches(todo):
            self.say(f"look {seen + 1}/{len(todo)}: {stretch[0].name}")
            seen += len(stretch)
            yield from zip(stretch, walk.originals(stretch), strict=True)

    def _curves(self, pattern: Pattern) -> dict[str, Matrix]:
        """Return the loss curve of each layer on the original, relative to the variance of what its output feeds."""
        curves = {}
        for site, evidence in self.originals():
            solvers = self._solvers(site, evidence, self.analysis.model, pattern)
            rise = np.sum([factor * solver.curve(LEVELS) for solver, factor in solvers], axis=0)
            curves[site.weight] = rise / (evidence.spread or 1.0)
        return curves

    def _allocate(self, curves: Mapping[str, Matrix], pattern: Pattern, sparsity: float) -> dict[str, float]:
        """Choose each layer's level so that the sum of errors is least at the sparsity of all together."""
        names = list(curves)
        if not names or sparsity >= 1 or sparsity > LEVELS[-1]:
            return dict.fromkeys(self.fitted, sparsity)
        sizes = [float(np.prod(self.targets[name].shape)) for name in names]
        budget = (1 - sparsity) * sum(sizes)
        chosen = allocate([size * (1 - LEVELS) for size in sizes], [curves[n] for n in names], budget)
        if chosen is None:
            return dict.fromkeys(self.fitted, sparsity)
        return {name: float(LEVELS[at]) for name, at in zip(names, chosen, strict=True)}

    def _pass(self, model: Model, pattern: Pattern, text: str) -> None:
        """Fit all layers once, in order, in place."""
        walk = Walk.of(self.analysis, [model], self.samples, self.settings, self.sites)
        ridges = self.settings.recovery.ridges if self.options.refit else ()
        for n, site in enumerate(self.sites):
            self.say(f"fit {text}{n + 1}/{len(self.sites)}: {site.name}")
            treated = site.weight in self.targets
            if not treated and not self.options.refit:
                walk.done(site)
                continue
            evidence = walk.evidence(site)[0]
            walk.done(site)
            if treated:
                level = self.levels.get(site.weight, self.options.sparsity or 0.0)
                chosen = [s.at(level) for s, _ in self._solvers(site, evidence, model, pattern)]
            else:
                chosen = [(np.ones(w.shape, bool), w) for w in weights_of(site, model)[0]]
            fits, self.fits[site.weight] = fit_layer(site, evidence, chosen, model, ridges)
            write(model, site, fits)
