"""Moments of a layer's rows (x, y) over the samples, for fitting and held out.

Of each block of a layer the rows ``(x, y)``, of length d + O, give a count, a mean (d + O,), and centred sums of
``x x^T`` (d, d), ``x y^T`` (d, O) and ``y^2`` (O,), see `onnxprune.reconstruction.moments`; of layers with more than
``wide`` regressors rows are kept instead, see `onnxprune.reconstruction.dual`. Every fifth sample goes to a set of its
own, by which fits are judged. Where there are more positions than a fit needs, each batch gives its share, drawn at
random with a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.dual import DualProblem, RowStack, RowTable
from onnxprune.reconstruction.least_squares import Problem, Regression
from onnxprune.reconstruction.moments import Stack
from onnxprune.reconstruction.views import View, channels_last

__all__ = [
    "HELD", "WIDE", "Collector", "Draw", "Evidence", "Rows", "Spread", "evened", "moments_of", "positions_of",
    "typical",
]  # fmt: skip

Array = NDArray[Any]

#: Every so many samples one is held out.
HELD = 5
#: Regressors up to which the moments of a layer are taken; of wider ones rows are kept.
WIDE = 4608
#: Entries of an activation that are worked on at a time.
CACHED = 1 << 16
#: A channel whose variance is this small a part of the largest never changes; one so many times the median's is strong.
DEAD, STRONG = 1e-9, 10.0
#: A position whose squares are so many times the median's counts as if they were no more.
LOUD = 10.0


@dataclass(frozen=True)
class Rows:
    """Positions of a batch that are used.

    Attributes
    ----------
    index : int64[rows]
        First those of samples for fitting, then those of samples that are held out; both ascending.
    fitting : int
        How many are for fitting.
    """

    index: NDArray[np.int64]
    fitting: int


class Draw:
    """Draws the positions of one layer that are used, batch after batch; the same ones for the same seed.

    Parameters
    ----------
    samples : int
        Samples in all batches.
    most : int
        Positions to be used in all at most, each batch its share, drawn at random.
    seed : int or sequence of int
    first : int
        Samples before those of the first batch.
    """

    samples: int
    most: int
    first: int
    rng: np.random.Generator

    def __init__(self, samples: int, most: int, seed: int | Sequence[int], first: int = 0) -> None:
        self.samples, self.most, self.first = samples, most, first
        self.rng = np.random.default_rng(seed)

    def take(self, x: Array, positions: int, count: int, valid: Array | None = None) -> Rows:
        """Return the positions of the next batch.

        Parameters
        ----------
        x : array
            The layer's input, of which the shape counts alone.
        positions : int
            Of the layer's output.
        count : int
            Samples of the batch: every fifth sample is held out.
        valid : bool array, optional
            See `positions_of`.
        """
        share = max(1, self.most * count // max(self.samples, 1))
        index = positions_of(x, positions, valid)
        if len(index) > share:
            index = np.sort(self.rng.choice(index, share, replace=False))
        sample = self.first + index // max(positions // max(count, 1), 1)
        self.first += count
        held_out = sample % HELD == HELD - 1
        return Rows(np.concatenate([index[~held_out], index[held_out]]), int(len(index) - held_out.sum()))


@dataclass
class Evidence:
    """What the rows (x, y) of one layer tell, block by block.

    Attributes
    ----------
    view : View
    fitting, aside : Stack or RowStack
        Of the samples that fits see, and of those that are held out.
    spread : float
        Variance, summed over channels, of the tensor that the layer's output becomes part of (the residual sum, or the
        output itself): the natural unit of the layer's error.
    linear : bool
        Whether targets weren't kept, since they are what the layer's own weights give: ``X^T Y = X^T X W``.
    """

    view: View
    fitting: Stack | RowStack
    aside: Stack | RowStack
    spread: float = 0.0
    linear: bool = False

    def train(self, *, centred: bool = True) -> Sequence[Regression]:
        """Return the regression of each block on the rows for fitting; centred: about the means."""
        return _problems(self.fitting, centred)

    def held_out(self, *, centred: bool = True) -> Sequence[Regression]:
        """Return the regression of each block on the rows that are held out."""
        return _problems(self.aside, centred)

    def whole(self, *, centred: bool = True) -> Sequence[Regression]:
        """Return the regression of each block on all rows."""
        return _problems(_together(self.fitting.copy(), self.aside), centred)

    def merge(self, other: Evidence) -> None:
        """Add what is known of another use of the same weight, or of other samples."""
        if isinstance(self.fitting, RowStack):  # the rows that are held out lie in the same tables
            assert isinstance(self.aside, RowStack)
            before = self.fitting.tables[0].count
            _together(self.fitting, other.fitting)
            assert isinstance(other.aside, RowStack)
            self.aside = RowStack(
                self.fitting.tables, np.concatenate([self.aside.index, before + other.aside.index])
            )
            return
        _together(self.fitting, other.fitting)
        _together(self.aside, other.aside)


def _together(one: Stack | RowStack, other: Stack | RowStack) -> Stack | RowStack:
    """Add rows to others of the same kind."""
    if isinstance(one, RowStack):
        assert isinstance(other, RowStack)
        one.merge(other)
    else:
        assert isinstance(other, Stack)
        one.merge(other)
    return one


def _problems(rows: Stack | RowStack, centred: bool) -> Sequence[Regression]:
    if isinstance(rows, RowStack):
        return [DualProblem(table, index, centred) for table, index in rows.parts]
    problems = [Problem.of(moments) for moments in rows.parts]
    return problems if centred else [p.about_zero() for p in problems]


def moments_of(regressions: Sequence[Regression]) -> list[Problem]:
    """Return regressions of a layer that isn't wide.

    Raises
    ------
    TypeError
        If it is.
    """
    problems = [p for p in regressions if isinstance(p, Problem)]
    if len(problems) < len(regressions):
        raise TypeError("of a wide layer there are rows and no moments")
    return problems


class Collector:
    """Adds up what one layer's rows tell, batch after batch.

    Parameters
    ----------
    view : View
    wide : int
        Regressors from which rows are kept.
    linear : bool
        Whether targets aren't kept, see `Evidence`.
    """

    view: View
    linear: bool
    tables: list[RowTable]
    fitting: Stack
    aside: Stack

    def __init__(self, view: View, wide: int = WIDE, *, linear: bool = False) -> None:
        self.view, self.linear = view, linear
        self.tables = [RowTable() for _ in range(view.blocks)] if view.width > wide else []
        self.held_out: list[NDArray[np.bool_]] = []
        if not self.tables:
            size = view.blocks, view.width, 0 if linear else view.outputs
            self.fitting, self.aside = Stack.empty(*size), Stack.empty(*size)

    def add(self, x: Array, targets: Array, rows: Rows, even: Array | None = None) -> None:
        """Add one batch.

        Parameters
        ----------
        x : array
            The layer's input.
        targets : array [rows, blocks * outputs]
            Its targets at the drawn positions, [rows, 0] where they aren't kept.
        rows : Rows
        even : float[rows, 1], optional
            Factors of the rows, see `evened`.

        Raises
        ------
        CalibrationError
            If a value isn't finite.
        """
        view, count = self.view, len(targets)
        outputs = 0 if self.linear else view.outputs
        if x.dtype != np.float64:
            targets = targets.astype(np.float32, copy=False)
        if even is not None:
            targets = targets * even
        wanted = targets.reshape(count, view.blocks, outputs).transpose(1, 0, 2)
        if self.tables:
            for table, regressors, goal in zip(self.tables, view.x(x, rows.index), wanted, strict=True):
                table.add(regressors if even is None else regressors * even, goal)
            self.held_out.append(np.arange(count) >= rows.fitting)
            return
        regressors = view.read(x, rows.index).reshape(view.blocks, count, view.width)
        if even is not None:
            regressors = regressors * even
        for part, into in (
            (slice(rows.fitting), self.fitting),
            (slice(rows.fitting, None), self.aside),
        ):
            into.add(regressors[:, part], wanted[:, part])

    def evidence(self, spread: float = 0.0) -> Evidence:
        """Return what was added, the regressors in the order of the weight; see `Evidence.spread`."""
        if self.tables:
            held_out = np.concatenate([np.zeros(0, np.bool_), *self.held_out])
            fitting, aside = (RowStack(self.tables, np.flatnonzero(which)) for which in (~held_out, held_out))
            return Evidence(self.view, fitting, aside, spread, self.linear)
        return Evidence(
            self.view, self._ordered(self.fitting), self._ordered(self.aside), spread, self.linear
        )

    def _ordered(self, stack: Stack) -> Stack:
        view = self.view
        if 1 in (view.taps, view.channels):
            return stack
        order = np.append(view.order, np.arange(view.width, stack.mean.shape[1]))
        gram = stack.gram[:, view.order[:, None], order]
        return Stack(stack.n, stack.mean[:, order], gram, stack.square)


def evened(rows: Array) -> Array | None:
    """Return factors of rows with which none has more than `LOUD` times the squares of the median row.

    In decoders the first position of a text is often a hundred times as loud as the others, in a few channels
    ("massive activations", arXiv 2402.17762). Norms behind the stream take that away; in sums of squares nothing else
    would count.

    Parameters
    ----------
    rows : float[rows, channels]
        Of the stream.

    Returns
    -------
    float[rows, 1] or None
        None where no row is that loud. Rows of a regression may be multiplied by them where it has no bias.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what isn't finite is refused by the moments
        squares = np.vecdot(rows, rows)
    most = LOUD * float(np.median(squares)) if len(squares) and np.isfinite(squares).all() else 0.0
    if not 0 < most < squares.max(initial=0.0):
        return None
    return np.asarray(np.sqrt(np.minimum(most / np.maximum(squares, most), 1.0))[:, None])


def typical(variances: NDArray[np.float64]) -> float:
    """Return the sum of the variances of channels, each counted up to `STRONG` times the median of those that change.

    Streams of transformers have a few channels that are a thousand times as strong as the others ("massive
    activations", arXiv 2402.17762), and most of the sum: an error that is small beside them may be all that the other
    channels hold.
    """
    live = variances[variances > DEAD * variances.max(initial=0.0)]
    return float(np.minimum(live, STRONG * np.median(live)).sum()) if live.size else 0.0


class Spread:
    """Variance of channels, streamed, of arrays that are read as they lie."""

    n: int
    square: NDArray[np.float64]
    sum: NDArray[np.float64]

    def __init__(self) -> None:
        self.n = 0
        self.square = np.zeros(1)
        self.centre: Array = np.zeros(0)  # near the means, so that no digits are lost to them
        self.sum = np.zeros(1)

    def add(self, array: Array, axis: int, x: Array, valid: Array | None) -> None:
        """Add the positions of an array that are no padding, see `positions_of`."""
        axis %= array.ndim
        channels, inner = array.shape[axis], prod(array.shape[axis + 1 :])
        if valid is not None:
            rows = channels_last(array, axis)
            array, inner = rows[positions_of(x, len(rows), valid)], 1
        parts = array.reshape(-1, channels, inner)
        self.n += len(parts) * inner
        step = max(CACHED // max(channels * inner, 1), 1)
        if not self.centre.size and parts.size:
            self.centre = parts[:step].mean(axis=(0, 2), dtype=np.result_type(array.dtype, np.float32))
        for first in range(0, len(parts), step):
            part = parts[first : first + step] - self.centre[:, None]
            # no products: in pieces of this size they would wait for numpy's threads
            self.sum = self.sum + part.sum(axis=2).sum(axis=0, dtype=np.float64)
            with np.errstate(over="ignore"):  # moments refuse what is so large
                squares = np.vecdot(part, part) if inner > 1 else np.square(part[:, :, 0])
            self.square = self.square + squares.sum(axis=0, dtype=np.float64)

    def merge(self, other: Spread) -> None:
        """Add the positions of another shard."""
        if not self.n:
            self.n, self.square = other.n, other.square
            self.centre, self.sum = other.centre, other.sum
        elif other.n:
            shift = other.centre.astype(np.float64) - self.centre
            self.square = self.square + other.square + 2 * shift * other.sum + other.n * shift * shift
            self.sum = self.sum + other.sum + other.n * shift
            self.n += other.n

    @property
    def variance(self) -> float:
        """Of what was added, see `typical`; 0 of nothing."""
        if not self.n:
            return 0.0
        return typical(self.square / self.n - np.square(self.sum / self.n))


def positions_of(x: Array, positions: int, valid: Array | None) -> NDArray[np.int64]:
    """Return the positions of a batch that are no padding.

    Parameters
    ----------
    x : array
        The layer's input.
    positions : int
        Of the layer's output.
    valid : bool[batch, sequence] or None
        False for the padding of sequences. It is heeded where the layer runs over exactly these positions.
    """
    same = valid is not None and positions == valid.size and (x.ndim == 2 or x.shape[:2] == valid.shape)
    return np.flatnonzero(valid) if valid is not None and same else np.arange(positions)
