"""How often the body of a Loop or Scan runs, where sizes alone say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from numpy.typing import NDArray

from onnxprune.ops import Node
from onnxprune.ops.base import normal
from onnxprune.ops.bodies import DOMAIN

__all__ = ["Steps"]


class ToldSizes(Protocol):
    """What is known of sizes: `onnxprune.graph.lengths`."""

    def length(self, name: str) -> tuple[int | Fraction, ...] | None:
        """Return the lengths of a tensor."""

    def value(self, name: str) -> NDArray[Any] | None:
        """Return the entries of a tensor."""


@dataclass
class Steps:
    """Numbers of steps, as bodies are met.

    Attributes
    ----------
    known : dict
        Number of a joint -> how often its body runs, if nothing ends it before.
    going : set
        Values that are true in each step.
    """

    known: dict[str, int | Fraction] = field(default_factory=dict)
    going: set[str] = field(default_factory=set)

    def visit(self, own: ToldSizes, node: Node) -> None:
        """Follow one node."""
        if node.op == "Identity" and not node.domain and node.inputs[0] in self.going:
            self.going.update(node.outputs)
        if node.domain != DOMAIN:
            return
        if node.op == "LoopEntry":
            most = own.value(node.inputs[0]) if node.inputs[0] else None
            if most is not None and most.size == 1:
                self.known[_number(node)] = most.item()
            if not node.inputs[1] or _is_true(own, node.inputs[1]):
                self.going.add(node.outputs[1])
        elif node.op == "ScanEntry":
            slot = len(node.inputs) - int(node.attr("num_scan_inputs"))
            lengths = own.length(node.inputs[slot])
            if lengths is not None:
                axis = node.attr("scan_input_axes", [0])[0]
                self.known[_number(node)] = lengths[normal(axis, len(lengths))]

    def of(self, own: ToldSizes, joint: Node) -> int | Fraction | None:
        """Return how often the body before a joint has run, None where data may end it or nothing is known."""
        ended = joint.op == "Loop" and not (joint.inputs[0] in self.going or _is_true(own, joint.inputs[0]))
        return None if ended else self.known.get(_number(joint))


def _number(node: Node) -> str:
    number = node.attr("id")
    return number.decode() if isinstance(number, bytes) else str(number)


def _is_true(own: ToldSizes, name: str) -> bool:
    value = own.value(name)
    return value is not None and value.size == 1 and value.item() is True
