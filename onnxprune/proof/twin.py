"""The masked twin: the original graph with the channels that a cut removes zeroed where they are consumed.

Law 1 says that the pruned graph equals it. So the masks are as few as possible: one operand of each
contraction (and every bias that is added to such an operand), preferably an activation, so that no weight is
touched. What is zero for a quantised operand is its zero point. Where an op chooses or weighs elements (TopK,
Softmax, a mixture of experts) a mask is the least number, in what it chooses by, and nothing else of it is masked.
Everything else of the twin is the original, and a row that wrongly claims that an op keeps channels apart shows.

An axis that an average runs over has no such mask. Where such a cut was asked for (``--allow-inexact``) the
twin wraps the op: kept channels are gathered, the op runs on them, and its output is put back into place. Law
1 then says that the rewriting is consistent, not that the function is unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied, Dims
from onnxprune.graph.kept import Kept, NodeCut
from onnxprune.model import Model
from onnxprune.ops import FLOATS, PACKED, ZEROED, Pick, SetAttr, SetInput, emit
from onnxprune.ops.notation import letters_of
from onnxprune.ops.resolve import fit

__all__ = ["stand_ins", "twin"]

_PREFIX = "onnxprune/twin"


def twin(analysis: Analysis, dead: Mapping[int, NDArray[np.bool_]]) -> Model:
    """Return the masked twin of a model; the weights of the two are shared.

    Parameters
    ----------
    analysis : Analysis
        Of the original.
    dead : mapping
        Root dim -> which of its indices go.

    References
    ----------
    docs/decisions, "law 1": the pruned graph equals the masked graph.
    """
    return _Twin(analysis, dead, analysis.model.fork()).build()


def stand_ins(
    analysis: Analysis, dead: Mapping[int, NDArray[np.bool_]], model: Model, but: Collection[int]
) -> tuple[dict[int, list[onnx.NodeProto]], list[str]]:
    """Return what stands for nodes in the masked twin, by position in topological order, and the masks' names.

    Parameters
    ----------
    analysis : Analysis
        Of a model with the same nodes.
    dead : mapping
        As for `twin`.
    model : Model
        Is given the masks, as weights.
    but : collection of int
        Positions of nodes that stay as they are.
    """
    made = _Twin(analysis, dead, model)
    found = {}
    for number, (applied, proto) in enumerate(made.pairs()):
        if number not in but and made.touched(applied):
            made.masked.clear()  # what one node reads is no tensor that another waits for
            nodes = made.visit(applied, onnx.NodeProto.FromString(proto.SerializeToString()))
            if len(nodes) > 1 or nodes[0] != proto:
                found[number] = nodes
    return found, list(made.constants.values())


def _role(applied: Applied, slot: int) -> str:
    roles = applied.row.roles if applied.row is not None else ()
    return roles[slot] if slot < len(roles) else "data"


class _Twin:
    def __init__(self, analysis: Analysis, dead: Mapping[int, NDArray[np.bool_]], model: Model) -> None:
        self.analysis, self.kept, self.model = analysis, Kept(analysis.coupling, dead), model
        self.types = analysis.tracer.types
        self.weights = analysis.tracer.weights
        self.nodes: list[onnx.NodeProto] = []
        self.masked: dict[tuple[str, int, int], str] = {}  # (tensor, axis, root) -> its masked value
        self.constants: dict[bytes, str] = {}
        self.count = 0

    def build(self) -> Model:
        graph = self.model.proto.graph
        for applied, proto in self.pairs():
            self.nodes += self.visit(applied, proto) if self.touched(applied) else [proto]
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in self.nodes]
        del graph.node[:]
        graph.node.extend(copies)
        return self.model

    def pairs(self) -> Iterator[tuple[Applied, onnx.NodeProto]]:
        """Yield nodes in topological order."""
        protos = [self.model.proto.graph.node[i] for i in self.model.order]
        return zip(self.analysis.coupling.nodes, protos, strict=True)

    def touched(self, applied: Applied) -> bool:
        """Whether a node reads anything that is cut."""
        return applied.row is not None and any(self.kept.cut(d) for dims in applied.ins for d in dims or ())

    def visit(self, applied: Applied, proto: onnx.NodeProto) -> list[onnx.NodeProto]:
        row, node = applied.row, applied.node
        assert row is not None
        fitted = fit(row, node)
        letters: defaultdict[str, list[tuple[int, int, bool]]] = defaultdict(
            list
        )  # letter -> (slot, axis, marked ^)
        soft = False
        for slot, axes in enumerate(fitted.ins):
            for at, axis in enumerate(axes or ()):
                for leaf in letters_of(axis):
                    letters[leaf.name].append((slot, at, leaf.contract))
                    soft |= leaf.lock == "~" and self.gone(applied, leaf.name)
        if soft:
            return self.wrap(applied, proto)
        out = {leaf.name for axes in fitted.outs for axis in axes or () for leaf in letters_of(axis)}
        operands, lowest = set[tuple[int, int]](), set[tuple[int, int]]()
        for name, places in letters.items():
            if name in row.lowest and self.gone(applied, name):
                lowest |= {(s, a) for s, a, _ in places if s == row.lowest[name]}
            elif self.gone(applied, name) and name not in row.looked and name not in row.indexed:
                summed = [(s, a) for s, a, mark in places if mark or name not in out]
                operands |= self.choose(applied, summed, operands)
        new: list[onnx.NodeProto] = []
        for slot, at in sorted(operands):
            new += self.mask(applied, proto, slot, at)
        for slot, at in sorted(lowest):
            new += self.least(applied, proto, slot, at)
        return [*new, proto]

    def gone(self, applied: Applied, letter: str) -> bool:
        return letter in applied.letters and self.kept.cut(applied.letters[letter])

    def choose(
        self, applied: Applied, operands: list[tuple[int, int]], have: set[tuple[int, int]]
    ) -> set[tuple[int, int]]:
        """Choose where to mask a letter: every bias, what a range is taken of, and one of the factors."""
        cut = [(s, a) for s, a in operands if self.kept.cut((applied.ins[s] or ())[a])]
        operands = [(s, a) for s, a in cut if _role(applied, s) != PACKED]
        added = {(s, a) for s, a in operands if _role(applied, s) in ZEROED}
        factors = [o for o in operands if o not in added]
        if not factors or any(f in have for f in factors):
            return added
        return added | {min(factors, key=lambda p: (applied.node.inputs[p[0]] in self.weights, p))}

    def mask(self, applied: Applied, proto: onnx.NodeProto, slot: int, axis: int) -> list[onnx.NodeProto]:
        """Return the nodes that zero the dead channels of an operand, and make the node read their result."""
        dims = applied.ins[slot] or ()
        root = self.kept.root(dims[axis])
        name = proto.input[slot]
        zero = self.zero_point(applied, slot)
        if (name, axis, root) in self.masked and not zero:
            proto.input[slot] = self.masked[name, axis, root]
            return []
        keep = self.keep(dims, axis)
        elem = self.types.get(applied.node.inputs[slot], (0, None))[0]
        nodes: list[onnx.NodeProto] = []
        if name in self.model and elem in FLOATS and _role(applied, slot) == "quant":
            # kernels of quantised weights differ by whether their scales are at rest
            weight = self.model.weight(name)
            masked = self.constant(weight * keep.astype(weight.dtype))
        elif elem in FLOATS:
            dtype = helper.tensor_dtype_to_np_dtype(elem)
            nodes, masked = self.nodes_of(("Mul", name, self.constant(keep.astype(dtype))))
        else:  # onnxruntime has no Where for every integer type, but for int32
            nodes, masked = self.nodes_of(("Cast", name, TensorProto.INT32))
            level = [] if not zero else self.nodes_of(("Cast", zero, TensorProto.INT32))[0]
            low = level[-1].output[0] if level else self.constant(np.zeros((), np.int32))
            picked, masked = self.nodes_of(("Where", self.constant(keep), masked, low), ("Cast", "", elem))
            nodes += level + picked
        if not zero:
            self.masked[name, axis, root] = masked
        proto.input[slot] = masked
        return nodes

    def least(self, applied: Applied, proto: onnx.NodeProto, slot: int, axis: int) -> list[onnx.NodeProto]:
        """Return the nodes that give dead elements the least number, and make the node read their result."""
        dims = applied.ins[slot] or ()
        dtype = helper.tensor_dtype_to_np_dtype(self.types[applied.node.inputs[slot]][0])
        keep = self.keep(dims, axis)
        low = self.constant(np.asarray(np.finfo(dtype).min, dtype))
        nodes, masked = self.nodes_of(("Where", self.constant(keep), proto.input[slot], low))
        proto.input[slot] = masked
        return nodes

    def keep(self, dims: Dims, axis: int) -> NDArray[np.bool_]:
        """Which indices of an axis stay, shaped to be broadcast to a tensor that has the axis.

        Without axes in front, where a mask would put back what a Squeeze takes at other sizes (a batch of one).
        """
        return (~np.asarray(self.kept.dead[self.kept.root(dims[axis])])).reshape(
            -1, *[1] * (len(dims) - axis - 1)
        )

    def zero_point(self, applied: Applied, slot: int) -> str:
        """Name of an operand's zero point, empty where its zero is zero."""
        assert applied.row is not None
        at = applied.row.zeros.get(slot)
        if at is None or not applied.node.has(at):
            return ""
        return applied.node.inputs[at]

    def nodes_of(self, *steps: tuple[str | int, ...]) -> tuple[list[onnx.NodeProto], str]:
        """Return a chain of nodes and its result; an empty name is the step before, a number a type."""
        nodes: list[onnx.NodeProto] = []
        result = ""
        for op, *operands in steps:
            names = [(str(o) or result) for o in operands if not isinstance(o, int)]
            to = [o for o in operands if isinstance(o, int)]
            result = f"{_PREFIX}/{self.count}"
            self.count += 1
            nodes.append(helper.make_node(str(op), names, [result], name=result))
            if to:
                nodes[-1].attribute.append(helper.make_attribute("to", to[0]))
        return nodes, result

    def constant(self, array: NDArray[np.generic]) -> str:
        key = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        if key not in self.constants:
            self.constants[key] = self.model.add(f"{_PREFIX}/constant/{len(self.constants)}", array)
        return self.constants[key]

    def wrap(self, applied: Applied, proto: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Run a node on what is kept and put its outputs back in place; dead channels repeat a live one."""
        before: list[onnx.NodeProto] = []
        after: list[onnx.NodeProto] = []
        row = applied.row
        assert row is not None
        for slot, dims in enumerate(applied.ins):
            for axis, keep in self.kept.axes(dims or ()).items():
                before.append(self.gather(proto.input[slot], keep, axis - len(dims or ())))
                proto.input[slot] = before[-1].output[0]
        attrs = {n: self.kept.size(applied.letters[x]) for n, x in row.attrs.items() if self.gone(applied, x)}
        for edit in emit(applied.node, NodeCut(applied, self.kept)):
            if isinstance(edit, SetAttr):
                attrs[edit.name] = edit.value
            elif isinstance(edit, Pick):
                axis = edit.axis - applied.node.rank(edit.slot)
                before.append(self.gather(proto.input[edit.slot], edit.index, axis))
                proto.input[edit.slot] = before[-1].output[0]
            else:  # no soft axis is summed over, so nothing is multiplied
                assert isinstance(edit, SetInput)
                proto.input.extend([""] * (edit.slot + 1 - len(proto.input)))
                proto.input[edit.slot] = self.constant(edit.array)
        for name, value in attrs.items():
            old = [a for a in proto.attribute if a.name == name]
            for attr in old:
                proto.attribute.remove(attr)
            if value is not None:
                proto.attribute.append(helper.make_attribute(name, value))
        for slot, dims in enumerate(applied.outs):
            axes = self.kept.axes(dims or ()) if proto.output[slot] else {}
            if axes:
                after += self.put_back(proto, slot, dims or (), axes)
        return [*before, proto, *after]

    def put_back(
        self, proto: onnx.NodeProto, slot: int, dims: Dims, axes: Mapping[int, NDArray[np.int64]]
    ) -> list[onnx.NodeProto]:
        name = proto.output[slot]
        last = proto.output[slot] = f"{_PREFIX}/wrapped/{self.count}"
        nodes = []
        for axis, keep in axes.items():
            back = np.zeros(self.analysis.coupling.space.sizes[dims[axis]], np.int64)
            back[keep] = np.arange(len(keep))
            nodes.append(self.gather(last, back, axis - len(dims)))
            last = nodes[-1].output[0]
        nodes[-1].output[0] = name
        return nodes

    def gather(self, name: str, index: NDArray[np.int64], axis: int) -> onnx.NodeProto:
        result = f"{_PREFIX}/{self.count}"
        self.count += 1
        return helper.make_node("Gather", [name, self.constant(index)], [result], name=result, axis=axis)
