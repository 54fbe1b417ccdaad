"""Loss curves of groups as layers are looked at, one after the other."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.analysis import Analysis
from onnxprune.reconstruction.consumers import Together, consumers_of, crowded
from onnxprune.reconstruction.evidence import Evidence
from onnxprune.reconstruction.layer import Settings
from onnxprune.reconstruction.layers import Readers, Site
from onnxprune.reconstruction.least_squares import Consumer, Curve
from onnxprune.reconstruction.measure import Measure

__all__ = ["Curves"]

Ints = NDArray[np.int64]


class Measuring(Protocol):
    """Whose groups are looked at, see `onnxprune.reconstruction.sequential.Calibration`."""

    analysis: Analysis
    readers: Readers
    measure: Measure
    settings: Settings
    texts: bool

    def least(self, name: str) -> int:
        """Return how many units of a group must stay."""


class Curves:
    """Loss curves of groups, each taken when the last layer that reads it has been seen."""

    last: dict[str, int]

    def __init__(self, calibration: Measuring, done: dict[str, Curve] | None = None) -> None:
        self.of = calibration
        self.last = {name: max(s.number for s, _ in reads) for name, reads in calibration.readers.items()}
        self.consumers: dict[str, list[Consumer]] = {}
        self.crowded: dict[str, Together] = {}
        self.done: dict[str, Curve] = {} if done is None else done

    def take(self, site: Site, evidence: Evidence) -> None:
        """Add what one layer tells of the groups that it reads."""
        measure = self.of.measure.curve
        if measure is None:
            return
        for name, reads in self.of.readers.items():
            for rows in (rows for reader, rows in reads if reader is site):
                self._add(name, site, evidence, rows)
            if self.last[name] == site.number and name in self.consumers:
                consumers = self.consumers.pop(name)
                if name in self.crowded:
                    consumers = [self.crowded.pop(name).consumer()]
                self.done[name] = measure(consumers, self.of.least(name))

    def _add(self, name: str, site: Site, evidence: Evidence, rows: list[list[Ints]]) -> None:
        """Add one reader of a group."""
        known, model = self.consumers.setdefault(name, []), self.of.analysis.model
        if name not in self.crowded and crowded(self.of.readers[name], self.of.settings):
            self.crowded[name] = Together(len(rows[0]))
        if name in self.crowded:
            self.crowded[name].add(site, evidence, rows, model)
        else:
            known += consumers_of(site, evidence, rows, model, texts=self.of.texts)
