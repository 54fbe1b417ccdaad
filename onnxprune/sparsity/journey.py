"""The journey of `onnxprune sparsify`, top down: select weights, reorder channels, put zeros in, check, report, save.

The model keeps its graph and its shapes; values of weights change, nothing else. So there is no plan and no law 1 here:
what is checked is that the zeros lie where the pattern says, and what is told is how far the outputs moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import registry
from onnxprune.calibration.agreement import Judge
from onnxprune.calibration.samples import samples_for
from onnxprune.errors import UsageError, VerificationError, many
from onnxprune.graph.analysis import analyse
from onnxprune.graph.folding import restored
from onnxprune.graph.interface import interface
from onnxprune.journey.given_shapes import bound
from onnxprune.journey.output import refuse_overwrite
from onnxprune.journey.run import Run
from onnxprune.journey.save import Outcome, save
from onnxprune.model import Model
from onnxprune.options.pattern import Pattern, parse_pattern
from onnxprune.options.sparsity import SparseOptions
from onnxprune.runtime.inputs import Trial
from onnxprune.sparsity import dead
from onnxprune.sparsity.layer import LayerFit
from onnxprune.sparsity.magnitudes import blanked, masks
from onnxprune.sparsity.masks import holds
from onnxprune.sparsity.order import arrange
from onnxprune.sparsity.report import SparseReport, line_of
from onnxprune.sparsity.selection import Selection, select
from onnxprune.sparsity.sequential import LARGE, Fitter
from onnxprune.sparsity.storage import CANT_READ, to_sparse
from onnxprune.sparsity.weights import SparseWeight

__all__ = ["SparseResult", "sparsify"]


class SparseResult(Outcome[SparseReport]):
    """What `onnxprune.sparsify` gives back."""

    @property
    def sparse(self) -> Model:
        """The model with zeros."""
        return self.changed


def sparsify(run: Run[SparseOptions], output: Path | None) -> SparseResult:
    """Do the whole journey.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`.
    """
    options, pattern = run.options, parse_pattern(run.options.pattern)
    refuse_overwrite(run.model, output, options.in_place, options.external_data_threshold)
    reads = registry.load("onnxprune.sparsity.methods", options.method).READS
    if reads != "weights" and options.calib is None:
        raise UsageError(f"--method {options.method} needs samples; give them with --calib.")
    with run.stage("find"):
        selection = select(run.model, pattern, options)
    report = SparseReport(pattern.text, left=selection.left)
    targets, model, sparse = selection.targets, selection.model, run.model
    if not (options.sparsity == 0 or (pattern.fixed and pattern.keep == pattern.of)):
        if options.permute:
            report.order, targets = arrange(model, targets, run)
            model = report.order.model
        zeros = _put_zeros(run, model, targets, selection.spared, pattern)
        report.fits, report.calibration = zeros.fits, zeros.calibration
        _check(zeros.model, targets, pattern)
        sparse = _unfolded(zeros.model, selection, targets)
        with run.stage("dead units"):
            run.notes += [text for text in [dead.note(sparse, targets)] if text]
    with run.stage("report"):
        report.lines = [line_of(t, model, sparse, report, options.method) for t in targets]
    if options.store == "sparse" and sparse is not run.model:
        report.sparse = _store_sparse(run, sparse, targets)
    report.notes = run.notes
    result = SparseResult(sparse, report, output)
    report.bytes_before, report.bytes_after = save(run, result)
    return result


@dataclass
class _Zeros:
    """A model with zeros; with samples, how each layer was fitted, and on what."""

    model: Model
    fits: dict[str, LayerFit] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None


def _put_zeros(
    run: Run[SparseOptions], model: Model, targets: Sequence[SparseWeight], spared: set[str], pattern: Pattern
) -> _Zeros:
    """Choose zeros, by the weights alone or on samples."""
    if run.options.calib is None:
        with run.stage("choose"):
            return _Zeros(_by_magnitude(model, targets, pattern, run.options))
    return _on_samples(run, model, targets, spared, pattern)


def _by_magnitude(
    model: Model, targets: Sequence[SparseWeight], pattern: Pattern, options: SparseOptions
) -> Model:
    """Return a model in which the smallest weights are zero."""
    sparse = model.fork()
    sparsity, scope, method = options.sparsity or 0.0, options.scope, options.method
    for target, keep in masks(model, targets, pattern, sparsity, scope, method):
        weight = model.weight(target.name)
        new = blanked(target, weight, keep)
        if new is not weight:
            sparse.put(target.name, new)
    return sparse


def _on_samples(
    run: Run[SparseOptions], model: Model, targets: Sequence[SparseWeight], spared: set[str], pattern: Pattern
) -> _Zeros:
    """Choose zeros by what they cost on samples, layer after layer; what can't be fitted goes by magnitude."""
    options = run.options
    with run.stage("analyse"):
        analysis = bound(run, lambda shapes: analyse(model, input_shapes=shapes, runs=Trial(model)))
    with run.stage("samples"):
        fit_on, aside = samples_for(interface(analysis), options, analysis.inputs).set_aside()
        judge = Judge.of(model, aside, run.notes)
    fitter = Fitter(analysis, fit_on, {t.name: t for t in targets}, spared, options, run.say)
    others = [t for t in targets if t.name not in fitter.fitted]
    if fitter.dear:
        run.notes.append(
            f"{many(len(fitter.dear), 'weight')} ({fitter.dear[0]!r} first) got zeros by {LARGE}: by {options.method} "
            "all would take too long together."
        )
    with run.stage("fit"):
        sparse = fitter.run(pattern, options.sparsity or 0.0)
    if others:
        plain = options.without_samples(method="magnitude", scope="local")
        with run.stage("choose"):
            sparse = _by_magnitude(sparse, others, pattern, plain)
        run.notes.append(
            f"{many(len(others), 'weight')} can't be fitted ({others[0].name!r} first), and got zeros by magnitude."
        )
    with run.stage("compare"):
        agreement = None if judge is None else judge.of_other(sparse)
    calibration = {"source": fit_on.source, "samples": fit_on.count, "original": agreement}
    return _Zeros(sparse, fitter.fits, calibration)


def _check(model: Model, targets: Sequence[SparseWeight], pattern: Pattern) -> None:
    """Look at the result once more, with other code than what made it."""
    if not pattern.fixed:
        return
    for target in targets:
        zero = target.layout.view(target.zeros(np.asarray(model.weight(target.name))))
        if not holds(pattern, zero):
            raise VerificationError(f"{target.name!r} isn't {pattern.text} along its inputs; this is a bug.")


def _unfolded(sparse: Model, selection: Selection, targets: Sequence[SparseWeight]) -> Model:
    """Compute again what was folded only to be looked at."""
    if not selection.folded.tensors:
        return sparse
    return restored(sparse, selection.folded, {t.name for t in targets})


def _store_sparse(run: Run[SparseOptions], sparse: Model, targets: Sequence[SparseWeight]) -> list[str]:
    """Move weights to sparse_initializer where that is smaller, and return which."""
    names = to_sparse(sparse, list(targets))
    why = f"that {CANT_READ} can't read" if names else "since no weight would be smaller"
    run.notes.append(f"written as sparse_initializer: {many(len(names), 'weight')}, {why}.")
    return names
