"""Which weights get zeros: all that may, less what --ignore and --only leave out and what the pattern doesn't fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.graph.folding import Folded
from onnxprune.graph.inline import inline
from onnxprune.model import Model
from onnxprune.options.pattern import Pattern
from onnxprune.options.sparsity import SparseOptions
from onnxprune.sparsity.weights import Left, SparseWeight, find, fold_computed

__all__ = ["Selection", "matching", "pick", "select"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


W = TypeVar("W", bound=_Named)


@dataclass(frozen=True)
class Selection:
    """Weights that get zeros, and those that don't.

    Attributes
    ----------
    model : Model
        The input without local functions, its computed weights folded.
    folded : Folded
        Which ones.
    targets : list of SparseWeight
    left : list of Left
        Weights that stay as they are, each with its reason.
    spared : set of str
        Those of them that were asked to stay: no fit may touch them.
    """

    model: Model
    folded: Folded
    targets: list[SparseWeight]
    left: list[Left]
    spared: set[str]


def select(model: Model, pattern: Pattern, options: SparseOptions) -> Selection:
    """Find the weights of a model that get zeros.

    Raises
    ------
    UsageError
        If a pattern of --ignore or --only matches nothing.
    NothingToPrune
        If there are none.
    """
    folded = fold_computed(inline(model))
    every, left = find(folded.model)
    asked, spared = pick(every, options.ignore, options.only, folded.aliases)
    targets, small = _fitting(asked, pattern)
    if not targets:
        raise NothingToPrune(
            f"No weight can get zeros in the pattern {pattern.text}; 'onnxprune inspect --sparsity' lists reasons."
        )
    return Selection(folded.model, folded, targets, [*left, *spared, *small], {one.name for one in spared})


def pick(
    targets: Sequence[SparseWeight],
    ignore: Sequence[str],
    only: Sequence[str],
    aliases: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[list[SparseWeight], list[Left]]:
    """Return the weights that may be treated under ``--ignore`` and ``--only``, and the others.

    Parameters
    ----------
    targets : sequence of SparseWeight
    ignore, only : sequence of str
        Regular expressions.
    aliases : mapping, optional
        Weight -> names that went into it when it was folded.

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    """
    names = {
        t.name: (t.name, *(r.name for r in t.readers), *(aliases or {}).get(t.name, ())) for t in targets
    }
    return matching(targets, names, ignore, only, "could get zeros")


def matching(
    targets: Sequence[W],
    names: Mapping[str, Sequence[str]],
    ignore: Sequence[str],
    only: Sequence[str],
    may: str,
) -> tuple[list[W], list[Left]]:
    """Return the weights that patterns leave, and the others.

    Parameters
    ----------
    targets : sequence of weights
    names : mapping
        Name of a weight -> the names that patterns may match.
    ignore, only : sequence of str
        Regular expressions.
    may : str
        What these weights have in common, for the error.

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    """

    def hit(pattern: str, target: W) -> bool:
        return any(re.search(pattern, name) for name in names[target.name])

    for option, patterns in (("--ignore", ignore), ("--only", only)):
        for pattern in patterns:
            if not any(hit(pattern, t) for t in targets):
                raise UsageError(f"{option} {pattern!r} matches no weight that {may}, and no layer of one.")
    kept, left = [], []
    for target in targets:
        if any(hit(p, target) for p in ignore):
            left.append(Left(target.name, "--ignore"))
        elif only and not any(hit(p, target) for p in only):
            left.append(Left(target.name, "not named by --only"))
        else:
            kept.append(target)
    return kept, left


def _fitting(targets: Sequence[SparseWeight], pattern: Pattern) -> tuple[list[SparseWeight], list[Left]]:
    """Return the weights in which at least one tile of a pattern fits, and the others."""
    kept, left = [], []
    for target in targets:
        _, outputs, inputs, taps = target.shape
        if pattern.kind == "kernel" and taps == 1:
            left.append(Left(target.name, "it has no kernel: one tap only"))
        elif pattern.fixed and inputs < pattern.of:
            left.append(Left(target.name, f"fewer than {pattern.of} inputs"))
        elif pattern.kind == "block" and (outputs < pattern.rows or inputs < pattern.columns):
            left.append(Left(target.name, f"smaller than a block of {pattern.rows}x{pattern.columns}"))
        else:
            kept.append(target)
    return kept, left
