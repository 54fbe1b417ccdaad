"""The journey of `onnxprune compress`, top down: pack as it is, or put weights on grids within the budget; check; tell.

What is promised is the size of the file, and that it is a model that onnxruntime loads; how far its outputs moved is
measured on samples that no fit saw, and told.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune.calibration.agreement import Judge
from onnxprune.calibration.samples import samples_for
from onnxprune.calibration.stream import stream_of
from onnxprune.compression.fitting import LARGEST, Layers
from onnxprune.compression.packing import drafts, keep
from onnxprune.compression.parts import parts_of, without
from onnxprune.compression.report import CompressReport
from onnxprune.compression.search import Attempt, GridSearch, lines
from onnxprune.compression.traces import without_traces
from onnxprune.errors import NothingToPrune, UsageError, many
from onnxprune.files.protowalk import body_weights
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.folding import fold_all
from onnxprune.graph.inline import inline
from onnxprune.graph.interface import interface
from onnxprune.journey.given_shapes import bound
from onnxprune.journey.output import refuse_overwrite, size_in_bytes
from onnxprune.journey.run import Run
from onnxprune.journey.save import Outcome, save
from onnxprune.latency.clock import bench_of, race, session_of
from onnxprune.model import Model
from onnxprune.options.compression import CompressOptions
from onnxprune.pruning.targets import parse_target
from onnxprune.reconstruction.layer import Settings
from onnxprune.reconstruction.layers import Site, seen, sites
from onnxprune.reconstruction.stored import Floats
from onnxprune.runtime.inputs import Trial
from onnxprune.sparsity.weights import Left

__all__ = ["CompressResult", "compress"]

#: How much more a quick packer makes of a model than a thorough one, at most.
ROUGH = 1.25


class CompressResult(Outcome[CompressReport]):
    """What `onnxprune.compress` gives back."""

    @property
    def compressed(self) -> Model:
        """The model that is in the file."""
        return self.changed


def compress(run: Run[CompressOptions], output: Path | None) -> CompressResult:
    """Do the whole journey.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`.
    """
    options = run.options
    place = None if output is None else options.place(output)
    refuse_overwrite(run.model, place, None, packed=options.packed(output))
    if options.target is None and output is not None and not options.packed(output):
        raise UsageError(
            "Without --target this would leave the file as it is; give a budget such as bytes=0.25, or pack it with "
            "--to zst."
        )
    zst, before = options.packed(output), size_in_bytes(run.model)
    report = CompressReport(form="zst" if zst else "onnx", bytes_before=before)
    with drafts(place, (run.model.path or Path("model.onnx")).name) as room:
        search = GridSearch(run, run.model, [], None, room if zst else None)
        attempt = Attempt(run.model)
        if options.target is not None:
            (target,) = parse_target(options.target)
            report.budget = target.value * before if target.relative else target.value
        if report.budget is None or not zst or room.rough(run.model) <= ROUGH * report.budget:
            with run.stage("code"):
                search.measured(attempt)
        if report.budget is not None:
            if attempt.nbytes > report.budget or not attempt.nbytes:
                attempt = _within(search, report)
            else:
                run.notes.append(
                    f"as it is the file takes {attempt.nbytes:,} bytes, which is within --target: no weight was changed"
                )
        return _finished(run, report, attempt, place)


def _within(search: GridSearch, report: CompressReport) -> Attempt:
    """Return a model within the budget, and what was done in the report."""
    run, judge = search.run, None
    base, traces = without_traces(fold_all(inline(run.model)).model)
    search.base = base
    if traces:
        run.notes.append(
            f"what the exporter wrote of its source beside the nodes was left out ({traces:,} bytes), as no runtime "
            "reads it"
        )
    if run.options.calib is not None:
        search.layers, judge = _layers(run, base)
    layers = search.layers
    by_weight = {} if layers is None else {site.weight: site for site in layers.sites}
    parts, left = parts_of(base, by_weight)
    search.parts, spared = without(parts, run.options.ignore, run.options.only)
    report.left = [*left, *spared]
    if not search.parts:
        raise NothingToPrune(_nothing(search, report.left))
    if layers is not None:
        wanted = {part.name for part in search.parts}
        layers.sites = [site for site in layers.sites if site.weight in wanted]
        others = sum(part.site is None for part in search.parts)
        if others:
            what = many(others, "weight")
            run.notes.append(
                f"{what} can't be fitted on samples: the loss is reckoned from their own squares"
            )
    attempt = search.within(report.budget or 0.0)
    kept = [part.name for part in search.parts if part.name not in attempt.parts]
    report.left += [Left(name, "as it is it loses nothing, and the budget has room for it") for name in kept]
    report.lines, report.curve = lines(search, attempt), search.curve
    if run.options.check_speed:
        analysis = _analysed(run, base) if layers is None else layers.analysis
        report.latency = _raced(run, base, attempt.model, analysis)
    if layers is not None:
        with run.stage("compare"):
            original = None if judge is None else judge.of_other(attempt.model)
        samples = layers.samples
        report.calibration = {"source": samples.source, "samples": samples.count, "original": original}
    return attempt


def _nothing(search: GridSearch, left: list[Left]) -> str:
    inner = sum(1 for _ in body_weights(search.base.proto))
    why = (
        f"{inner} weights lie in bodies of If, Loop or Scan"
        if inner
        else "none is large enough and of floats"
    )
    why = _most(search.base, left) if left else why
    plain = search.measured(Attempt(search.run.model)).nbytes
    return (
        f"--target {search.run.options.target} can't be met: no weight of the model may lie on a grid ({why}), and as "
        f"it is the file takes {plain:,} bytes."
    )


def _most(model: Model, left: list[Left]) -> str:
    """Return the reason that keeps most bytes of weights, with the largest of these."""
    held: dict[str, dict[str, int]] = {}
    for one in left:
        held.setdefault(one.reason, {})[one.name] = model.info(one.name).nbytes
    reason, sizes = max(held.items(), key=lambda item: sum(item[1].values()))
    name, more = max(sizes, key=lambda n: sizes[n]), len(sizes) - 1
    others = f" and {many(more, 'other weight')}" if more else ""
    return f"{name!r}{others}: {reason}"


def _layers(run: Run[CompressOptions], base: Model) -> tuple[Layers, Judge | None]:
    """Return the layers that can be fitted on samples, and what compares on those that no fit sees."""
    analysis = _analysed(run, base)
    with run.stage("samples"):
        fit_on, aside = samples_for(interface(analysis), run.options, analysis.inputs).set_aside()
        judge = Judge.of(base, aside, run.notes)
    told = seen(sites(analysis), stream_of(base, fit_on))
    fitted = [_without_new_bias(s) for s in told if isinstance(s.codec, Floats) and s.view.width <= LARGEST]
    return Layers(analysis, fit_on, fitted, Settings(seed=run.options.seed, wide=LARGEST), run.say), judge


def _analysed(run: Run[CompressOptions], base: Model) -> Analysis:
    with run.stage("analyse"):
        return bound(run, lambda shapes: analyse(base, input_shapes=shapes, runs=Trial(base)))


def _raced(run: Run[CompressOptions], base: Model, made: Model, analysis: Analysis) -> dict[str, Any]:
    """Return how fast the result is beside the input, timed in turns."""
    with run.stage("time"):
        bench = bench_of(base, analysis, "cpu", None, None, run.options.seed)
        return race(session_of(base, bench), session_of(made, bench), bench).to_json()


def _without_new_bias(site: Site) -> Site:
    """Return a layer that gets no bias where it had none."""
    return site if site.bias is not None else replace(site, adder=None)


def _finished(
    run: Run[CompressOptions], report: CompressReport, attempt: Attempt, place: Path | None
) -> CompressResult:
    report.notes = run.notes
    result = CompressResult(attempt.model, report, place)
    draft = attempt.draft
    if draft is None:
        _, report.bytes_after = save(run, result)
        report.bytes_model = report.bytes_after
        return result
    report.sha256 = {"input": run.sha256(), "unpacked": draft.packing.sha256}
    report.name_files(run.source.path, place)
    report.bytes_model, report.bytes_after = draft.packing.nbytes, draft.nbytes
    if place is not None:
        with run.stage("save"):
            keep(draft, place)
    report.options, report.seconds = run.options.to_json(), run.seconds
    if run.options.reproducible:
        report.created, report.seconds = "", {}
    return result
