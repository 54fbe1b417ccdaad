"""The journey of `onnxprune sparsify`: find the weights, choose zeros, put them in, check, report, save."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from onnxprune import registry
from onnxprune.calibration.agreement import compare, outputs
from onnxprune.calibration.samples import samples_for
from onnxprune.errors import CalibrationError, NothingToPrune, UsageError, VerificationError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.folding import restored
from onnxprune.graph.inline import inline
from onnxprune.model import Model
from onnxprune.options.pattern import Pattern, parse_pattern
from onnxprune.options.sparsity import SparseOptions
from onnxprune.pruning import journey as pipeline
from onnxprune.pruning.journey import Progress
from onnxprune.runtime.inputs import Trial
from onnxprune.sparsity import dead
from onnxprune.sparsity.clock import Clock
from onnxprune.sparsity.magnitudes import blanked, masks
from onnxprune.sparsity.masks import holds
from onnxprune.sparsity.order import arrange
from onnxprune.sparsity.report import SparseReport, line_of
from onnxprune.sparsity.sequential import Fitter
from onnxprune.sparsity.storage import CANT_READ, to_sparse
from onnxprune.sparsity.weights import Left, Target, find, fold_computed

__all__ = ["SparseResult", "sparsify"]

LEAST_SAMPLES = 5
#: Samples that no fit sees, for the figures of the whole model.
ASIDE = 0.1


@dataclass
class SparseResult:
    """What `onnxprune.sparsify` gives back.

    Attributes
    ----------
    sparse : Model
        The model with zeros.
    report : SparseReport
    path : Path or None
        Where it was written.
    """

    sparse: Model
    report: SparseReport
    path: Path | None = None
    _proto: onnx.ModelProto | None = field(default=None, repr=False)

    @property
    def model(self) -> onnx.ModelProto:
        """The model as a complete ModelProto, its weights included."""
        if self._proto is None:
            self._proto = self.sparse.to_proto()
        return self._proto


def sparsify(
    source: Model, output: Path | None, options: SparseOptions, progress: Progress | None = None
) -> SparseResult:
    """Do the whole journey.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`.
    """
    clock = Clock(progress)
    pipeline.refuse_overwrite(source, output, options.in_place, options.external_data_threshold)
    pattern = parse_pattern(options.pattern)
    if registry.load("onnxprune.sparsity.methods", options.method).DATA and options.calib is None:
        raise UsageError(f"--method {options.method} needs samples; give them with --calib.")
    with clock.stage("find"):
        folded = fold_computed(inline(source))
        model = folded.model
        found, left = find(model)
        targets, spared = pick(found, options.ignore, options.only, folded.aliases)
        targets, small = _fitting(targets, pattern)
    report = SparseReport(pattern.text, left=[*left, *spared, *small], options=options.to_json())
    if not targets:
        raise NothingToPrune(
            f"No weight can get zeros in the pattern {pattern.text}; 'onnxprune inspect --sparsity' lists reasons."
        )
    if options.sparsity == 0 or (pattern.fixed and pattern.keep == pattern.of):
        result = source
    else:
        if options.permute:
            report.order, targets = arrange(model, targets, options, clock)
            model = report.order.model
        if options.calib is None:
            result = _treat(model, targets, pattern, options, clock)
        else:
            result = _with_samples(model, targets, spared, report, options, clock)
        _check(result, targets, pattern)
        if folded.tensors and result is not source:
            result = restored(result, folded, {t.name for t in targets})
        with clock.stage("dead units"):
            report.notes += [text for text in [dead.note(result, targets)] if text]
    with clock.stage("report"):
        report.lines = [line_of(t, model, result, report, options.method) for t in targets]
        report.bytes_before = source.nbytes if source.path is None else pipeline.size_in_bytes(source)
    report.sha256["input"] = source.sha256
    if options.store == "sparse" and result is not source:
        report.sparse = to_sparse(result, targets)
        said = f"that {CANT_READ} can't read" if report.sparse else "since no weight would be smaller"
        report.notes.append(f"{len(report.sparse)} weights are written as sparse_initializer, {said}.")
    return _save(source, SparseResult(result, report, output), options, clock)


def _save(source: Model, result: SparseResult, options: SparseOptions, clock: Clock) -> SparseResult:
    report, output = result.report, result.path
    report.name_files(source.path, output)
    if output is not None:
        with clock.stage("save"):
            report.sha256["output"] = result.sparse.save(
                output, in_place=options.in_place, external_threshold=options.external_data_threshold
            )
    if output is None:  # a fork still has the path of its source
        report.bytes_after = result.sparse.nbytes
    else:
        report.bytes_after = pipeline.size_of_output(output)
    report.seconds = clock.seconds
    return result


def pick(
    targets: Sequence[Target],
    ignore: Sequence[str],
    only: Sequence[str],
    aliases: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[list[Target], list[Left]]:
    """Return the weights that may be treated under ``--ignore`` and ``--only``, and the others.

    Parameters
    ----------
    targets : sequence of Target
    ignore, only : sequence of str
        Regular expressions.
    aliases : mapping, optional
        Weight -> names that went into it when it was folded.

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    """

    def hit(pattern: str, target: Target) -> bool:
        names = (target.name, *(r.name for r in target.readers), *(aliases or {}).get(target.name, ()))
        return any(re.search(pattern, name) for name in names)

    for option, patterns in (("--ignore", ignore), ("--only", only)):
        for pattern in patterns:
            if not any(hit(pattern, t) for t in targets):
                raise UsageError(
                    f"{option} {pattern!r} matches no weight that could get zeros, and no layer of one."
                )
    kept, left = [], []
    for target in targets:
        if any(hit(p, target) for p in ignore):
            left.append(Left(target.name, "--ignore"))
        elif only and not any(hit(p, target) for p in only):
            left.append(Left(target.name, "not named by --only"))
        else:
            kept.append(target)
    return kept, left


def _fitting(targets: Sequence[Target], pattern: Pattern) -> tuple[list[Target], list[Left]]:
    """Return the weights in which at least one tile of a pattern fits, and the others."""
    kept, left = [], []
    for target in targets:
        _, outputs, inputs, taps = target.shape
        if pattern.kind == "kernel" and taps == 1:
            left.append(Left(target.name, "it has no kernel: one tap only"))
        elif pattern.fixed and inputs < pattern.of:
            left.append(Left(target.name, f"fewer than {pattern.of} inputs"))
        elif pattern.kind == "block" and (outputs < pattern.rows or inputs < pattern.columns):
            left.append(Left(target.name, f"smaller than a block of {pattern.rows}x{pattern.columns}"))
        else:
            kept.append(target)
    return kept, left


def _treat(
    model: Model, targets: Sequence[Target], pattern: Pattern, options: SparseOptions, clock: Clock
) -> Model:
    """Return a model with zeros put in."""
    result = model.fork()
    with clock.stage("choose"):
        keep = masks(model, targets, pattern, options.sparsity or 0.0, options.scope, options.method)
        for target in targets:
            weight = model.weight(target.name)
            new = blanked(target, weight, keep[target.name])
            if new is not weight:
                result.put(target.name, new)
    return result


def _with_samples(
    model: Model,
    targets: Sequence[Target],
    spared: Sequence[Left],
    report: SparseReport,
    options: SparseOptions,
    clock: Clock,
) -> Model:
    """Return a model with zeros put in and layers fitted; what can't be fitted goes by magnitude."""
    pattern = parse_pattern(options.pattern)
    with clock.stage("analyse"):
        analysis = analyse(model, input_shapes=options.input_shapes, runs=Trial(model))
    with clock.stage("samples"):
        samples = samples_for(analysis.interface(), options, analysis.inputs)
        if samples.count < LEAST_SAMPLES:
            raise CalibrationError(
                f"There are {samples.count} samples only; a fifth is held out of every fit, so give "
                f"{LEAST_SAMPLES} at least."
            )
        fit_on, aside = samples.split(ASIDE) if samples.count >= 20 else (samples, None)
    by_name = {t.name: t for t in targets}
    fitter = Fitter(analysis, fit_on, by_name, {one.name for one in spared}, options, clock)
    others = [t for t in targets if t.name not in fitter.fitted]
    with clock.stage("fit"):
        result = fitter.run(pattern, options.sparsity or 0.0)
    if others:
        plain = options.without_samples(method="magnitude", scope="local")
        result = _treat(result, others, pattern, plain, clock)
        report.notes.append(
            f"{len(others)} weights can't be fitted ({others[0].name!r} first), and got their zeros by magnitude."
        )
    report.fits = fitter.fits
    found = None
    if aside is not None:
        with clock.stage("compare"):
            found = compare(outputs(model, aside), outputs(result, aside), aside.labels)
    report.calibration = {"source": fit_on.source, "samples": fit_on.count, "original": found}
    return result


def _check(model: Model, targets: Sequence[Target], pattern: Pattern) -> None:
    """Look at the result once more, with other code than what made it."""
    if not pattern.fixed:
        return
    for target in targets:
        zero = target.layout.view(target.zeros(np.asarray(model.weight(target.name))))
        if not holds(pattern, zero):
            raise VerificationError(f"{target.name!r} isn't {pattern.text} along its inputs; this is a bug.")
