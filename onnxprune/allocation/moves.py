"""A search of few calls that are dear and noisy: moves along one direction after the other, as long as they pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["CLEAR", "moved"]

Point = tuple[float, ...]
#: A move must come this much nearer to be taken: what judges it is few samples.
CLEAR = 0.95


def moved(
    distance: Callable[[Point], float], start: Point, moves: Sequence[Point],
    ends: Sequence[tuple[float, float]], most: int,
) -> Point:  # fmt: skip
    """Return the point of least distance that moves lead to, each repeated while it comes clearly nearer.

    Parameters
    ----------
    distance : callable
        Point -> what is to be least; infinite where there is nothing.
    start : tuple of float
    moves : sequence of tuples of float
        In the order in which they are tried.
    ends : sequence of pairs
        For each coordinate the least and the greatest value.
    most : int
        Calls of ``distance``; with fewer than two the start stays.

    Examples
    --------
    >>> moved(lambda p: (p[0] - 2.0) ** 2, (0.0,), [(1.5,), (-1.5,), (0.75,), (-0.75,)], [(-4.5, 4.5)], 8)
    (2.25,)
    """
    if most < 2:
        return start
    seen = {start: distance(start)}
    best = start
    for move in moves:
        while True:
            there = tuple(a + b for a, b in zip(best, move, strict=True))
            if any(not low <= a <= high for a, (low, high) in zip(there, ends, strict=True)):
                break
            if there not in seen:
                if len(seen) >= most:
                    return best
                seen[there] = distance(there)
            if not seen[there] < CLEAR * seen[best]:
                break
            best = there
    return best
