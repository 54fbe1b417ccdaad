"""What residual branches are worth: how far the model's output moves without them, on samples.

Branches go one by one, each time the one that moves the output least for what it costs. What one moves depends on which
are gone, and seldom falls when more are; so those that were cheap are measured again, until the cheapest stays so.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxprune.calibration.agreement import Outputs, distance
from onnxprune.calibration.samples import Samples
from onnxprune.cut.depth import shallow
from onnxprune.graph.depth import Branch, Depth
from onnxprune.progress import Milestone

__all__ = ["Influence", "Worth", "influence"]

#: Samples that are looked at, and MACs of all first looks together beyond which they are fewer.
MOST, LEAST, WORK = 256, 8, 4e12


@dataclass(frozen=True)
class Worth:
    """A branch, and the distance of the output from the original's (`agreement.distance`) when it goes.

    Attributes
    ----------
    branch : Branch
    alone : float
        If nothing else went.
    after : float
        After those before it went, too.
    """

    branch: Branch
    alone: float
    after: float


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
    looks = _Looks(depth, _few(depth, branches, samples))
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
            total = order[-1].after
        else:
            more = looks.without([*gone, branch.name]) - total
            heapq.heappush(heap, (more / cost(branch), n, len(order)))
    return order


def _few(depth: Depth, branches: Sequence[Branch], samples: Samples) -> Samples:
    """Return so many samples that looks at all branches take a bounded time."""
    name, shape = next(iter(depth.analysis.inputs.items()), ("", ()))
    given = samples.batches[0].get(name) if samples.batches else None
    longer = 1.0 if given is None else np.size(given) / samples.counts[0] / max(prod(shape), 1)
    each = longer * sum(branch.macs for branch in depth.branches) * max(len(branches), 1)
    return samples.few(int(min(MOST, max(LEAST, WORK / max(each, 1)))))


class _Looks:
    """The distance of the output without some branches, each looked at once."""

    def __init__(self, depth: Depth, samples: Samples) -> None:
        self.depth, self.samples = depth, samples
        self.dense = Outputs(depth.analysis.model, samples)
        self.known: dict[frozenset[str], float] = {}

    def without(self, names: Sequence[str]) -> float:
        key = frozenset(names)
        if key not in self.known:
            model = shallow(self.depth, key).model
            self.known[key] = distance(self.dense, Outputs(model, self.samples, room=0))
        return self.known[key]
