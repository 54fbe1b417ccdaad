"""Pruning with data: loss curves, a budget over all groups, refits in order, and figures of agreement.

The original is read once for the curves, and once more beside the model that is being fitted. The fitted model keeps
the original's shape; cutting it afterwards is exact and is proved like any other cut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import registry
from onnxprune.analysis import Analysis, analyse
from onnxprune.calibrate.algebra import Consumer, Curve, keep_best
from onnxprune.calibrate.collect import Evidence
from onnxprune.calibrate.samples import Samples
from onnxprune.calibrate.sites import Readers, Site, gone, readers, sites
from onnxprune.calibrate.stream import Stream
from onnxprune.errors import CalibrationError
from onnxprune.gradient.probe import Probe, curve_of
from onnxprune.graph.group_types import Group
from onnxprune.model import Model
from onnxprune.progress import Step
from onnxprune.recovery._sequence import (
    LEAST,
    LayerReport,
    Settings,
    Walk,
    consumers_of,
    fit_blocks,
    weights_of,
    write,
)

__all__ = ["Calibration", "Fitted", "refit_analysis"]

Ints = NDArray[np.int64]
Say = Callable[[str], None]
FLOOR = 0.1  # of the units of a group that always stay


@dataclass
class Fitted:
    """A model of the original's shape whose layers no longer need what shall be cut."""

    model: Model
    removed: dict[str, Ints]
    layers: list[LayerReport]
    curves: dict[str, Curve] = field(default_factory=dict)


@dataclass
class Calibration:
    """A model and its samples; the curves serve any number of budgets.

    Attributes
    ----------
    analysis : Analysis
    samples : Samples
    groups : list of Group
        That may be cut.
    criterion : str
        One that needs data; empty where the choice is made without.
    recover : str
        Name of a recovery.
    seed : int
    say : callable, optional
        Told what is being done.
    """

    analysis: Analysis
    samples: Samples
    groups: list[Group]
    criterion: str = "obs"
    recover: str = "lstsq"
    seed: int = 0
    say: Say | None = None
    curves: dict[str, Curve] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the layers that can be fitted."""
        self.sites: list[Site] = sites(self.analysis)
        self.readers: Readers = readers(self.sites, self.groups)
        self.types = {name: typed[0] for name, typed in self.analysis.tracer.types.items()}
        way = registry.load("onnxprune.recovery", self.recover)
        alone = getattr(way, "fit", None)
        self.settings = Settings(way.RIDGES, "bias" in way.VARIANTS, seed=self.seed, alone=alone)
        self.measure = registry.load("onnxprune.criteria", self.criterion) if self.criterion else None
        if not self.readers:
            raise CalibrationError(
                "No group is read by layers that can be fitted (Conv, ConvTranspose, Gemm, MatMul with constant "
                "weights); prune without --calib."
            )

    @property
    def places(self) -> dict[str, list[int]]:
        """Group -> positions of the layers that read it."""
        return {name: [site.number for site, _ in mine] for name, mine in self.readers.items()}

    @property
    def gram_bytes(self) -> int:
        """Bytes of the largest layer's moments, the most that statistics take at a time (for fitting and held out)."""
        views = [site.view for site in self.sites]
        return max((16 * v.blocks * (v.width + v.outputs) ** 2 for v in views), default=0)

    def on(self, samples: Samples, most: int) -> Calibration:
        """Return the same calibration for fits on other samples, with at most so many rows for each regressor."""
        found = copy.copy(self)
        found.samples, found.settings, found.say = samples, replace(self.settings, most=most), None
        return found

    def measure_curves(self) -> None:
        """Run the original over the samples and take the loss curve of each group."""
        if hasattr(self.measure, "measure"):  # judges all groups at once
            probe = Probe(self.analysis, self.samples, self.readers, self.seed, self.say)
            scores = probe.scores(self.measure)
            self.curves = {name: curve_of(found, self._least(name)) for name, found in scores.items()}
            return
        read = {s.number for mine in self.readers.values() for s, _ in mine}
        needed = [s for s in self.sites if s.number in read]
        walk = self._walk(self.analysis.model, self.analysis.model, needed)
        found = _Curves(self)
        costs = [self._cost(site) for site in needed]
        for n, site in enumerate(needed):
            self._tell(Step.of("calibrate", site.name, n, costs))
            found.take(site, walk.original(site))
            walk.done(site)
        self.curves = found.done

    def _least(self, name: str) -> int:
        units = next(g.units for g in self.groups if g.name == name)
        return max(1, int(np.ceil(FLOOR * units)))

    def fit(self, removed: Mapping[str, Ints], *, measure: bool = False) -> Fitted:
        """Fit the layers in order, choosing once more which units go where one layer alone reads them.

        Parameters
        ----------
        removed : mapping
            Group -> units; their number is binding.
        measure : bool
            Take the loss curves of the groups again, from the inputs that layers have by now.
        """
        removed = {name: np.asarray(units) for name, units in removed.items()}
        model = self.analysis.model.fork()
        alone = {mine[0][0].number: name for name, mine in self.readers.items() if len(mine) == 1}
        first = (
            0
            if measure
            else min((s.number for name in removed for s, _ in self.readers.get(name, ())), default=1 << 60)
        )
        todo = [s for s in self.sites if s.number >= first]
        walk = self._walk(self.analysis.model, model, todo)
        again = _Curves(self, dict(self.curves))
        costs = [self._cost(site) for site in todo]
        for n, site in enumerate(todo):
            self._tell(Step.of("fit", site.name, n, costs))
            evidence = walk.evidence(site)
            if measure and hasattr(self.measure, "curve"):
                again.take(site, evidence)
            name = alone.get(site.number, "")
            if name in removed and hasattr(self.measure, "curve"):
                removed[name] = self._choose(site, name, len(removed[name]), evidence, model)
            width = np.arange(site.view.width)
            cut = gone(self.readers, removed).get(site.weight)
            kept = [np.setdiff1d(width, c) for c in cut] if cut else [width] * site.view.blocks
            fits, report = fit_blocks(site, evidence, kept, weights_of(site, model), self.settings)
            write(model, site, fits)
            walk.done(site)
            walk.reports.append(report)
        return Fitted(model, removed, walk.reports, again.done)

    def _choose(self, site: Site, name: str, count: int, evidence: Any, model: Model) -> Ints:
        """Choose the units of a group once more, on the inputs as they are by now."""
        rows = self.readers[name][0][1]
        found = consumers_of(site, evidence, rows, model, 1.0)
        units = len(rows[0])
        assert self.measure is not None
        curve = self.measure.curve(found, units - count)
        kept = np.sort(curve.order[count:])
        owned = np.unique(np.concatenate([*rows[0]])).size
        if self.criterion == "obs" and len(found) == 1 and owned == site.view.width:
            kept = keep_best(found[0].problem, rows[0], kept)
        return np.setdiff1d(np.arange(units), kept)

    def _walk(self, original: Model, fitted: Model, todo: Sequence[Site]) -> Walk:
        dense = Stream(original, self.samples.batches, self.types)
        walk = Walk(
            dense,
            Stream(fitted, self.samples.batches, self.types),
            self.samples.counts,
            self.settings,
            self.samples.valid,
        )
        for site in todo:
            dense.keep |= {site.x, site.y, site.total.tensor if site.total else site.y}
        return walk

    def _cost(self, site: Site) -> float:
        """Return about what a layer costs, for the time that is left: copying rows, their moments, and solving."""
        view = site.view
        shape = self.analysis.tracer.types[site.y][1] or ()
        positions = np.prod(shape, dtype=np.float64) / max(view.blocks * view.outputs, 1)
        batch = shape[0] if len(shape) > 1 else 1
        most = max(self.settings.most * view.width, LEAST)
        rows = min(positions / max(batch, 1) * sum(self.samples.counts), most)
        wide = view.width + view.outputs
        return float(view.blocks * (rows * wide * (300 + wide) + 5 * view.width**3))

    def _tell(self, text: str) -> None:
        if self.say is not None:
            self.say(text)


class _Curves:
    """Loss curves of groups, each taken when the last layer that reads it has been seen."""

    def __init__(self, calibration: Calibration, done: dict[str, Curve] | None = None) -> None:
        self.of = calibration
        self.last = {name: max(places) for name, places in calibration.places.items()}
        self.held: dict[str, list[Consumer]] = {}
        self.done: dict[str, Curve] = done or {}

    def take(self, site: Site, evidence: Evidence) -> None:
        """Add what one layer tells of the groups that it reads."""
        measure = self.of.measure
        for name, mine in self.of.readers.items():
            for rows in (rows for reader, rows in mine if reader is site):
                found = consumers_of(site, evidence, rows, self.of.analysis.model, evidence.spread or 1.0)
                self.held.setdefault(name, []).extend(found)
            if self.last[name] == site.number and measure is not None and name in self.held:
                self.done[name] = measure.curve(self.held.pop(name), self.of._least(name))


def refit_analysis(fitted: Fitted, analysis: Analysis, removed: Mapping[str, Ints], **more: Any) -> Analysis:
    """Analyse a fitted model, whose groups must be those of the original.

    Raises
    ------
    CalibrationError
        If they aren't.
    """
    found = analyse(fitted.model, **more)
    units = {g.name: g.units for g in found.grouping.groups}
    for group in analysis.grouping.groups:
        if group.name in removed and units.get(group.name) != group.units:
            raise CalibrationError(f"The fitted model no longer has the group {group.name!r}; this is a bug.")
    return found
