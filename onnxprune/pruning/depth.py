"""Residual branches go first: all that follows works on a model that has fewer of them.

Which branches go is the user's word (``--drop``), or they are ranked on samples (`onnxprune.pruning.influence`). How
many go is what a ratio or a target asks for, or where widths may go, too, what trials show
(`onnxprune.pruning.depth_and_widths`). Layers behind a branch that is gone are fitted to what the original gives there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.calibration.samples import Samples
from onnxprune.cut.depth import Shallow, shallow
from onnxprune.cut.put_back import Failed, most
from onnxprune.errors import NothingToPrune, UsageError, VerificationError
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.depth import Branch, Depth
from onnxprune.graph.inline import inline
from onnxprune.graph.openings import given_by_bodies
from onnxprune.graph.select import near_names
from onnxprune.journey.given_shapes import bound
from onnxprune.journey.run import Run
from onnxprune.options.kinds import texts_of
from onnxprune.options.pruning import Options
from onnxprune.proof.depth import multiplied
from onnxprune.pruning.influence import Worth, influence
from onnxprune.pruning.outline import group_line
from onnxprune.pruning.plan import Plan
from onnxprune.pruning.proving import proved
from onnxprune.pruning.report import Report
from onnxprune.pruning.source import Reduced, size_of
from onnxprune.reconstruction.aim import Aim, renamed
from onnxprune.reconstruction.plausible import read_samples
from onnxprune.runtime.inputs import Trial

__all__ = ["Candidates", "Shallowed", "candidates", "dropped", "inexact", "planned_with", "shallowed", "tell"]

#: Costs of which parameters are what a branch saves; of others its MACs are.
OF_WEIGHTS = ("params", "bytes")


@dataclass(kw_only=True)
class Shallowed(Reduced):
    """A run on a model without some residual branches.

    Attributes
    ----------
    depth : Depth
        Of the original.
    gone : list of Branch
        In order of execution.
    worths : list of Worth
        Of all that were ranked, in the order in which they would go.
    open_io : tuple of str
        As it was asked for; the options have what is left to open.
    """

    depth: Depth
    gone: list[Branch]
    worths: list[Worth] = field(default_factory=list)
    open_io: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether nothing but branches goes."""
        return not self.options.others or self.options.ratio == 0


@dataclass
class Candidates:
    """The branches of a model that may go, in the order in which they should.

    Attributes
    ----------
    run : Run
        On the original.
    depth : Depth
    worths : list of Worth
    judges : Samples
        That results are compared with the original on: those set aside, or where there are too few the same.
    """

    run: Run[Options]
    depth: Depth
    worths: list[Worth]
    judges: Samples

    def first(self, count: int) -> list[str]:
        """Return the names of the first so many."""
        return [worth.branch.name for worth in self.worths[:count]]

    def without(self, count: int) -> Shallowed:
        """Return a run on the model without the first so many."""
        return _without(self.run, self.depth, self.first(count), self.worths)

    def but(self, kept: Mapping[str, str]) -> Candidates:
        """Return the others, where law 1 doesn't hold without some branches; a note says why these stay."""
        self.run.notes += [f"depth: {name!r} stays, since without it {why}" for name, why in kept.items()]
        self.depth.refused.update(kept)
        return dataclasses.replace(self, worths=[w for w in self.worths if w.branch.name not in kept])


def branches_of(run: Run[Options]) -> Depth:
    """Find the residual branches of a run's model.

    Raises
    ------
    NothingToPrune
        If it has none; the sentence says why.
    """
    options, model = run.options, inline(run.model)
    runs = Trial(model) if options.verify or options.fitted else None
    analysis = bound(
        run, lambda shapes: analyse(model, input_shapes=shapes, runs=runs, open_io=options.open_io)
    )
    depth = Depth.of(analysis)
    if not depth.branches:
        why = "no sum adds to a stream what layers make of it"
        if depth.refused:
            name, reason = next(iter(depth.refused.items()))
            why = f"of {name!r} {reason}" + (
                f", and so on for {more} more" if (more := len(depth.refused) - 1) else ""
            )
        raise NothingToPrune(f"The model has no residual branch that can go: {why}.")
    if stay := given_by_bodies(run.model.proto.graph, analysis.coupling.opened):
        others = f" and {len(stay) - 1} more" if len(stay) > 1 else ""
        run.notes.append(
            f"depth: --open-io names {stay[0]!r}{others}, which a node with bodies gives (an If, such as a merged "
            "decoder's); they stay, with the layers that make them. Of decoders that aren't merged they go."
        )
    return depth


def candidates(run: Run[Options]) -> Candidates:
    """Rank the branches that may go on the run's samples.

    Raises
    ------
    NothingToPrune
        If there are none.
    CalibrationError
        If the samples don't fit the model.
    """
    options = run.options
    with run.stage("analyse"):
        depth = branches_of(run)
        branches = _picked(depth, options)
    with run.stage("samples"):
        read = read_samples(depth.analysis, options, run.progress)
        samples, aside = read.set_aside()
        run = _read_once(run, read)
    of_weights = any(target.startswith(OF_WEIGHTS) for target in texts_of(options.target))

    def cost(branch: Branch) -> float:
        return 1.0 if options.by_ratio else max(float(branch.params if of_weights else branch.macs), 1.0)

    with run.stage("branches"):
        worths = influence(depth, branches, samples, cost, run.progress)
    return Candidates(run, depth, worths, samples if aside is None else aside)


def _read_once(run: Run[Options], samples: Samples) -> Run[Options]:
    """Return a run whose samples can be read again: what a reader gives but once is kept."""
    given = run.options.calib
    if not (isinstance(given, Iterator) or hasattr(given, "get_next")):
        return run
    batches = [dict(batch) for batch in samples.batches]
    if samples.labels is not None:
        ends = np.cumsum(samples.counts)[:-1]
        for batch, labels in zip(batches, np.split(samples.labels, ends), strict=True):
            batch[str(run.options.labels)] = labels
    return dataclasses.replace(run, options=dataclasses.replace(run.options, calib=batches))


def _picked(depth: Depth, options: Options) -> list[Branch]:
    """Return the branches that ``--only`` and ``--ignore`` leave."""
    branches = depth.branches
    if options.only:
        branches = [b for b in branches if any(_matches(depth, b, p) for p in texts_of(options.only))]
    branches = [b for b in branches if not any(_matches(depth, b, p) for p in texts_of(options.ignore))]
    if not branches:
        raise NothingToPrune(
            f"--ignore and --only leave none of the {len(depth.branches)} residual branches, of which "
            f"{depth.branches[0].name!r} is the first."
        )
    return branches


def _matches(depth: Depth, branch: Branch, pattern: str) -> bool:
    """Whether a pattern is found in the name of a branch, or of a node in it."""
    nodes = depth.analysis.coupling.nodes
    return any(
        re.search(pattern, name) for name in (branch.name, *(nodes[n].node.name for n in branch.nodes))
    )


def dropped(run: Run[Options]) -> Run[Options]:
    """Drop the branches that the user names, and return a run on the result; the run itself where none are named.

    Raises
    ------
    UsageError
        If a pattern matches none.
    NothingToPrune, VerificationError
        If there are none, or law 1 doesn't hold.
    """
    if not run.options.drop or isinstance(run, Shallowed):
        return run
    with run.stage("analyse"):
        depth = branches_of(run)
    names: dict[str, None] = {}
    for pattern in texts_of(run.options.drop):
        hits = [b.name for b in depth.branches if re.search(pattern, b.name)]
        if not hits:
            raise UsageError(_no_branch(depth, pattern))
        names |= dict.fromkeys(hits)
    asked = _without(run, depth, list(names))
    try:
        return shallowed(asked)
    except VerificationError as error:
        kept = inexact(asked) if isinstance(error.__cause__, Failed) and len(asked.gone) > 1 else {}
        if not kept:
            raise
        name, why = next(iter(kept.items()))
        raise VerificationError(
            f"--drop: without the branch {name!r} the result isn't exact: {why.rstrip('.')}; name others."
        ) from error


def _no_branch(depth: Depth, pattern: str) -> str:
    refused = [name for name in depth.refused if re.search(pattern, name)]
    if refused:
        return f"--drop {pattern!r}: the branch {refused[0]!r} can't go, since {depth.refused[refused[0]]}."
    near = near_names(pattern, [b.name for b in depth.branches]) or [b.name for b in depth.branches[:3]]
    return f"--drop {pattern!r} matches no residual branch; there are {', '.join(map(repr, near))}."


def _without(
    run: Run[Options], depth: Depth, names: Sequence[str], worths: Sequence[Worth] = ()
) -> Shallowed:
    """Return a run on the model without branches; nothing is proved yet, and no layer fitted."""
    cut = shallow(depth, names)
    values: dict[str, Any] = {spec.name: getattr(run, spec.name) for spec in dataclasses.fields(Run)}
    now = Shallowed(
        **values | {"model": cut.model}, original=run.model, whole=depth.analysis, depth=depth,
        before=size_of(run.model, depth.analysis), gone=cut.branches, worths=list(worths),
        open_io=texts_of(run.options.open_io),
    )  # fmt: skip
    now.options = _left_to_ask(now)
    if run.options.fitted:
        now.aim = _aim(cut, depth.analysis)
    return now


def _left_to_ask(run: Shallowed) -> Options:
    """Return the options without what they say of inputs and outputs that went with branches."""
    graph, options = run.model.proto.graph, run.options
    inputs, names = ({v.name for v in ends} for ends in (graph.input, (*graph.input, *graph.output)))
    return dataclasses.replace(
        options,
        open_io=tuple(p for p in run.open_io if any(re.search(p, name) for name in names)),
        input_shapes={n: s for n, s in (options.input_shapes or {}).items() if n in inputs},
    )


def _aim(cut: Shallow, whole: Analysis) -> Aim:
    """Return what the layers of a model without branches are fitted to."""
    aim = whole
    if cut.stands:
        aim = analyse(renamed(whole.model, cut.stands), input_shapes=whole.inputs)
    return Aim(aim, frozenset((*cut.joined, *cut.stands)))


def shallowed(run: Shallowed) -> Shallowed:
    """Prove that a run's model is the original with its branches multiplied by 0.

    Raises
    ------
    VerificationError
        If it isn't.
    """
    if not run.options.verify or not run.gone:
        return run
    with run.stage("verify"):
        try:
            masked = multiplied(run.depth, [b.name for b in run.gone])
            source = dataclasses.replace(run, model=run.original)
            gone = {name for b in run.gone for name in (*b.inputs, *b.outputs)}
            proof = proved(source, run.whole, {}, run.model, masked, gone=gone)
        except Failed as failure:
            named = ", ".join(repr(b.name) for b in run.gone[:3]) + ", ..." * (len(run.gone) > 3)
            raise VerificationError(
                f"Without the branches {named} the result isn't exact: {str(failure).rstrip('.')}."
            ) from failure
    run.law1, run.checks = proof.law1(), list(proof.checks)
    run.notes += [f"depth: {note}" for note in proof.notes]
    return run


def inexact(run: Shallowed) -> dict[str, str]:
    """Return the branches that a run's model must have for law 1 to hold, each with what differs without it.

    Raises
    ------
    VerificationError
        If law 1 holds without none of them.
    """

    def attempt(names: Sequence[str]) -> Shallowed:
        try:
            return shallowed(_without(dataclasses.replace(run, model=run.original), run.depth, names))
        except VerificationError as error:
            if isinstance(error.__cause__, Failed):
                raise error.__cause__ from error
            raise

    return most([b.name for b in run.gone], attempt)[1]


def planned_with(run: Run[Options], plan: Plan) -> Plan:
    """Return a plan with the branches that go."""
    if not isinstance(run, Shallowed):
        return plan
    return dataclasses.replace(plan, depth=tuple(b.name for b in run.gone), open_io=run.open_io)


def tell(run: Run[Options], report: Report) -> None:
    """Put what was done to the depth into a report."""
    if not isinstance(run, Shallowed):
        return
    worths = {worth.branch.name: worth for worth in run.worths}
    gone = {b.name for b in run.gone}
    report.before = run.before
    lines = [group_line(g, int(g.name in gone)) for g in run.depth.groups]
    others = max((int(line["component"]) for line in report.groups), default=-1) + 1
    for line in lines:  # of components of their own
        line["component"] += others
    report.groups = lines + report.groups
    report.law1, report.checks = report.law1 or run.law1, list(dict.fromkeys([*run.checks, *report.checks]))
    report.depth = {
        "branches": len(run.depth.branches),
        "gone": [_line(b, worths.get(b.name)) for b in run.gone],
        "refused": run.depth.refused,
        "law1": run.law1,
    }


def _line(branch: Branch, worth: Worth | None) -> dict[str, Any]:
    line: dict[str, Any] = {"name": branch.name, "params": branch.params, "macs": branch.macs}
    line |= {what: list(ends) for what in ("inputs", "outputs") if (ends := getattr(branch, what))}
    figures = {} if worth is None else {"alone": worth.alone, "after": worth.after}
    line |= {name: float(f"{value:.4g}") for name, value in figures.items() if value is not None}
    return line
