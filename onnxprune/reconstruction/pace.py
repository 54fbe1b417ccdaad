"""How far a descent goes: its steps, their size and length, and what they may cost.

All that a descent sees is bounded by the work that it takes, not by time: the same samples and seed give the same bytes
on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Pace"]

#: Multiply-accumulates, forward, of all that a descent sees: with the way back, some minutes of a core. Half a minute
#: of speech takes as many as hundreds of small pictures.
WORK = 1.5e12
#: Fewer steps than this aren't worth their while.
FEWEST = 40


@dataclass(frozen=True)
class Pace:
    """How far a descent goes.

    Attributes
    ----------
    steps : int
    passes : int
        Every sample is seen about so often, where batches allow it.
    batch : pair of int
        Samples of a step: at least, at most.
    rate : float
        Length of the first steps, as a share of the root mean square of a tensor; it falls to nothing along a cosine.
    looks : int
        How often held-out samples are asked; 0: never, and the last weights are returned.
    """

    steps: int = 200
    passes: int = 6
    batch: tuple[int, int] = (4, 32)
    rate: float = 0.015
    looks: int = 4

    def part(self, share: float, rate: float) -> Pace:
        """Return the pace of a share of the steps, at a rate."""
        steps, passes = (max(round(share * n), 1) for n in (self.steps, self.passes))
        return replace(self, steps=steps, passes=passes, rate=rate)

    def size(self, samples: int) -> int:
        """Return the samples of a step."""
        low, high = self.batch
        return min(max(-(-samples * self.passes // self.steps), low), high, samples)

    def within(self, samples: int, macs: float) -> Pace | None:
        """Return the pace at which all steps take no more than `WORK`: first they are smaller, then fewer.

        Parameters
        ----------
        samples : int
        macs : float
            Multiply-accumulates of one.

        Returns
        -------
        Pace or None
            None where fewer than `FEWEST` would be left.
        """
        most = int(WORK / max(macs, 1.0))
        if self.steps * self.size(samples) <= most:
            return self
        size = max(most // self.steps, 1)
        steps = min(self.steps, most // size)
        return replace(self, steps=steps, batch=(size, size)) if steps >= FEWEST else None
