"""Sums that are fused with the norm behind them, spelled out: an Add of its own, whose terms can be looked at.

What was spelled is put together again where it is as it was: `joined`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto, helper

from onnxprune.files.bodies import fresh_name
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.ops.norm import SKIPS, epsilon_of

__all__ = ["Spelled", "added", "joined", "spell"]


@dataclass(frozen=True, eq=False)
class Spelled:
    """One node, spelled out.

    Attributes
    ----------
    node : NodeProto
        As it was.
    total : str
        The sum of its two values, in the spelled model.
    result : str
        What the norm gives.
    norm : str
        The name of the norm's node in the spelled model.
    """

    node: NodeProto
    total: str
    result: str
    norm: str


def spell(analysis: Analysis) -> tuple[Model, list[Spelled]]:
    """Return a model whose fused sums of values of one shape are nodes of their own, and which those were.

    Parameters
    ----------
    analysis : Analysis
        Its model isn't touched.
    """
    fork = analysis.model.fork()
    graph = fork.proto.graph
    types, spelled = analysis.tracer.types, list[Spelled]()
    called = {node.name for node in graph.node}
    nodes: list[NodeProto] = []
    for node in graph.node:
        form = SKIPS.get((node.domain, node.op_type))
        given = {slot: name for slot, name in enumerate(node.input) if name}
        outputs = {slot for slot, name in enumerate(node.output) if name}
        shapes = {types.get(given.get(slot, ""), (0, None))[1] for slot in (0, 1)}
        if form is None or len(shapes) != 1 or None in shapes or outputs - {0, form.total}:
            nodes.append(node)
            continue
        before = NodeProto.FromString(node.SerializeToString())
        name = node.output[form.total] if form.total in outputs else f"{node.output[0]}/sum"
        bias = given.get(form.added[2], "")
        total = f"{name}/skip" if bias else name
        parts = [given[slot] for slot in form.added[:2]]
        own = node.name or node.output[0]  # names may be missing, and onnxruntime wants each once
        title, biased, norm_title = (fresh_name(f"{own}/{part}", called) for part in ("sum", "bias", "norm"))
        called |= {title, biased, norm_title}
        nodes.append(helper.make_node("Add", parts, [total], name=title))
        if bias:
            nodes.append(helper.make_node("Add", [total, bias], [name], name=biased))
        affine = [given[slot] for slot in form.affine if slot in given]
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), epsilon_of(node.op_type))
        norm = helper.make_node(
            form.norm, [name, *affine], [node.output[0]], name=norm_title, axis=-1, epsilon=epsilon
        )
        nodes.append(norm)
        spelled.append(Spelled(before, total, node.output[0], norm_title))
    _put(graph, nodes)
    return fork, spelled


def added(spelled: Spelled, slot: int) -> int:
    """Return the slot of a node in which a term of its sum lies."""
    return SKIPS[spelled.node.domain, spelled.node.op_type].added[slot]


def joined(model: Model, made: Mapping[str, Spelled]) -> None:
    """Put together again, in place, what is still an Add of two values, a bias and a norm.

    Parameters
    ----------
    model : Model
    made : mapping
        Sum that an Add of the model gives -> what it was spelled from.
    """
    nodes, outputs = list(model.proto.graph.node), {v.name for v in model.proto.graph.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    gone: set[int] = set()
    fused: dict[int, NodeProto] = {}
    for node in nodes:
        one = made.get(node.output[0]) if node.output else None
        if one is None or len(node.input) != 2:
            continue
        form = SKIPS[one.node.domain, one.node.op_type]
        chain, name = [node], node.output[0]
        if form.added[2] < len(one.node.input) and one.node.input[form.added[2]]:
            after = readers.get(name, [])
            if len(after) != 1 or name in outputs:
                continue
            chain, name = [node, after[0]], after[0].output[0]
        norms = [n for n in readers.get(name, ()) if n.op_type == form.norm and n.name == one.norm]
        if not norms:
            continue
        whole = NodeProto.FromString(one.node.SerializeToString())
        for slot, term in zip(form.added[:2], node.input, strict=True):
            whole.input[slot] = term
        given = len(one.node.output) > form.total and bool(one.node.output[form.total])
        others = given or len(readers[name]) > 1 or name in outputs
        del whole.output[:]
        whole.output.extend([norms[0].output[0], *(["", "", name] if others else [])])
        gone |= {id(n) for n in chain}
        fused[id(norms[0])] = whole
    if fused:
        _put(model.proto.graph, [fused.get(id(n), n) for n in nodes if id(n) not in gone])


def _put(graph: onnx.GraphProto, nodes: Collection[NodeProto]) -> None:
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
