"""Turn shape arithmetic into constants where it can't come out otherwise: ``resolve_shapes``.

Rules:

1. An element of a small tensor is *known* if it comes out the same whatever the sizes of the
   dynamic axes. That is derived node by node (`onnxprune.graph.sizes`): from a weight that is no
   graph input, a size that no dynamic axis has a part in, and what ops make of them. Floats count
   only where numpy and onnxruntime must round alike.
2. An input of a node that is wholly known, is computed, and is an integer or boolean tensor of at
   most 1,024 elements or a single float, becomes a constant, unless the node itself becomes one.
3. A Reshape target that is known in part becomes a constant: known entries as they are, 0 for an
   entry that is the input's size at the same position for all sizes of the dynamic axes, -1 for at
   most one other.
4. The arithmetic that nothing reads any more goes; what was dead before stays (`drop_dead`).
5. Names, types and shapes of all remaining tensors are the same as before under every binding that is
   tried (four, with sizes from 1 to 640), or the pass refuses.
6. Bodies of If, Loop and Scan are left alone, as is what they or the graph's outputs read. Local
   functions are inlined if there is anything to resolve.

Outputs are the same, bit for bit, for all sizes of the dynamic axes, but that a -1 of rule 3 is
ambiguous for a tensor without elements.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.graph.agree import walk
from onnxprune.graph.feasible import Feasible
from onnxprune.graph.inline import inline
from onnxprune.graph.known import weights_of
from onnxprune.graph.live import needed, remove
from onnxprune.graph.sizes import Sizes
from onnxprune.graph.trace import TraceError, Tracer, Weight, attributes
from onnxprune.model import Model
from onnxprune.ops import Node, Refusal, Trait, lookup
from onnxprune.runtime import binding
from onnxprune.runtime.binding import Shape, Typed

__all__ = ["run"]

#: Constants that are written have at most this many elements.
MOST = 1024
#: Bindings of the dynamic axes that the result is traced under.
BINDINGS = 4

#: Kernels for half floats may calculate in single.
_WIDE = (np.float32, np.float64)

_log = logging.getLogger(__name__)


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
    resolver = _Resolver(whole)
    before = needed(whole)
    dead = {
        name for node in whole.proto.graph.node for name in node.output
    } - before  # stays, and so what it reads
    fork = whole.fork()
    constants = _Constants(fork)
    nodes = [fork.proto.graph.node[i] for i in whole.order]
    targets = 0
    for node in nodes:
        if all(resolver.whole(name) for name in node.output if name):
            continue
        for slot, name in enumerate(node.input):
            if resolver.foldable(name):
                node.input[slot] = constants.of(name, resolver.traces[0].values[name])
        target = resolver.target(node)
        if target is not None:
            targets += 1
            node.input[1] = constants.add(node.input[1], target)
    if not constants.count:
        return model
    remove(fork, before - needed(fork, dead))
    resolver.check(fork)
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
    """A model traced under several bindings of its dynamic axes, and what of it is known for all sizes."""

    model: Model
    traces: list[Tracer] = field(default_factory=list)
    known: dict[str, NDArray[np.bool_]] = field(
        default_factory=dict
    )  # tensor -> which entries are the same always

    def __post_init__(self) -> None:
        graph = self.model.proto.graph
        self.inputs = list(self._trace_all())
        outer = {v.name for v in graph.input}
        self.weights = set(self.traces[0].weights)
        for name in self.weights - outer:
            value = self.traces[0].values.get(name)
            if value is not None:
                self.known[name] = np.ones(value.shape, bool)
        self.sizes = Sizes(self.traces[0])
        self.sizes.declare({v.name: binding.declared(v) for v in binding.real_inputs(graph)})
        for node in self.nodes:
            row = lookup(node)
            self.sizes.visit(node, None if isinstance(row, Refusal) else row)
            self._visit(node)

    def _trace_all(self) -> Iterator[Mapping[str, Shape]]:
        """Trace under as many bindings as there are, at most `BINDINGS`, and yield them."""
        graph = self.model.proto.graph
        likely, other = list(binding.bindings(graph, {})), list(binding.bindings(graph, {}, other=True))
        # the likeliest, one that differs from it, the smallest (the last), a large one, then any
        order = [likely[0], *other[:1], likely[-1], *likely[6:7], *other[1:], *likely[1:]]
        failure: TraceError | None = None
        done: list[Mapping[str, Shape]] = []
        protos = [graph.node[i] for i in self.model.order]
        weights = weights_of(self.model)
        search = Feasible(graph, protos, lambda inputs: _tracer(self.model, inputs, weights), {})
        for inputs in itertools.chain(order, search.taken(None)):
            if done and inputs not in order:
                break  # the search is for models that no guess fits
            if inputs in done or len(done) == BINDINGS:
                continue
            try:
                fits = walk(_tracer(self.model, inputs, weights), protos, range(len(protos)))
                if fits.error is not None and binding.is_dynamic(graph, {}):
                    raise fits.error
                tracer, nodes = _trace(self.model, inputs)
            except TraceError as error:
                failure = failure or error
                continue
            if not done:
                self.nodes = nodes
            self.traces.append(tracer)
            done.append(inputs)
            yield inputs
        if not done:
            raise ModelError(f"The shapes of the graph do not agree ({failure}): repair the model.")

    def _visit(self, node: Node) -> None:
        """Note which entries of a node's output are known."""
        if node.domain or len(node.outputs) != 1 or node.outputs[0] in self.weights:
            return
        name = node.outputs[0]
        value = self.traces[0].values.get(name)
        counted = node.op in ("Shape", "Size")
        if value is None or self.sizes.stretches(name):
            return
        if not counted and not all(n in self.known or not n for n in node.inputs):
            return
        if value.dtype.kind in "iub" or (value.dtype in _WIDE and Trait.EXACT in node.traits):
            self.known[name] = ~self.sizes.moving(name).reshape(value.shape)

    def whole(self, name: str) -> bool:
        """Whether all elements of a tensor are known, and it may be written as a constant."""
        known = self.known.get(name)
        if known is None or not known.all() or known.size > MOST:
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
        known, name = self.known.get(node.input[1]), node.input[1]
        if known is None or name in self.weights or known.ndim != 1 or known.all():
            return None
        if attributes(node).get("allowzero", 0):
            return None
        lengths, numbers = self.sizes.length(node.input[0]) or (), self.sizes.value(name)
        if numbers is None:
            return None
        target = [
            int(value) if fixed else 0 if at < len(lengths) and lengths[at] == number else -1
            for at, (fixed, value, number) in enumerate(
                zip(known, self.traces[0].values[name], numbers, strict=True)
            )
        ]
        return np.array(target, np.int64) if target.count(-1) <= 1 else None

    def check(self, model: Model) -> None:
        """Trace the resolved model under every binding: no tensor may have another type or shape (rule 5)."""
        for before, inputs in zip(self.traces, self.inputs, strict=True):
            after, _ = _trace(model, inputs)
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


def _tracer(model: Model, inputs: Mapping[str, Shape], weights: Mapping[str, Weight]) -> Tracer:
    graph = model.proto.graph
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.proto.opset_import}
    types: dict[str, Typed] = {
        v.name: (v.type.tensor_type.elem_type, inputs[v.name])
        for v in binding.real_inputs(graph)
        if v.name in inputs and v.type.HasField("tensor_type")
    }
    return Tracer(opsets, weights, types=types)


def _trace(model: Model, inputs: Mapping[str, Shape]) -> tuple[Tracer, list[Node]]:
    tracer = _tracer(model, inputs, weights_of(model))
    return tracer, [tracer.visit(model.proto.graph.node[i]) for i in model.order]
