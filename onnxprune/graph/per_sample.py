"""Figures of one sample, where a run may have any number of them.

A dynamic batch is bound to a few samples, since with one its axis would look like any axis of one element. What users
ask for is the multiply-accumulates and the memory of one, so products of lengths that hold the batch count as many
times less: lengths whose stand-in (`onnxprune.graph.sizes`) is a multiple of the batch's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

import onnx

from onnxprune.graph.coupling import Coupling
from onnxprune.graph.lengths import Number
from onnxprune.graph.sizes import Sizes
from onnxprune.runtime.binding import Axes, Shape

__all__ = ["count_one"]

#: What the first axis may be called where it is no batch, but the length of one sample.
_STEPS = re.compile(r"^t$|time|seq|len|frame|step", re.IGNORECASE)


def count_one(graph: onnx.GraphProto, coupling: Coupling, sizes: Sizes, inputs: Mapping[str, Shape]) -> None:
    """Let products of lengths count one sample of a dynamic batch.

    Parameters
    ----------
    graph : GraphProto
    coupling : Coupling
        Its space learns the shares.
    sizes : Sizes
        Of that coupling.
    inputs : mapping
        The shapes that inputs were bound to.
    """
    space, batches = coupling.space, dict(_batches(graph, sizes, inputs))
    shares: dict[Number, float] = {}
    for name, numbers in sizes.lengths.items() if batches else ():
        for dim, number in zip(coupling.dims.get(name, ()), numbers, strict=False):
            if number not in shares:
                held = (1 / n for batch, n in batches.items() if Fraction(number).numerator % batch == 0)
                shares[number] = next(held, 1.0)
            if shares[number] < 1:
                space.shares[space.find(dim)] = shares[number]


def _batches(graph: onnx.GraphProto, sizes: Sizes, inputs: Mapping[str, Shape]) -> Iterator[tuple[int, int]]:
    """Yield the stand-in of each dynamic batch, and the size that it was bound to."""
    axes = Axes.of(graph, inputs)
    batches = {axis for axis in axes.batch if not _STEPS.search(axis)}
    for name, own in axes.axes_of.items():
        numbers = sizes.lengths.get(name, ())
        for axis, number, size in zip(own, numbers, inputs[name], strict=False):
            if axis in batches and isinstance(number, int) and number != size > 1:
                yield number, size
