"""Make LayerNorms RMS norms where that costs nothing, and nothing else: the journey of the pass ``center_norms``."""

from __future__ import annotations

from onnxprune.graph.analysis import analyse
from onnxprune.graph.inline import inline
from onnxprune.journey.given_shapes import bound
from onnxprune.journey.run import Run
from onnxprune.journey.save import Outcome, save
from onnxprune.options.pruning import Options
from onnxprune.report.lossless import LosslessReport
from onnxprune.rotation.centre import compared
from onnxprune.rotation.norms import rewrite
from onnxprune.rotation.streams import streams
from onnxprune.runtime.inputs import Trial

__all__ = ["center"]


def center(run: Run[Options]) -> Outcome[LosslessReport]:
    """Have streams written without their mean where all that reads them are LayerNorms, which become RMS norms.

    Returns
    -------
    Outcome
        The model itself where nothing was changed.
    """
    with run.stage("analyse"):
        model = inline(run.model)
        runs = Trial(model)
        analysis = bound(run, lambda shapes: analyse(model, input_shapes=shapes, runs=runs))
        every = streams(analysis)
    names = [analysis.coupling.nodes[s.norms[0].number].node.outputs[0] for s in every]
    refused = {n: s.why for n, s in zip(names, every, strict=True) if not s.centred}
    wanted = [s for s in every if s.centred]
    report = LosslessReport(change="centred", refused=refused, notes=[*run.notes, *analysis.notes])
    changed = run.model
    if wanted:
        with run.stage("rewrite"):
            rewritten = rewrite(analysis, wanted).model
        with run.stage("verify"):
            error, why = compared(analysis, wanted, rewritten)
        centred = [(n, s) for n, s in zip(names, every, strict=True) if s.centred]
        if why:
            refused |= {name: why for name, _ in centred}
        else:
            changed, report.error = rewritten, error
            report.groups = [{"group": name, "norms": len(s.norms)} for name, s in centred]
    outcome = Outcome(changed, report)
    save(run, outcome)
    return outcome
