"""``--permute``: channels get the order in which the pattern will take the least.

How much a weight matters is the error that its zero makes: without samples its square, as a share of its layer's; with
samples ``w^2 * E x^2`` (wanda), or ``w^2 / (H^-1)_jj`` (obs, sparsegpt), the rise of a layer's squared error when that
weight alone goes and the rest makes up for it. With samples, layers that share a group are weighed by the variance of
what they feed.

Shapes: saliency has the shape of the stored weight; ``w`` is (d, O) where a layer is fitted, see
`onnxprune.sparsity.task`.

References
----------
Pool and Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021; the search is `onnxprune.permutation.search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import samples_for
from onnxprune.errors import NothingToPrune
from onnxprune.graph.analysis import analyse
from onnxprune.graph.folding import restored
from onnxprune.graph.interface import interface
from onnxprune.journey.given_shapes import bound
from onnxprune.journey.run import Run
from onnxprune.journey.save import Outcome, save
from onnxprune.model import Model
from onnxprune.options.pattern import parse_pattern
from onnxprune.options.sparsity import SparseOptions
from onnxprune.permutation.permute import Permuted, permute
from onnxprune.reconstruction.evidence import Evidence, moments_of
from onnxprune.reconstruction.layer import weights_of
from onnxprune.reconstruction.layers import Site
from onnxprune.report.lossless import LosslessReport
from onnxprune.runtime.inputs import Trial
from onnxprune.sparsity.magnitudes import squares
from onnxprune.sparsity.selection import select
from onnxprune.sparsity.sequential import Fitter
from onnxprune.sparsity.task import Task
from onnxprune.sparsity.weights import SparseWeight, find

__all__ = ["arrange", "reorder"]

Array = NDArray[Any]


def arrange(
    model: Model, targets: Sequence[SparseWeight], run: Run[SparseOptions]
) -> tuple[Permuted, list[SparseWeight]]:
    """Return a model in another order, and the same targets in it.

    Parameters
    ----------
    model : Model
        Without local functions.
    targets : sequence of SparseWeight
        Weights that will get zeros; no other has a say.
    run : Run
        With N:M.
    """
    options, pattern = run.options, parse_pattern(run.options.pattern)
    by_name = {t.name: t for t in targets if t.layout.axis is not None}
    with run.stage("order"):
        weighed = {} if options.calib is None else _weighed(model, by_name, run)

        def saliency(name: str) -> Array | None:
            if name not in by_name:
                return None
            values = weighed.get(name)
            if values is None:
                values = squares(by_name[name], model.weight(name))
                values = values / (float(values.mean(dtype=np.float64)) or 1.0)
            return values

        result = permute(
            model,
            saliency,
            (pattern.keep, pattern.of),
            input_shapes=options.input_shapes,
            seed=options.seed,
        )
    if result.model is model:
        return result, list(targets)
    names = {t.name for t in targets}
    return result, [t for t in find(result.model)[0] if t.name in names]


def reorder(run: Run[SparseOptions]) -> Outcome[LosslessReport]:
    """Reorder channels and put no zeros in: the journey of the pass ``permute``.

    Returns
    -------
    Outcome
        The model itself where no order is better.
    """
    options, pattern = run.options, parse_pattern(run.options.pattern)
    report = LosslessReport(change="reordered", notes=run.notes)
    outcome = Outcome(run.model, report)
    try:
        with run.stage("find"):
            selection = select(run.model, pattern, options)
    except NothingToPrune as reason:
        run.notes.append(str(reason))
    else:
        order, _ = arrange(selection.model, selection.targets, run)
        values = order.to_json()
        report.groups, report.refused, report.error = values["groups"], order.refused, values["law1"]
        if order.gains:
            report.summary = order.text(pattern.text)[:1]
            outcome.changed = restored(order.model, selection.folded)
    save(run, outcome)
    return outcome


def _weighed(model: Model, targets: dict[str, SparseWeight], run: Run[SparseOptions]) -> dict[str, Array]:
    """Return how much each weight of the layers that can be fitted matters, from their inputs in the model as it is."""
    options = run.options
    analysis = bound(run, lambda shapes: analyse(model, input_shapes=shapes, runs=Trial(model)))
    samples = samples_for(interface(analysis), options, analysis.inputs)
    fitter, saliencies = Fitter(analysis, samples, targets, set(), options, run.say), {}
    for site, evidence in fitter.originals():
        weight = _matters(model, site, evidence, targets[site.weight], options)
        if weight is not None:
            saliencies[site.weight] = weight
    return saliencies


def _matters(
    model: Model, site: Site, evidence: Evidence, target: SparseWeight, options: SparseOptions
) -> Array | None:
    """Return how much each weight of a layer matters, in the stored shape; None where its layout is another one."""
    matrices, pattern = weights_of(site, model)[0], parse_pattern(options.pattern)
    parts = []
    for block, problem in enumerate(moments_of(evidence.whole(centred=site.adder is not None))):
        task = Task(problem, matrices[block], site.view.channels, site.view.taps, pattern)
        if options.method == "wanda":
            scale = problem.h.diagonal() + problem.mx**2
        else:
            scale = 1 / np.linalg.inv(task.h).diagonal()
        parts.append(matrices[block] ** 2 * (scale / (evidence.spread or 1.0))[:, None])

    def stored(blocks: Sequence[Array]) -> Array:
        apart = np.stack([b.reshape(site.view.channels, site.view.taps, -1) for b in blocks])
        return target.layout.back(apart.transpose(0, 3, 1, 2).reshape(target.shape))

    same = np.allclose(stored(list(matrices)) ** 2, squares(target, model.weight(target.name)), rtol=1e-3)
    return stored(parts) if same else None
