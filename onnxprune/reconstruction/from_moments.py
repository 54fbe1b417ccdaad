"""Loss curves and refits from moments that lie in a file, taken by `onnxprune calibrate` on any number of machines.

Curves are those of the same moments taken in one run. With samples beside the file layers are fitted in order, each to
inputs as they are by then, as ever. Without, each layer is fitted by itself, to its inputs and outputs in the original:
what layers before it have lost is not made up for. What reads samples and not moments (segments of layers,
distillation, trial fits, turned heads) is left out then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.model import Model
from onnxprune.reconstruction.curves import Curves
from onnxprune.reconstruction.dual import RowStack
from onnxprune.reconstruction.evidence import Evidence
from onnxprune.reconstruction.layer import Settings, weights_of
from onnxprune.reconstruction.layers import Site, gone
from onnxprune.reconstruction.least_squares import Curve
from onnxprune.reconstruction.moment_file import MomentFile
from onnxprune.reconstruction.moments import Stack
from onnxprune.reconstruction.narrow import narrowed
from onnxprune.reconstruction.room import admit
from onnxprune.reconstruction.sequential import Calibration, Fitted, Fitting, Ints

__all__ = ["MomentCalibration"]

Array = NDArray[Any]


@dataclass
class MomentCalibration(Calibration):
    """A model, the moments of its layers, and samples or none.

    Attributes
    ----------
    moments : MomentFile
        Of the same model, see `MomentFile.check_whole`.
    """

    moments: MomentFile = field(kw_only=True)

    def __post_init__(self) -> None:
        """Find the layers that can be fitted."""
        super().__post_init__()
        if not self.samples.batches:  # what comes after least squares runs over samples
            self.settings: Settings = replace(
                self.settings, recovery=replace(self.settings.recovery, together=False)
            )

    def _layers(self) -> list[Site]:
        known = self.moments.layers(self.analysis)
        if not self.samples.batches:
            return known
        numbers = {site.number for site in known}
        return [site for site in super()._layers() if site.number in numbers]

    def measure_curves(self) -> None:
        """Take the loss curve of each group from the moments of the layers that read it."""
        read = {s.number for reads in self.readers.values() for s, _ in reads}
        needed = [s for s in self.sites if s.number in read]
        admit(needed, self.settings)
        curves = Curves(self)
        for n, site in enumerate(needed):
            self._tell(f"calibrate {n + 1}/{len(needed)}: {site.name}")
            curves.take(site, self.moments.evidence(site))
        self.curves: dict[str, Curve] = curves.done

    def fit_all(
        self, removed: Sequence[Mapping[str, Ints]], *, measure: bool = False, follow: int | None = None
    ) -> list[Fitted]:
        """Fit the layers of models, see `Calibration.fit_all`; without samples those alone that lose what they read."""
        if self.samples.batches:
            return super().fit_all(removed, measure=measure, follow=follow)
        members = [Fitting.of(self, units, whole=False) for units in removed]
        lost = [gone(self.reading, m.fitted.removed) for m in members]
        todo = [s for s in self.sites if any(_reads(s, cut) for cut in lost)]
        admit(todo, self.settings)
        model = self.analysis.model
        for n, site in enumerate(todo):
            self._tell(f"fit {n + 1}/{len(todo)}: {site.name}")
            form = narrowed(site, model) if site.lean else site
            evidence = reached(form, self.moments.evidence(site), model)
            for member, cut in zip(members, lost, strict=True):
                if _reads(site, cut):
                    self._fit(member.fitted, site, form, evidence)
        return [m.fitted for m in members]


def reached(form: Site, evidence: Evidence, model: Model) -> Evidence:
    """Return moments with targets, those that the original's weights give.

    Parameters
    ----------
    form : Site
        The layer as it is fitted, see `onnxprune.reconstruction.narrow`.
    evidence : Evidence
        Without targets.
    model : Model
        The original.
    """
    matrices, bias = weights_of(form, model)
    fitting, aside = evidence.fitting, evidence.aside
    if isinstance(fitting, RowStack) and isinstance(aside, RowStack):
        for table, w, b in zip(fitting.tables, matrices, bias, strict=True):
            table.y = [np.asarray(x @ w + b, x.dtype) for x in table.x]
        return Evidence(form.view, fitting, aside, evidence.spread)
    stacks = [_stack(stack, matrices, bias) for stack in (fitting, aside) if isinstance(stack, Stack)]
    return Evidence(form.view, stacks[0], stacks[1], evidence.spread)


def _stack(stack: Stack, w: Array, bias: Array) -> Stack:
    """Return moments with the targets ``y = W^T x + b``: ``X^T Y = X^T X W``."""
    cross = stack.gram @ w
    mean = np.einsum("bd,bdo->bo", stack.mean, w) + bias
    square = np.maximum((w * cross).sum(axis=1), 0)
    return Stack(
        stack.n,
        np.concatenate([stack.mean, mean], axis=1),
        np.concatenate([stack.gram, cross], axis=2),
        square,
    )


def _reads(site: Site, cut: Mapping[str, list[Ints]]) -> bool:
    """Whether anything that a layer reads goes."""
    return any(np.size(rows) for rows in cut.get(site.weight, ()))
