"""What is there for one element of an axis alone, such as the layers of one expert."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Passage"]


@dataclass(frozen=True)
class Passage:
    """Nodes and weights of one element of an axis.

    Attributes
    ----------
    root : int
        The axis, in the space.
    element : int
    through : tuple of (node, slot)
        Without the element the input at that slot stands for the node's output.
    nodes : frozenset of int
        That nobody needs then.
    weights : tuple of str
        As the nodes.
    """

    root: int
    element: int
    through: tuple[tuple[int, int], ...]
    nodes: frozenset[int]
    weights: tuple[str, ...]
