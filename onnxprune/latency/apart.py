"""Races in processes of their own: where memory lies and which pages are shared differs from one process to the next,
and a ratio that one process shows with a narrow interval can be another in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.latency.clock import SECONDS, Bench, race, session_of
from onnxprune.model import Model
from onnxprune.wall.process import call

__all__ = ["Apart", "race_apart"]


@dataclass(frozen=True)
class Apart:
    """Races of two models, one for each process.

    Attributes
    ----------
    races : list of dict
        See `Race.to_json`.
    """

    races: list[dict[str, Any]]

    @property
    def ratio(self) -> float:
        """The speed-up: the mean of the processes' logarithms."""
        return float(np.exp(np.mean([np.log(race["ratio"]) for race in self.races])))

    @property
    def interval(self) -> tuple[float, float]:
        """From the lowest end of all intervals to the highest."""
        ends = [race["interval"] for race in self.races]
        return min(low for low, _ in ends), max(high for _, high in ends)


def race_apart(
    first: Path, second: Path, bench: Bench, *, processes: int = 2, seconds: float = SECONDS
) -> Apart:
    """Time two files in turns, in several processes one after the other.

    Raises
    ------
    OnnxPruneError
        If one can't be run.
    """
    return Apart([call(raced, str(first), str(second), bench, seconds) for _ in range(processes)])


def raced(first: str, second: str, bench: Bench, seconds: float) -> dict[str, Any]:
    """Time two files in turns, in this process."""
    one, other = (session_of(Model.load(path), bench) for path in (first, second))
    return race(one, other, bench, seconds=seconds).to_json()
