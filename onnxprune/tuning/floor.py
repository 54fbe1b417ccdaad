"""How much of a metric a model has lost, with an interval, and whether that is too much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.agreement import paired
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.tuning.metric import Score

__all__ = ["Floor", "lost_between"]

Floats = NDArray[np.float64]

#: Draws of the bootstrap.
DRAWS = 2000


@dataclass(frozen=True)
class Floor:
    """What must stay of a metric.

    Attributes
    ----------
    original : Score
    most : float
        That may be lost, in the metric's unit.
    lower : bool
        Whether less is better.
    """

    original: Score
    most: float
    lower: bool = False

    @classmethod
    def of(cls, original: Score, points: float, share: bool, lower: bool) -> Floor:
        """Return the floor for a drop in points.

        Parameters
        ----------
        original : Score
        points : float
        share : bool
            Whether a metric of the user's is taken for a share, of which a point is a hundredth, where it is one.
        lower : bool

        Raises
        ------
        UsageError
            If as much may be lost as there is.
        """
        a_share = share and 0 <= original.value <= 1
        most = points / 100 if a_share else points
        if not lower and original.value == 0:
            raise UsageError(
                "The input's own metric is 0, so there is nothing to keep; look for labels, data or preprocessing of "
                "another model, and give --lower-is-better where 0 is best."
            )
        if not lower and 0 < original.value <= most:  # what is below 0 has no end where all would be gone
            raise UsageError(
                f"--max-drop {points:g} would let all of the metric go, which is {original.value:.6g} for the input; "
                "give less, in the metric's own unit."
            )
        return cls(original, most, lower)

    def resolvable(self, more: str = "give more with --eval") -> None:
        """Refuse a floor that one item more or less decides.

        Parameters
        ----------
        more : str
            How there can be more items.

        Raises
        ------
        CalibrationError
            The sentence says how many items are needed.
        """
        items = self.original.items
        if items is None or self.most <= 0 or (set(items) - {0.0, 100.0} and set(items) - {0.0, 1.0}):
            return
        worth = (100.0 if max(items) > 1 else 1.0) / len(items)
        if worth > self.most * (1 + 1e-9):
            needed = int(np.ceil(len(items) * worth / self.most - 1e-9))
            raise CalibrationError(
                f"A drop of {self.most:g} can't be told on {len(items)} items, of which one counts {worth:.3g}: it "
                f"takes {needed} at least; {more}, or a larger --max-drop."
            )

    def lost(self, score: Score) -> float:
        """Return how much a model has lost, in the metric's unit; negative where it is better."""
        change = score.value - self.original.value
        return change if self.lower else -change

    def holds(self, score: Score) -> bool:
        """Whether it is no more than may be lost."""
        return self.lost(score) <= self.most * (1 + 1e-9) + 1e-12

    def interval(self, score: Score) -> tuple[float, float] | None:
        """Return the 95 % interval of what is lost, over the same items; None where nothing is known of items."""
        if self.original.items is None or score.items is None or len(score.items) != len(self.original.items):
            return None
        low, high = lost_between(np.array(self.original.items), np.array(score.items))
        return (-high, -low) if self.lower else (low, high)


def lost_between(before: Floats, after: Floats, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of ``before - after``.

    Of items that are right or wrong it is Agresti and Min's, which knows that none lost of few says little; of others
    the bootstrap's (Efron, Annals of Statistics 1979), which draws the same items for both.

    Parameters
    ----------
    before, after : float64[items]
    seed : int
    """
    worth = float(max(before.max(), after.max()))
    if worth > 0 and np.isin(before, (0.0, worth)).all() and np.isin(after, (0.0, worth)).all():
        first, second = before > 0, after > 0
        low, high = paired(int((first & ~second).sum()), int((~first & second).sum()), len(before))
        return worth * low, worth * high
    differences, rng = before - after, np.random.default_rng(seed)
    draws = [differences[rng.integers(0, len(differences), len(differences))] for _ in range(DRAWS)]
    low, high = np.quantile([draw.mean() for draw in draws], [0.025, 0.975])
    return float(low), float(high)
