"""Fit layer after layer: inputs from the model as it is by now, targets from the original.

The model keeps its shape: rows of a weight that read removed channels become zero, everything else is refitted. Cutting
those channels afterwards is exact, so the proof of the cut holds for the refitted model just as for any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.analysis import Analysis
from onnxprune.calibrate.algebra import Consumer, Fit, Problem, bias_only, error_of
from onnxprune.calibrate.blocks import refits
from onnxprune.calibrate.collect import Collector, Draw, Evidence, Spread
from onnxprune.calibrate.frontier import sizes
from onnxprune.calibrate.moments import Moments
from onnxprune.calibrate.samples import Samples
from onnxprune.calibrate.sites import Site
from onnxprune.calibrate.steady import steadied
from onnxprune.calibrate.stream import Stream
from onnxprune.model import Model

__all__ = [
    "MOST_BYTES", "RIDGES", "VARIANTS",
    "LayerReport", "Settings", "Walk", "consumers_of", "fit_blocks", "problem_of", "weights_of", "write",
]  # fmt: skip

Array = NDArray[Any]
Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]


#: Activations that are held of the original, and as many of all models that are fitted side by side.
MOST_BYTES = 1 << 30
#: Layers of the original that are looked at in one run, and bytes of their moments and activations: a run of several
#: layers takes hardly longer than one of the plain model, while runs from layer to layer take twice as long.
ABREAST, ABREAST_BYTES = 8, 1 << 28
#: What least squares may choose from for each layer, by its held-out error.
VARIANTS = frozenset({"kept", "bias", "lstsq"})
#: Its ridges, as shares of the regressors' mean variance.
RIDGES: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
#: Ridges where there are fewer than two rows for each regressor: near the old weights.
STRONG = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Settings:
    """How layers are fitted.

    Attributes
    ----------
    ridges : tuple of float
        Tried in turn, as shares of the regressors' mean variance; the held-out samples choose.
    bias : bool
        Whether a bias may be changed alone.
    most : int
        Output positions that are used of a layer, for each regressor; a third of them to rank units.
    least : int
        Output positions that are used of a layer in any case, where there are as many.
    seed : int
    alone : callable, optional
        (problem, kept, old weights) -> fit, applied to every layer without a choice.
    """

    ridges: tuple[float, ...] = RIDGES
    bias: bool = True
    most: int = 200
    least: int = 1 << 15
    seed: int = 0
    alone: Callable[[Problem, Ints, Matrix], Fit] | None = None


@dataclass
class LayerReport:
    """What a fit did to one layer, on held-out samples.

    Attributes
    ----------
    layer : str
    kept, of : int
        Channels that are still read, and all of them.
    rows : int
        Positions that the fit saw.
    before, after : float
        Mean squared error relative to the variance of the layer's target, with the old weights and with the new.
    variant : str
        ``"kept"``, ``"bias"`` or ``"lstsq 0.001"``.
    too_few : bool
        Whether there were fewer than two rows for each regressor, so that only strong ridges were tried.
    """

    layer: str
    kept: int
    of: int
    rows: int
    before: float
    after: float
    variant: str
    too_few: bool = False


@dataclass
class Walk:
    """Streams through the same samples: one of the original, and one of each model that is being fitted."""

    dense: Stream
    fitted: Sequence[Stream]
    counts: Sequence[int]
    settings: Settings
    valid: Sequence[Array | None] = ()
    sizes: Mapping[str, float] = field(default_factory=dict)  # bytes of tensors, of one batch
    todo: list[Site] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        analysis: Analysis,
        fitted: Sequence[Model],
        samples: Samples,
        settings: Settings,
        todo: Sequence[Site],
    ) -> Walk:
        """Begin at the samples.

        Parameters
        ----------
        analysis : Analysis
            Of the original.
        fitted : sequence of Model
            They share what may be held of activations.
        samples : Samples
        settings : Settings
        todo : sequence of Site
            The layers that will be asked for, in topological order; each is to be let go (`done`) afterwards.
        """
        dense = Stream(analysis.model, samples, analysis.types, MOST_BYTES)
        most = MOST_BYTES // max(len(fitted), 1)
        streams = [Stream(model, samples, analysis.types, most) for model in fitted]
        walk = cls(
            dense, streams, samples.counts, settings, samples.valid, sizes(analysis, samples), list(todo)
        )
        dense.keep = {name for site in todo for name in _tensors(site)}
        return walk

    def stretches(self, todo: Sequence[Site]) -> list[list[Site]]:
        """Return the layers in turn, as many at a time as `originals` should look at together."""
        found: list[list[Site]] = []
        held = 0.0
        for site in todo:
            size = site.view.width + site.view.outputs
            more = 16 * site.view.blocks * size**2 + sum(self.sizes.get(n, np.inf) for n in _tensors(site))
            if not found or len(found[-1]) == ABREAST or held + more > ABREAST_BYTES:
                found.append([])
                held = 0.0
            found[-1].append(site)
            held += more
        return found

    def originals(self, some: Sequence[Site]) -> list[Evidence]:
        """Return the moments of layers' inputs and outputs in the original, which runs once for all; they are let go.

        Parameters
        ----------
        some : sequence of Site
            Next to be asked for, in topological order, see `stretches`.
        """
        for site in some:
            self.done(site)
        takers = [_Taker(site, self._draw(site, self.settings.most // 3)) for site in some]
        end = max(_goal(site)[1] for site in some)
        wanted = dict.fromkeys(name for site in some for name in _tensors(site))
        batches = self.dense.run(end + 1, list(wanted))
        for found, count, valid in zip(batches, self.counts, self._valid(), strict=True):
            for taker in takers:
                taker.add(found, count, valid)
        return [taker.evidence() for taker in takers]

    def evidence(self, site: Site, *, spread: bool = False) -> list[Evidence]:
        """Return the moments of a layer's present inputs and of the targets that it should reach, for each model.

        Parameters
        ----------
        site : Site
        spread : bool
            Take `Evidence.spread` as well.
        """
        total = site.total
        wanted = [site.x, *([total.other] if total else [])]
        goal, end = _goal(site)
        axis, unit = site.view.out_axis, Spread()
        view, draw = site.view, self._draw(site, self.settings.most)
        collectors = [Collector(view) for _ in self.fitted]
        lefts = [stream.run(site.number, wanted) for stream in self.fitted]
        right = self.dense.run(end + 1, [goal])
        for target, count, valid, *batches in zip(right, self.counts, self._valid(), *lefts, strict=True):
            x, y = batches[0][site.x], target[goal]
            rows = draw.take(x, view.positions(y), count, valid)
            if spread:
                unit.add(y, axis, x, valid)
            y = view.y(y, rows.index)
            for collector, mine in zip(collectors, batches, strict=True):
                reach = y
                if total:
                    reach = (y - view.y(mine[total.other], rows.index) - total.offset) / total.gain
                collector.add(mine[site.x], reach, rows)
        return [collector.evidence(unit.variance / _unit(site)) for collector in collectors]

    def done(self, site: Site) -> None:
        """Let go of what only this layer needed."""
        self.todo = [other for other in self.todo if other is not site]
        self.dense.keep = {name for other in self.todo for name in _tensors(other)}

    def _valid(self) -> Sequence[Array | None]:
        return self.valid or [None] * len(self.counts)

    def _draw(self, site: Site, most: int) -> Draw:
        most = max(most * site.view.width, self.settings.least)
        return Draw(sum(self.counts), most, self.settings.seed + site.number)


class _Taker:
    """Takes what the original gives for one layer."""

    def __init__(self, site: Site, draw: Draw) -> None:
        self.site, self.draw = site, draw
        self.spread, self.collector = Spread(), Collector(site.view)

    def add(self, found: Mapping[str, Array], count: int, valid: Array | None) -> None:
        site, axis = self.site, self.site.view.out_axis
        x, y = found[site.x], found[site.y]
        self.spread.add(found[_goal(site)[0]], axis, x, valid)
        rows = self.draw.take(x, site.view.positions(y), count, valid)
        self.collector.add(x, site.view.y(y, rows.index), rows)

    def evidence(self) -> Evidence:
        return self.collector.evidence(self.spread.variance / _unit(self.site))


def _goal(site: Site) -> tuple[str, int]:
    """Return the tensor that a layer's output becomes part of, and the position of the node that makes it."""
    return (site.total.tensor, site.total.end) if site.total else (site.y, site.end)


def _tensors(site: Site) -> set[str]:
    return {site.x, site.y, _goal(site)[0]}


def _unit(site: Site) -> float:
    return float(np.mean(site.total.gain**2)) if site.total else 1.0


def weights_of(site: Site, model: Model) -> tuple[Matrix, Matrix]:
    """Return a layer's weight as matrices [blocks, width, outputs], and its bias [blocks, outputs]."""
    view = site.view
    matrices = view.unpack(np.asarray(model.weight(site.weight), np.float64))
    size = view.blocks * view.outputs
    bias = np.zeros(size)
    if site.bias:
        bias = (
            np.broadcast_to(np.asarray(model.weight(site.bias), np.float64).reshape(-1), size)
            * view.bias_factor
        )
    return matrices, bias.reshape(view.blocks, view.outputs)


def fit_blocks(
    site: Site, evidence: Evidence, kept: Sequence[Ints], old: tuple[Matrix, Matrix], settings: Settings
) -> tuple[list[Fit], LayerReport]:
    """Choose among the old weights, a new bias and refits by held-out error, then fit on all samples.

    Parameters
    ----------
    site : Site
    evidence : Evidence
    kept : sequence of int64
        Regressors that stay, for each block.
    old : pair of float64
        Matrices [blocks, width, outputs] and biases [blocks, outputs].
    settings : Settings
    """
    width = site.view.width
    free = site.adder is not None
    train = [problem_of(site, m) for m in evidence.train]
    held = [problem_of(site, m) for m in evidence.held]
    prior = old[0].copy()
    for block, rows in enumerate(kept):
        gone = np.setdiff1d(np.arange(width), rows)
        prior[block][gone] = 0.0
    makers: dict[str, Callable[[Sequence[Problem]], list[Fit]]] = {
        "kept": lambda found: [Fit(prior[b], old[1][b]) for b in range(len(found))]
    }
    if free and settings.bias:
        makers["bias"] = lambda found: [bias_only(p, kept[b], prior[b]) for b, p in enumerate(found)]
    rows_seen = min(m.n for m in evidence.train)
    enough = rows_seen >= 2 * max(len(k) for k in kept)
    for share in settings.ridges if enough else STRONG if settings.ridges else ():
        makers[f"lstsq {share:g}"] = partial(refits, kept=kept, share=share, priors=list(prior))
    only = settings.alone
    if only is not None:
        makers["only"] = lambda found: [only(p, kept[b], prior[b]) for b, p in enumerate(found)]
    errors = {
        name: sum(float(error_of(h, fit).sum()) for h, fit in zip(held, make(train), strict=True))
        for name, make in makers.items()
    }
    best = "only" if only is not None else min(errors, key=lambda n: errors[n])
    whole = [problem_of(site, m) for m in evidence.whole()]
    variance = max(sum(p.variance for p in held), 1e-30)
    report = LayerReport(
        site.name,
        sum(len(k) for k in kept) // site.view.taps,
        site.view.channels * site.view.blocks,
        sum(p.n for p in whole),
        errors["kept"] / variance,
        errors[best] / variance,
        best if only is None else only.__module__.rpartition(".")[2],
        bool(settings.ridges) and not enough,
    )
    return makers[best](whole), report


def problem_of(site: Site, moments: Moments) -> Problem:
    """Return a block's problem; about zero rather than about the mean where no bias can be given."""
    found = Problem.of(moments, site.view.width)
    if site.adder is not None:
        return found
    zero_x, zero_y = np.zeros_like(found.mx), np.zeros_like(found.my)
    h = found.h + np.outer(found.mx, found.mx)
    g = found.g + np.outer(found.mx, found.my)
    return Problem(found.n, h, g, found.v + found.my**2, zero_x, zero_y)


def write(model: Model, site: Site, fits: Sequence[Fit]) -> None:
    """Put fitted weights and biases into a model; a bias that others read too gets a copy."""
    old = model.weight(site.weight)
    matrix = site.view.pack(np.stack([f.w for f in fits]))
    model.put(site.weight, np.ascontiguousarray(matrix).reshape(old.shape).astype(old.dtype))
    if site.adder is None:
        return
    number, slot = site.adder
    node = model.proto.graph.node[model.order[number]]
    shape = model.weight(site.bias).shape if site.bias else (site.view.blocks * site.view.outputs,)
    size = site.view.blocks * site.view.outputs
    vector = np.concatenate([f.b for f in fits]) / site.view.bias_factor
    shape = shape if int(np.prod(shape)) == size else (size,)
    value = vector.reshape(shape).astype(old.dtype)
    if site.own and model.weight(site.bias).size == size:
        model.put(site.bias, value)
        return
    name = model.add(f"{site.weight}_bias", value)
    if model.proto.ir_version < 4:  # there every initializer is a graph input as well
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        model.proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
    while len(node.input) <= slot:
        node.input.append("")
    node.input[slot] = name


def consumers_of(
    site: Site, evidence: Evidence, rows: Sequence[Sequence[Ints]], model: Model, unit: float
) -> list[Consumer]:
    """Return one consumer for each block of a layer, on all samples; steadied where they are few."""
    matrices, _ = weights_of(site, model)
    parts = zip(evidence.train, evidence.held, evidence.whole(), strict=True)
    found = []
    for block, three in enumerate(parts):
        train, held, whole = (problem_of(site, moments) for moments in three)
        problem, factor = steadied(train, held, whole, rows[block], matrices[block])
        found.append(Consumer(problem, rows[block], matrices[block], unit / factor))
    return found
