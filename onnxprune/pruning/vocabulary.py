"""The vocabulary is cut first: all that follows works on a model that takes the same ids and has fewer rows.

Samples and inputs, which are in the original's ids, so hold for that model, too. Where ids shall count anew, the map
in front of each lookup is taken out in the end.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.inputs import feeds
from onnxprune.calibration.samples import load_samples
from onnxprune.calibration.tokens import Tokens, frequent, read_tokens
from onnxprune.cut.cuts import TensorCut, cuts_of
from onnxprune.cut.put_back import Failed
from onnxprune.cut.vocabulary import renumbered, shortened
from onnxprune.errors import ModelError, NothingToPrune, OutputError, PlanError, UsageError, VerificationError
from onnxprune.files.commit import write_text
from onnxprune.files.target import same
from onnxprune.graph.analysis import analyse
from onnxprune.graph.inline import inline
from onnxprune.graph.vocabulary import Vocabulary
from onnxprune.journey.given_shapes import bound
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.proof.same import difference
from onnxprune.proof.vocabulary import cleaned
from onnxprune.pruning.outline import group_line
from onnxprune.pruning.plan import Plan, PlannedVocabulary
from onnxprune.pruning.proving import proved
from onnxprune.pruning.report import Report
from onnxprune.pruning.source import Reduced, size_of
from onnxprune.report.signature import changed_interface
from onnxprune.runtime.inputs import Trial, random_inputs
from onnxprune.runtime.session import Feeds

__all__ = [
    "IDS",
    "Narrowed",
    "checked_size",
    "finished",
    "narrowed",
    "planned_with",
    "renumbered_run",
    "tell",
    "write_ids",
]

Ints = NDArray[np.int64]

#: The file beside a result that says how ids count in it.
IDS = "ids.json"
#: Greatest relative difference between two runs of the same layers.
SAME = 1e-6


@dataclass(kw_only=True)
class Narrowed(Reduced):
    """A run on a model whose vocabulary was cut.

    Attributes
    ----------
    vocabulary : Vocabulary
        Of the original.
    keep : int64[n]
        The ids that stay, ascending.
    unk : int
        What the others are read as.
    """

    vocabulary: Vocabulary
    keep: Ints
    unk: int

    @property
    def places(self) -> Ints:
        """The new number of each id."""
        return self.vocabulary.places(self.keep, self.unk)

    @property
    def numbers(self) -> str:
        """Old number -> new number of each id that stays, as JSON."""
        return json.dumps({str(old): new for new, old in enumerate(self.keep.tolist())}, indent=0) + "\n"

    @property
    def shrinks(self) -> list[str]:
        """Outputs that have an element for each id that stays."""
        changes = changed_interface(self.original.proto.graph, self.model.proto.graph)
        return [change["name"] for change in changes if change["kind"] == "output"]


def narrowed(run: Run[Options], output: Path | None = None) -> Run[Options]:
    """Cut the vocabulary, prove it, and return a run on the result; the run itself where that isn't asked for.

    Raises
    ------
    UsageError
        If the ids can't be read, or one is out of range.
    NothingToPrune
        If there is no vocabulary, or none of it can go.
    VerificationError
        If law 1 doesn't hold.
    OutputError
        If ``ids.json`` would replace that of another model.
    """
    options = run.options
    if options.keep_tokens is None or isinstance(run, Narrowed):
        return run
    with run.stage("vocabulary"):
        vocabulary = _found(run)
        keep, unk = _chosen(run, vocabulary)
        rewritten = shortened(vocabulary, keep, unk)
        analysis = vocabulary.analysis
        values: dict[str, Any] = {spec.name: getattr(run, spec.name) for spec in dataclasses.fields(Run)}
        size = size_of(run.model, analysis)
        now = Narrowed(
            **values | {"model": rewritten.model}, original=run.model, whole=analysis, before=size,
            cuts=cuts_of(analysis.coupling, rewritten.dead), vocabulary=vocabulary, keep=keep, unk=unk,
        )  # fmt: skip
    _refuse_ids(now, output)
    if options.verify:
        with run.stage("verify"):
            try:
                masked, more = cleaned(vocabulary, keep, unk), _drawn(vocabulary, keep, options.seed)
                proof = proved(run, analysis, rewritten.dead, rewritten.model, masked, more)
            except Failed as failure:
                raise VerificationError(
                    f"The cut of the vocabulary isn't exact: {str(failure).rstrip('.')}."
                ) from failure
        now.law1, now.checks = proof.law1(), list(proof.checks)
        run.notes += [f"vocabulary: {note}" for note in proof.notes]
    return now


def _refuse_ids(run: Narrowed, output: Path | None) -> None:
    """Refuse to replace how ids count in another model."""
    if output is None or (run.options.remap and not run.shrinks):
        return
    beside, other = output.with_name(IDS), "" if run.options.remap else ", or give --remap"
    if output.name.casefold() == IDS:
        raise OutputError(f"{str(output)!r} is where ids are told of; choose another name for OUT{other}.")
    if not beside.exists() or beside.read_bytes() == run.numbers.encode():
        return
    if run.original.path is not None and same(output, run.original.path):
        raise OutputError(
            f"{str(beside)!r} says how the ids of the input count, or another model's, and would be lost; choose "
            f"another folder for OUT{other}."
        )
    if not _is_of(beside, output):
        raise OutputError(
            f"{str(beside)!r} is of another model, or may be; choose another folder for OUT{other}."
        )


def _is_of(beside: Path, output: Path) -> bool:
    """Whether a file of ids can only be that of a model, which then may be replaced together with it.

    The model has rows for as many ids, and no other model in the folder has.
    """
    try:
        count = len(json.loads(beside.read_bytes()))
        others = [path for path in output.parent.glob("*.onnx") if path != output]
        return output.exists() and _has_rows(output, count) and not any(_has_rows(p, count) for p in others)
    except (OSError, ValueError, TypeError, RecursionError, ModelError):  # whose it is can't be told
        return False


def _has_rows(path: Path, count: int) -> bool:
    return any(count in tensor.dims for tensor in Model.load(path).proto.graph.initializer)


def _found(run: Run[Options]) -> Vocabulary:
    """Find the vocabulary, and refuse one that can't be cut as it was asked for."""
    options, model = run.options, inline(run.model)
    runs = Trial(model)
    analysis = bound(
        run, lambda shapes: analyse(model, input_shapes=shapes, runs=runs, open_io=options.open_io)
    )
    vocabulary = Vocabulary.of(analysis)
    if vocabulary is None:
        raise NothingToPrune(
            "The model has no vocabulary: no table of weights is looked up by numbers that an integer input gives; "
            "leave --keep-tokens out."
        )
    table = vocabulary.weights[0]
    if why := vocabulary.frozen:
        raise NothingToPrune(f"The vocabulary {table!r} of {vocabulary.size:,} ids can't be cut: {why}.")
    if not options.remap and (why := vocabulary.tied):
        raise NothingToPrune(
            f"The ids of {table!r} can't count anew, since {why}; with --remap the result takes them as they were."
        )
    return vocabulary


def _chosen(run: Run[Options], vocabulary: Vocabulary) -> tuple[Ints, int]:
    """Return the ids that stay, and the one that others are read as."""
    options, size = run.options, vocabulary.size
    if options.most_frequent is not None:
        types = vocabulary.analysis.inputs
        samples = load_samples(
            run.model.proto.graph, options.calib, most=options.samples, seed=options.seed,
            labels=options.labels, types=types,
        )  # fmt: skip
        tokens: Tokens = frequent(samples.batches, list(vocabulary.ids), options.most_frequent)
    else:
        tokens = read_tokens(options.keep_tokens, options.words)
    wanted = tokens.ids if options.unk is None else np.union1d(tokens.ids, [options.unk])
    if wanted[-1] >= size or wanted[0] < 0:
        beyond = int(wanted[-1] if wanted[-1] >= size else wanted[0])
        raise UsageError(
            f"The id {beyond} is out of range: {vocabulary.weights[0]!r} has {size:,} rows, from 0 to {size - 1}."
        )
    keep = vocabulary.closed(wanted)
    if len(keep) == size:
        raise NothingToPrune(
            f"All {size:,} ids of {vocabulary.weights[0]!r} would stay; leave --keep-tokens out."
        )
    if more := len(keep) - len(wanted):
        run.notes.append(f"vocabulary: {more:,} more ids stay, since what they are tied to can't go")
    known = tokens.unk if options.unk is None else options.unk
    return keep, int(keep[0]) if known is None else known


def _drawn(vocabulary: Vocabulary, keep: Ints, seed: int) -> list[Feeds]:
    """Draw inputs of ids that stay, and of any ids."""
    analysis, rng = vocabulary.analysis, np.random.default_rng(seed)
    drawn: list[Feeds] = []
    for ids in (keep, np.arange(vocabulary.size)):
        given: dict[str, Any] = random_inputs(
            analysis.model, analysis.inputs, rng, sizes=analysis.tracer.types
        )
        given |= {n: rng.choice(ids, given[n].shape).astype(given[n].dtype) for n in vocabulary.ids}
        drawn.append(given)
    return drawn


def finished(run: Run[Options], model: Model) -> Model:
    """Return a result as it is written: where ids shall count anew, without the maps.

    Raises
    ------
    VerificationError
        If it gives anything else then.
    """
    if not isinstance(run, Narrowed) or run.options.remap:
        return model
    changed = renumbered(model)
    if run.options.verify:
        with run.stage("verify"):
            given = _drawn(run.vocabulary, run.keep, run.options.seed)[0]
            error = difference((model, given), (changed, _anew(run, given)), SAME)
        if not error <= SAME:
            raise VerificationError(
                f"With ids that count anew the result differs by {error:.3g}; give --remap."
            )
        run.checks.append("the same outputs for ids that count anew")
    return changed


def _anew(run: Narrowed, given: Feeds) -> dict[str, Any]:
    """Return inputs with new ids."""
    new = {name: run.places[np.asarray(given[name])].astype(given[name].dtype) for name in run.vocabulary.ids}
    return {**given, **new}


def renumbered_run(run: Run[Options]) -> Run[Options]:
    """Return a run on a model in which ids count as in the result; its inputs follow."""
    if not isinstance(run, Narrowed) or run.options.remap:
        return run
    given = feeds(run.model.proto.graph, run.options.inputs)
    options = run.options
    if given:
        options = dataclasses.replace(options, inputs=[_anew(run, one) for one in given])
    return dataclasses.replace(run, model=renumbered(run.model), options=options)


def planned_with(run: Run[Options], plan: Plan) -> Plan:
    """Return a plan with the ids that stay."""
    if not isinstance(run, Narrowed):
        return plan
    keep = tuple(run.keep.tolist())
    return dataclasses.replace(
        plan, vocabulary=PlannedVocabulary(keep, run.vocabulary.size, run.options.remap, run.unk)
    )


def checked_size(run: Run[Options], plan: Plan) -> None:
    """Refuse a plan of another vocabulary.

    Raises
    ------
    PlanError
        With both sizes.
    """
    if (
        plan.vocabulary is not None
        and isinstance(run, Narrowed)
        and plan.vocabulary.size != run.vocabulary.size
    ):
        raise PlanError(
            f"The plan says that there are {plan.vocabulary.size:,} ids, but the model has {run.vocabulary.size:,}."
        )


def tell(run: Run[Options], report: Report, after: Model) -> None:
    """Put what was done to the vocabulary into a report."""
    if not isinstance(run, Narrowed):
        return
    vocabulary, removed = run.vocabulary, run.vocabulary.removed(run.keep)
    report.before = run.before
    report.cuts = _joined([*run.cuts, *report.cuts])
    report.groups = [group_line(g, len(removed.get(g.name, ()))) for g in vocabulary.groups] + report.groups
    report.interface = changed_interface(run.original.proto.graph, after.proto.graph)
    report.law1, report.checks = report.law1 or run.law1, list(dict.fromkeys([*run.checks, *report.checks]))
    report.vocabulary = {
        "size": vocabulary.size,
        "kept": len(run.keep),
        "weights": vocabulary.weights,
        "outputs": run.shrinks,
        "remap": run.options.remap,
        "unk": run.unk if run.options.remap else None,
        "law1": run.law1,
    }


def _joined(cuts: Iterable[TensorCut]) -> list[TensorCut]:
    """Return cuts with one entry for each axis of each weight."""
    first: dict[tuple[str, int], TensorCut] = {}
    for one in cuts:
        first.setdefault((one.tensor, one.axis), one)
    return list(first.values())


def write_ids(run: Run[Options], output: Path | None) -> None:
    """Write how ids count in a result: in what it takes, or in outputs that shrank."""
    if not isinstance(run, Narrowed) or output is None:
        return
    if not run.options.remap or run.shrinks:
        write_text(output.with_name(IDS), run.numbers)
