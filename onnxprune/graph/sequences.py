"""Sequences and optionals whose tensors are known before any run: what reads one reads the tensors themselves.

Exporters make them of lists and of arguments that may be left out. Rules:

1. A sequence is *known* if it is made of tensors of the main graph, one by one, or by splitting one at places that are
   known for all sizes of the dynamic axes, and if what is put in or taken out has a known place.
2. An element that is picked by a known number is that tensor; elements that are joined are a Concat; a count is a
   constant. An optional that was given a tensor is that tensor, and it is there.
3. What is read otherwise, in a body or as an output of the model, stays as it is, with what makes it.
4. What no output needs then goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnxprune.files.bodies import fresh_name
from onnxprune.files.protowalk import all_names
from onnxprune.graph.branches import Certain
from onnxprune.graph.live import names_of, needed, remove
from onnxprune.graph.trace import attributes
from onnxprune.model import Model

__all__ = ["dissolved"]

#: Parts that one tensor is split into at most.
MOST = 4096


def dissolved(model: Model) -> Model:
    """Return a model without sequences and optionals that are known: the same one if it has none, else a fork.

    Parameters
    ----------
    model : Model
        Without local functions.
    """
    makers = {op for op, rule in _RULES.items() if rule in (_construct, _split, _optional)}
    if not any(node.op_type in makers and node.domain in ("", "ai.onnx") for node in model.proto.graph.node):
        return model
    fork = model.fork()
    work = _Dissolving(fork)
    if not work.run():
        return model
    if not model.proto.training_info:  # that reads weights by name
        remove(fork, names_of(fork) - needed(fork))
    fork.refresh()
    return fork


class _Dissolving:
    def __init__(self, model: Model) -> None:
        self.model, self.known = model, Certain(model)
        self.version = next(o.version for o in model.proto.opset_import if o.domain in ("", "ai.onnx"))
        self.parts: dict[str, list[str]] = {}  # sequence -> its tensors
        self.given: dict[str, str] = {}  # optional -> what it was given
        self.later: dict[str, Callable[[], list[NodeProto]]] = {}  # tensor -> what makes it, once it is read
        self.taken = set(all_names(model.proto))

    def run(self) -> bool:
        """Let readers read tensors, in place, and return whether any does."""
        graph, changed = self.model.proto.graph, False
        nodes: list[NodeProto] = []
        for node in graph.node:
            rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            new = rule(self, node, attributes(node)) if rule is not None else None
            if new is None:
                nodes.append(node)
            else:
                changed = True
                nodes += new
        if changed:
            copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
            del graph.node[:]
            graph.node.extend(copies)
        return changed

    def node(self, op: str, inputs: list[str], outputs: list[str], **attrs: Any) -> NodeProto:
        return helper.make_node(op, inputs, outputs, name=f"onnxprune/{outputs[0]}", **attrs)

    def number(self, name: str, otherwise: int | None = None) -> int | None:
        """Return an integer that is the same at all sizes."""
        if not name:
            return otherwise
        part = self.known.of(name)
        return int(part[0].ravel()[0]) if part is not None and part[0].size == 1 and part[1].all() else None

    def over(self, op: str, x: str, y: str, axis: int) -> NodeProto:
        """Return a node that adds or takes an axis of size 1."""
        if self.version < 13:
            return self.node(op, [x], [y], axes=[axis])
        return self.node(op, [x, self.model.add(f"{y}/axis", np.array([axis], np.int64))], [y])

    def fresh(self, name: str) -> str:
        new = fresh_name(name, self.taken)
        self.taken.add(new)
        return new

    def read(self, parts: list[str]) -> list[NodeProto]:
        """Return the nodes that make tensors of a sequence, the first time that they are read."""
        makers = dict.fromkeys(self.later[part] for part in parts if part in self.later)
        self.later = {part: make for part, make in self.later.items() if make not in makers}
        return [node for make in makers for node in make()]


def _construct(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> None:
    work.parts[node.output[0]] = list(node.input)


def _insert(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> None:
    parts = work.parts.get(node.input[0])
    at = None if parts is None else work.number("".join(node.input[2:]), len(parts))
    if parts is not None and at is not None and -len(parts) <= at <= len(parts):
        at %= len(parts) + (at >= 0)
        work.parts[node.output[0]] = [*parts[:at], node.input[1], *parts[at:]]


def _erase(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> None:
    parts = work.parts.get(node.input[0])
    at = None if parts is None else work.number("".join(node.input[1:]), -1)
    if parts is not None and at is not None and -len(parts) <= at < len(parts):
        work.parts[node.output[0]] = [part for n, part in enumerate(parts) if n != at % len(parts)]


def _split(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> None:
    """One part for each of several sizes, of one size all but perhaps the last, or single slices."""
    sizes = _sizes(work, node, attrs.get("axis", 0))
    if sizes is None or not 0 < len(sizes) <= MOST:
        return
    name, axis = node.output[0], attrs.get("axis", 0)
    single = len(node.input) < 2 or not node.input[1]
    parts = [work.fresh(f"{name}/part_{n}") for n in range(len(sizes))]
    work.parts[name] = parts

    def make() -> list[NodeProto]:
        squeezed = single and not attrs.get("keepdims", 1)
        raw = [work.fresh(f"{part}/slice") for part in parts] if squeezed else parts
        if work.version < 13:
            nodes = [work.node("Split", [node.input[0]], raw, axis=axis, split=sizes)]
        else:
            given = work.model.add(f"{name}/sizes", np.array(sizes, np.int64))
            nodes = [work.node("Split", [node.input[0], given], raw, axis=axis)]
        if squeezed:
            nodes += [work.over("Squeeze", x, y, axis) for x, y in zip(raw, parts, strict=True)]
        return nodes

    work.later |= dict.fromkeys(parts, make)


def _sizes(work: _Dissolving, node: NodeProto, axis: int) -> list[int] | None:
    given = work.known.of(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    if given is not None and given[1].all() and given[0].ndim == 1:
        return [int(size) for size in given[0]]
    dims = work.known.shapes.get(node.input[0], [])
    whole = dims[axis] if -len(dims) <= axis < len(dims) else -1
    step = work.number(node.input[1] if len(node.input) > 1 else "", 1)
    if whole <= 0 or step is None or step <= 0:
        return None
    return [min(step, whole - start) for start in range(0, whole, step)]


def _at(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> list[NodeProto] | None:
    parts, at = work.parts.get(node.input[0]), work.number(node.input[1])
    if parts is None or at is None or not -len(parts) <= at < len(parts):
        return None
    return [*work.read([parts[at]]), work.node("Identity", [parts[at]], list(node.output))]


def _join(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> list[NodeProto] | None:
    parts, axis = work.parts.get(node.input[0]), attrs["axis"]
    if not parts:
        return None
    nodes = work.read(parts)
    if attrs.get("new_axis", 0):
        raised = [work.fresh(f"{node.output[0]}/{n}") for n in range(len(parts))]
        nodes += [work.over("Unsqueeze", x, y, axis) for x, y in zip(parts, raised, strict=True)]
        parts = raised
    return [*nodes, work.node("Concat", list(parts), list(node.output), axis=axis)]


def _length(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> list[NodeProto] | None:
    parts = work.parts.get(node.input[0])
    return None if parts is None else _constant(work, node, np.array(len(parts), np.int64))


def _constant(work: _Dissolving, node: NodeProto, value: np.ndarray[Any, Any]) -> list[NodeProto]:
    return [work.node("Identity", [work.model.add(f"{node.output[0]}/value", value)], list(node.output))]


def _optional(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> None:
    if node.input and node.input[0]:
        work.given[node.output[0]] = node.input[0]


def _element(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> list[NodeProto] | None:
    inner = work.given.get(node.input[0])
    if inner is None:
        return None
    if inner in work.parts:  # a sequence that may be there
        work.parts[node.output[0]] = work.parts[inner]
        return None
    return [work.node("Identity", [inner], list(node.output))]


def _there(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> list[NodeProto] | None:
    known = node.input and node.input[0] in work.given
    return _constant(work, node, np.array(True)) if known else None


def _same(work: _Dissolving, node: NodeProto, attrs: dict[str, Any]) -> None:
    source, target = node.input[0], node.output[0]
    if source in work.parts:
        work.parts[target] = work.parts[source]
    if source in work.given:
        work.given[target] = work.given[source]


_RULES: dict[str, Callable[[_Dissolving, NodeProto, dict[str, Any]], list[NodeProto] | None]] = {
    "SequenceConstruct": _construct, "SequenceEmpty": _construct, "SequenceInsert": _insert,
    "SequenceErase": _erase, "SplitToSequence": _split, "SequenceAt": _at, "ConcatFromSequence": _join,
    "SequenceLength": _length, "Optional": _optional, "OptionalGetElement": _element,
    "OptionalHasElement": _there, "Identity": _same,
}  # fmt: skip
