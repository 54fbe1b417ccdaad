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

from onnxprune.cut.rewrite import Rewritten
from onnxprune.errors import VerificationError
from onnxprune.graph.kept import Masks

__all__ = ["Carried", "Failed", "Removed", "carry", "most"]

Proof = TypeVar("Proof")
Result = TypeVar("Result")
Removed = Mapping[str, NDArray[np.int64]]


class Failed(ValueError):
    """A cut that doesn't hold; the text says what differs."""


@dataclass
class Carried(Generic[Proof]):
    """A cut that holds.

    Attributes
    ----------
    removed : dict
        Group -> units that went.
    rewritten : Rewritten
    proof : Proof
    put_back : dict
        Group -> why its cut was undone.
    """

    removed: dict[str, NDArray[np.int64]]
    rewritten: Rewritten
    proof: Proof
    put_back: dict[str, str] = field(default_factory=dict)

    @property
    def dead(self) -> Masks:
        """Root dim -> which of its indices went."""
        return self.rewritten.dead


def carry(
    removed: Removed,
    cut: Callable[[Removed], Rewritten],
    prove: Callable[[Rewritten, Removed], Proof],
) -> Carried[Proof]:
    """Cut what is asked for, less what fails.

    Parameters
    ----------
    removed : mapping
        Group -> units.
    cut : callable
        Units -> pruned model; raises ValueError where they can't go.
    prove : callable
        Raises `Failed` where the pruned model isn't what it must be.

    Raises
    ------
    VerificationError
        If no cut holds.
    """
    carried, put_back = most(list(removed), _Attempt(removed, cut, prove))
    carried.put_back = put_back
    return carried


def most(names: Sequence[str], attempt: Callable[[Sequence[str]], Result]) -> tuple[Result, dict[str, str]]:
    """Carry out as much of a list as holds.

    Parameters
    ----------
    names : sequence of str
    attempt : callable
        Does what these names stand for; raises `Failed` where that doesn't hold.

    Returns
    -------
    tuple of result, dict
        What the last attempt that held returned, and why the names that it lacks don't hold.

    Raises
    ------
    VerificationError
        If nothing holds.
    """
    try:
        return attempt(list(names)), {}
    except Failed as failure:
        first = str(failure)
    try:
        attempt([])
    except Failed as failure:
        raise VerificationError(
            f"Even without any cut the model doesn't pass verification: {failure}"
        ) from failure
    put_back: dict[str, str] = {}
    best: Result | None = None
    stack = _halves(list(names))
    good: list[str] = []
    while stack:
        part = stack.pop()
        try:
            best = attempt([*good, *part])
            good += part
        except Failed as failure:
            if len(part) == 1:
                put_back[part[0]] = str(failure)
            else:
                stack += _halves(part)
    if best is None:
        raise VerificationError(f"The result isn't what it must be, whichever group is cut: {first}")
    return best, put_back


def _halves(names: list[str]) -> list[list[str]]:
    """Return two halves, the first one last, as a stack wants it."""
    half = len(names) // 2
    return [part for part in (names[half:], names[:half]) if part]


@dataclass
class _Attempt(Generic[Proof]):
    removed: Removed
    cut: Callable[[Removed], Rewritten]
    prove: Callable[[Rewritten, Removed], Proof]

    def __call__(self, names: Sequence[str]) -> Carried[Proof]:
        removed = {name: self.removed[name] for name in names}
        try:
            rewritten = self.cut(removed)
        except ValueError as error:  # can't be rewritten, isn't closed, or an axis would lose all that it has
            raise Failed(str(error)) from error
        return Carried(removed, rewritten, self.prove(rewritten, removed))
