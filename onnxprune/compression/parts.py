"""Which weights may lie on a grid: floats that products, lookups and recurrent layers read, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.graph.known import opsets_of
from onnxprune.model import Model
from onnxprune.ops import Trait
from onnxprune.ops.traits import moved, traits_of
from onnxprune.reconstruction.layers import Site
from onnxprune.runtime.binding import Shape
from onnxprune.sparsity.products import factors
from onnxprune.sparsity.selection import matching
from onnxprune.sparsity.weights import Left, find

__all__ = ["OLDEST", "Part", "parts_of", "without"]

#: Types that a product's weight may have; the first opset whose Mul takes a scale of another shape.
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
OLDEST = 7
#: Fewer values than these aren't worth a scale.
LEAST = 64


@dataclass(frozen=True)
class Part:
    """A weight that may lie on a grid.

    Attributes
    ----------
    name : str
    dims : tuple of int
    nbytes : int
        In the input.
    site : Site or None
        The layer that reads it, where it can be fitted on samples.
    readers : tuple of str
        Ops that read it.
    """

    name: str
    dims: Shape
    nbytes: int
    site: Site | None
    readers: tuple[str, ...]

    @property
    def size(self) -> int:
        """Values."""
        return prod(self.dims)

    @property
    def layer(self) -> str:
        """The layer, or the ops that read it."""
        return self.site.name if self.site is not None else ", ".join(self.readers)


def parts_of(model: Model, sites: Mapping[str, Site]) -> tuple[list[Part], list[Left]]:
    """Return the weights that may lie on a grid, and others of floats that are as large, each with the reason.

    Parameters
    ----------
    model : Model
    sites : mapping
        Weight -> the layer that reads it.
    """
    reader = _Readers(model)
    parts, left = [], []
    for name in model.names():
        info = model.info(name)
        if info.elem_type not in _NUMBERS or len(info.dims) < 2 or prod(info.dims) < LEAST:
            continue
        why = reader.why_not(name, info.elem_type)
        if why:
            left.append(Left(name, why))
            continue
        readers = tuple(dict.fromkeys(node.op_type for node, _ in reader.readers.get(name, [])))
        parts.append(Part(name, info.dims, info.nbytes, sites.get(name), readers))
    return parts, left


def without(parts: list[Part], ignore: Sequence[str], only: Sequence[str]) -> tuple[list[Part], list[Left]]:
    """Return the weights that may be changed under ``--ignore`` and ``--only``, and the others.

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    """
    names = {part.name: (part.name, part.layer) for part in parts}
    return matching(parts, names, ignore, only, "could lie on a grid")


#: Types of weights that are told of.
_NUMBERS = (
    *FLOATS, TensorProto.BFLOAT16, TensorProto.DOUBLE,
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4,
)  # fmt: skip


class _Readers:
    def __init__(self, model: Model) -> None:
        graph = model.proto.graph
        self.model, self.opsets = model, opsets_of(model)
        self.readers: dict[str, list[tuple[NodeProto, int]]] = {}
        for node in graph.node:
            for slot, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, slot))
        old = model.proto.ir_version < 4  # before that every weight is declared as an input as well
        self.inputs = set() if old else {v.name for v in graph.input}
        self.outputs = {v.name for v in graph.output}
        self.products = {target.name for target in find(model)[0]}

    def why_not(self, name: str, elem_type: int) -> str:
        """Return why a weight stays as it is; empty where it needn't."""
        if elem_type not in FLOATS:
            kind = TensorProto.DataType.Name(elem_type).lower()
            return f"its type is {kind}" if "INT" not in kind.upper() else f"it is quantised already ({kind})"
        if self.opsets.get("", 0) < OLDEST:
            return f"the model's opset is older than {OLDEST}, the first in which a scale can be multiplied"
        if name in self.inputs:
            return "it is an input of the graph too, so it can change at run time"
        if name in self.outputs:
            return "it is an output of the graph too"
        weight = self.model.weight(name)
        if not (np.isfinite(weight.min()) and np.isfinite(weight.max())):
            return "it holds values that aren't finite"
        for node, slot in self.readers.get(name, []):
            if name not in self.products and not self._takes(node, slot):
                return f"{node.op_type} reads it, which is no product and no lookup"
        return "" if self.readers.get(name) else "nothing in the main graph reads it"

    def _takes(self, node: NodeProto, slot: int, moved_before: bool = False) -> bool:
        """Whether a product or a lookup reads a weight there, or nothing but those read what the node moves of it.

        Behind a node that moves it, it is no weight any more that `factors` would know, nor one of a recurrent layer.
        """
        traits = traits_of(node.op_type, node.domain)
        if Trait.LOOKUP in traits:
            return slot == 0
        if slot in moved(node.op_type, len(node.input), node.domain):
            name = node.output[0]
            free = name in self.readers and name not in self.outputs
            return free and all(self._takes(*reader, moved_before=True) for reader in self.readers[name])
        if moved_before:
            return Trait.GEMM in traits and slot < 2
        if Trait.RECURRENT in traits:
            return slot in (1, 2)
        return any(f.slot == slot and f.zero < 0 for f in factors(node, self._dims, self.opsets))

    def _dims(self, name: str) -> Shape | None:
        return self.model.info(name).dims if name in self.model else None
