"""Wide layers: least squares in its dual form, on rows that are kept as they are.

A convolution of 64 taps on 1,024 channels has d = 65,536 regressors: their covariance would take 34 GB. So of a wide
layer n < d rows are kept, ``X`` (n, d) and ``Y`` (n, O) about their means, and a ridge regression on the regressors S
that stay is solved through a matrix of n x n,

    W_S = W0_S + X_S^T a,    a = (X_S X_S^T + n lam I)^-1 (Y - X_S W0_S)    (n, O),

which is what `onnxprune.reconstruction.least_squares` gives from ``H = X^T X / n`` and ``G = X^T Y / n``. Errors are
read off the rows. All runs over blocks of columns, so that nothing of X's size is made beside X.

The loss curve of a group's units u is that of their *contributions* ``p_u = X_u W_u`` (n, O), each of which may be
scaled once others have gone: a regression of ``Y = sum_u p_u`` on them, with one regressor for each unit,

    h_uv = sum over rows and outputs of p_u p_v / n,    g_u = sum over rows and outputs of p_u Y / n.

It promises less than a refit of all regressors gives, since it scales units and mixes no taps.

References
----------
Saunders, Gammerman, Vovk, "Ridge Regression Learning Algorithm in Dual Variables", ICML 1998.
He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, equation 2 (scaled
contributions of channels).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.least_squares import Problem
from onnxprune.reconstruction.moments import check_finite

__all__ = ["DualProblem", "RowStack", "RowTable", "contributions", "merged"]

Array = NDArray[Any]
Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]

#: Columns of rows that are worked on at a time, and entries of contributions.
COLUMNS, ENTRIES = 2048, 1 << 24


@dataclass
class RowTable:
    """Rows of one block of a layer.

    Attributes
    ----------
    x : list of float array [k, d]
    y : list of float array [k, O]
    """

    x: list[Array] = field(default_factory=list)
    y: list[Array] = field(default_factory=list)
    _kernel: tuple[bytes, Matrix] | None = None

    @property
    def count(self) -> int:
        """Rows that there are."""
        return sum(map(len, self.x))

    @property
    def width(self) -> int:
        """Regressors."""
        return int(self.x[0].shape[1])

    def add(self, x: Array, y: Array) -> None:
        """Add rows.

        Raises
        ------
        CalibrationError
            If a value isn't finite.
        """
        check_finite(x)
        check_finite(y)
        kind = np.float64 if np.float64 in (x.dtype, y.dtype) else np.float32
        self._kernel = None
        self.x.append(np.ascontiguousarray(x, kind))
        self.y.append(np.ascontiguousarray(y, kind))

    def columns(self, index: Ints, columns: Ints) -> Array:
        """Return float array [len(index), columns], some columns of some rows, ascending; a copy."""
        run = len(columns) > 0 and bool((np.diff(columns) == 1).all())
        some = slice(int(columns[0]), int(columns[-1]) + 1) if run else columns  # a sixth of the time
        ends = np.cumsum([len(part) for part in self.x])
        parts, first = [], 0
        for part, end in zip(self.x, ends, strict=True):
            inside = index[(index >= first) & (index < end)] - first
            if len(inside):
                parts.append(part[inside, some] if isinstance(some, slice) else part[np.ix_(inside, some)])
            first = end
        return np.concatenate(parts) if parts else np.zeros((0, len(columns)), np.float32)

    def targets(self, index: Ints) -> Matrix:
        """Return float64[len(index), O]."""
        return np.concatenate(self.y)[index].astype(np.float64)

    def kernel(self, kept: Ints, mean: Matrix) -> Matrix:
        """Return float64[count, count], products of all rows over the kept regressors about a mean; one is held."""
        key = kept.tobytes() + mean.tobytes()
        if self._kernel is None or self._kernel[0] != key:
            total, every = np.zeros((self.count, self.count)), np.arange(self.count)
            for first in range(0, len(kept), COLUMNS):
                some = kept[first : first + COLUMNS]
                block = self.columns(every, some)
                block -= mean[some].astype(block.dtype)
                total += block @ block.T
            self._kernel = key, total
        return self._kernel[1]


@dataclass
class RowStack:
    """What a `onnxprune.reconstruction.moments.Stack` is for wide layers: some rows of each block's table.

    Attributes
    ----------
    tables : list of RowTable
        Of each block; the rows for fitting and those that are held out lie in the same.
    index : int64[n]
        Which of their rows these are.
    """

    tables: list[RowTable]
    index: Ints

    @property
    def n(self) -> int:
        """Rows of each block."""
        return len(self.index)

    @property
    def parts(self) -> list[tuple[RowTable, Ints]]:
        """The rows of each block."""
        return [(table, self.index) for table in self.tables]

    def merge(self, other: RowStack) -> None:
        """Add the rows of another shard, or of the same tables."""
        if other.tables is self.tables:
            self.index = np.union1d(self.index, other.index)
            return
        before = self.tables[0].count
        for table, more in zip(self.tables, other.tables, strict=True):
            for x, y in zip(more.x, more.y, strict=True):
                table.add(x, y)
        self.index = np.concatenate([self.index, before + other.index])

    def copy(self) -> RowStack:
        """Return another stack of the same tables."""
        return RowStack(self.tables, self.index)


@dataclass
class DualProblem:
    """One regression on kept rows; what `onnxprune.reconstruction.least_squares.Problem` is on moments.

    Attributes
    ----------
    table : RowTable
    index : int64[n]
    centred : bool
        Whether rows are taken about their means; else about zero, where no bias can be given.
    given : float64[n, O] or None
        Targets instead of those of the table.
    """

    table: RowTable
    index: Ints
    centred: bool = True
    given: Matrix | None = None

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.index)

    @cached_property
    def mx(self) -> Matrix:
        """float64[d]."""
        mean = np.zeros(self.table.width)
        for part in self._blocks(mean) if self.centred and self.n else ():
            columns, block = part
            mean[columns] = block.mean(axis=0, dtype=np.float64)
        return mean

    @cached_property
    def y(self) -> Matrix:
        """float64[n, O], the targets."""
        return self.table.targets(self.index) if self.given is None else self.given

    @cached_property
    def my(self) -> Matrix:
        """float64[O]."""
        return self.y.mean(axis=0) if self.centred and self.n else np.zeros(self.y.shape[1])

    @cached_property
    def v(self) -> Matrix:
        """float64[O], the variance of each target."""
        return np.asarray(np.square(self.y - self.my).mean(axis=0)) if self.n else np.zeros(self.y.shape[1])

    @property
    def variance(self) -> float:
        """Sum of the targets' variances."""
        return float(self.v.sum())

    @cached_property
    def diagonal(self) -> Matrix:
        """float64[d], the variance of each regressor."""
        result = np.zeros(self.table.width)
        for columns, block in self._blocks(self.mx):
            result[columns] = np.square(block).mean(axis=0, dtype=np.float64)
        return result

    def through(self, w: Matrix) -> DualProblem:
        """Return the same with the targets that weights give, see `Problem.through`."""
        return replace(self, given=self.carried(w) + self.mx @ w)

    def solve(self, kept: Ints, share: float, prior: Matrix | None) -> Matrix:
        """Return the ridge regression on the kept regressors, see `Problem.solve`."""
        variance = self.diagonal[kept]
        live = variance > 0
        lam = share * float(variance[live].mean()) if live.any() else 1.0
        old = np.zeros((self.table.width, self.y.shape[1]))
        if prior is not None:
            old[kept[live]] = prior[kept[live]]
        left = self.y - self.my - self.carried(old)
        kernel = self._kernel(kept)
        kernel[np.diag_indices_from(kernel)] += self.n * lam
        step = np.linalg.solve(kernel, left)
        alive = kept[live]
        for first in range(0, len(alive), COLUMNS):
            some = alive[first : first + COLUMNS]
            block = self.about(some, self.mx)
            old[some] += block.T @ step.astype(block.dtype)
        return old

    def carried(self, w: Matrix) -> Matrix:
        """Return float64[n, O]: what weights give on the rows, about the mean."""
        result = np.zeros((self.n, w.shape[1]))
        for columns, block in self._blocks(self.mx, np.flatnonzero(w.any(axis=1))):
            result += block @ w[columns].astype(block.dtype)
        return result

    def squares(self, w: Matrix) -> Matrix:
        """Return float64[O], the mean squared error of weights about the mean."""
        return np.asarray(np.square(self.y - self.my - self.carried(w)).mean(axis=0))

    def spread(self, w: Matrix) -> Matrix:
        """Return float64[O], the variance of what weights give."""
        return np.asarray(np.square(self.carried(w)).mean(axis=0))

    def _kernel(self, kept: Ints) -> Matrix:
        every = DualProblem(self.table, np.arange(self.table.count), self.centred)
        whole = self.table.kernel(kept, every.mx)
        kernel = whole[np.ix_(self.index, self.index)]
        if self.centred:  # about the mean of these rows
            across = kernel.mean(axis=0)
            kernel -= across
            kernel -= (across - across.mean())[:, None]
        return kernel

    def about(self, columns: Ints, mean: Matrix) -> Array:
        """Return float array [n, len(columns)], some columns of the rows, about a mean float64[d]."""
        block = self.table.columns(self.index, columns)
        block -= mean[columns].astype(block.dtype)
        return block

    def _blocks(self, mean: Matrix, columns: Ints | None = None) -> Iterator[tuple[Ints, Array]]:
        every = np.arange(self.table.width) if columns is None else columns
        for first in range(0, len(every), COLUMNS):
            some = every[first : first + COLUMNS]
            yield some, self.about(some, mean)


def contributions(problem: DualProblem, units: Sequence[Ints], w: Matrix) -> tuple[Problem, Matrix]:
    """Return the moments of what units give, each as one regressor, and of their sum as the one target.

    Parameters
    ----------
    problem : DualProblem
    units : sequence of int64
        Regressors of each unit; what no unit owns is one more regressor, the last.
    w : float64[d, O]
        The layer's weights.

    Returns
    -------
    Problem
        Of ``len(units) + 1`` regressors.
    float64[units + 1, O]
        The means of the contributions, see `merged`.
    """
    rest = np.setdiff1d(np.arange(len(w)), np.concatenate([*units]))
    every = [*units, rest]
    count, outputs = len(every), w.shape[1]
    h, g, target = np.zeros((count, count)), np.zeros((count, 1)), problem.y - problem.my
    step = max(ENTRIES // max(count * outputs, 1), 1)
    for first in range(0, problem.n, step):
        part = DualProblem(problem.table, problem.index[first : first + step], problem.centred)
        block = part.about(np.arange(len(w)), problem.mx)
        given = np.empty((count, len(block), outputs), block.dtype)
        for at, own in enumerate(every):
            np.matmul(block[:, own], w[own].astype(block.dtype), out=given[at])
        flat = given.reshape(count, -1)
        h += flat @ flat.T
        g[:, 0] += flat @ target[first : first + step].astype(flat.dtype).ravel()
    n, zero = max(problem.n, 1), np.zeros(1)
    means = np.stack([problem.mx[own] @ w[own] for own in every])
    v = np.array([problem.variance])
    return Problem(problem.n, h / n, g / n, v, np.zeros(count), zero), means


def merged(parts: Sequence[tuple[Problem, Matrix]], targets: Sequence[Matrix]) -> Problem:
    """Return the contributions of two sets of rows together.

    Parameters
    ----------
    parts : two of (Problem, float64[units + 1, O])
        From `contributions`.
    targets : two of float64[O]
        The means of the targets.
    """
    (one, mean_one), (two, mean_two) = parts
    n = one.n + two.n
    shift, moved, between = mean_one - mean_two, targets[0] - targets[1], one.n * two.n / max(n, 1) ** 2
    a, b = one.n / max(n, 1), two.n / max(n, 1)
    h = a * one.h + b * two.h + between * (shift @ shift.T)
    g = a * one.g + b * two.g + between * (shift @ moved)[:, None]
    v = a * one.v + b * two.v + between * float(moved @ moved)
    return Problem(n, h, g, v, one.mx, one.my)
