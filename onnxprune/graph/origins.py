"""What is said of a model that stands for the one that was given: in nodes and tensors that the given one has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from onnxprune.graph.groups import Frozen

__all__ = ["Origins"]

#: How reasons and paths name a node.
_TITLE = re.compile(r"\w+ '[^']*'")


@dataclass(frozen=True)
class Origins:
    """Which nodes and tensors a rewritten model has for those of the given one.

    Attributes
    ----------
    titles : mapping
        Title of a node that is new (its op, and its name in quotes) -> that of the node for which it is there.
    new : frozenset of str
        Tensors that the given model doesn't have.
    """

    titles: Mapping[str, str] = field(default_factory=dict)
    new: frozenset[str] = frozenset()

    def told(self, text: str) -> str:
        """Return a text with the titles of the given model's nodes."""
        return _TITLE.sub(lambda found: self.titles.get(found[0], found[0]), text) if self.titles else text

    def frozen(self, lines: Iterable[Frozen]) -> list[Frozen]:
        """Return what is frozen in the given model, and why."""
        return [replace(line, reason=self.told(line.reason)) for line in lines if line.tensor not in self.new]
