"""Lay the bodies of If, Loop and Scan open in the main graph; see `onnxprune.files.bodies`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import count

import onnx
from onnx import GraphProto, NodeProto, helper

from onnxprune.files.bodies import (
    DOMAIN,
    ENTRY,
    OUT,
    fresh_name,
    inner_nodes,
    made_by,
    made_in,
    mark,
    renamed,
)
from onnxprune.files.protowalk import subgraphs

__all__ = ["unfold"]

_BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}


def unfold(proto: onnx.ModelProto, but: Collection[str] = ()) -> bool:
    """Lay all bodies open, in place; return whether there was one.

    Parameters
    ----------
    proto : ModelProto
        Without local functions.
    but : collection of str
        Numbers (the ``id`` of joints) of nodes whose bodies stay closed, with all in them.
    """
    graph = proto.graph
    if not any(_opens(node) for node in graph.node):
        return False
    opened = _Unfold(graph, but)
    nodes = [flat for node in graph.node for flat in opened.visit(node, "", {})]
    del graph.node[:]
    graph.node.extend(nodes)
    return opened.any


def _opens(node: NodeProto) -> bool:
    """Whether a node's bodies can be laid open."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _BODIES:
        return False
    bodies = {a.name: a.g for a in node.attribute if a.HasField("g")}
    plain = all(not (g.sparse_initializer or g.quantization_annotation) for g in bodies.values())
    return plain and set(bodies) == set(_BODIES[node.op_type]) == {
        b for b in bodies if _whole(node, bodies[b])
    }


def _whole(node: NodeProto, body: GraphProto) -> bool:
    """Whether a body has the inputs and outputs that its node asks for."""
    ins, outs = len(node.input), len(node.output)
    if node.op_type == "If":
        return not body.input and len(body.output) == outs
    if node.op_type == "Loop":
        return len(body.input) == max(ins, 2) and len(body.output) == outs + 1
    return len(body.input) == ins and len(body.output) == outs


class _Unfold:
    def __init__(self, graph: GraphProto, but: Collection[str]) -> None:
        self.graph, self.but, self.any = graph, but, False
        self.made = Counter(made_in(graph))
        self.called = Counter(node.name for node in inner_nodes(graph))
        self.taken = set(self.made) | set(self.called)
        self.numbers = count()

    def visit(self, node: NodeProto, body: str, names: Mapping[str, str]) -> Iterator[NodeProto]:
        """Yield what stands for a node of a body whose values have these names outside."""
        copy = renamed(node, names)
        if _opens(node):
            number = str(next(self.numbers))
            if number not in self.but:
                self.any = True
                yield from self.opened(copy, number, body)
                return
            for _ in range(sum(_opens(n) for b in subgraphs(node) for n in inner_nodes(b))):
                next(self.numbers)  # whatever stays closed, the others have the same numbers
        mark(copy, body)
        yield copy

    def opened(self, node: NodeProto, number: str, body: str) -> Iterator[NodeProto]:
        """Yield the joints of a node, and what its bodies hold between them; the node becomes their frame."""
        names: dict[str, dict[str, str]] = {"flat": {}, "nodes": {}}  # new -> own, of values and of nodes
        inside: list[NodeProto] = []
        inputs: list[str] = []
        ranks: list[int] = []
        outputs: dict[str, list[str]] = {}
        for attribute in node.attribute:
            if attribute.HasField("g"):
                graph, mine = attribute.g, f"{number}.{attribute.name}"
                own = self.lift(graph, mine, attribute.name)
                names["flat"] |= {new: old for old, new in own.items() if new != old}
                for inner in graph.node:
                    if self.called[inner.name] > 1 and inner.name:
                        old, inner.name = inner.name, self.name(inner.name, attribute.name)
                        names["nodes"][inner.name] = old
                    inside += self.visit(inner, mine, own)
                outputs[attribute.name] = [own.get(v.name, v.name) for v in graph.output]
                inputs = [own[v.name] for v in graph.input]
                ranks = [len(v.type.tensor_type.shape.dim) for v in graph.input[:2]]
                del graph.node[:], graph.initializer[:], graph.value_info[:]
        ends = [name for branch in _BODIES[node.op_type] for name in outputs[branch]]
        if node.op_type == "If":
            ends = [*node.input, *ends]
        else:
            entry = _joint(node, ENTRY, node.input, inputs, number, body)
            if node.op_type == "Loop":
                entry.attribute.append(helper.make_attribute("ranks", ranks))
            yield entry
            first = len(inputs) - _carried(node) if node.op_type == "Loop" else 0
            ends += inputs[first : first + _carried(node)]
        yield from inside
        joint = _joint(node, "", ends, node.output, number, body)
        joint.attribute.append(helper.make_attribute("frame", node.SerializeToString(deterministic=True)))
        for key, pairs in names.items():
            if pairs:
                joint.attribute.append(helper.make_attribute(key, list(pairs)))
                joint.attribute.append(helper.make_attribute(f"{key} inside", list(pairs.values())))
        yield joint

    def lift(self, graph: GraphProto, body: str, branch: str) -> dict[str, str]:
        """Move a body's weights and declared types to the main graph; return its own names -> those that they get."""
        own: dict[str, str] = {}
        for name in made_by(graph):
            own[name] = self.name(name, branch) if self.made[name] > 1 else name
        for tensor in graph.initializer:
            lifted = self.graph.initializer.add()
            lifted.CopyFrom(tensor)
            lifted.name = own[tensor.name]
            mark(lifted, body)
        for values, end in ((graph.value_info, ""), (graph.input, OUT), (graph.output, OUT)):
            for value in values:
                info = self.graph.value_info.add()
                info.CopyFrom(value)
                info.name = own.get(value.name, value.name)
                mark(info, body + end)
        return own

    def name(self, name: str, branch: str) -> str:
        new = fresh_name(f"{name}@{branch}", self.taken)
        self.taken.add(new)
        return new


def _joint(
    node: NodeProto, end: str, inputs: Iterable[str], outputs: Iterable[str], number: str, body: str
) -> NodeProto:
    joint = helper.make_node(node.op_type + end, list(inputs), list(outputs), node.name, domain=DOMAIN)
    joint.attribute.append(helper.make_attribute("id", number))
    joint.attribute.extend(a for a in node.attribute if not a.HasField("g"))
    mark(joint, body)
    return joint


def _carried(node: NodeProto) -> int:
    """Return how many values a Loop or Scan carries from step to step."""
    if node.op_type == "Loop":
        return max(len(node.input) - 2, 0)
    return len(node.input) - next(int(a.i) for a in node.attribute if a.name == "num_scan_inputs")
