"""Samples dealt to several machines, so that sums over them come out the same whatever their number.

All samples fall into the same pieces, whole batches each and `PIECES` at most. Shard i of n has neighbouring pieces,
of which each is summed by itself. Sums are added in a binary tree over the pieces: what spans ``[a, a + s)`` takes what
spans ``[a + s, a + 2 s)`` (or ends with the last piece) where ``s`` is a power of two and ``2 s`` divides ``a``. So
each addition of floats is the same in one run and in any number of shards, whose sums are those inner nodes of the
tree that they hold whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

from onnxprune.calibration.samples import Samples
from onnxprune.errors import UsageError

__all__ = ["PIECES", "Mergeable", "Piece", "Shard", "Span", "Tree", "in_pieces"]

#: Into how many pieces samples fall at most: no more machines can share them.
PIECES = 64

#: The first piece, and the one behind the last.
Span = tuple[int, int]


class Mergeable(Protocol):
    """What is summed over samples."""

    def merge(self, other: Self, /) -> None:
        """Add what comes from other samples."""


M = TypeVar("M", bound=Mergeable)


@dataclass(frozen=True)
class Shard:
    """One share of the samples, or of the layers: the ``number``-th, from 1, ``of`` so many."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str, flag: str = "--shard") -> Shard:
        """Read ``2/8``.

        Raises
        ------
        UsageError
            If it is no such text, or there is no such share.

        Examples
        --------
        >>> Shard.parse("2/8")
        Shard(number=2, of=8)
        """
        match = re.fullmatch(r"\s*([0-9]{1,4})\s*/\s*([0-9]{1,4})\s*", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"{flag} must be a share such as 2/8, from 1/8 to 8/8; got {text!r}.")
        return cls(int(match[1]), int(match[2]))

    def span(self, pieces: int) -> Span:
        """Return its pieces, of so many.

        Raises
        ------
        UsageError
            If there are more shards than pieces.
        """
        if self.of > pieces:
            raise UsageError(
                f"The samples fall into {pieces} pieces, so {self.of} shards can't share them; ask for "
                f"{pieces} at most."
            )
        return pieces * (self.number - 1) // self.of, pieces * self.number // self.of

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class Piece:
    """Neighbouring batches.

    Attributes
    ----------
    number : int
    batches : range
        Positions of its batches.
    before : int
        Samples before the first.
    """

    number: int
    batches: range
    before: int


def in_pieces(samples: Samples) -> tuple[Samples, list[Piece]]:
    """Return samples in batches that fall into as many pieces as may be, and these pieces."""
    samples = samples.cut_into(max(1, -(-samples.count // PIECES)))
    batches = len(samples.batches)
    count = min(PIECES, batches)
    edges = [batches * n // count for n in range(count + 1)]
    before = [sum(samples.counts[:edge]) for edge in edges]
    return samples, [Piece(n, range(edges[n], edges[n + 1]), before[n]) for n in range(count)]


@dataclass
class Tree(Generic[M]):
    """Sums of neighbouring pieces, added in the one order.

    Attributes
    ----------
    pieces : int
        In all.
    nodes : list of (Span, sum)
        What can't be added yet: something between or beside is missing.
    """

    pieces: int
    nodes: list[tuple[Span, M]] = field(default_factory=list)

    def add(self, span: Span, value: M) -> None:
        """Add the sum of the next pieces; sums that were given before are changed."""
        self.nodes.append((span, value))
        while len(self.nodes) > 1 and self._siblings(self.nodes[-2][0], self.nodes[-1][0]):
            (right, other), (left, whole) = self.nodes.pop(), self.nodes.pop()
            whole.merge(other)
            self.nodes.append(((left[0], right[1]), whole))

    def _siblings(self, left: Span, right: Span) -> bool:
        size = left[1] - left[0]
        power = size & (size - 1) == 0 and left[0] % (2 * size) == 0
        return power and left[1] == right[0] and right[1] == min(left[0] + 2 * size, self.pieces)
