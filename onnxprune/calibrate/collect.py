"""Moments of layers over the samples, for fitting and held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibrate.moments import Moments
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
    train, held : list of Moments
        One for each block.
    spread : float
        Variance, summed over channels, of the tensor that the layer's output becomes part of (the residual sum, or the
        output itself): the natural unit of the layer's error.
    """

    view: View
    train: list[Moments]
    held: list[Moments]
    spread: float = 0.0

    @classmethod
    def empty(cls, view: View) -> Evidence:
        """Return no evidence."""
        size = view.width + view.outputs
        blocks = range(view.blocks)
        return cls(view, [Moments.empty(size) for _ in blocks], [Moments.empty(size) for _ in blocks])

    def whole(self) -> list[Moments]:
        """Return the moments of all rows."""
        found = []
        for train, held in zip(self.train, self.held, strict=True):
            both = train.copy()
            both.merge(held)
            found.append(both)
        return found

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
        for part, into in ((rows[~held], self.train), (rows[held], self.held)):
            if not part.size:
                continue
            regressors, targets = view.x(x, part), y[part]
            for block, moments in enumerate(into):
                mine = targets[:, block * view.outputs : (block + 1) * view.outputs]
                moments.add(np.concatenate([regressors[block], mine], axis=1, dtype=_common(x)))


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
