"""The size of a model: parameters, MACs of one sample, and what is left of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.files.bodies import inner_nodes
from onnxprune.files.protowalk import body_weights, sparse_weights
from onnxprune.graph.belongings import numbers_of, packed_in
from onnxprune.graph.coupling import Coupling
from onnxprune.graph.kept import Kept
from onnxprune.model import Model

__all__ = ["Size", "count_macs", "count_parameters", "macs_of_run"]


@dataclass(frozen=True)
class Size:
    """A model's size: parameters (floats and quantised integers), MACs of one sample, bytes of the files, and the bytes
    that one needs at its peak (an estimate: `onnxprune.graph.memory`). Where the batch is fixed, these are of
    one run.
    """

    parameters: int
    macs: int | None
    bytes: int | None = None
    memory: int | None = None


def count_parameters(model: Model) -> int:
    """Return the number of parameters: elements of floating-point and quantised weights, each weight once, those of
    bodies (If, Loop, Scan) too, and zeros that aren't stored. Of bytes that hold several numbers each number counts.
    """
    packed = packed_in(inner_nodes(model.proto.graph))

    def numbers(name: str, elem: int, dims: Sequence[int]) -> int:
        return round(prod(dims) * numbers_of(elem, packed.get(name, 8)))

    infos = [(name, model.info(name)) for name in model.names()]
    total = sum(numbers("", t.values.data_type, t.dims) for t in sparse_weights(model.proto.graph))
    total += sum(numbers(name, info.elem_type, info.dims) for name, info in infos)
    return total + sum(numbers(t.name, t.data_type, t.dims) for t in body_weights(model.proto))


def count_macs(coupling: Coupling, dead: Mapping[int, NDArray[np.bool_]] | None = None) -> int:
    """Return the multiply-accumulates of one sample (`onnxprune.graph.per_sample`), with the dead channels gone."""
    kept = Kept(coupling, dead or {})
    gone = {number for passage in kept.passages for number in passage.nodes}
    return round(sum(kept.macs(a) for number, a in enumerate(coupling.nodes) if number not in gone))


def macs_of_run(coupling: Coupling) -> int:
    """Return the multiply-accumulates of one run at the bound input shapes."""
    sizes = coupling.space.sizes
    return sum(prod(sizes[d] for d in dims) for applied in coupling.nodes for dims in applied.macs)
