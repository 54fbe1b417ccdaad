"""What a search is to reach: it ends at the first member that loses no more than it may and meets it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onnxprune.options.target import WITHIN, Target
from onnxprune.pruning.targets import parse_target

__all__ = ["Demand", "Reached"]

Entry = dict[str, Any]
#: What a member's entry calls the amount of a budget, where it is another name.
FIELDS = {"params": "parameters"}


class Reached(Exception):
    """A member is all that was asked for."""


@dataclass(frozen=True)
class Demand:
    """Budgets that must hold together.

    Attributes
    ----------
    targets : tuple of Target
        None: then anything meets it.
    """

    targets: tuple[Target, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> Demand:
        """Return what ``--target`` asks for."""
        return cls(tuple(target for text in texts for target in parse_target(text)))

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.targets)

    @property
    def share(self) -> float | None:
        """The least share that is asked for, where a search may well begin."""
        return min((target.value for target in self.targets if target.relative), default=None)

    def excess(self, entry: Entry) -> float:
        """Return the most by which a member is above a budget, as a ratio; 1 or less where it meets all."""
        return max((_excess(target, entry) for target in self.targets), default=0.0)

    def met(self, entry: Entry) -> bool:
        """Whether a member meets all budgets."""
        return self.excess(entry) <= 1.0

    def told(self, entry: Entry) -> str:
        """Return how much of each budget's kind a member takes, in words."""
        return ", ".join(f"{target.kind}={_amount(target, entry):.4g}" for target in self.targets)


def _amount(target: Target, entry: Entry) -> float:
    """Return what a member takes, as a share or in the unit of the kind; infinite where nobody knows."""
    if target.kind == "latency":
        share = 1 / float(entry["speedup"])
        return share if target.relative else share * float(entry["original"]["seconds"])
    name = FIELDS.get(target.kind, target.kind)
    after, before = entry.get(name), entry["original"].get(name)
    if after is None or not before:
        return float("inf")
    return float(after) / float(before) if target.relative else float(after)


def _excess(target: Target, entry: Entry) -> float:
    limit = target.value * (WITHIN if target.kind == "latency" else 1.0)
    return _amount(target, entry) / limit
