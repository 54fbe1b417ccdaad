"""What residual branches are worth: how far the model's output moves without them, on samples.

Branches go one by one, each time the one that moves the output least for what it costs. What one moves depends on which
are gone, and seldom falls when more are; so those that were cheap are measured again, until the cheapest stays so.

Each look is a run of the model. Where looks at all branches would take too long, one run tells how much each branch
turns the stream: the mean of ``|f|^2 / |x + f|^2`` over all rows of the sum, since a few tokens are so much longer than
others that they would hide these. Only the branches that turn it least are looked at; the others come after them, in
this order.

References
----------
Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv 2403.03853: how much a
block turns the stream as what it is worth.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxprune.calibration.agreement import Outputs, distance
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.cut.depth import shallow
from onnxprune.graph.depth import Branch, Depth
from onnxprune.graph.size import macs_of_run
from onnxprune.progress import Milestone

__all__ = ["Influence", "Worth", "influence"]

#: Samples that are looked at, and MACs of all first looks together beyond which they are fewer, and then the branches.
MOST, LEAST, WORK = 128, 8, 3e12
#: Branches that are looked at in any case.
FEW = 8


@dataclass(frozen=True)
class Worth:
    """A branch, and the distance of the output from the original's (`agreement.distance`) when it goes.

    Attributes
    ----------
    branch : Branch
    alone : float or None
        If nothing else went; None where it wasn't looked at.
    after : float or None
        After those before it went, too.
    """

    branch: Branch
    alone: float | None = None
    after: float | None = None


#: Branches in the order in which they go.
Influence = list[Worth]


def influence(
    depth: Depth, branches: Sequence[Branch], samples: Samples, cost: Callable[[Branch], float],
    say: Callable[[str], None] | None = None,
) -> Influence:  # fmt: skip
    """Return branches in the order in which they should go.

    Parameters
    ----------
    depth : Depth
    branches : sequence of Branch
        That may go.
    samples : Samples
    cost : callable
        Branch -> what is saved without it.
    say : callable, optional
        Told of progress.

    Raises
    ------
    CalibrationError
        If the model fails on the samples, or has no output of numbers.
    """
    each = _macs(depth, samples)
    few = samples.few(int(min(MOST, max(LEAST, WORK / (each * len(branches))))))
    most = max(FEW, int(WORK / (each * max(few.count, 1))))
    rest: list[Branch] = []
    if most < len(branches):
        if say:
            say("branches: how much they turn the stream")
        turned = turns(depth, branches, few)
        ordered = sorted(branches, key=lambda b: turned[b.name] / cost(b))
        branches, rest = ordered[:most], ordered[most:]
    looks = _Looks(depth, few)
    alone: dict[str, float] = {}
    for number, branch in enumerate(branches):
        if say:
            say(Milestone.of("branch", branch.name, number, [1.0] * len(branches)))
        alone[branch.name] = looks.without([branch.name])
    heap = [(alone[b.name] / cost(b), n, 0) for n, b in enumerate(branches)]
    heapq.heapify(heap)
    gone: dict[str, None] = {}
    order: Influence = []
    total = 0.0
    while heap:
        _, n, seen = heapq.heappop(heap)
        branch = branches[n]
        if branch.name in gone:
            continue
        if seen == len(order):
            order.append(Worth(branch, alone[branch.name], looks.without([*gone, branch.name])))
            gone |= dict.fromkeys(b.name for b in depth.chosen([branch.name]))
            total = looks.without(list(gone))
        else:
            more = looks.without([*gone, branch.name]) - total
            heapq.heappush(heap, (more / cost(branch), n, len(order)))
    return [*order, *(Worth(branch) for branch in rest if branch.name not in gone)]


def turns(depth: Depth, branches: Sequence[Branch], samples: Samples) -> dict[str, float]:
    """Return how much each branch turns the stream, by one run.

    Returns
    -------
    dict
        Branch -> squares of what it adds over those of the sum, the mean over all rows along the last axis.
    """
    shares = {branch.name: np.zeros(2) for branch in branches}
    wanted = list(dict.fromkeys(name for b in branches for name in (b.value, b.sum)))
    for batch in stream_of(depth.analysis.model, samples).each(wanted):
        squares = {name: np.square(batch[name], dtype=np.float64).sum(axis=-1) for name in wanted}
        for branch in branches:
            share = squares[branch.value] / np.maximum(squares[branch.sum], 1e-30)
            shares[branch.name] += share.sum(), share.size
    return {name: float(total / rows) for name, (total, rows) in shares.items()}


def _macs(depth: Depth, samples: Samples) -> float:
    """Return about the MACs of one run on one sample, which may be longer than what the model was analysed at."""
    name, shape = next(iter(depth.analysis.inputs.items()), ("", ()))
    given = samples.batches[0].get(name) if samples.batches else None
    longer = 1.0 if given is None else np.size(given) / samples.counts[0] / max(prod(shape), 1)
    return max(longer * macs_of_run(depth.analysis.coupling), 1.0)


class _Looks:
    """The distance of the output without some branches, each looked at once."""

    def __init__(self, depth: Depth, samples: Samples) -> None:
        self.depth, self.samples = depth, samples
        self.opened = depth.original.coupling.opened
        self.dense = Outputs(depth.analysis.model, samples, self.opened)
        self.known: dict[frozenset[str], float] = {}

    def without(self, names: Sequence[str]) -> float:
        key = frozenset(names)
        if key not in self.known:
            model = shallow(self.depth, key).model
            self.known[key] = distance(self.dense, Outputs(model, self.samples, self.opened, room=0))
        return self.known[key]
