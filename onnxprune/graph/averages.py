"""Averages over channels: of which of them it is known how they change when some channels are zero; and maxima.

Of n channels let all but n' be zero. Then the mean is n' / n times that of the n' which are left, and so is a mean of
their squares. It isn't where an average was taken off before: what was zero is then something else, as in a LayerNorm.
A maximum stays what it is where nothing is below zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from onnx import NodeProto

from onnxprune.ops import Trait, traits_of
from onnxprune.ops.traits import moved

__all__ = ["Averages", "minuends"]


def minuends(nodes: Iterable[NodeProto]) -> frozenset[str]:
    """Return the tensors that something is taken off: of these an average may be, further down."""
    return frozenset(node.input[0] for node in nodes if node.op_type == "Sub" and node.input)


@dataclass
class Averages:
    """What a trace has seen of averages, of what they were taken off, and of squares.

    Attributes
    ----------
    minuends : frozenset of str
        The tensors of the graph that something is taken off.
    """

    minuends: frozenset[str] = frozenset()
    _means: set[str] = field(default_factory=set, repr=False)
    _deviations: set[str] = field(default_factory=set, repr=False)  # what an average was taken off
    _after: set[str] = field(default_factory=set, repr=False)  # what follows from that, element by element
    _squares: set[str] = field(default_factory=set, repr=False)
    _natural: set[str] = field(default_factory=set, repr=False)  # what is never below zero

    def follow(
        self, proto: NodeProto, *, whole: Collection[str] = (), squares: bool = False, natural: bool = False
    ) -> None:
        """Note averages, what they are taken off, and squares of anything else.

        Parameters
        ----------
        proto : NodeProto
        whole : collection of str
            Inputs that have the shape of the output: not what is stretched, as the mean of another input has to be.
        squares : bool
            Whether its first input is raised to the power of two, by a number that is known.
        natural : bool
            Whether it gives nothing below zero, by a number that is known.
        """
        op = proto.op_type
        read = [n for n in proto.input if n]
        if not read:
            return
        same = op in ("Cast", "Identity")
        if op in ("ReduceMean", "GlobalAveragePool") or (same and read[0] in self._means):
            self._means.update(proto.output)
        means = [n for n in read if n in self._means and n not in whole]
        off = op == "Sub" and (bool(means) or not self._deviations.isdisjoint(read))
        if off or (same and read[0] in self._deviations):
            self._deviations.update(proto.output)
        if off or (
            not self._after.isdisjoint(read)
            and traits_of(op, proto.domain) & (Trait.ELEMENTWISE | Trait.MOVEMENT)
        ):
            self._after.update(proto.output)
        twice = op == "Mul" and len(read) == 2 and read[0] == read[1]
        if (twice or (op == "Pow" and squares)) and read[0] not in self._deviations:
            self._squares.update(proto.output)
        if twice or squares or natural or self._gives_natural(proto):
            self._natural.update(proto.output[:1])

    def _gives_natural(self, proto: NodeProto) -> bool:
        """Whether an op gives nothing below zero, whatever it reads or since nothing that it reads is."""
        op, domain = proto.op_type, proto.domain
        traits = traits_of(op, domain)
        if Trait.NATURAL in traits:
            return True
        passed = [proto.input[slot] for slot in moved(op, len(proto.input), domain)]
        if Trait.MEAN in traits:
            passed = list(proto.input[:1])
        elif Trait.SUM in traits or op == "Mul":
            passed = list(proto.input)
        return bool(passed) and self._natural.issuperset(passed)

    def is_square(self, name: str) -> bool:
        """Whether a tensor is known to hold squares of what no average was taken off."""
        return name in self._squares

    def is_natural(self, name: str) -> bool:
        """Whether no element of a tensor is below zero."""
        return name in self._natural

    def is_centred(self, name: str) -> bool:
        """Whether an average was taken off what a tensor comes from, or may be taken off the tensor itself."""
        return name in self.minuends or name in self._after
