"""From a weight as it is stored to the canonical ``[blocks, outputs, inputs, taps]``, and back.

What lies between a weight and the layer that reads it (Transpose, Reshape) and the layer's own order of axes are both
nothing but reshapes and transposes, so a layout is a list of these. It is exact whatever they do: the pattern is made
where the layer reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.runtime.binding import Shape

__all__ = ["Layout"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """A chain of reshapes and transposes.

    Attributes
    ----------
    dims : tuple of int
        Of the stored weight.
    steps : tuple of (kind, argument)
        ``("reshape", shape)`` or ``("transpose", perm)``; the last one leaves four axes.
    """

    dims: Shape
    steps: tuple[tuple[str, Shape], ...]

    def __post_init__(self) -> None:
        """Refuse steps that contradict the dimensions.

        Raises
        ------
        ValueError
            If a reshape changes the number of elements, or a transpose doesn't name each axis once.
        """
        shape = self.dims
        for kind, argument in self.steps:
            if kind == "transpose" and sorted(argument) != list(range(len(shape))):
                raise ValueError(f"a transpose of {len(shape)} axes by {argument}")
            if kind == "reshape" and prod(shape) != prod(argument):
                raise ValueError(f"a reshape of {shape} to {argument}")
            shape = argument if kind == "reshape" else tuple(shape[a] for a in argument)

    @property
    def shape(self) -> Shape:
        """Canonical: blocks, outputs, inputs, taps."""
        return self._shapes()[-1]

    def _shapes(self) -> list[Shape]:
        shapes = [self.dims]
        for kind, argument in self.steps:
            shapes.append(argument if kind == "reshape" else tuple(shapes[-1][a] for a in argument))
        return shapes

    def view(self, array: Array) -> Array:
        """Return an array of the stored shape in the canonical one, a view where possible."""
        for kind, argument in self.steps:
            array = array.reshape(argument) if kind == "reshape" else array.transpose(argument)
        return array

    def back(self, array: Array) -> Array:
        """Return a canonical array in the stored shape."""
        for (kind, argument), shape in zip(reversed(self.steps), reversed(self._shapes()[:-1]), strict=True):
            array = array.reshape(shape) if kind == "reshape" else array.transpose(np.argsort(argument))
        return array

    @property
    def axis(self) -> int | None:
        """The axis of the stored weight that counts the inputs; None where they lie over several or share one."""
        at: int | None = 2
        shapes = self._shapes()
        for (kind, argument), before, after in zip(
            reversed(self.steps), reversed(shapes[:-1]), reversed(shapes[1:]), strict=True
        ):
            if at is None:
                return None
            at = argument[at] if kind == "transpose" else _axis_before(at, before, after)
        return at


def _axis_before(axis: int, before: Shape, after: Shape) -> int | None:
    lead, size = int(np.prod(after[:axis], dtype=np.int64)), after[axis]
    for number, length in enumerate(before):
        if length == size and int(np.prod(before[:number], dtype=np.int64)) == lead:
            return number
    return None
