"""Layer after layer on samples: loss curves of groups, and refits in order.

The original is read once for the curves, and once more beside the model that is being fitted, see
`onnxprune.reconstruction.walk`: each layer is fitted to inputs as they are by then and targets of the original. The
fitted model keeps the original's shape; cutting it afterwards is exact and is proved like any other cut.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.ranking import FLOOR
from onnxprune.calibration.frontier import stream_bytes
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import Runs, stream_of
from onnxprune.errors import CalibrationError
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.group_types import Group
from onnxprune.graph.vocabulary import says_ids
from onnxprune.model import Model
from onnxprune.progress import Milestone
from onnxprune.proof.twin import stand_ins
from onnxprune.reconstruction.aim import Aim
from onnxprune.reconstruction.consumers import consumers_of
from onnxprune.reconstruction.counted import counted
from onnxprune.reconstruction.curves import Curves
from onnxprune.reconstruction.evidence import WIDE, Evidence
from onnxprune.reconstruction.inner import is_inner, with_inner
from onnxprune.reconstruction.layer import LayerReport, Settings, fit_blocks, write
from onnxprune.reconstruction.layers import Readers, Site, gone, readers, seen
from onnxprune.reconstruction.least_squares import Curve
from onnxprune.reconstruction.measure import Measure
from onnxprune.reconstruction.narrow import hush, lean
from onnxprune.reconstruction.obs import MANY, keep_best
from onnxprune.reconstruction.probe import Probe, curve_of
from onnxprune.reconstruction.products import ProductCurve, silenced
from onnxprune.reconstruction.reconstruct import SegmentReport
from onnxprune.reconstruction.recover import recovery_of
from onnxprune.reconstruction.room import admit, kept
from onnxprune.reconstruction.walk import MOST_BYTES, Targets, Walk

__all__ = ["Calibration", "Fitted", "Fitting", "refit_analysis"]

_log = logging.getLogger("onnxprune.reconstruction")

Ints = NDArray[np.int64]
Say = Callable[[str], None]
ROUGH = 1 << 12  # positions of a narrow layer in a fit on the way


@dataclass
class Fitted:
    """A model of the original's shape whose layers no longer need what shall be cut."""

    model: Model
    removed: dict[str, Ints]
    layers: list[LayerReport]
    curves: dict[str, Curve] = field(default_factory=dict)
    segments: list[SegmentReport] = field(default_factory=list)
    whole: SegmentReport | None = None


@dataclass
class Calibration:
    """A model and its samples; the curves serve any number of budgets.

    Attributes
    ----------
    analysis : Analysis
    samples : Samples
    groups : list of Group
        That may be cut.
    measure : Measure
        How units are ranked on the samples; empty where the choice is made without.
    recover : str
        Name of a recovery.
    seed : int
    say : callable, optional
        Told what is being done.
    products : dict
        Group that no layer reads -> what it is part of, where its loss was measured.
    by_norm : list of str
        Groups whose loss nobody could measure: their curves come from weights alone.
    aim : Aim or None
        What layers are fitted to, where that isn't what they gave.
    """

    analysis: Analysis
    samples: Samples
    groups: list[Group]
    measure: Measure = field(default_factory=Measure)
    recover: str = "lstsq"
    seed: int = 0
    say: Say | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    products: dict[str, ProductCurve] = field(default_factory=dict)
    by_norm: list[str] = field(default_factory=list)
    targets: Targets = field(default_factory=dict)  # of fits on the same samples
    untaken: bool = False  # whether curves were read, so that no run has taken targets of fits beside them
    aim: Aim | None = None

    def __post_init__(self) -> None:
        """Find the layers that can be fitted."""
        self.sites: list[Site] = self._layers()
        fixed = set(self.analysis.model.fixed)
        self.readers: Readers = readers(self.sites, self.groups, fixed=fixed)
        #: with groups that other readers share, which can't be fitted
        self.reading: Readers = readers(self.sites, self.groups, partly=True)
        #: positions of nodes that are layers and no more, and group -> the first other node that counts its channels
        self.layers: set[int] = {use.number for site in self.sites if not is_inner(site) for use in site.uses}
        self.counted: dict[str, int] = counted(self.analysis, self.groups, self.layers)
        # what others count is masked before the first fit, so nothing else may be chosen later
        self.alone: dict[int, str] = {
            reads[0][0].number: name
            for name, reads in self.readers.items()
            if len(reads) == 1 and name not in self.counted
        }
        self.settings: Settings = Settings(recovery_of(self.recover), seed=self.seed)
        self.texts: bool = says_ids(self.analysis)

    def _layers(self) -> list[Site]:
        model = self.analysis.model
        return lean(seen(with_inner(self.analysis), stream_of(model, self.samples)), model)

    @property
    def places(self) -> dict[str, list[int]]:
        """Group -> positions of the layers that read it, or hear of it first."""
        read = {name: [site.number for site, _ in reads] for name, reads in self.readers.items()}
        return {name: [product.site.number] for name, product in self.products.items()} | read

    @property
    def gram_bytes(self) -> int:
        """Bytes of the largest layer's moments (for fitting and held out), the most that a model's take at a time."""
        return int(max((kept(site, self.settings) for site in self.sites), default=0))

    def on(self, samples: Samples, most: int) -> Calibration:
        """Return the same calibration for rough fits on other samples.

        They use at most so many rows for each regressor and one ridge, and keep the units that the loss curves chose.
        """
        calibration, old = copy.copy(self), self.settings
        sheet = old.sheet * ROUGH // old.least
        calibration.settings = replace(old, most=most, least=ROUGH, sheet=sheet, careful=False, rough=True)
        calibration.samples, calibration.say = samples, None
        calibration.targets, calibration.untaken = {}, False
        return calibration

    def measure_curves(self) -> None:
        """Run the original over the samples and take the loss curve of each group."""
        if not self.readers:
            return
        if self.measure.scores is not None:  # judges all groups at once
            plain = {
                name: reads
                for name, reads in self.readers.items()
                if all(len(site.view.factors) < 2 for site, _ in reads)
            }
            if not plain:
                return
            probe = Probe(self.analysis, self.samples, plain, self.seed, self.say)
            scores = self.measure.scores(probe)
            self.curves = {name: curve_of(values, self.least(name)) for name, values in scores.items()}
            return
        walk, needed = self._past_readers()
        curves = Curves(self)
        costs = [self._cost(site) for site in needed]
        seen = 0
        for stretch in walk.stretches(needed):
            self._tell(Milestone.of("calibrate", stretch[0].name, seen, costs))
            for site, evidence in zip(stretch, walk.originals(stretch, linear=True), strict=True):
                if site is not stretch[0]:
                    self._tell(Milestone.of("calibrate", site.name, seen, costs))
                curves.take(site, evidence)
                seen += 1
        self.curves = curves.done

    def take_targets(self) -> None:
        """Take what taking curves takes besides, where these are known: the targets of fits, from the same runs.

        Other runs would give them with other roundings, and a second run of the tool other bytes than the first.
        """
        self.untaken = False
        if self.readers and self.measure.scores is None:
            walk, needed = self._past_readers()
            for stretch in walk.stretches(needed):
                self._tell(f"calibrate {stretch[0].name}")
                for _ in walk.pieces(stretch, {}):
                    pass

    def _past_readers(self) -> tuple[Walk, list[Site]]:
        """Return a walk through the original alone, past all layers that read a group, and these."""
        read = {s.number for reads in self.readers.values() for s, _ in reads}
        needed = [s for s in self.sites if s.number in read]
        admit(needed, self.settings)
        known = self.targets if self.aim is None else {}
        return Walk.of(self.analysis, [], self.samples, self.settings, needed, known), needed

    def least(self, name: str) -> int:
        """Return how many units of a group must stay."""
        units = next(g.units for g in self.groups if g.name == name)
        return max(1, int(np.ceil(FLOOR * units)))

    def fit(self, removed: Mapping[str, Ints], *, measure: bool = False, follow: int | None = None) -> Fitted:
        """Fit the layers of one model, see `fit_all`."""
        return self.fit_all([removed], measure=measure, follow=follow)[0]

    def fit_all(
        self, removed: Sequence[Mapping[str, Ints]], *, measure: bool = False, follow: int | None = None
    ) -> list[Fitted]:
        """Fit the layers in order, choosing once more which units go where one layer alone reads them.

        Models are fitted side by side, layer by layer, so that the original runs once for all of them; each is what it
        would be alone. Those that begin at different layers, or find no room beside each other, take turns.

        Parameters
        ----------
        removed : sequence of mappings
            For each model group -> units; their number is binding.
        measure : bool
            Take the loss curves of the groups again, from the inputs that layers have by now.
        follow : int, optional
            Fit so many layers from the first one on, and of those behind them the ones alone that lose channels.
        """
        if self.untaken:
            self.take_targets()
        members = [Fitting.of(self, units, whole=measure) for units in removed]
        for first in sorted({m.first for m in members}):
            starting = [m for m in members if m.first == first]
            todo = [s for s in self.sites if s.number >= first]
            if follow is not None and not any(n in self.products for m in starting for n in m.fitted.removed):
                cut = {w for m in starting for w, c in gone(self.reading, m.fitted.removed).items() if c}
                todo = [s for n, s in enumerate(todo) if n < follow or s.weight in cut]
            admit(todo, self.settings)
            width = self._abreast(todo) if len(starting) > 1 else 1
            for abreast in (starting[n : n + width] for n in range(0, len(starting), width)):
                self._side_by_side(abreast, todo, measure)
        return [m.fitted for m in members]

    def _abreast(self, todo: Sequence[Site]) -> int:
        """Return how many models find room beside each other, without a stream that must run anything again."""
        each = stream_bytes(self.analysis, self.samples, [s.number for s in todo]) + self.gram_bytes
        return max(int(MOST_BYTES // each), 1) if np.isfinite(each) else 1

    def _side_by_side(self, members: Sequence[Fitting], todo: Sequence[Site], measure: bool) -> None:
        models = [m.fitted.model for m in members]
        walk = Walk.of(self.analysis, models, self.samples, self.settings, todo, self.targets, aim=self.aim)
        masks = [
            self._mask(stream, member.fitted.removed)
            for stream, member in zip(walk.fitted, members, strict=True)
        ]
        costs = [self._cost(site) for site in todo]
        for n, site in enumerate(todo):
            self._tell(Milestone.of("fit", site.name, n, costs))
            for member, evidence in zip(members, walk.evidence(site, spread=measure), strict=True):
                if measure:
                    member.again.take(site, evidence)
                self._fit(member.fitted, site, walk.form or site, evidence)
            walk.done(site)
        for model, names in zip(models, masks, strict=True):
            model.drop(*names)

    def _mask(self, stream: Runs, removed: Mapping[str, Ints]) -> list[str]:
        """Have nodes that aren't fitted read masked copies in the runs of a model; return the masks in it."""
        dead = self.analysis.grouping.dead({name: gone for name, gone in removed.items() if gone.size})
        stream.instead, masks = stand_ins(self.analysis, dead, stream.model, self.layers)
        return masks

    def _fit(self, fitted: Fitted, site: Site, form: Site, evidence: Evidence) -> None:
        """Fit one layer of one model, in the form that its evidence has."""
        name = self.alone.get(site.number, "")
        again = not self.settings.rough and self.measure.curve is not None
        if again and name in fitted.removed and name not in self.products and self._few(name):
            count = len(fitted.removed[name])
            fitted.removed[name] = self._choose(form, name, count, evidence, fitted.model)
        width = np.arange(site.view.width)
        cut = gone(self.reading, fitted.removed).get(site.weight)
        silent = [
            p.channels(site.number, fitted.removed[n])
            for n, p in self.products.items()
            if n in fitted.removed
        ]
        kept = [np.setdiff1d(width, c) for c in cut] if cut else [width] * site.view.blocks
        fits, report = fit_blocks(form, evidence, kept, fitted.model, self.settings)
        for channels in silent if form is site else ():
            fits = silenced(site, fits, channels)
        write(fitted.model, form, fits)
        for channels in silent if form is not site else ():
            hush(site, fitted.model, channels)
        fitted.layers.append(report)
        _log.info("%s: %s, error %.3g -> %.3g", report.layer, report.variant, report.before, report.after)

    def _choose(self, site: Site, name: str, count: int, evidence: Any, model: Model) -> Ints:
        """Choose the units of a group once more, on the inputs as they are by now."""
        rows = self.readers[name][0][1]
        consumers = consumers_of(site, evidence, rows, model, 1.0, texts=self.texts)
        units = len(rows[0])
        assert self.measure.curve is not None
        curve = self.measure.curve(consumers, units - count)
        kept = np.sort(curve.order[count:])
        owned = np.unique(np.concatenate([*rows[0]])).size
        if self.measure.swaps and len(consumers) == 1 and owned == site.view.width:
            kept = keep_best(consumers[0].problem, consumers[0].rows, kept)
        return np.setdiff1d(np.arange(units), kept)

    def _few(self, name: str) -> bool:
        """Whether a group's curve is cheap enough to be taken twice."""
        return len(self.readers[name][0][1][0]) <= MANY

    def _cost(self, site: Site) -> float:
        """Return about what a layer costs, for the time that is left: copying rows, their moments, and solving."""
        view = site.view
        shape = self.analysis.tracer.types[site.y][1] or ()
        positions = np.prod(shape, dtype=np.float64) / max(view.blocks * view.outputs, 1)
        batch = shape[0] if len(shape) > 1 else 1
        rows = min(positions / max(batch, 1) * sum(self.samples.counts), self.settings.rows(view))
        whole, size = view.width + view.outputs, min(view.width, rows) if view.width > WIDE else view.width
        return float(view.blocks * (rows * whole * (300 + size) + 5 * size**3))

    def _tell(self, text: str) -> None:
        if self.say is not None:
            self.say(text)


@dataclass
class Fitting:
    """One of the models that are fitted side by side."""

    fitted: Fitted
    first: int  # the first layer that is fitted
    again: Curves

    @classmethod
    def of(cls, calibration: Calibration, removed: Mapping[str, Ints], *, whole: bool) -> Fitting:
        """Begin with the original; whole: at its first layer, whatever is cut."""
        units = {name: np.asarray(indices) for name, indices in removed.items()}
        cut = [s.number for name in units for s, _ in calibration.reading.get(name, ())]
        made = [p.mixable.makers for name, p in calibration.products.items() if name in units]
        cut += [side.site.number for sides in made for side in sides]
        cut += [calibration.counted[name] for name in units if name in calibration.counted]
        if calibration.aim is not None:
            start = calibration.aim.first(calibration.analysis)
            cut += [s.number for s in calibration.sites if s.end >= start or s.goal[1] >= start][:1]
        again = Curves(calibration, dict(calibration.curves))
        fitted = Fitted(calibration.analysis.model.fork(), units, [], again.done)
        return cls(fitted, 0 if whole else min(cut, default=1 << 60), again)


def refit_analysis(fitted: Fitted, analysis: Analysis, removed: Mapping[str, Ints], **more: Any) -> Analysis:
    """Analyse a fitted model, whose groups must be those of the original.

    Raises
    ------
    CalibrationError
        If they aren't.
    """
    refitted = analyse(fitted.model, **more)
    units = {g.name: g.units for g in refitted.grouping.groups}
    for group in analysis.grouping.groups:
        if group.name in removed and units.get(group.name) != group.units:
            raise CalibrationError(f"The fitted model no longer has the group {group.name!r}; this is a bug.")
    return refitted
