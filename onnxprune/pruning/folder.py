"""Several models of one folder: an encoder and its decoders, cut so that they still fit each other.

Exporters write a decoder two or three times: for the first token, for the next ones with a cache, and both merged under
an If. These are one network, so they must lose the same units. Files are *kin* if most of the layers of one are in the
other, by the bytes of their weights, whatever these are called. Of each kin the largest file decides. A group of it may
go if, in every other file that has any of its weights, one group has the same axes of the same weights with the same
units; that group then loses these units. All others stay whole, and so does a width that LayerNorm reads: files take
its mean off in different places, which is the same number only as long as nothing is cut. A table that an encoder and
a decoder both have makes no kin: each file has its own copy.

With samples (`onnxprune.calibration.dealt`) the largest file of a kin that has some decides, its layers are refitted,
and in the other files layers with the same weights get the same new ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxprune.calibration.dealt import dealt
from onnxprune.errors import FloorMissed, NothingToPrune, UsageError, VerificationError, many
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.group_types import Group, Member
from onnxprune.graph.select import pick
from onnxprune.journey.output import refuse_overwrite
from onnxprune.journey.run import Progress, Run
from onnxprune.options.pruning import Options
from onnxprune.pruning.decision import resolve
from onnxprune.pruning.journey import Result, analysis_of, apply, carry_out, open_run, prune
from onnxprune.pruning.plan import Plan, PlannedGroup
from onnxprune.pruning.saliency import Candidate, criterion_of
from onnxprune.reconstruction.transfer import Refitted, refitted_layers, taken_over
from onnxprune.runtime.inputs import Trial

__all__ = ["prune_models"]

#: Files are one network if so much of the smaller one's layers is in the larger one.
KIN = 0.5
_REFUSED = {
    "moments": "--moments", "keep_tokens": "--keep-tokens", "drop": "--drop", "check_speed": "--check-speed",
    "inputs": "--inputs",
}  # fmt: skip

#: A weight by its type, shape and bytes, and an axis of it.
Mark = tuple[str, int]


@dataclass
class _File:
    """A model of the folder.

    Attributes
    ----------
    run : Run
    analysis : Analysis
    groups : list of Group
        That may be cut.
    hashes : dict
        Weight -> its hash, for those that are there once.
    present : set of str
        Hashes of all weights.
    marks : dict
        Mark -> the groups that have it (heads, and the width of heads), each with the units of its positions.
    layers : dict
        Bytes of a layer's weight, by its hash.
    """

    name: str
    run: Run[Options]
    analysis: Analysis
    groups: list[Group]
    hashes: dict[str, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    marks: dict[Mark, dict[str, bytes]] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    layers: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, name: str, run: Run[Options], fit: bool = False) -> _File:
        """Analyse a model, for a fit or not, and hash its weights."""
        analysis = analysis_of(run, fit, centred=False)
        options = run.options
        file = cls(name, run, analysis, pick(analysis.grouping, options.ignore, options.only))
        hashes = {tensor: _hash(analysis, tensor) for tensor in analysis.model.names()}
        often = Counter(hashes.values())
        file.present = set(hashes.values())
        hashes = {tensor: mark for tensor, mark in hashes.items() if often[mark] == 1}  # others tell nothing
        file.hashes, file.weights = hashes, set(hashes.values())
        for group in analysis.grouping.groups:
            for member in group.members:
                if member.tensor in hashes:
                    mark = hashes[member.tensor], member.axis
                    file.marks.setdefault(mark, {})[group.name] = _units(member)
                    if member.contracted:
                        file.layers[hashes[member.tensor]] = int(analysis.model.weight(member.tensor).nbytes)
        return file

    def held(self, group: Group) -> dict[Mark, bytes]:
        """Return the marks of a group, each with the units of its positions."""
        return {mark: groups[group.name] for mark, groups in self.marks.items() if group.name in groups}

    def twin(self, marks: Mapping[Mark, bytes]) -> str | None:
        """Return the group with the same axes of the same weights; empty if none of these is here.

        None where it is frozen, bound to other axes, or nothing tells.
        """
        if not marks:
            return None
        here = {mark: units for mark, units in marks.items() if mark[0] in self.weights}
        if not here:
            return ""
        same = [
            {n for n, own in self.marks.get(mark, {}).items() if own == units} for mark, units in here.items()
        ]
        return min(set.intersection(*same), default=None)


def _hash(analysis: Analysis, tensor: str) -> str:
    array = np.ascontiguousarray(analysis.model.weight(tensor))
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest() if array.size > 1 else f"{tensor} alone"


def _units(member: Member) -> bytes:
    order = np.argsort(member.index, kind="stable")
    return member.index[order].tobytes() + member.unit[order].tobytes()


def prune_models(
    models: Mapping[str, Path],
    outputs: Mapping[str, Path],
    options: Options,
    progress: Progress | None = None,
) -> dict[str, Result]:
    """Cut the models of a folder so that those that are one network lose the same units.

    Parameters
    ----------
    models, outputs : mapping
        Name -> where the model is, and where its result goes.
    options : Options
        A ratio or a target holds for the file that decides in each network. ``calib`` as in `dealt`.

    Returns
    -------
    dict
        Name -> result. A model in which nothing can be cut is copied.

    Raises
    ------
    OnnxPruneError
        As for one model.
    """
    for name, flag in _REFUSED.items():
        if getattr(options, name):
            raise UsageError(
                f"{flag} is for one model, and the folder has {len(models)}: {', '.join(models)}; name one of them, or "
                "leave it out."
            )
    if options.granularity != Options.granularity or options.timed:
        raise UsageError(
            "Of a folder with several models channels go, to a ratio or a target without latency."
        )
    runs = _with_samples({name: open_run(path, options, progress) for name, path in models.items()}, options)
    files = [_File.open(name, run, options.fitted) for name, run in _opened(runs, options).items()]
    results: dict[str, Result] = {}
    for kin in _networks(files):
        if options.fitted and not any(file.run.options.fitted for file in kin):
            kin[0].run.notes.append("there are no samples for it; it is cut by its weights alone")
        results |= _cut(kin, outputs)
    opened = [name for name, result in results.items() if result.report.interface]
    if len({n for n, kin in enumerate(_networks(files)) for file in kin if file.name in opened}) > 1:
        raise UsageError(
            f"--open-io {' '.join(options.open_io)} shrinks inputs or outputs of {' and '.join(opened)}, which are not "
            "one network, so nobody knows that they would still fit; open the cache's alone."
        )
    return {name: results[name] for name in models}


def _with_samples(runs: Mapping[str, Run[Options]], options: Options) -> dict[str, Run[Options]]:
    """Return the runs, each with its own samples; those without any choose by weights."""
    if options.calib is None:
        return dict(runs)
    graphs = {name: run.model.proto.graph for name, run in runs.items()}
    shares = dealt(options.calib, graphs, most=options.samples, seed=options.seed, labels=options.labels)
    more: dict[str, object] = {} if options.ratio is not None or options.target else {"ratio": 0.0}
    if criterion_of(options.criterion).score is None:
        more["criterion"] = "auto"
    plain = options.without_samples(**more)
    given: dict[str, Run[Options]] = {}
    for name, run in runs.items():
        own = dataclasses.replace(options, calib=shares[name]) if name in shares else plain
        given[name] = dataclasses.replace(run, options=own)
    return given


def _opened(runs: Mapping[str, Run[Options]], options: Options) -> dict[str, Run[Options]]:
    """Return the runs, each with those patterns of `--open-io` that mean something to its model."""
    opened, meant = {}, set[str]()
    for name, run in runs.items():
        graph = run.model.proto.graph
        names = [value.name for value in (*graph.input, *graph.output)]
        fitting = tuple(p for p in options.open_io if any(re.search(p, one) for one in names))
        meant |= set(fitting)
        opened[name] = dataclasses.replace(run, options=dataclasses.replace(run.options, open_io=fitting))
    for pattern in options.open_io:
        if pattern not in meant:
            raise UsageError(f"--open-io {pattern!r} matches no input or output of {', '.join(runs)}.")
    return opened


def _networks(files: Sequence[_File]) -> list[list[_File]]:
    """Return the files of each network, the largest first."""
    networks: list[list[_File]] = []
    for file in sorted(files, key=lambda f: (-sum(f.layers.values()), f.name)):
        for kin in networks:
            if _shared(file, kin[0]) > KIN:
                kin.append(file)
                break
        else:
            networks.append([file])
    return networks


def _shared(one: _File, other: _File) -> float:
    common = sum(n for weight, n in one.layers.items() if weight in other.layers)
    return common / max(sum(one.layers.values()), 1)


def _cut(kin: Sequence[_File], outputs: Mapping[str, Path]) -> dict[str, Result]:
    """Cut the files of one network alike."""
    first = next((file for file in kin if file.run.options.fitted), kin[0])
    others = [file for file in kin if file is not first]
    if not others:
        return {first.name: _pruned(first.run, outputs[first.name])}
    for file in kin:
        options = file.run.options
        turned = options.rotate and not options.fitted  # another basis would be that of one file
        options = dataclasses.replace(options, center_norms=False, rotate=turned)
        file.run = dataclasses.replace(file.run, options=options)
    twins = {g.name: [f.twin(first.held(g)) for f in others] for g in first.groups}
    alone = [name for name, found in twins.items() if None in found]
    run = first.run
    if alone:
        ignore = (*run.options.ignore, *(f"^{re.escape(name)}$" for name in alone))
        run.notes.append(
            f"kept whole: {many(len(alone), 'group')} that {' or '.join(f.name for f in others)} has otherwise "
            f"({alone[0]} first)"
        )
        run = dataclasses.replace(run, options=dataclasses.replace(run.options, ignore=ignore))
    candidates: list[Candidate] = []
    result = _pruned(run, outputs[first.name], candidates.append)
    results = {first.name: result}
    layers = _refitted(first, candidates)
    assert result.plan is not None
    for number, file in enumerate(others):
        plan = _plan(file, result.plan, {name: found[number] or "" for name, found in twins.items()})
        results[file.name] = follower = _followed(file, plan, outputs[file.name], layers, first.name)
        if follower.report.put_back:
            failed = follower.report.put_back[0]
            raise VerificationError(
                f"In {file.name} the group {failed['group']} can't lose what it loses in {first.name} "
                f"({failed['reason']}); leave it alone with --ignore."
            )
    return results


def _refitted(file: _File, candidates: Sequence[Candidate]) -> dict[str, Refitted]:
    """Return hash -> layer, for the layers that samples have changed."""
    if not candidates or candidates[0].fit is None:
        return {}
    fitted = candidates[0].analysis
    layers = refitted_layers(file.analysis, fitted.model, fitted)
    return {_hash(file.analysis, weight): layer for weight, layer in layers.items()}


def _followed(file: _File, plan: Plan, output: Path, layers: Mapping[str, Refitted], first: str) -> Result:
    """Cut a file as the first of its network was cut, with the layers that were refitted there."""
    options = file.run.options.without_samples(criterion="auto")
    run = dataclasses.replace(file.run, options=options)
    if not layers.keys() & file.present:
        return apply(run, plan, output)
    refuse_overwrite(run.model, output, options.in_place, options.external_data_threshold)
    model = taken_over(file.analysis, layers, file.hashes, file.present, first)
    analysis = analyse(
        model,
        input_shapes=file.analysis.given,
        allow_inexact=options.allow_inexact,
        keep_blocks=options.align != 1,
        runs=Trial(model),
        open_io=options.open_io,
    )
    run.notes.append(f"layers have the weights that were fitted in {first}")
    candidate = Candidate(analysis, resolve(plan, analysis), file.analysis.restored)
    return carry_out(run, candidate, plan, output)


def _pruned(run: Run[Options], output: Path, chosen: Callable[[Candidate], object] = id) -> Result:
    """Prune a model, or copy it if nothing in it can be cut."""
    try:
        return prune(run, output, chosen)
    except FloorMissed:  # it can be cut, so whoever asked for less must hear of it
        raise
    except NothingToPrune as reason:
        run.notes.append(str(reason))
        options = run.options.without_samples(ratio=0, target=(), criterion="auto")
        return prune(dataclasses.replace(run, options=options), output)


def _plan(file: _File, plan: Plan, twins: Mapping[str, str]) -> Plan:
    """Return the plan of another file of a network."""
    groups = [
        PlannedGroup(twins[group.name], group.removed_units, group.units)
        for group in plan.groups
        if twins.get(group.name) and group.removed_units
    ]
    return dataclasses.replace(
        plan,
        model_sha256=file.run.sha256(),
        groups=tuple(sorted(groups, key=lambda group: group.name)),
        cuts=(),
        frozen=(),
        input_shapes=dict(file.analysis.inputs),
    )
