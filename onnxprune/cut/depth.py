"""A model without some residual branches: where one was added, the stream goes on alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from onnxprune.cut.rewrite import Rewritten
from onnxprune.files.bodies import DOMAIN, body_of
from onnxprune.files.protowalk import captured
from onnxprune.graph.depth import Branch, Depth
from onnxprune.graph.live import names_of, needed, remove
from onnxprune.graph.spelling import Spelled, joined
from onnxprune.model import Model
from onnxprune.ops import Trait
from onnxprune.ops.traits import traits_of

__all__ = ["Shallow", "shallow"]


@dataclass
class Shallow(Rewritten):
    """A model without branches.

    Attributes
    ----------
    branches : list of Branch
        That are gone.
    stands : dict
        Tensor -> the tensor of the original that it is read as: the sum behind a branch that is gone, where an
        activation lies between the two. All other tensors are what they are called.
    joined : list of str
        Tensors in which the stream goes on where a branch was added.
    """

    branches: list[Branch] = field(default_factory=list)
    stands: dict[str, str] = field(default_factory=dict)
    joined: list[str] = field(default_factory=list)


def shallow(depth: Depth, names: Iterable[str]) -> Shallow:
    """Return the model without these branches, and without what only they needed; the original isn't touched.

    Parameters
    ----------
    depth : Depth
    names : iterable of str
        Of branches.

    Raises
    ------
    ValueError
        If there is no such branch.
    """
    branches = depth.chosen(names)
    model = depth.analysis.model.fork()
    edit = _Edit(model, depth.spelled)
    terms = {branch.term for branch in branches}
    gone: set[str] = set()  # sums all of whose terms are gone
    for number in sorted({number for number, _ in terms} | _sums_above(depth, branches)):
        node = edit.nodes[number]
        left = [
            name for slot, name in enumerate(node.input) if (number, slot) not in terms and name not in gone
        ]
        if not left:
            gone.add(node.output[0])
        elif len(left) == 1:
            edit.join(left[0], node)
        elif len(left) < len(node.input):
            edit.keep(node, left)
    edit.settle()
    _close(model.proto.graph, branches)
    dead = names_of(model) - needed(model)
    remove(model, dead)
    joined(model, edit.totals)
    return Shallow(model, [], {}, branches, edit.stands, list(dict.fromkeys(edit.joined)))


def _close(graph: onnx.GraphProto, branches: Iterable[Branch]) -> None:
    """Take out the outputs and inputs that go with branches."""
    outputs = {name for branch in branches for name in branch.outputs}
    inputs = {name for branch in branches for name in branch.inputs}
    for values, gone in ((graph.output, outputs), (graph.input, inputs)):
        for at in reversed(range(len(values))):
            if values[at].name in gone:
                del values[at]


def _sums_above(depth: Depth, branches: Iterable[Branch]) -> set[int]:
    """Return the positions of the sums that a branch is a term of, through sums that lie between."""
    nodes = depth.analysis.coupling.nodes
    maker = {name: n for n, applied in enumerate(nodes) for name in applied.node.outputs}
    above: set[int] = set()
    for branch in branches:
        first, last = branch.term[0], maker[branch.sum]
        value = nodes[first].node.outputs[0]
        for number in range(first + 1, last + 1):
            if value in nodes[number].node.inputs and Trait.SUM in nodes[number].node.traits:
                above.add(number)
                value = nodes[number].node.outputs[0]
    return above


class _Edit:
    """Nodes of a model, by their position in the original, that are taken out and joined."""

    def __init__(self, model: Model, spelled: Mapping[str, Spelled]) -> None:
        self.model, self.graph = model, model.proto.graph
        self.nodes = [self.graph.node[i] for i in model.order]
        self.out: set[int] = set()  # ids of nodes that are taken out
        self.fused = {id(n): spelled[n.output[0]] for n in self.nodes if n.output[0] in spelled}
        self.joined: list[str] = []
        self.stands: dict[str, str] = {}
        self.totals: dict[str, Spelled] = {}  # of Adds that stay
        self.ends = {v.name for v in (*self.graph.input, *self.graph.output)} | set(model.names())
        self.body = {name: body_of(node) for node in self.nodes for name in node.output}
        for node in self.nodes:
            self.ends |= set(captured(node)) if node.attribute else set()
            self.ends |= (
                {*node.input, *node.output} if node.domain == DOMAIN else set()
            )  # where bodies meet the rest

    def join(self, name: str, node: onnx.NodeProto) -> str:
        """Take a node out, and let one tensor be the other: the one that the node gave, if both may be renamed."""
        whole = str(node.output[0])
        within = whole not in self.ends or self.body.get(name) == body_of(node)  # a body gives its own values
        if name not in self.ends and within:
            self.rename(name, whole, made=True)
        elif whole not in self.ends:
            self.rename(whole, name, made=False)
            whole = name
        else:
            self.keep(node, [name])
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
            return whole
        self.drop(node)
        self.joined.append(whole)
        return whole

    def drop(self, node: onnx.NodeProto) -> None:
        self.out.add(id(node))

    def keep(self, node: onnx.NodeProto, names: Sequence[str]) -> None:
        """Leave a node with these inputs alone."""
        del node.input[:]
        node.input.extend(names)

    def rename(self, old: str, new: str, *, made: bool) -> None:
        """Have all readers of a tensor read another; made: the node that gives it is to give that, too."""
        self.joined = [new if name == old else name for name in self.joined]
        for node in self.nodes:
            for slot, name in enumerate(node.input):
                if name == old:
                    node.input[slot] = new
            if made and id(node) not in self.out:
                for slot, name in enumerate(node.output):
                    if name == old:
                        node.output[slot] = new
        for at in reversed(range(len(self.graph.value_info))):
            if self.graph.value_info[at].name == old:
                del self.graph.value_info[at]

    def settle(self) -> None:
        """Take out what does again what was just done: the activation behind a sum that has become its stream."""
        done: set[str] = set()
        while todo := [name for name in dict.fromkeys(self.joined) if name not in done]:
            name = todo[0]
            done.add(name)
            maker = self._live(name)
            if maker is None:
                continue
            for node in [n for n in self.nodes if name in n.input and id(n) not in self.out]:
                if self._again(maker, node):
                    source = maker.input[0]
                    behind = self.join(name, node)
                    if self._alone(source):
                        self.stands[source] = name
                    maker = self._live(behind) or maker
                    name = behind
        live = [n for n in self.nodes if id(n) not in self.out]
        self.totals = {n.output[0]: self.fused[id(n)] for n in live if id(n) in self.fused}
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in live]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def _live(self, name: str) -> onnx.NodeProto | None:
        return next((n for n in self.nodes if name in n.output and id(n) not in self.out), None)

    def _again(self, first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
        """Whether a node does to another's result what that did."""
        same = (first.op_type, first.domain) == (second.op_type, second.domain)
        if not same or Trait.IDEMPOTENT not in traits_of(first.op_type, first.domain):
            return False
        attributes = [
            sorted(a.SerializeToString(deterministic=True) for a in n.attribute) for n in (first, second)
        ]
        return attributes[0] == attributes[1] and list(first.input[1:]) == list(second.input[1:])

    def _alone(self, name: str) -> bool:
        """Whether one node alone reads a tensor."""
        readers = [n for n in self.nodes if id(n) not in self.out and name in n.input]
        return len(readers) == 1 and name not in self.ends
