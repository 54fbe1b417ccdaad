"""Turn a model's mixable groups, and nothing else: the journey of the pass ``rotate``."""

from __future__ import annotations

from onnxprune.graph.analysis import analyse
from onnxprune.graph.inline import inline
from onnxprune.graph.select import pick
from onnxprune.journey.run import Run
from onnxprune.journey.save import Outcome, save
from onnxprune.options.pruning import Options
from onnxprune.reconstruction.plausible import read_samples
from onnxprune.report.lossless import LosslessReport
from onnxprune.rotation.basis import rotate
from onnxprune.rotation.linear import widths_for_heads
from onnxprune.runtime.inputs import Trial

__all__ = ["turn"]


def turn(run: Run[Options]) -> Outcome[LosslessReport]:
    """Give each group that can be mixed the basis in which its first axes hold most of what is read.

    Parameters
    ----------
    run : Run
        With samples; of its options those count that `onnxprune.passes.rotate` has.

    Returns
    -------
    Outcome
        The model itself where nothing could be turned.

    Raises
    ------
    CalibrationError
        If the samples don't fit the model.
    """
    options = run.options
    with run.stage("analyse"):
        model = inline(run.model)
        analysis = analyse(model, input_shapes=options.input_shapes, runs=Trial(model), folds="weights")
    with run.stage("samples"):
        samples = read_samples(analysis, options, run.progress)
    with run.stage("rotate"):
        groups = pick(analysis.grouping, options.ignore, options.only)
        wide = widths_for_heads(analysis, groups, options.ignore, 1)
        rotated = rotate(analysis, wide, samples, run.progress, integers=False)
    units = {group.name: group.units for group in wide}
    names = dict.fromkeys(mixable.group for mixable in rotated.mixed)
    report = LosslessReport(
        change="turned",
        groups=[{"group": name, "units": units[name]} for name in names],
        refused=rotated.refused,
        notes=run.notes,
    )
    turned = analysis.restored(rotated.analysis.model) if names else run.model
    outcome = Outcome(turned, report)
    save(run, outcome)
    return outcome
