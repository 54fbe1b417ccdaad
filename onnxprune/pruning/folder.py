"""Several models of one folder: an encoder and its decoders, cut so that they still fit each other.

Exporters write a decoder two or three times: for the first token, for the next ones with a cache, and both merged under
an If. These are one network, so they must lose the same units. Files are *kin* if most of the layers of one are in the
other, by the bytes of their weights, whatever these are called. Of each kin the largest file decides. A group of it may
go if, in every other file that has any of its weights, one group has the same axes of the same weights with the same
units; that group then loses these units. All others stay whole, and so does a width that LayerNorm reads: files take
its mean off in different places, which is the same number only as long as nothing is cut. A table that an encoder and
a decoder both have makes no kin: each file has its own copy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxprune.errors import NothingToPrune, UsageError, VerificationError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group, Member
from onnxprune.graph.select import pick
from onnxprune.journey.run import Progress, Run
from onnxprune.options.pruning import Options
from onnxprune.pruning.journey import Result, analysis_of, apply, open_run, prune
from onnxprune.pruning.plan import Plan, PlannedGroup

__all__ = ["prune_models"]

#: Files are one network if so much of the smaller one's layers is in the larger one.
KIN = 0.5
_REFUSED = {
    "calib": "--calib", "moments": "--moments", "keep_tokens": "--keep-tokens", "drop": "--drop",
    "check_speed": "--check-speed", "inputs": "--inputs",
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
    marks : dict
        Mark -> the groups that have it (heads, and the width of heads), each with the units of its positions.
    layers : dict
        Bytes of a layer's weight, by its hash.
    """

    name: str
    run: Run[Options]
    analysis: Analysis
    groups: list[Group]
    marks: dict[Mark, dict[str, bytes]] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    layers: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, name: str, run: Run[Options]) -> _File:
        """Analyse a model, and hash its weights."""
        analysis = analysis_of(run, centred=False)
        options = run.options
        file = cls(name, run, analysis, pick(analysis.grouping, options.ignore, options.only))
        hashes = {tensor: _hash(analysis, tensor) for tensor in analysis.model.names()}
        often = Counter(hashes.values())
        hashes = {tensor: mark for tensor, mark in hashes.items() if often[mark] == 1}  # others tell nothing
        file.weights = set(hashes.values())
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
        Without samples. A ratio or a target holds for the largest file of each network.

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
    runs = {name: open_run(path, options, progress) for name, path in models.items()}
    files = [_File.open(name, run) for name, run in _opened(runs, options).items()]
    results: dict[str, Result] = {}
    for kin in _networks(files):
        results |= _cut(kin, outputs)
    opened = [name for name, result in results.items() if result.report.interface]
    if len({n for n, kin in enumerate(_networks(files)) for file in kin if file.name in opened}) > 1:
        raise UsageError(
            f"--open-io {' '.join(options.open_io)} shrinks inputs or outputs of {' and '.join(opened)}, which are not "
            "one network, so nobody knows that they would still fit; open the cache's alone."
        )
    return {name: results[name] for name in models}


def _opened(runs: Mapping[str, Run[Options]], options: Options) -> dict[str, Run[Options]]:
    """Return the runs, each with those patterns of `--open-io` that mean something to its model."""
    opened, meant = {}, set[str]()
    for name, run in runs.items():
        graph = run.model.proto.graph
        names = [value.name for value in (*graph.input, *graph.output)]
        fitting = tuple(p for p in options.open_io if any(re.search(p, one) for one in names))
        meant |= set(fitting)
        opened[name] = dataclasses.replace(run, options=dataclasses.replace(options, open_io=fitting))
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
    first, *others = kin
    if not others:
        return {first.name: _pruned(first.run, outputs[first.name])}
    for file in kin:
        options = dataclasses.replace(file.run.options, center_norms=False)
        file.run = dataclasses.replace(file.run, options=options)
    twins = {g.name: [f.twin(first.held(g)) for f in others] for g in first.groups}
    alone = [name for name, found in twins.items() if None in found]
    run = first.run
    if alone:
        ignore = (*run.options.ignore, *(f"^{re.escape(name)}$" for name in alone))
        run.notes.append(
            f"{len(alone)} groups stay whole, since {' or '.join(f.name for f in others)} has them otherwise "
            f"({alone[0]} first)"
        )
        run = dataclasses.replace(run, options=dataclasses.replace(run.options, ignore=ignore))
    result = _pruned(run, outputs[first.name])
    results = {first.name: result}
    assert result.plan is not None
    for number, file in enumerate(others):
        plan = _plan(file, result.plan, {name: found[number] or "" for name, found in twins.items()})
        results[file.name] = follower = apply(file.run, plan, outputs[file.name])
        if follower.report.put_back:
            failed = follower.report.put_back[0]
            raise VerificationError(
                f"In {file.name} the group {failed['group']} can't lose what it loses in {first.name} "
                f"({failed['reason']}); leave it alone with --ignore."
            )
    return results


def _pruned(run: Run[Options], output: Path) -> Result:
    """Prune a model, or copy it if nothing in it can be cut."""
    try:
        return prune(run, output)
    except NothingToPrune as reason:
        run.notes.append(str(reason))
        options = dataclasses.replace(run.options, ratio=0, target=())
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
