"""Bodies of If, Loop and Scan in one namespace with the graph around them: marks and joints.

An analysis knows one namespace. So the nodes and weights of bodies are put where their node stood
(`onnxprune.files.unfold`), under names that nothing else has, each with a *mark* of the body that it belongs to; where
bodies meet the graph around them stand *joints*, nodes of the domain `DOMAIN`:

- ``If``: condition, outputs of the then branch, those of the else branch -> outputs of the If;
- ``LoopEntry``, ``ScanEntry``: inputs of the Loop or Scan -> inputs of its body;
- ``Loop``, ``Scan``: outputs of the body, then the body's carried inputs -> outputs.

Only a folded graph (`onnxprune.files.fold`) can be run or written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import count

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from onnxprune.files.protowalk import subgraphs
from onnxprune.ops.bodies import DOMAIN

__all__ = [
    "DOMAIN", "ENTRY", "OUT", "Marked", "body_of", "fresh_name", "gathered", "inner_nodes", "is_entry", "is_if",
    "is_joint", "joint_id", "made_by", "made_in", "mark", "number_of", "own_names", "renamed", "stepped", "table",
    "unmark",
]  # fmt: skip

#: Ends the mark of the declared type of a body's input or output.
OUT = "/out"
#: Ends the op type of the joint at the beginning of a body.
ENTRY = "Entry"
Marked = NodeProto | TensorProto | ValueInfoProto
_MARK = "onnxprune.body"  # a key in the metadata of what is marked


def body_of(item: Marked) -> str:
    """Return the mark of the body that a node, weight or type of an unfolded graph belongs to; empty: the main graph.

    ``3.then_branch`` is the then branch of the joint whose ``id`` is 3.
    """
    return next((p.value for p in item.metadata_props if p.key == _MARK), "")


def mark(item: Marked, body: str) -> None:
    """Mark what belongs to a body."""
    if body:
        item.metadata_props.add(key=_MARK, value=body)


def unmark(item: Marked) -> None:
    """Remove a mark."""
    for n in reversed(range(len(item.metadata_props))):
        if item.metadata_props[n].key == _MARK:
            del item.metadata_props[n]


def own_names(graph: GraphProto) -> Iterator[str]:
    """Yield the names that values of an unfolded graph have in their bodies, where these differ."""
    for node in graph.node:
        if node.domain == DOMAIN:
            yield from (own for _, own in table(node, "flat"))


def is_entry(node: NodeProto) -> bool:
    """Whether a node is the joint at the beginning of a body."""
    return node.domain == DOMAIN and node.op_type.endswith(ENTRY)


def is_if(node: NodeProto) -> bool:
    """Whether a node is the joint of an If."""
    return node.domain == DOMAIN and node.op_type == "If"


def is_joint(node: NodeProto, number: str = "") -> bool:
    """Whether a node is the joint at the end of bodies: of this number, if one is given."""
    return node.domain == DOMAIN and not is_entry(node) and number in ("", joint_id(node))


def stepped(graph: GraphProto) -> set[str]:
    """Return the values that are computed anew in each step of a Loop or Scan."""
    around = {joint_id(node): node for node in graph.node if is_joint(node)}

    def steps(body: str) -> bool:
        joint = around.get(number_of(body))
        return joint is not None and (joint.op_type != "If" or steps(body_of(joint)))

    names = {name for node in graph.node if is_entry(node) for name in node.output}
    return names | {
        name for node in graph.node if (body := body_of(node)) and steps(body) for name in node.output
    }


def gathered(graph: GraphProto) -> set[str]:
    """Return what Loops put together of what each step gives."""
    loops = [node for node in graph.node if is_joint(node) and node.op_type == "Loop"]
    # a joint reads whether to go on, all that a step gives, and what was carried before it
    return {name for node in loops for name in node.output[len(node.input) - 1 - len(node.output) :]}


def joint_id(joint: NodeProto) -> str:
    """Return the number of a joint, with which the marks of its bodies begin."""
    return str(next(a.s for a in joint.attribute if a.name == "id").decode())


def number_of(body: str) -> str:
    """Return the number of the joint that a body belongs to."""
    return body.partition(".")[0]


def table(joint: NodeProto, key: str) -> Iterator[tuple[str, str]]:
    """Yield a new name and the own one for what is renamed in a joint's bodies: ``flat`` values, or ``nodes``."""
    lists = {a.name: [s.decode() for s in a.strings] for a in joint.attribute}
    yield from zip(lists.get(key, ()), lists.get(f"{key} inside", ()), strict=True)


def fresh_name(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken, with a number at its end if need be."""
    if name not in taken:
        return name
    return next(new for n in count(1) if (new := f"{name}_{n}") not in taken)


def made_by(graph: GraphProto) -> Iterator[str]:
    """Yield the names that a graph itself gives a value."""
    yield from (v.name for v in graph.input)
    yield from (t.name for t in graph.initializer)
    yield from (t.values.name for t in graph.sparse_initializer)
    for node in graph.node:
        yield from (name for name in node.output if name)


def inner_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for body in subgraphs(node) if node.attribute else ():
            yield from inner_nodes(body)


def made_in(graph: GraphProto) -> Iterator[str]:
    """Yield every name that a graph gives a value, those of the bodies in it too."""
    yield from made_by(graph)
    for node in graph.node:
        for body in subgraphs(node) if node.attribute else ():
            yield from made_in(body)


def renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """Return a copy of a node that reads and writes other names; in its bodies too, where they come from outside."""
    copy: NodeProto = NodeProto.FromString(node.SerializeToString())
    copy.input[:] = [names.get(n, n) for n in node.input]
    copy.output[:] = [names.get(n, n) for n in node.output]
    for body in subgraphs(copy) if names else ():
        _rename_body(body, names)
    return copy


def _rename_body(body: GraphProto, names: Mapping[str, str]) -> None:
    own = set(made_by(body))
    outer = {old: new for old, new in names.items() if old not in own}
    nodes = [renamed(node, outer) for node in body.node]
    del body.node[:]
    body.node.extend(nodes)
    for value in body.output:
        value.name = outer.get(value.name, value.name)
