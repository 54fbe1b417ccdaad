"""Distillation: all layers of a cut model together, toward what the original gives inside and at its end.

Segments of a few layers (`onnxprune.reconstruction.reconstruct`) make the best of what those before them give. Here
the whole model goes down at once, from the samples on,

    L(W) = 1/samples * sum over goals of |goal(x; W) - target|^2 / (goals * var(target)),

where the goals are what each layer gives before its activation, and what the model ends in (what choices at its end are
made of), and ``var`` is the mean squared distance of a sample's target from the mean one. No label is looked at. What
the original gives is computed batch by batch as it is needed, so memory is that of one batch.

References
----------
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. Romero et al., "FitNets: Hints
for Thin Deep Nets", arXiv 1412.6550, equation 3 (internal states as goals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.ends import ends_of
from onnxprune.calibration.frontier import sizes
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.errors import CalibrationError
from onnxprune.files.bodies import DOMAIN
from onnxprune.gradient.loss import Classes, LossModel, Variation, loss_model, weighed
from onnxprune.gradient.tape import float_type
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.kept import Masks
from onnxprune.reconstruction.beside import Beside, covers, in_units, mixable
from onnxprune.reconstruction.descent import Basis, Taught, Teacher, descend
from onnxprune.reconstruction.evidence import HELD, positions_of
from onnxprune.reconstruction.inner import with_inner
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.loose import loose
from onnxprune.reconstruction.pace import Pace
from onnxprune.reconstruction.pictures import admitted
from onnxprune.reconstruction.reconstruct import SegmentReport
from onnxprune.runtime.session import RunError

__all__ = ["Truth", "distill", "pace_of"]

Array = NDArray[Any]
Batch = dict[str, Array]

#: How far it goes: more steps than a segment, since it is once for all layers.
PACE = Pace(steps=1000, passes=60, batch=(4, 16), rate=0.004, looks=4)
#: The share of the steps that held-out samples judge, and the shares of the rate that are tried until they gain.
FIRST, RATES = 0.25, (1.0, 0.25)
#: Bytes of the activations of one run, the gradients among them.
RUN_BYTES = 1 << 29
#: Samples that tell the coordinates to go down in and how much goals vary.
LOOKED_AT = 256
#: Layers with more regressors than this go down in their own coordinates: eigenvectors take the cube of it.
WIDEST = 2048


def pace_of(samples: int, epochs: int | None, rate: float | None) -> Pace:
    """Return how far to go; by default `PACE`.

    Parameters
    ----------
    samples : int
    epochs : int, optional
        How often each is seen, in steps as large as they may be.
    rate : float, optional
        Length of the first steps.
    """
    pace = PACE if rate is None else replace(PACE, rate=rate)
    if epochs is None:
        return pace
    return replace(pace, steps=max(-(-epochs * samples // pace.batch[1]), pace.looks), passes=epochs)


@dataclass(frozen=True)
class Truth:
    """True classes, beside what the original gives: their cross-entropy counts as much as a relative error of 1.

    Attributes
    ----------
    logits : str
        The tensor of logarithms of odds [batch, classes]; neither it nor an output is near to the original's then.
    odds : float32[samples, classes]
        What they should be.
    """

    logits: str
    odds: Array


def distill(
    fitted: Analysis, original: Analysis, dead: Masks, samples: Samples, *,
    pace: Pace | None = None, seed: int = 0, say: Callable[[str], None] | None = None, truth: Truth | None = None,
) -> SegmentReport:  # fmt: skip
    """Fit all layers of a model together, as they are when its dead channels are cut.

    Parameters
    ----------
    fitted : Analysis
        Of a model of the original's shape, whose weights are changed in place: the analysis no longer knows them.
    original : Analysis
    dead : mapping
        Root dim -> which of its indices will be cut.
    samples : Samples
        Those that judge tell how much goals vary, and whether it is nearer.
    pace : Pace, optional
    seed : int
        Of the mini-batches: the same seed gives the same bytes.
    say : callable, optional
        Told of progress.
    truth : Truth, optional
        What the original doesn't say.
    """
    beside = Beside.of(fitted, original, dead, in_units(samples))
    report = SegmentReport([site.name for site in with_inner(beside.analysis)])
    try:
        floats = beside.floats
    except CalibrationError as error:
        report.why = str(error)
        return report
    layers = with_inner(floats.analysis)
    if any(a.node.domain == DOMAIN for a in floats.analysis.coupling.nodes):
        report.why = "it holds bodies of If, Loop or Scan"
        return report
    try:
        changed = _Distillation(floats, layers, pace or PACE, seed, say, truth).run(report)
    except (CalibrationError, RunError) as error:
        report.why = str(error)
        return report
    for name, weight in changed.items():
        floats.cut.put(name, weight)
        beside.take(floats, name)
    return report


@dataclass
class _Distillation:
    beside: Beside
    layers: list[Site]
    pace: Pace
    seed: int
    say: Callable[[str], None] | None
    truth: Truth | None = None

    def run(self, report: SegmentReport) -> dict[str, Array]:
        """Return the weights that came nearer; the report is filled in."""
        samples, once = self.beside.samples, self.beside.once
        names = [n for s in self.layers for n in s.free] + list(loose(self.beside.analysis))
        names = [n for n in names if n in once]
        goals = self._goals()
        if not names or not (goals or self.truth):
            report.why = (
                "none of its weights may change" if goals else "nothing that it gives is in the original"
            )
            return {}
        own = samples.first(samples.judges)
        look = _Survey(self.beside, goals, own)
        factors, masked = look.factors()
        found = self._loss_model(names, factors, masked)
        if found is None or not found.gradients:
            report.why = "what it gives never varies"
            return {}
        found = replace(found, settle=self.beside.settle)
        start = {n: np.array(self.beside.cut.weight(n)) for n in found.gradients}
        data = self._data(found, next(iter(start.values())).dtype)
        data.change = admitted(self.beside.original.model, own, list(factors), self.seed)
        if not len(data.held):
            report.why = f"fewer than {HELD} samples, or batches of the model's own size"
            return {}
        bases = look.bases([s for s in self.layers if s.weight in start], start, self.seed)
        report.samples, report.stop = samples.count, found.stop
        return self._descended(found, start, data, bases, report)

    def _data(self, found: LossModel, dtype: Any) -> Taught:
        """Return the samples, with what isn't asked of the original beside them: masks and true classes."""
        samples, truth = self.beside.samples, self.truth
        parts = [dict(batch) for batch in samples.batches]
        targets, own = dict(found.targets), {found.valid}
        for part, mask in zip(parts, samples.valid, strict=True):
            if found.valid and mask is not None:
                part[found.valid] = mask[..., None].astype(dtype)
        if truth is not None:
            name = targets.pop(truth.logits)
            own.add(name)
            ends = np.cumsum(samples.counts)
            for part, end, count in zip(parts, ends, samples.counts, strict=True):
                part[name] = truth.odds[end - count : end].astype(dtype)
        teacher = Teacher(self.beside.original.model, targets, own, self.beside.kept.take, samples.provider)
        free = mixable(parts, samples.counts, free=samples.free)
        return Taught(
            parts, list(samples.counts), free, teacher=teacher, judges=samples.judges,
            most=_most(self.beside.analysis, samples),
        )  # fmt: skip

    def _descended(
        self,
        found: LossModel,
        start: dict[str, Array],
        data: Taught,
        bases: dict[str, Basis],
        report: SegmentReport,
    ) -> dict[str, Array]:
        """Find a rate at which held-out samples gain, and go on from there on all of them; nothing where none does.

        Where none gains with the samples that don't judge, those that do are tried by themselves.
        """
        provider, pace = self.beside.samples.provider, self.pace
        for train, share in product(data.lessons, RATES):
            data.train = train
            first = pace.part(FIRST, share * pace.rate)
            best, report.before, report.after = descend(
                found, start, data, bases, first, self.seed, provider, self.say
            )
            if report.after < report.before:
                data.train = np.sort(np.concatenate([data.train, data.held]))
                rest = replace(pace.part(1 - FIRST, first.rate), looks=0)
                return descend(found, best, data, bases, rest, self.seed + 1, provider, self.say)[0]
        return {}

    def _goals(self) -> list[str]:
        """Return what layers give before their activations, and what the model ends in, where the original has them."""
        analysis = self.beside.analysis
        there = {n for a in self.beside.original.coupling.nodes for n in a.node.outputs}
        wanted = [use.y for site in self.layers for use in site.uses]
        outputs = [v.name for v in analysis.model.proto.graph.output]
        if self.truth is None:
            wanted += ends_of(analysis, {use.number for site in self.layers for use in site.uses})
        else:
            wanted = [n for n in wanted if n not in (*outputs, self.truth.logits)]
        types = analysis.tracer.types
        return [n for n in dict.fromkeys(wanted) if n in there and float_type(types.get(n, (0, None))[0])]

    def _loss_model(
        self, names: Sequence[str], factors: dict[str, float], masked: Sequence[str]
    ) -> LossModel | None:
        """Return the loss of the weights that reach a goal; None where there are none."""
        if not (factors or self.truth) or not names:
            return None
        analysis = self.beside.analysis
        truth = {} if self.truth is None else {self.truth.logits: Classes(1, 1.0)}
        found = loss_model(analysis, list(analysis.inputs), names, factors, masked=masked, classes=truth)
        if len(found.gradients) < len(names):
            rest = self._loss_model(list(found.gradients), factors, masked)
            return rest and replace(rest, stop=found.stop)
        return found


@dataclass
class _Survey:
    """What some samples tell before descent begins.

    Attributes
    ----------
    beside : Beside
    goals : list of str
    samples : Samples
        The first of them are looked at, in batches of which all activations fit.
    """

    beside: Beside
    goals: list[str]
    samples: Samples

    def __post_init__(self) -> None:
        """Take the first samples."""
        samples = self.samples
        few = samples.cut_into(_most(self.beside.analysis, samples))
        number = int(np.searchsorted(np.cumsum(few.counts), LOOKED_AT)) + 1
        self.samples = replace(few, batches=few.batches[:number], counts=few.counts[:number])

    def factors(self) -> tuple[dict[str, float], list[str]]:
        """Return what the squared distance of each goal is multiplied by, and the goals that masks cover."""
        sums: dict[str, Array] = {}
        squares, entries = dict.fromkeys(self.goals, 0.0), dict.fromkeys(self.goals, 0)
        lengths: dict[str, int] = dict.fromkeys(self.goals, 0)
        masked, total = set(self.goals), self.samples.count
        runs = stream_of(self.beside.original.model, self.samples).each(self.goals)
        for made, valid in zip(runs, self.samples.valid, strict=True):
            for name, left in self.beside.kept.take(made).items():
                goal = np.asarray(left, np.float64)
                if not covers(valid, goal):
                    masked.discard(name)
                else:
                    goal = goal[valid]
                lengths[name] += len(goal) if goal.ndim else 1
                squares[name] += float(np.square(goal).sum())
                entries[name] += goal.size
                rows = goal.sum(axis=0)
                if name in sums and sums[name].shape != rows.shape:
                    sums[name] = np.zeros(())
                elif name not in sums or sums[name].ndim == rows.ndim:
                    sums[name] = sums.get(name, 0.0) + rows
        spreads = {}
        for name in self.goals:
            mean = float(np.square(sums[name]).sum()) / max(lengths[name], 1)
            square = squares[name] / total
            spreads[name] = Variation(square - mean / total, square, entries[name] / total)
        found = weighed(spreads)
        return found, [n for n in self.goals if n in masked and n in found]

    def bases(self, layers: Sequence[Site], start: dict[str, Array], seed: int) -> dict[str, Basis]:
        """Return the coordinates of the layers' weights, from what they read now."""
        layers = [s for s in layers if s.view.width <= WIDEST]
        wanted = list(dict.fromkeys(n for s in layers for n in (s.x, s.y)))
        moments = {s.weight: np.zeros((s.view.blocks, s.view.width, s.view.width)) for s in layers}
        rng = np.random.default_rng(seed)
        samples = self.samples.taken(self.beside.kept.take)
        runs = stream_of(self.beside.cut, samples).each([n for n in wanted if n not in samples.batches[0]])
        for run, batch, count, valid in zip(
            runs, samples.batches, samples.counts, samples.valid, strict=True
        ):
            made = {**batch, **run}
            for site in layers:
                rows = positions_of(made[site.x], site.view.positions(made[site.y]), valid)
                share = Basis.rows(site.view) * count // samples.count + 1
                if len(rows) > share:
                    rows = np.sort(rng.choice(rows, share, replace=False))
                x = site.view.x(made[site.x], rows)
                moments[site.weight] += np.matmul(x.transpose(0, 2, 1), x)
        return {
            s.weight: Basis.from_moments(s.view, start[s.weight].shape, moments[s.weight]) for s in layers
        }


def _most(analysis: Analysis, samples: Samples) -> int:
    """Return the samples of one run whose activations, and the gradients and targets of as many, are not too large."""
    once = sum(
        size
        for name, size in sizes(analysis, samples).items()
        if isfinite(size) and name not in analysis.model
    )
    return max(int(RUN_BYTES * max(samples.counts) / max(3 * once, 1)), 1)
