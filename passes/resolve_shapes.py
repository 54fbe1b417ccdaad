"""Turn shape arithmetic into constants where it can't come out otherwise: ``resolve_shapes``.

Rules:

1. An element of a small tensor is *known* if it comes out the same whatever the sizes of the
   dynamic axes: a weight that is no graph input; an element of a Shape or Size that is equal under
   all bindings that are tried (four, with sizes from 1 to 640); and what ops make of known
   elements. Movement (Gather, Slice, Concat, ...) is followed element by element. Floats count only
   where numpy and onnxruntime must round alike.
2. An input of a node that is wholly known, is computed, and is an integer or boolean tensor of at
   most 1,024 elements or a single float, becomes a constant, unless the node itself becomes one.
3. A Reshape target that is known in part becomes a constant: known entries as they are, 0 for an
   entry that is the size of an axis of some tensor and equals the input's size at the same position
   under all bindings, -1 for at most one other.
4. The arithmetic that nothing reads any more goes; what was dead before stays (`drop_dead`).
5. Names, types and shapes of all remaining tensors are the same as before under every binding, or
   the pass refuses.
6. Bodies of If, Loop and Scan are left alone, as is what they or the graph's outputs read. Local
   functions are inlined if there is anything to resolve.

Outputs are the same, bit for bit, for all sizes of the dynamic axes, with two exceptions: an axis of
data whose length is one number for all sizes that are tried and another beyond them (padding up to
1,000, say) counts as known, and a -1 of rule 3 is ambiguous for a tensor without elements.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.analysis import weights_of
from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.graph import binding
from onnxprune.graph.inline import inline
from onnxprune.graph.live import needed, remove
from onnxprune.graph.trace import Shape, TraceError, Tracer, Typed, attributes
from onnxprune.graph.values import evaluate
from onnxprune.model import Model

__all__ = ["run"]

#: Constants that are written have at most this many elements.
MOST = 1024
#: Bindings of the dynamic axes that a value must be equal under.
BINDINGS = 4

_MOVES = frozenset(
    {"Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Expand", "Tile"}
)
_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Where", "Equal", "Greater", "GreaterOrEqual", "Less",
     "LessOrEqual", "And", "Or", "Not", "Neg", "Abs", "Floor", "Ceil", "Sqrt", "Reciprocal"}
)  # fmt: skip
#: Ops whose float results IEEE 754 fixes.
_EXACT = _MOVES | _ELEMENTWISE | {"Cast", "Identity", "ConstantOfShape"}

#: Kernels for half floats may calculate in single.
_WIDE = (np.float32, np.float64)

_log = logging.getLogger(__name__)


@dataclass
class Known:
    """What is known of the elements of a small tensor.

    Attributes
    ----------
    fixed : bool array
        Which elements are the same for all sizes.
    source : int array
        Which axis of which tensor an element is the size of; -1 where it is no plain size.
    """

    fixed: NDArray[np.bool_]
    source: NDArray[np.int64]


def run(model: Model) -> Model:
    """Return a model in which known shape arithmetic is constant.

    Parameters
    ----------
    model : Model

    Returns
    -------
    Model
        The same one if there is nothing to resolve.

    Raises
    ------
    ModelError
        If the shapes of the graph don't agree under any binding that was tried.
    """
    whole = inline(model)
    found = _Resolver(whole)
    before = needed(whole)
    dead = {
        name for node in whole.proto.graph.node for name in node.output
    } - before  # stays, and so what it reads
    fork = whole.fork()
    constants = _Constants(fork)
    nodes = [fork.proto.graph.node[i] for i in whole.order]
    targets = 0
    for node in nodes:
        if all(found.whole(name) for name in node.output if name):
            continue
        for slot, name in enumerate(node.input):
            if found.foldable(name):
                node.input[slot] = constants.of(name, found.traces[0].values[name])
        target = found.target(node)
        if target is not None:
            targets += 1
            node.input[1] = constants.add(node.input[1], target)
    if not constants.count:
        return model
    remove(fork, before - needed(fork, dead))
    found.check(fork)
    gone = len(whole.proto.graph.node) - len(fork.proto.graph.node)
    _log.info("%d constants (%d Reshape targets with 0 or -1), %d nodes less", constants.count, targets, gone)
    return fork


class _Constants:
    """New initializers, one for each tensor that they replace."""

    def __init__(self, model: Model) -> None:
        self.model, self.names, self.count = model, dict[str, str](), 0

    def of(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.names:
            self.names[name] = self.add(name, value)
        return self.names[name]

    def add(self, name: str, value: NDArray[Any]) -> str:
        self.count += 1
        return self.model.add(f"{name}_resolved", np.array(value, order="C"))


@dataclass
class _Resolver:
    """A model traced under several bindings of its dynamic axes."""

    model: Model
    traces: list[Tracer] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
    atoms: dict[tuple[str, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.proto.graph
        self.inputs = list(self._trace_all())
        outer = {v.name for v in graph.input}
        self.weights = set(self.traces[0].weights)
        for name in self.weights - outer:
            value = self.traces[0].values.get(name)
            if value is not None:
                self.known[name] = Known(np.ones(value.shape, bool), np.full(value.shape, -1, np.int64))
        for i in self.model.order:
            self._visit(graph.node[i])

    def _trace_all(self) -> Iterator[Mapping[str, Shape]]:
        """Trace under as many bindings as there are, at most `BINDINGS`, and yield them."""
        graph = self.model.proto.graph
        likely, other = list(binding.bindings(graph, {})), list(binding.bindings(graph, {}, other=True))
        # the likeliest, one that differs from it, the smallest (the last), a large one, then any
        order = [likely[0], *other[:1], likely[-1], *likely[6:7], *other[1:], *likely[1:]]
        failure: TraceError | None = None
        done: list[Mapping[str, Shape]] = []
        for inputs in order:
            if inputs in done or len(done) == BINDINGS:
                continue
            try:
                self.traces.append(_trace(self.model, inputs))
            except TraceError as error:
                failure = failure or error
                continue
            done.append(inputs)
            yield inputs
        if not done:
            raise ModelError(f"The shapes of the graph do not agree ({failure}): repair the model.")
        self.enough = len(done) > 2 or not binding.is_dynamic(graph, {})

    def _visit(self, node: NodeProto) -> None:
        if node.domain not in ("", "ai.onnx") or len(node.output) != 1 or node.output[0] in self.weights:
            return
        name = node.output[0]
        values = [t.values.get(name) for t in self.traces]
        first = values[0]
        if first is None or not self.enough:
            return
        if any(v is None or v.shape != first.shape or v.dtype != first.dtype for v in values):
            return
        same = np.all([v == first for v in values], axis=0).reshape(first.shape)
        made = self._known(node, first)
        exact = first.dtype.kind in "iub" or (first.dtype in _WIDE and node.op_type in _EXACT)
        if made is not None and exact:
            self.known[name] = Known(np.asarray(made.fixed & same, bool), made.source)

    def _known(self, node: NodeProto, value: NDArray[Any]) -> Known | None:
        """Say which elements of a value stand fast, as far as the op alone tells."""
        none = np.full(value.shape, -1, np.int64)
        if node.op_type in ("Shape", "Size"):
            attrs = attributes(node)
            if node.op_type == "Size":
                return Known(np.ones(value.shape, bool), none)
            rank = len(self.traces[0].types[node.input[0]][1] or ())
            axes = range(rank)[slice(attrs.get("start", 0), attrs.get("end"))]
            ids = [self.atoms.setdefault((node.input[0], a), len(self.atoms)) for a in axes]
            return Known(np.ones(value.shape, bool), np.array(ids, np.int64).reshape(value.shape))
        read = [self.known.get(n) for n in node.input]
        if node.op_type in ("Cast", "Identity"):
            return read[0]
        if node.op_type in _MOVES:
            return self._moved(node, read, value)
        if all(k is not None and k.fixed.all() for k, n in zip(read, node.input, strict=True) if n):
            return Known(np.ones(value.shape, bool), none)
        if node.op_type in _ELEMENTWISE and all(read):
            fixed = np.ones(value.shape, bool)
            for one in read:
                assert one is not None
                fixed = fixed & np.broadcast_to(one.fixed, value.shape)
            return Known(fixed, none)
        return None

    def _moved(self, node: NodeProto, read: list[Known | None], value: NDArray[Any]) -> Known | None:
        attrs, values = attributes(node), self.traces[0].values
        data = len(node.input) if node.op_type == "Concat" else 1
        if any(k is None for k in read[:data]):
            return None
        for one, name in zip(read[data:], node.input[data:], strict=True):
            if name and (one is None or not one.fixed.all()):
                return None
        moved = []
        for part in ("fixed", "source"):
            inputs = [getattr(k, part) for k in read[:data]] + [values.get(n) for n in node.input[data:]]
            moved.append(evaluate(node.op_type, attrs, inputs, [bool(n) for n in node.input]))
        fixed, source = moved
        if fixed is None or source is None or fixed.shape != value.shape:
            return None
        return Known(fixed.astype(bool), source.astype(np.int64))

    def whole(self, name: str) -> bool:
        """Whether all elements of a tensor are known, and it may be written as a constant."""
        known = self.known.get(name)
        if known is None or not known.fixed.all() or known.fixed.size > MOST:
            return False
        value, (elem, shape) = self.traces[0].values[name], self.traces[0].types[name]
        if value.dtype.kind == "f" and value.size != 1:
            return False
        return value.shape == shape and bool(helper.tensor_dtype_to_np_dtype(elem) == value.dtype)

    def foldable(self, name: str) -> bool:
        """Whether an input is to become a constant."""
        return bool(name) and name not in self.weights and self.whole(name)

    def target(self, node: NodeProto) -> NDArray[np.int64] | None:
        """Return the constant target of a Reshape whose target is computed and known in part (rule 3)."""
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx") or len(node.input) != 2:
            return None
        known = self.known.get(node.input[1])
        if known is None or node.input[1] in self.weights or known.fixed.ndim != 1 or known.fixed.all():
            return None
        if attributes(node).get("allowzero", 0):
            return None
        shapes = [t.types.get(node.input[0], (0, None))[1] for t in self.traces]
        values = [t.values[node.input[1]] for t in self.traces]
        found = []
        for at, fixed in enumerate(known.fixed):
            follows = all(
                s is not None and at < len(s) and s[at] == v[at] for s, v in zip(shapes, values, strict=True)
            )
            if fixed:
                found.append(int(values[0][at]))
            else:
                found.append(0 if follows and known.source[at] >= 0 else -1)
        return np.array(found, np.int64) if found.count(-1) <= 1 else None

    def check(self, model: Model) -> None:
        """Trace the resolved model under every binding: no tensor may have another type or shape (rule 5)."""
        for before, inputs in zip(self.traces, self.inputs, strict=True):
            after = _trace(model, inputs)
            for name in (n for node in model.proto.graph.node for n in node.output if n):
                if _contradicts(before.types.get(name), after.types.get(name)):
                    raise OnnxPruneError(
                        f"resolve_shapes would change the shape of '{name}' from {before.types[name]} to "
                        f"{after.types[name]}: leave the pass out, and report this model."
                    )


def _contradicts(one: Typed | None, other: Typed | None) -> bool:
    if one is None or other is None or one[1] is None or other[1] is None:
        return False
    return one != other


def _trace(model: Model, inputs: Mapping[str, Shape]) -> Tracer:
    graph = model.proto.graph
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.proto.opset_import}
    types: dict[str, Typed] = {
        v.name: (v.type.tensor_type.elem_type, inputs[v.name])
        for v in binding.real_inputs(graph)
        if v.name in inputs and v.type.HasField("tensor_type")
    }
    tracer = Tracer(opsets, weights_of(model), types=types)
    for i in model.order:
        tracer.visit(graph.node[i])
    return tracer
