"""Structured optimal brain surgeon: units go one by one, each time the one whose loss costs least.

A unit owns the regressors I of ``y = W^T x + b``, ``W`` of shape (d, O). With ``Hi = (H + lam I)^-1`` (d, d) over the
regressors that are left, and ``W`` refitted on them, dropping the unit raises the squared error by exactly

    tr(W_I^T (Hi_II)^-1 W_I),

after which, with all others refitted,

    W  <- W  - Hi_:I (Hi_II)^-1 W_I,
    Hi <- Hi - Hi_:I (Hi_II)^-1 Hi_I:,

so the error of every count of units comes in one pass, without a refit. `keep_best` then exchanges units. Of more than
a thousand units a few go at a time, those whose loss alone costs least; the rise of the error is that of all of them.

References
----------
Frantar, Singh, Alistarh, "Optimal Brain Compression", arXiv 2208.11580; Kurtic, Frantar, Alistarh, "ZipLM", arXiv
2302.04089 (units of several regressors); Meng et al., "OSSCAR", arXiv 2403.12983 (exchanges).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.least_squares import Curve, Problem, ridge_of

__all__ = ["MANY", "keep_best", "obs"]

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]
#: The weakest units inside and the strongest outside that are tried against each other.
WEAK = 8
#: Units beyond which several go at a time: one of so many that are left.
MANY, SHARE = 1024, 256


class _Sized:
    """Units with equally many regressors."""

    def __init__(self, units: Sequence[int], rows: Sequence[Ints], inverse: Matrix) -> None:
        self.units = np.asarray(units)
        self.index = np.stack([rows[u] for u in units])
        self.blocks = inverse[self.index[:, :, None], self.index[:, None, :]]

    def keep(self, alive: NDArray[np.bool_], place: Ints) -> None:
        stay = alive[self.units]
        self.units, self.index, self.blocks = self.units[stay], place[self.index[stay]], self.blocks[stay]


class _Downdate:
    """The inverse Gram and optimal weights of one consumer, while units go.

    The inverse changes ``PENDING`` columns at a time, in one product of matrices; what is read in between is kept up to
    date. Rows that are gone leave the matrices now and then. Both only save time.
    """

    PENDING = 64

    def __init__(self, problem: Problem, rows: Sequence[Ints], share: float, weight: float) -> None:
        h = problem.h.copy()
        lam = ridge_of(h, share)
        dead = h.diagonal() <= 0
        h[np.diag_indices_from(h)] += np.where(dead, 1.0, lam)
        self.inverse = _inverse(h)
        self.w = self.inverse @ np.where(dead[:, None], 0.0, problem.g)
        self.rows, self.weight = list(rows), weight
        sizes = sorted({len(r) for r in rows if len(r)})
        of_size = [[u for u, r in enumerate(rows) if len(r) == n] for n in sizes]
        self.sized = [_Sized(units, rows, self.inverse) for units in of_size]
        self.alive = np.ones(len(rows), bool)
        self.gone = np.zeros(len(h), bool)
        self._clear(self.PENDING + max(sizes, default=0) * _at_once(len(rows)))

    def _clear(self, room: int) -> None:
        size, self.pending = len(self.inverse), 0
        self.left, self.right = np.empty((size, room)), np.empty((room, size))

    def scores(self) -> Matrix:
        """Return the rise of the error for each unit, anything for those that are gone."""
        rises = np.zeros(len(self.rows))
        for kind in self.sized:
            if kind.index.shape[1] == 1:
                square = np.einsum("ij,ij->i", self.w, self.w)[kind.index[:, 0]]
                rises[kind.units] = square / kind.blocks[:, 0, 0]
            else:
                w = self.w[kind.index]
                rises[kind.units] = np.einsum("uto,uto->u", w, np.linalg.solve(kind.blocks, w))
        return rises * self.weight

    def drop(self, units: Ints) -> float:
        """Let units go; return by how much the error rises."""
        rows = np.concatenate([self.rows[unit] for unit in units])
        self.alive[units] = False
        now = self.pending
        if len(rows) == 0:
            return 0.0
        column = self.inverse[:, rows] - self.left[:, :now] @ self.right[:now, rows]
        column[self.gone] = 0.0
        step = np.linalg.solve(column[rows], np.hstack([self.w[rows], column.T]))
        weights, inverse = step[:, : self.w.shape[1]], step[:, self.w.shape[1] :]
        rise = float((self.w[rows] * weights).sum())
        self.w -= column @ weights
        self.w[rows] = 0.0
        for kind in self.sized:
            kind.blocks -= np.matmul(column[kind.index], inverse[:, kind.index].transpose(1, 0, 2))
            kind.blocks[np.isin(kind.units, units)] = np.eye(kind.index.shape[1])
        self.left[:, now : now + len(rows)], self.right[now : now + len(rows)] = column, inverse
        self.pending += len(rows)
        self.gone[rows] = True
        if self.pending >= self.PENDING:
            self._settle()
        return rise * self.weight

    def _settle(self) -> None:
        now, room = self.pending, self.left.shape[1]
        self.inverse -= self.left[:, :now] @ self.right[:now]
        stay, place = np.flatnonzero(~self.gone), np.cumsum(~self.gone) - 1
        if 4 * len(stay) < 3 * len(self.gone):
            self.inverse, self.w = self.inverse[np.ix_(stay, stay)], self.w[stay]
            self.rows = [place[r] if a else r[:0] for r, a in zip(self.rows, self.alive, strict=True)]
            for kind in self.sized:
                kind.keep(self.alive, place)
            self.gone = np.zeros(len(stay), bool)
        self._clear(room)


def obs(
    consumers: Sequence[tuple[Problem, Sequence[Ints]]],
    weights: Sequence[float],
    *,
    share: float = 1e-3,
    least: int = 1,
    cost: Matrix | None = None,
) -> Curve:
    """Drop units one by one, each time the one whose loss costs least after all others are refitted.

    Parameters
    ----------
    consumers : sequence of (Problem, rows)
        The layers that read the group; ``rows[u]`` are the regressors that unit ``u`` owns.
    weights : sequence of float
        Factor of each consumer's error, such as one over the variance of its targets.
    share : float
        Ridge, as a share of the mean variance of the regressors.
    least : int
        Units that stay.
    cost : float64[units], optional
        The score is divided by it where units cost differently.

    Returns
    -------
    Curve
        The error of every kept count in one pass: the score ``tr(W_I^T (Hi_II)^-1 W_I)`` is exactly the rise of the
        squared error, and the inverse is downdated.
    """
    units = len(consumers[0][1])
    parts = [_Downdate(p, rows, share, w) for (p, rows), w in zip(consumers, weights, strict=True)]
    alive = np.ones(units, bool)
    order: list[int] = []
    error = np.full(units + 1, np.inf)
    error[0] = total = 0.0
    while units - len(order) > max(least, 0):
        scores = np.sum([part.scores() for part in parts], axis=0)
        ranked = np.where(alive, scores if cost is None else scores / np.maximum(cost, 1e-30), np.inf)
        left = units - len(order)
        some = _lowest(ranked, min(_at_once(left), left - max(least, 0)))
        alive[some] = False
        together, alone = float(np.sum([part.drop(some) for part in parts])), np.maximum(scores[some], 0.0)
        rise = max(together, 0.0) if len(some) > 1 else float(alone[0])
        shares = np.cumsum(alone) / max(float(alone.sum()), 1e-300)
        error[len(order) + 1 : len(order) + 1 + len(some)] = total + rise * shares
        order += [int(unit) for unit in some]
        error[len(order)] = total = total + rise
    return Curve(np.concatenate([order, np.flatnonzero(alive)]).astype(np.int64), error)


def _at_once(units: int) -> int:
    return max(units // SHARE, 1) if units > MANY else 1


def _lowest(ranked: Matrix, count: int) -> Ints:
    """Return the lowest, ascending."""
    if count == 1:
        return np.array([int(np.argmin(ranked))])
    some = np.argpartition(ranked, count - 1)[:count]
    return some[np.argsort(ranked[some], kind="stable")]


def _inverse(h: Matrix) -> Matrix:
    """Return the inverse of a positive definite matrix; of a large one in its place, by halves, with few copies."""
    if len(h) <= MANY:
        return np.asarray(np.linalg.inv(h), np.float64)
    half = len(h) // 2
    one, both, two = h[:half, :half], h[:half, half:], h[half:, half:]
    one[...] = _inverse(one)
    reach = one @ both
    two -= both.T @ reach
    two[...] = _inverse(two)
    across = reach @ two
    one += across @ reach.T
    both[...] = -across
    h[half:, :half] = -across.T
    return h


def keep_best(
    problem: Problem, rows: Sequence[Ints], kept: Ints, *, share: float = 1e-3, rounds: int = 4
) -> Ints:
    """Swap units in and out of a kept set while the error after a refit falls.

    Parameters
    ----------
    problem : Problem
    rows : sequence of int64
        Regressors of each unit.
    kept : int64[k]
        Units that stay, to begin with.
    share : float
        Ridge.
    rounds : int
        Swaps at most.

    Returns
    -------
    int64[k]
        Sorted; never worse than the given set on these moments.
    """
    best, lam = np.sort(kept), ridge_of(problem.h, share)
    for _ in range(rounds):
        swap = _one_swap(problem, rows, best, lam)
        if swap is None:
            break
        best = swap
    return best


def _one_swap(problem: Problem, rows: Sequence[Ints], kept: Ints, lam: float) -> Ints | None:
    """Return the best swap of a weak unit against a strong other; None where none helps.

    With the inverse ``P`` (k, k) over what stays, a unit A outside with ``c = H_AS`` (t, k) and ``r = G_A - c W``
    (t, O) lowers the error by ``tr(r^T B^-1 r)``, ``B = H_AA + lam - c P c^T``. Then unit D inside has

        P_DD + (P c^T)_D B^-1 (c P)_D    and    W_D - (P c^T)_D B^-1 r

    in place of ``P_DD`` and ``W_D``, and its loss is that of `obs`: no pair needs a refit.
    """
    out = np.setdiff1d(np.arange(len(rows)), kept)
    if not out.size or kept.size < 2:
        return None
    flat = np.concatenate([rows[u] for u in kept])
    h = problem.h[np.ix_(flat, flat)]
    h[np.diag_indices_from(h)] += np.where(h.diagonal() <= 0, 1.0, lam)
    inverse = np.linalg.inv(h)
    w = inverse @ problem.g[flat]
    places = [slice(a, b) for a, b in itertools.pairwise(np.cumsum([0, *(len(rows[u]) for u in kept)]))]
    loss = np.array([_loss(inverse[p, p], w[p]) for p in places])
    weak = np.argsort(loss, kind="stable")[:WEAK]
    others = np.concatenate([rows[u] for u in out])
    cross = problem.h[np.ix_(others, flat)]
    rests, reach = problem.g[others] - cross @ w, cross @ inverse
    best: tuple[float, Ints] | None = None
    added = []
    for a, b in itertools.pairwise(np.cumsum([0, *(len(rows[u]) for u in out)])):
        r = others[a:b]
        block = problem.h[np.ix_(r, r)] - reach[a:b] @ cross[a:b].T + lam * np.eye(len(r))
        added.append((a, b, block, float((rests[a:b] * np.linalg.solve(block, rests[a:b])).sum())))
    for n in np.argsort([-gain for *_, gain in added], kind="stable")[:WEAK]:
        a, b, block, gain = added[n]
        step = np.linalg.solve(block, np.hstack([reach[a:b], rests[a:b]]))
        for at in weak:
            p = places[at]
            shared, moved = (
                reach[a:b, p].T @ step[:, : len(flat)][:, p],
                reach[a:b, p].T @ step[:, len(flat) :],
            )
            change = _loss(inverse[p, p] + shared, w[p] - moved) - gain
            if change < (-1e-9 * problem.variance if best is None else best[0]):
                best = change, np.sort(np.append(np.delete(kept, at), out[n]))
    return None if best is None else best[1]


def _loss(block: Matrix, w: Matrix) -> float:
    """The rise of the error when a unit goes, of its block of the inverse (t, t) and its weights (t, O)."""
    return float((w * np.linalg.solve(block, w)).sum())
