"""What the inputs of a model take in memory, before any is made."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx

from onnxprune.errors import ModelError
from onnxprune.graph.plausible import element_size
from onnxprune.graph.trace import LARGEST
from onnxprune.runtime import binding
from onnxprune.runtime.binding import Shape
from onnxprune.wall import board as wall

__all__ = ["allow_inputs"]


def allow_inputs(graph: onnx.GraphProto, inputs: Mapping[str, Shape]) -> None:
    """Refuse inputs that take too much memory, before any is made; let the limits grow with them, and with the outputs.

    A model that makes much of little, such as a decoder of images, has small inputs and says itself how large its
    outputs are. What it says is believed only as far as such inputs would be taken.

    Raises
    ------
    ModelError
        If they take too much.
    """
    elements = {v.name: v.type.tensor_type.elem_type for v in binding.real_inputs(graph)}
    sizes = {name: prod(shape) * element_size(elements[name]) for name, shape in inputs.items()}
    whole, most = sum(sizes.values()), wall.allowed() * LARGEST
    if whole > most:
        name = max(sizes, key=lambda n: sizes[n])
        raise ModelError(
            f"The inputs of the model take {whole / 1e6:,.0f} MB, {name!r} most of it, more than the {most / 1e6:,.0f} "
            "MB that a model of this size may ask for; give smaller ones with --input-shape, or allow more with "
            "--max-memory."
        )
    bound: dict[int | str, int] = {}
    for v in binding.real_inputs(graph):
        bound.update(zip(binding.declared(v) or (), inputs[v.name], strict=False))
    given = sum(
        prod(n if isinstance(n, int) else bound.get(n, 1) for n in binding.declared(v) or ())
        * element_size(v.type.tensor_type.elem_type)
        for v in graph.output
    )
    wall.grow(inputs=max(whole, given if given <= most else 0))
