"""Which weights may get zeros, and along which axis they are contracted; a reason for each that may not.

Rules:

1. Weights are what a sum of products runs over, as the op's row says (`onnxprune.sparsity.products`): Conv (axis 1),
   ConvTranspose (axis 0, by group), Gemm (K by transA and transB), MatMul (K, constant on either side, any batch axes),
   their contrib and integer forms.
2. From the layer back to the weight the way may lead through DequantizeLinear, QuantizeLinear, Cast, Identity,
   Transpose and Reshape, and a Gather that picks whole matrices of a stack. Zero is what the layer reads as zero:
   behind DequantizeLinear the zero point.
3. A weight that several layers read along the same axis is treated once; along different axes it stays dense, and so
   does one that something else reads too (an embedding table that is also the output matrix).
4. What can change at run time, or is an output, stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import analyse
from onnxprune.graph.computed import Finder
from onnxprune.graph.foldable import is_float, small_enough
from onnxprune.graph.folding import Folded, fold
from onnxprune.graph.known import opsets_of, weights_of
from onnxprune.graph.trace import Tracer
from onnxprune.model import Model
from onnxprune.ops import Trait, traits_of
from onnxprune.reconstruction.stored import spread
from onnxprune.runtime.binding import Shape
from onnxprune.sparsity.layout import Layout
from onnxprune.sparsity.products import BLOCKS, Factor, canonical, factors

__all__ = ["Left", "Reader", "SparseWeight", "find", "fold_computed"]

Array = NDArray[Any]
Steps = list[tuple[str, Shape]]

_T = TensorProto
FLOATS = (_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE)
QUANTISED = (_T.INT8, _T.UINT8, _T.INT16, _T.UINT16)


class _No(Exception):
    """A reason."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads a weight."""

    name: str
    op: str
    group: int = 1
    domain: str = ""


@dataclass(frozen=True)
class SparseWeight:
    """A weight that may get zeros.

    Attributes
    ----------
    name : str
    elem_type : int
    layout : Layout
    readers : tuple of Reader
    zero, scale : array or None
        What stands for zero, and the step, broadcast against the stored weight; None for floats.
    """

    name: str
    elem_type: int
    layout: Layout
    readers: tuple[Reader, ...]
    zero: Array | None = None
    scale: Array | None = None

    @property
    def shape(self) -> Shape:
        """Canonical: blocks, outputs, inputs, taps."""
        return self.layout.shape

    def zeros(self, weight: Array) -> NDArray[np.bool_]:
        """Return where a stored weight is zero."""
        return np.asarray(weight == (0 if self.zero is None else self.zero))


@dataclass(frozen=True)
class Left:
    """A weight that stays as it is, and why."""

    name: str
    reason: str


def find(model: Model) -> tuple[list[SparseWeight], list[Left]]:
    """Find the weights of a model that may get zeros, in the order of the weights.

    Returns
    -------
    tuple of list of SparseWeight, list of Left
    """
    graph = _Graph(model)
    by_name: dict[str, list[SparseWeight]] = {}
    left: dict[str, str] = {}
    for index, node in enumerate(model.proto.graph.node):
        for factor in graph.factors(node):
            slot = factor.slot
            name, steps = "", list[tuple[str, Shape]]()
            try:
                name, steps, stored = graph.origin(node.input[slot])
                if name:
                    target = graph.target(name, node, factor, (steps, stored), index)
                    by_name.setdefault(name, []).append(target)
            except _No as reason:
                left.setdefault(name or graph.weight_behind(node.input[slot]), str(reason))
            except (ValueError, IndexError):
                analyse(model)  # refuses a model whose shapes contradict each other
                text = f"its shape isn't what {node.op_type} '{node.name}' reads"
                left.setdefault(name or graph.weight_behind(node.input[slot]), text)
    left.pop("", None)
    for name, kind in graph.tables():
        left.setdefault(name, kind)
    targets = []
    for name in model.names():
        if name in by_name and name not in left:
            try:
                targets.append(graph.one(name, by_name[name]))
            except _No as reason:
                left[name] = str(reason)
    return targets, [Left(name, left[name]) for name in model.names() if name in left]


def fold_computed(model: Model) -> Folded:
    """Make weights that the graph computes weights of their own, where layers read them and the file doesn't grow.

    What has only another form (`another_form`) or is quantised is followed instead: `find`.
    """
    opsets = opsets_of(model)
    finder = Finder(model, Tracer(opsets, weights_of(model)))

    def shape(name: str) -> Shape | None:
        return finder.tracer.types[name][1] if name in finder.maker or name in finder.fixed else None

    read = {
        node.input[factor.slot]
        for node in model.proto.graph.node
        if not any(o in finder.maker for o in node.output)
        for factor in factors(node, shape, opsets)
    }
    ends = (finder.of(name) for name in finder.ends() if name in read)
    names = [
        c.name for c in ends if not finder.only_views(c) and is_float(finder, c.name) and small_enough(c)
    ]
    return fold(model, finder, names) if names else Folded(model, model)


_PICKS = ("Gather", "GatherND")
_PASSED = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape")


class _Graph:
    def __init__(self, model: Model) -> None:
        graph = model.proto.graph
        self.model, self.opsets = model, opsets_of(model)
        self.maker = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = {}
        self.inner: set[str] = set()
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            self.inner |= captured(node) if node.attribute else set()
        # before IR 4 every weight had to be declared as an input as well, and none can be given
        self.inputs = {v.name for v in graph.input} if model.proto.ir_version >= 4 else set()
        self.outputs = {v.name for v in graph.output}

    def factors(self, node: NodeProto) -> Iterator[Factor]:
        """Yield the operands that a node sums products of and behind which there is a weight."""
        return factors(node, self._dims, self.opsets)

    def _dims(self, name: str) -> Shape | None:
        """Return the shape in which a weight arrives, None for what is none; as stored, where that can't be known."""
        try:
            weight, steps, _ = self.origin(name)
            return Layout(self.model.info(weight).dims, tuple(steps)).shape if weight else None
        except (_No, ValueError, IndexError):
            weight = self.weight_behind(name)
            return self.model.info(weight).dims if weight else None

    def origin(self, name: str) -> tuple[str, Steps, list[NodeProto]]:
        """Return the weight behind a tensor (empty: an activation), the movements from it, and the nodes passed."""
        steps, nodes = list[tuple[str, Shape]](), list[NodeProto]()
        while name not in self.model:
            node = self.maker.get(name)
            if node is None or node.domain not in ("", "ai.onnx"):
                return "", [], []
            if not self.passes(node):
                return "", [], []
            nodes.append(node)
            name = node.input[0]
        nodes.reverse()
        dims, picked = self.model.info(name).dims, False
        for node in nodes:
            if node.op_type == "Transpose":
                perm = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
                perm = perm or tuple(range(len(dims)))[::-1]
                if picked and (len(perm) != len(dims) or perm[0]):
                    raise _No("matrices are picked of it and moved, which isn't followed")
                steps.append(("transpose", perm))
                dims = tuple(dims[a] for a in perm)
            elif node.op_type == "Reshape":
                if picked:
                    raise _No("matrices are picked of it and reshaped, which isn't followed")
                dims = self._target(node, dims)
                steps.append(("reshape", dims))
            picked |= node.op_type in _PICKS
        return name, steps, nodes

    def passes(self, node: NodeProto) -> bool:
        """Whether a node only moves a weight, or picks matrices of a stack by computed indices."""
        if node.op_type not in _PICKS:
            return node.op_type in _PASSED
        stack, indices = node.input[0] in self.model, node.input[1] not in self.model
        if not stack or not indices or len(self.model.info(node.input[0]).dims) < 3:
            return False
        return not any(a.i for a in node.attribute) and (
            node.op_type == "Gather" or self._single(node.input[1])
        )

    def _single(self, name: str) -> bool:
        """Whether indices are vectors of one number: a last axis was put behind them."""
        node = self.maker.get(name)
        if node is None or node.op_type != "Unsqueeze":
            return False
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [])
        if len(node.input) > 1 and node.input[1] in self.model:
            axes = np.asarray(self.model.weight(node.input[1])).ravel().tolist()
        return axes == [-1]

    def _target(self, node: NodeProto, dims: Shape) -> Shape:
        if len(node.input) < 2 or node.input[1] not in self.model:
            raise _No(f"the shape that Reshape '{node.name}' gives it isn't constant")
        wanted = [int(d) for d in np.asarray(self.model.weight(node.input[1])).ravel()]
        zeros = any(a.name == "allowzero" and a.i for a in node.attribute)
        shape = [dims[n] if d == 0 and not zeros else d for n, d in enumerate(wanted)]
        if -1 in shape:
            shape[shape.index(-1)] = prod(dims) // max(prod(d for d in shape if d != -1), 1)
        return tuple(shape)

    def weight_behind(self, name: str) -> str:
        while name not in self.model and name in self.maker and self.maker[name].input:
            name = self.maker[name].input[0]
        return name if name in self.model else ""

    def target(
        self,
        name: str,
        node: NodeProto,
        factor: Factor,
        way: tuple[Steps, list[NodeProto]],
        index: int,
    ) -> SparseWeight:
        """Return what one layer makes of a weight."""
        steps, nodes = way
        info = self.model.info(name)
        title = node.name or f"{node.op_type} {index}"
        attrs = {a.name: a for a in node.attribute}
        group = attrs["group"].i if "group" in attrs else 1
        dims = Layout(info.dims, tuple(steps)).shape if steps else info.dims
        if not factor.axes:
            raise _No(f"{node.op_type} reads it in bytes or blocks of its own, which isn't followed")
        if any(n.op_type in _PICKS for n in nodes) and {kind for kind, _ in factor.axes[0]} != {BLOCKS}:
            raise _No("matrices are picked of it along an axis that a layer sums over")
        if info.elem_type not in (*FLOATS, *QUANTISED):
            kind = _T.DataType.Name(info.elem_type).lower()
            raise _No(f"its type is {kind}")
        layout = Layout(info.dims, (*steps, *canonical(factor, dims)))
        if layout.shape[2] == 1 and group > 1:
            raise _No("depthwise: each output reads one input, so no sum has terms to lose")
        zero, scale = self._zero(name, info.dims, node, nodes, factor)
        if info.elem_type in QUANTISED and zero is None:
            raise _No("it is an integer, but no DequantizeLinear says what stands for zero")
        return SparseWeight(
            name, info.elem_type, layout, (Reader(title, node.op_type, group, node.domain),), zero, scale
        )

    def _zero(
        self, name: str, dims: Shape, node: NodeProto, nodes: list[NodeProto], factor: Factor
    ) -> tuple[Array | None, Array | None]:
        if self.model.info(name).elem_type in FLOATS:
            return None, None
        dtype = np.asarray(self.model.weight(name)).dtype
        slot = factor.zero
        if slot >= 0:
            point = node.input[slot] if slot < len(node.input) else ""
            step = node.input[slot - 1] if node.op_type.startswith("QLinear") else ""
            axis = min(factor.outputs, len(dims) - 1)
            return self._spread(point, dims, axis, 0, dtype), self._spread(step, dims, axis, 0, np.float32)
        first = next((n for n in nodes if n.op_type not in ("Identity", "Cast")), None)
        if first is None or first.op_type != "DequantizeLinear":
            return None, None
        attrs = {a.name: a.i for a in first.attribute}
        point = first.input[2] if len(first.input) > 2 else ""
        axis, size = int(attrs.get("axis", 1)), int(attrs.get("block_size", 0))
        return (
            self._spread(point, dims, axis, size, dtype),
            self._spread(first.input[1], dims, axis, size, np.float32),
        )

    def _spread(self, name: str, dims: Shape, axis: int, size: int, dtype: Any) -> Array:
        """Return a scale or a zero point, broadcast against the weight; zero or one where there is none."""
        if not name:
            return np.asarray(1 if dtype is np.float32 else 0, dtype)
        if name not in self.model:
            raise _No("its scale or zero point isn't constant")
        return spread(np.asarray(self.model.weight(name)).astype(dtype), dims, axis, size)

    def one(self, name: str, targets: list[SparseWeight]) -> SparseWeight:
        """Return the target of a weight that several layers may read."""
        if name in self.inputs:
            raise _No("it is an input of the graph too, so it can change at run time")
        names, behind = {name}, [name]
        while behind:
            for node in self.readers.get(behind.pop(), []):
                if self.passes(node) and node.output[0] not in names:
                    names.add(node.output[0])
                    behind.append(node.output[0])
        if names & self.outputs:
            raise _No("it is an output of the graph too")
        if names & self.inner:
            raise _No("the body of an If, Loop or Scan reads it too")
        for node in (n for one in names for n in self.readers.get(one, [])):
            passed = self.passes(node) and node.input[0] in names
            if not passed and not any(node.input[factor.slot] in names for factor in self.factors(node)):
                what = "looks rows up in" if node.op_type.startswith("Gather") else "reads"
                raise _No(f"{node.op_type} '{node.name}' {what} it too")
        if len({(t.layout, str(t.zero)) for t in targets}) > 1:
            raise _No("layers read it along different axes")
        readers = tuple(reader for target in targets for reader in target.readers)
        first = targets[0]
        return SparseWeight(name, first.elem_type, first.layout, readers, first.zero, first.scale)

    def tables(self) -> Iterator[tuple[str, str]]:
        """Yield matrices that are no factor of a product, each with the reason to leave them."""
        for name in self.model.names():
            info = self.model.info(name)
            if info.elem_type not in FLOATS or len(info.dims) < 2 or prod(info.dims) < 64:
                continue
            readers = [n for n in self.readers.get(name, []) if n.op_type not in _PICKS or not self.passes(n)]
            traits = [traits_of(n.op_type, n.domain) for n in readers]
            if traits and all(Trait.LOOKUP in own for own in traits):
                ops = ", ".join(sorted({n.op_type for n in readers}))
                table = "an embedding table: rows are looked up, not summed over"
                yield (
                    name,
                    table if len(info.dims) == 2 else f"a stack of which {ops} picks, which isn't followed",
                )
            elif any(Trait.RECURRENT in own for own in traits):
                yield name, "recurrent weights"
