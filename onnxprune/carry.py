"""Right of the plan: rewrite, verify, and put back what fails.

A group whose cut can't be rewritten, or whose result isn't the masked original, is put back and named. Which
one it is, is found by bisection (Zeller and Hildebrandt, IEEE TSE 2002): about k log n trials for k bad
groups among n. Whatever is left at the end has passed as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis
from onnxprune.cut.rewrite import Rewritten
from onnxprune.errors import VerificationError

__all__ = ["Carried", "Failed", "Removed", "carry"]

Proof = TypeVar("Proof")
Removed = Mapping[str, NDArray[np.int64]]
Dead = dict[int, NDArray[np.bool_]]


class Failed(ValueError):
    """A cut that doesn't hold; the text says what differs."""


@dataclass
class Carried(Generic[Proof]):
    """A cut that holds.

    Attributes
    ----------
    removed : dict
        Group -> units that went.
    dead : dict
        Root dim -> which of its indices went.
    rewritten : Rewritten
    proof : Proof
    put_back : dict
        Group -> why its cut was undone.
    """

    removed: dict[str, NDArray[np.int64]]
    dead: Dead
    rewritten: Rewritten
    proof: Proof
    put_back: dict[str, str] = field(default_factory=dict)


def carry(
    analysis: Analysis,
    removed: Removed,
    rewrite: Callable[[Dead], Rewritten],
    prove: Callable[[Rewritten, Dead], Proof],
) -> Carried[Proof]:
    """Cut what is asked for, less what fails.

    Parameters
    ----------
    analysis : Analysis
    removed : mapping
        Group -> units.
    rewrite : callable
        Dead elements -> pruned model; raises RewriteError.
    prove : callable
        Raises `Failed` where the pruned model isn't what it must be.

    Raises
    ------
    VerificationError
        If no cut holds.
    """
    attempt = _Attempt(analysis, removed, rewrite, prove)
    try:
        return attempt(list(removed))
    except Failed as failure:
        first = str(failure)
    try:
        attempt([])
    except Failed as failure:
        raise VerificationError(
            f"Even without any cut the model doesn't pass verification: {failure}"
        ) from failure
    put_back: dict[str, str] = {}
    best: Carried[Proof] | None = None
    stack = _halves(list(removed))
    good: list[str] = []
    while stack:
        names = stack.pop()
        try:
            best = attempt([*good, *names])
            good += names
        except Failed as failure:
            if len(names) == 1:
                put_back[names[0]] = str(failure)
            else:
                stack += _halves(names)
    if best is None:
        raise VerificationError(f"The result isn't what it must be, whichever groups are put back: {first}")
    best.put_back = put_back
    return best


def _halves(names: list[str]) -> list[list[str]]:
    """Return two halves, the first one last, as a stack wants it."""
    half = len(names) // 2
    return [part for part in (names[half:], names[:half]) if part]


@dataclass
class _Attempt(Generic[Proof]):
    analysis: Analysis
    removed: Removed
    rewrite: Callable[[Dead], Rewritten]
    prove: Callable[[Rewritten, Dead], Proof]

    def __call__(self, names: Sequence[str]) -> Carried[Proof]:
        removed = {name: self.removed[name] for name in names}
        try:
            dead = self.analysis.grouping.dead(removed)
            rewritten = self.rewrite(dead)
        except ValueError as error:  # can't be rewritten, isn't closed, or an axis would lose all that it has
            raise Failed(str(error)) from error
        return Carried(removed, dead, rewritten, self.prove(rewritten, dead))
