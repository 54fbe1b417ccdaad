"""Moments of layers over the samples, for fitting and held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibrate.moments import Moments, Stack
from onnxprune.calibrate.regressors import View

__all__ = ["HELD", "Draw", "Evidence", "Rows", "positions_of"]

Array = NDArray[Any]

#: Every so many samples one is held out.
HELD = 5


@dataclass(frozen=True)
class Rows:
    """Positions of a batch that are used.

    Attributes
    ----------
    index : int64[rows]
        Ascending.
    held : bool[rows]
        Which of them belong to samples that are held out.
    """

    index: NDArray[np.int64]
    held: NDArray[np.bool_]


class Draw:
    """Draws the positions of one layer that are used, batch after batch; the same ones for the same seed.

    Parameters
    ----------
    samples : int
        Samples in all batches.
    most : int
        Positions to be used in all at most, each batch its share, drawn at random.
    seed : int
    """

    def __init__(self, samples: int, most: int, seed: int) -> None:
        self.samples, self.most, self.first = samples, most, 0
        self.rng = np.random.default_rng(seed)

    def take(self, x: Array, y: Array, count: int, valid: Array | None = None) -> Rows:
        """Return the positions of the next batch.

        Parameters
        ----------
        x : array
            The layer's input, of which the shape counts alone.
        y : array [positions, ...]
        count : int
            Samples of the batch: every fifth sample is held out.
        valid : bool array, optional
            See `positions_of`.
        """
        share = max(1, self.most * count // max(self.samples, 1))
        index = positions_of(x, y, valid)
        if len(index) > share:
            index = np.sort(self.rng.choice(index, share, replace=False))
        sample = self.first + index // max(len(y) // max(count, 1), 1)
        self.first += count
        return Rows(index, sample % HELD == HELD - 1)


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

    def add(self, x: Array, targets: Array, rows: Rows) -> None:
        """Add one batch.

        Parameters
        ----------
        x : array
            The layer's input.
        targets : array [rows, blocks * outputs]
            Its targets at the drawn positions.
        rows : Rows
        """
        view = self.view
        wanted = targets.reshape(len(targets), view.blocks, view.outputs).transpose(1, 0, 2)
        both = np.concatenate([view.x(x, rows.index), wanted], axis=2, dtype=_common(x))
        for part, into in ((~rows.held, self.fitting), (rows.held, self.aside)):
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
