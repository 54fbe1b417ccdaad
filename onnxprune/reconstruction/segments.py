"""Where a graph is taken apart: segments of a few layers, between positions where few activations are alive.

An activation is alive before node k if a node before k makes it and one from k on reads it. After the first
``max(4, layers / 6)`` layers of a segment, and at most 6 more, it ends where the fewest activations are alive:

    end = argmin over gaps of min over k in gap of alive(k),    alive (nodes + 1,).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.files.protowalk import captured
from onnxprune.gradient.tape import float_type
from onnxprune.graph.analysis import Analysis
from onnxprune.reconstruction.layers import Site

__all__ = ["Segment", "segments"]

#: Layers of a segment: a share of all, but not fewer than this; and so many more, to find a place where few activations
#: are alive.
SHARE, FEWEST, MORE = 6, 4, 6


@dataclass(frozen=True)
class Segment:
    """A run of nodes in topological order.

    Attributes
    ----------
    first, end : int
        Positions of the first node, and of the one after the last.
    sites : tuple of Site
        Its layers.
    given : tuple of str
        Activations that it reads.
    goals : tuple of str
        Activations of floats that it makes and that are read after it, or are outputs.
    """

    first: int
    end: int
    sites: tuple[Site, ...]
    given: tuple[str, ...]
    goals: tuple[str, ...]

    def holds(self, site: Site) -> bool:
        """Whether all nodes that use a layer's weight lie inside."""
        return all(self.first <= use.number and use.end < self.end for use in site.uses)


def segments(analysis: Analysis, sites: Sequence[Site]) -> list[Segment]:
    """Take a model apart.

    Parameters
    ----------
    analysis : Analysis
    sites : sequence of Site
        Layers in topological order.
    """
    if not sites:
        return []
    life = _Life(analysis)
    numbers = [s.number for s in sites]
    gaps = [life.narrowest(a + 1, b) for a, b in itertools.pairwise(numbers)]
    gaps.append(life.narrowest(sites[-1].end + 1, life.count, early=True))
    fewest = max(FEWEST, -(-len(sites) // SHARE))
    parts, first, start = [], 0, 0
    while start < len(sites):
        last = min(start + fewest + MORE, len(sites)) - 1
        least = min(start + fewest, len(sites)) - 1
        end = min(range(least, last + 1), key=lambda n: (gaps[n][0], n))
        parts.append(life.segment(first, gaps[end][1], tuple(sites[start : end + 1])))
        first, start = gaps[end][1], end + 1
    return parts


class _Life:
    """When each activation is made, and when it is read last."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        nodes = analysis.coupling.nodes
        self.count = len(nodes)
        outputs = [v.name for v in analysis.model.proto.graph.output]
        self.last = dict.fromkeys(outputs, self.count)
        self.made = dict.fromkeys(analysis.inputs, -1)
        for number, applied in enumerate(nodes):
            self.made |= {n: number for n in applied.node.outputs if n and n not in analysis.model}
            inner = captured(applied.proto) if applied.proto.attribute else ()
            for name in (*applied.node.inputs, *inner):
                self.last[name] = max(self.last.get(name, 0), number)
        change = np.zeros(self.count + 2, np.int64)
        for name, number in self.made.items():
            if self.last.get(name, -1) > number and self._float(name):
                change[number + 1] += 1
                change[self.last[name] + 1] -= 1
        self.alive: NDArray[np.int64] = np.cumsum(change)

    def _float(self, name: str) -> bool:
        return float_type(self.analysis.tracer.types.get(name, (0, None))[0])

    def narrowest(self, low: int, high: int, *, early: bool = False) -> tuple[int, int]:
        """Return the least number of activations alive before a node of ``low..high``, and the last such (or first).

        Places where none is alive, as behind an ArgMax, count only where there is no other.
        """
        alive = self.alive[low : high + 1]
        alive = np.where(alive > 0, alive, alive.max(initial=0) + 1)
        best = int(np.argmin(alive)) if early else len(alive) - 1 - int(np.argmin(alive[::-1]))
        return int(alive[best]), low + best

    def segment(self, first: int, end: int, sites: tuple[Site, ...]) -> Segment:
        """Return the segment of the nodes ``first..end - 1``."""
        read: dict[str, None] = {}
        goals: dict[str, None] = {}
        for applied in self.analysis.coupling.nodes[first:end]:
            inner = captured(applied.proto) if applied.proto.attribute else ()
            read |= dict.fromkeys(
                n for n in (*applied.node.inputs, *inner) if self.made.get(n, first) < first
            )
            goals |= dict.fromkeys(
                n
                for n in applied.node.outputs
                if n in self.made and self.last.get(n, -1) >= end and self._float(n)
            )
        return Segment(first, end, sites, tuple(read), tuple(goals))
