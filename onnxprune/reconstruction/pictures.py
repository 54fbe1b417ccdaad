"""More from each picture: mirrored, upside down and shifted, as far as the original takes these for the same.

Nothing in a file says what pictures show. Mirrored dogs are dogs, mirrored letters are none; the original knows. Of
what it gives inside and at its end the mean over positions is taken, ``s`` (channels,) for a picture and ``s'`` for the
changed one. A change is admitted where, on average over the layers,

    sum |s - s'|^2 / (2 sum |s - mean(s)|^2) <= 0.15,

that is where a picture and its changed self are much nearer to each other than two pictures are (which gives 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.model import Model

__all__ = ["Changes", "admitted"]

Array = NDArray[Any]
Batch = dict[str, Array]

#: The largest distance of a changed picture from its own, as a share of that of two pictures.
NEAR = 0.15
#: Pictures by which that is judged.
JUDGED = 64
#: A picture is at least this high and wide, and has one of these numbers of channels; a shift is a share of its width.
SMALLEST, CHANNELS, SHIFT = 16, (1, 3, 4), 16


@dataclass(frozen=True)
class Changes:
    """Ways to change the pictures of a batch.

    Attributes
    ----------
    name : str
        Of the input.
    high : int
        The axis of the height; that of the width follows it.
    ways : tuple of str
        Names of `WAYS`.
    """

    name: str
    high: int
    ways: tuple[str, ...]

    def __call__(self, batch: Mapping[str, Array], rng: np.random.Generator) -> Batch:
        """Return a batch of which each picture has been changed at random; in each way every second one."""
        pictures = np.array(batch[self.name])
        for way in self.ways:
            for n in np.flatnonzero(rng.random(len(pictures)) < 0.5):
                pictures[n] = WAYS[way](pictures[n], self.high - 1, rng)
        return {**batch, self.name: pictures}

    def all(self, batch: Mapping[str, Array], rng: np.random.Generator) -> Batch:
        """Return a batch of which each picture has been changed, in every way."""
        pictures = np.array(batch[self.name])
        for way in self.ways:
            pictures = np.stack([WAYS[way](one, self.high - 1, rng) for one in pictures])
        return {**batch, self.name: pictures}


def _mirrored(picture: Array, high: int, _: np.random.Generator) -> Array:
    return np.flip(picture, high + 1)


def _upside_down(picture: Array, high: int, _: np.random.Generator) -> Array:
    return np.flip(picture, high)


def _shifted(picture: Array, high: int, rng: np.random.Generator) -> Array:
    """Shift a picture by some pixels, with its border repeated."""
    for axis in (high, high + 1):
        size = picture.shape[axis]
        most = max(size // SHIFT, 1)
        at = np.clip(np.arange(size) + rng.integers(-most, most + 1), 0, size - 1)
        picture = np.take(picture, at, axis)
    return picture


#: (picture [...] without the axis of samples, axis of its height, rng) -> the changed one.
WAYS: dict[str, Callable[[Array, int, np.random.Generator], Array]] = {
    "mirrored": _mirrored,
    "upside down": _upside_down,
    "shifted": _shifted,
}


def admitted(model: Model, samples: Samples, goals: Sequence[str], seed: int) -> Changes | None:
    """Return the ways in which samples may be changed; None where they aren't pictures, or the original minds all.

    Parameters
    ----------
    model : Model
        The original.
    samples : Samples
    goals : sequence of str
        Tensors of it, samples along axis 0, by which that is judged.
    seed : int
        Of the shifts by which it is judged.
    """
    few = samples.few(JUDGED)
    place = _picture(few)
    if place is None:
        return None
    own = _states(model, few, goals)
    ways = []
    for way in WAYS:
        change, rng = Changes(*place, (way,)), np.random.default_rng(seed)
        changed = few.taken(lambda batch, change=change, rng=rng: change.all(batch, rng))  # type: ignore[misc]
        if _distance(own, _states(model, changed, goals)) <= NEAR:
            ways.append(way)
    return Changes(*place, tuple(ways)) if ways else None


def _picture(samples: Samples) -> tuple[str, int] | None:
    """Return the only input, and the axis of its height, where it holds pictures with samples along axis 0."""
    if {len(batch) for batch in samples.batches} != {1}:
        return None
    (name,) = samples.batches[0]
    for channel, high in ((1, 2), (3, 1)):
        if all(
            a.ndim == 4
            and a.dtype.kind in "fu"
            and len(a) == count
            and a.shape[channel] in CHANNELS
            and min(a.shape[high : high + 2]) >= SMALLEST
            for (a,), count in zip((b.values() for b in samples.batches), samples.counts, strict=True)
        ):
            return name, high
    return None


def _states(model: Model, samples: Samples, goals: Sequence[str]) -> dict[str, Array]:
    """Return the means over positions of goals, [samples, channels] each."""
    rows: dict[str, list[Array]] = {goal: [] for goal in goals}
    for made in stream_of(model, samples).each(goals):
        for goal in goals:
            array = np.asarray(made[goal], np.float64)
            rows[goal].append(array.mean(axis=tuple(range(2, array.ndim))))
    return {goal: np.concatenate(found) for goal, found in rows.items()}


def _distance(own: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """Return how far states are from one another, as a share of how far those of two pictures are."""
    shares = []
    for goal, states in own.items():
        spread = 2 * float(np.square(states - states.mean(axis=0)).sum())
        if spread > 0 and states.shape != other[goal].shape:
            return np.inf  # as many as the model chose
        if spread > 0:
            shares.append(float(np.square(states - other[goal]).sum()) / spread)
    return float(np.mean(shares)) if shares else np.inf
