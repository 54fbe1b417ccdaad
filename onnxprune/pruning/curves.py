"""From samples to loss curves: turn what can be turned, then run the original once, or read what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.ranking import FLOOR
from onnxprune.calibration.samples import Samples
from onnxprune.errors import UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.options.widths import step_of
from onnxprune.pruning.saliency import criterion_of, ranked_by_weights
from onnxprune.reconstruction.cache import curves_of, facts_of, keep
from onnxprune.reconstruction.from_moments import MomentCalibration
from onnxprune.reconstruction.least_squares import Curve
from onnxprune.reconstruction.moment_file import MomentFile
from onnxprune.reconstruction.sequential import Calibration
from onnxprune.rotation.basis import Rotated, rotate
from onnxprune.rotation.linear import widths_for_heads
from onnxprune.rotation.products import products

__all__ = ["measured", "without_samples"]


def measured(
    run: Run[Options],
    analysis: Analysis,
    groups: list[Group],
    samples: Samples,
    moments: MomentFile | None = None,
) -> tuple[Calibration, Rotated]:
    """Return a calibration with the loss curves of all groups that have one, and what was turned for it.

    Parameters
    ----------
    run : Run
    analysis : Analysis
    groups : list of Group
        That may be cut; where heads are turned, their widths take the place of whole heads.
    samples : Samples
        That fits may see; none where there are moments alone.
    moments : MomentFile, optional
        Of the layers as they are: then nothing is turned.

    Raises
    ------
    CalibrationError
        If the samples or the moments don't fit the model.
    UsageError
        If there are moments, and the criterion reads something else.
    """
    options = run.options
    criterion = criterion_of(options.criterion)
    with_data = criterion.score is None
    rotated = Rotated(analysis)
    if moments is not None and criterion.measure.curve is None:
        raise UsageError(
            f"--criterion {options.criterion} reads {'runs of the model' if with_data else 'weights'}, and --moments "
            "gives moments; leave one of them out."
        )
    if with_data and options.rotate and moments is None:
        with run.stage("rotate"):
            wide = widths_for_heads(analysis, groups, options.ignore, step_of(options.align))
            rotated = rotate(analysis, wide, samples, run.progress)
            back = {g.component for g in wide if g.name in rotated.refused}
            groups = [g for g in groups if g.component in back] + [g for g in wide if g.component not in back]
    given: Any = (
        rotated.analysis, samples, groups, criterion.measure, options.recover, options.seed, run.progress,
    )  # fmt: skip
    if moments is not None:
        calibration: Calibration = MomentCalibration(*given, moments=moments)
        with run.stage("calibrate"):
            calibration.measure_curves()
    else:
        calibration = Calibration(*given)
    if with_data:
        if moments is None:
            calibration.curves = _curves(run, calibration, rotated)
        with run.stage("rotate"):
            by_group = products(rotated, samples, calibration.sites, FLOOR, run.progress)
            names = {g.name for g in groups}
            calibration.products = {name: product for name, product in by_group.items() if name in names}
        curves = calibration.curves
        curves |= {n: p.with_readers(curves.get(n)) for n, p in calibration.products.items()}
        others = [g for g in groups if g.name not in curves]
        calibration.by_norm = [g.name for g in others]
        curves |= _by_norm(rotated.analysis.model, others, replace(options, criterion="l2"), curves)
    return calibration, rotated


def _by_norm(
    model: Model, groups: Sequence[Group], options: Options, measured: Mapping[str, Curve]
) -> dict[str, Curve]:
    """Return curves from weights alone, for groups that are read by what can't be fitted (Einsum, LSTM, other data).

    Nothing makes up for their loss: half of one costs as much, in each layer that reads it, as half of the group that
    the samples show to be the dearest. A residual stream has a hundred such layers.
    """
    ranked = ranked_by_weights(model, groups, options)

    def half(error: NDArray[np.float64]) -> float:
        return float(error[(len(error) - 1) // 2])

    dear = [half(c.error) for c in measured.values() if 0 < half(c.error) < np.inf]
    own = [half(r.error) for r in ranked.values() if 0 < half(r.error) < np.inf]
    factor = max(dear) / float(np.median(own)) if dear and own else 1.0
    layers = {g.name: len({m.tensor for m in g.members if m.contracted}) for g in groups}
    return {name: Curve(r.order, r.error * factor * max(layers[name], 1)) for name, r in ranked.items()}


def _curves(run: Run[Options], calibration: Calibration, rotated: Rotated) -> dict[str, Curve]:
    """Return the curves that were kept, or take them."""
    options = run.options
    facts = facts_of(
        run.sha256(),
        calibration.samples,
        calibration.groups,
        criterion=options.criterion,
        seed=options.seed,
        inexact=options.allow_inexact,
        rotated=[m.name for m in rotated.mixed],
    )
    kept = curves_of(facts)
    if kept:
        calibration.untaken = True
        return kept
    with run.stage("calibrate"):
        calibration.measure_curves()
    keep(facts, calibration.curves)
    return calibration.curves


def without_samples(options: Options) -> list[str]:
    """Say what moments alone can't do, and what nobody does with them."""
    notes = ["by --moments heads and bottlenecks are cut as they are: turning them reads samples."]
    if options.calib is None:
        together = " --recover blocks ended after least squares;" if options.recover == "blocks" else ""
        inputs = "each layer was fitted to inputs of the original, not to those that the cut model gives it, "
        notes.append(
            f"--moments were given without --calib:{together} {inputs if options.recover != 'none' else ''}errors of "
            "different groups weigh the same, and nothing was compared with the original on samples."
        )
    return notes
