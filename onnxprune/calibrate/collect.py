"""Moments of layers over the samples, for fitting and held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibrate.moments import Moments, Stack
from onnxprune.calibrate.regressors import View

__all__ = ["HELD", "Evidence", "gather", "positions_of"]

Array = NDArray[Any]

#: Every so many samples one is held out.
HELD = 5


@dataclass
class Evidence:
    """Moments of the rows (x, y) of one layer, block by block.

    Attributes
    ----------
    view : View
    fitting, aside : Stack
        Of the samples that fits see, and of those that are held out.
    spread : float
        Variance, summed over channels, of the tensor that the layer's output becomes part of (the residual sum, or the
        output itself): the natural unit of the layer's error.
    """

    view: View
    fitting: Stack
    aside: Stack
    spread: float = 0.0

    @classmethod
    def empty(cls, view: View) -> Evidence:
        """Return no evidence."""
        size = view.width + view.outputs
        return cls(view, Stack.empty(view.blocks, size), Stack.empty(view.blocks, size))

    @property
    def train(self) -> list[Moments]:
        """Moments of the rows for fitting, one for each block."""
        return self.fitting.parts

    @property
    def held(self) -> list[Moments]:
        """Moments of the rows that are held out, one for each block."""
        return self.aside.parts

    def whole(self) -> list[Moments]:
        """Return the moments of all rows, one for each block."""
        both = self.fitting.copy()
        both.merge(self.aside)
        return both.parts

    def add(
        self,
        x: Array,
        y: Array,
        span: tuple[int, int],
        most: int,
        rng: np.random.Generator,
        valid: Array | None = None,
    ) -> None:
        """Add one batch.

        Parameters
        ----------
        x : array
            The layer's input.
        y : array [positions, blocks * outputs]
            Its targets, or all of its outputs, by position.
        span : (first, count)
            Number of the batch's first sample, and how many samples it holds: every fifth sample is held out.
        most : int
            Positions of the batch to be used at most, drawn at random.
        rng : numpy.random.Generator
        valid : bool array, optional
            See `positions_of`.
        """
        view, positions = self.view, len(y)
        first, count = span
        rows = positions_of(x, y, valid)
        if len(rows) > most:
            rows = np.sort(rng.choice(rows, most, replace=False))
        sample = first + rows // max(positions // max(count, 1), 1)
        held = sample % HELD == HELD - 1
        targets = y[rows].reshape(len(rows), view.blocks, view.outputs).transpose(1, 0, 2)
        both = np.concatenate([view.x(x, rows), targets], axis=2, dtype=_common(x))
        for part, into in ((~held, self.fitting), (held, self.aside)):
            if part.any():
                into.add(both[:, part])


def _common(x: Array) -> type[np.generic]:
    return np.float64 if x.dtype == np.float64 else np.float32


def positions_of(x: Array, y: Array, valid: Array | None) -> NDArray[np.int64]:
    """Return the positions of a batch that are no padding.

    Parameters
    ----------
    x : array
        The layer's input.
    y : array [positions, ...]
    valid : bool[batch, sequence] or None
        False for the padding of sequences. It is heeded where the layer runs over exactly these positions.
    """
    same = valid is not None and len(y) == valid.size and (x.ndim == 2 or x.shape[:2] == valid.shape)
    return np.flatnonzero(valid) if valid is not None and same else np.arange(len(y))


def gather(
    evidence: Evidence,
    batches: Iterable[tuple[Array, Array, int]],
    *,
    samples: int,
    most: int,
    seed: int,
    valid: Sequence[Array | None] = (),
) -> Evidence:
    """Add all batches to the evidence.

    Parameters
    ----------
    evidence : Evidence
    batches : iterable of (x, y, count)
        A layer's inputs, its targets by position, and the number of samples of the batch.
    samples : int
        Samples in all batches.
    most : int
        Positions to be used in all at most; drawn at random, the same ones for the same seed.
    seed : int
    valid : sequence of bool arrays, optional
        One for each batch, see `positions_of`.
    """
    rng = np.random.default_rng(seed)
    first = 0
    for n, (x, y, count) in enumerate(batches):
        share = max(1, most * count // max(samples, 1))
        evidence.add(x, y, (first, count), share, rng, valid[n] if valid else None)
        first += count
    return evidence
