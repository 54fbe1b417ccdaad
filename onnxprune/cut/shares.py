"""RMS norms that are spelled out, after a cut: two constants instead of a product.

With n' of n channels left, a mean of squares must be multiplied by r = n' / n (`onnxprune.ops.reduce`). Of

    x / sqrt(r mean(x^2) + e) * w  =  x / sqrt(mean(x^2) + e / r) * (w / sqrt(r))

the right side has no node more than the original: it costs nothing, and onnxruntime still fuses it when it loads the
model. Where the pattern is another the product stays.
"""

from __future__ import annotations

from collections import defaultdict
from math import sqrt

import numpy as np
from onnx import NodeProto

from onnxprune.cut.writer import Writer
from onnxprune.ops import Trait, traits_of

__all__ = ["fold_shares"]

#: (position, slot) of an input
_Input = tuple[int, int]


def fold_shares(writer: Writer) -> None:
    """Move what means of squares are multiplied by into the constants of their norms.

    Parameters
    ----------
    writer : Writer
        Of a graph that is mended, with its new nodes not yet in place.
    """
    norms = _Norms(writer)
    for number, nodes in list(writer.before.items()):
        if Trait.MEAN in traits_of(writer.protos[number].op_type, writer.protos[number].domain):
            for product in [n for n in nodes if n.output[0] == writer.protos[number].input[0]]:
                if product.op_type == "Mul":  # of halves it is a Cast, and their constants can't take it
                    norms.fold(number, product)


class _Norms:
    """Who reads what, in a graph that is being edited."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.model = writer, writer.model
        self.readers: defaultdict[str, list[_Input]] = defaultdict(list)
        for number, proto in enumerate(writer.protos):
            for slot, name in enumerate(proto.input):
                self.readers[name].append((number, slot))

    def fold(self, number: int, product: NodeProto) -> None:
        """Fold the product in front of a mean, if its norm is of that kind."""
        share = float(self.model.weight(product.input[1]))
        epsilon = self._with_constant(number, "Add")
        root = None if epsilon is None else self._next(epsilon[0], "Sqrt")
        scale = None if root is None else self._scale(root)
        if epsilon is None or scale is None or not (self._precise(epsilon) and self._precise(scale)):
            return
        self._multiply(epsilon, 1 / share)
        self._multiply(scale, 1 / sqrt(share))
        self.writer.protos[number].input[0] = product.input[0]
        self.writer.before[number].remove(product)
        self.model.drop(product.input[1])

    def _next(self, number: int, op: str, slot: int = -1) -> int | None:
        """Return the node that alone reads what a node makes (in that slot), if it is such an op; else None."""
        name = self.writer.protos[number].output[0]
        reads = self.readers[name]
        if len(reads) != 1 or self.writer.uses[name] != 1:
            return None
        reader, at = reads[0]
        fits = self.writer.protos[reader].op_type == op and slot in (-1, at)
        return reader if fits and not self.writer.before.get(reader) else None

    def _with_constant(self, number: int, op: str) -> _Input | None:
        """Return such a node behind another, and the slot of its one constant; None where there isn't just one."""
        reader = self._next(number, op)
        if reader is None:
            return None
        slots = [s for s, name in enumerate(self.writer.protos[reader].input) if name in self.model]
        return (reader, slots[0]) if len(slots) == 1 else None

    def _scale(self, root: int) -> _Input | None:
        """Return the first constant that the quotient by a root is multiplied by, with anything else in between."""
        at = self._next(root, "Div", slot=1)
        if at is None:
            at = self._next(root, "Reciprocal")
        while at is not None:
            scale = self._with_constant(at, "Mul")
            if scale is not None:
                return scale
            after = self._next(at, "Cast")
            at = self._next(at, "Mul") if after is None else after
        return None

    def _precise(self, at: _Input) -> bool:
        """Whether a constant loses nothing to speak of when it is multiplied: in halves it would."""
        return self.model.weight(self.writer.protos[at[0]].input[at[1]]).dtype.itemsize >= 4

    def _multiply(self, at: _Input, factor: float) -> None:
        """Multiply a constant that a node reads; it gets its own where others read it too."""
        name = self.writer.protos[at[0]].input[at[1]]
        old = self.model.weight(name)
        value = (old.astype(np.float64) * factor).astype(old.dtype)
        if self.writer.sole_reader(name) and len(self.readers[name]) == 1:
            self.model.put(name, value)
        else:
            self.writer.set_input(*at, self.model.add(f"{name}_of_fewer", value))
