"""What no output needs goes, so that it locks no channels: nodes, optional outputs of other nodes, and weights.

A node that nothing needs can't stay where it is: it would have to fit what it reads after the cut, or be cut itself.
The indices of a MaxPool count through its channels, and the average of a LayerNorm is over its width, so that neither
can be cut. Exporters declare them where nothing reads them, or where only what is dead itself does. Ops with such
outputs say so (``Trait.ASIDE``). The same goes for the bodies of If, Loop and Scan, all of whose outputs are needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from onnx import GraphProto

from onnxprune.files.payload import known_type, nbytes
from onnxprune.files.protowalk import captured, is_constant, subgraphs
from onnxprune.graph.live import forget, is_dead, names_of, needed, needed_in, remove
from onnxprune.model import Model
from onnxprune.ops import Trait, traits_of

__all__ = ["Unneeded", "unread", "without_unread"]


@dataclass
class Unneeded:
    """What no output needs: the number of nodes but for weights, that of weights, the bytes of these, and the names of
    those of the main graph.
    """

    nodes: int = 0
    weights: int = 0
    nbytes: int = 0
    names: frozenset[str] = frozenset()


def unread(model: Model) -> Unneeded:
    """Return how much of a model no output needs, its bodies included.

    Nothing where there is training info, which may read anything by its name.
    """
    if model.proto.training_info:
        return Unneeded()
    cleared, found = _cleared(model)
    idle = _idle(cleared)
    nodes = (n for n in cleared.proto.graph.node if any(n.output) and n.output[0] not in cleared)
    found.nodes += sum(is_dead(node, idle) for node in nodes)
    weights = [name for name in cleared.names() if name in idle]
    found.weights, found.names = found.weights + len(weights), frozenset(weights)
    found.nbytes += sum(cleared.info(name).nbytes for name in weights)
    return found


def without_unread(model: Model) -> Model:
    """Return a model without what no output needs: the same one if there is nothing of that, else a fork.

    Parameters
    ----------
    model : Model
        Without local functions. With training info, which reads by name, it stays as it is.
    """
    if model.proto.training_info:
        return model
    cleared, _ = _cleared(model)
    idle, aside = _idle(cleared), _aside(cleared.proto.graph)
    if not idle and not aside:
        return cleared
    fork = cleared.fork()
    remove(fork, idle)
    _undeclare(fork.proto.graph, aside)
    fork.refresh()
    return fork


def _idle(model: Model) -> set[str]:
    """Return the names that the main graph gives and no output needs. What is a graph input stays."""
    return names_of(model) - needed(model) - {value.name for value in model.proto.graph.input}


def _cleared(model: Model) -> tuple[Model, Unneeded]:
    """Return a model without what the outputs of its bodies don't need, the same one if that is nothing; how much."""
    found = Unneeded()
    if not any(True for node in model.proto.graph.node if node.attribute for _ in subgraphs(node)):
        return model, found
    fork = model.fork()
    changed = [_clear(body, found) for node in fork.proto.graph.node for body in subgraphs(node)]
    return (fork if any(changed) else model), found


def _clear(body: GraphProto, found: Unneeded) -> bool:
    """Remove what the outputs of a body don't need, first in the bodies inside; count it, and say if there was any."""
    changed = [_clear(inner, found) for node in body.node for inner in subgraphs(node)]
    live, inputs = needed_in(body), {value.name for value in body.input}
    idle = {name for node in body.node for name in node.output if name} - live
    dead = [n for n, node in enumerate(body.node) if is_dead(node, idle)]
    weights = [n for n, tensor in enumerate(body.initializer) if tensor.name not in live | inputs]
    found.nodes += sum(not is_constant(body.node[n]) for n in dead)
    found.weights += len(weights)
    stored = [body.initializer[n] for n in weights]
    found.nbytes += sum(nbytes(t.dims, t.data_type) for t in stored if known_type(t.data_type))
    idle |= {tensor.name for tensor in stored}
    aside = _aside(body)
    for number in reversed(dead):
        del body.node[number]
    for number in reversed(weights):
        del body.initializer[number]
    _undeclare(body, aside)
    forget(body, idle)
    return bool(dead or weights or aside or any(changed))


def _undeclare(graph: GraphProto, aside: Collection[str]) -> None:
    """Take optional outputs away from nodes, in place."""
    for number, slot, name in list(_optional(graph)):
        if name in aside:
            node = graph.node[number]
            node.output[slot] = ""
            while not node.output[-1]:
                del node.output[-1]
    forget(graph, set(aside))


def _optional(graph: GraphProto) -> Iterator[tuple[int, int, str]]:
    for number, node in enumerate(graph.node):
        if len(node.output) > 1 and node.output[0] and Trait.ASIDE in traits_of(node.op_type, node.domain):
            yield from ((number, slot, name) for slot, name in enumerate(node.output) if slot and name)


def _aside(graph: GraphProto) -> set[str]:
    """Return optional outputs that neither the graph's outputs nor the nodes that these need read."""
    optional = {name for _, _, name in _optional(graph)}
    if not optional:
        return optional
    live = needed_in(graph)
    used = {value.name for value in graph.output}
    for node in graph.node:
        if not any(node.output) or not live.isdisjoint(node.output):
            used.update(node.input, captured(node) if node.attribute else ())
    return optional - used
