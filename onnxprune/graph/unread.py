"""What no output of the graph needs goes, so that it locks no channels: nodes, and optional outputs of other nodes.

A node that nothing needs can't stay where it is: it would have to fit what it reads after the cut, or be cut itself.
The indices of a MaxPool count through its channels, and the average of a LayerNorm is over its width, so that neither
can be cut. Exporters declare them where nothing reads them, or where only what is dead itself does. Ops with such
outputs say so (``Trait.ASIDE``).
"""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.files.protowalk import captured
from onnxprune.graph.live import idle, names_of, needed, remove
from onnxprune.model import Model
from onnxprune.ops import Trait, traits_of

__all__ = ["without_unread"]


def without_unread(model: Model) -> Model:
    """Return a model without nodes and optional outputs that are of no use: the same one if it has none, else a fork.

    Parameters
    ----------
    model : Model
        Without local functions. With training info, which reads by name, it stays as it is.
    """
    if model.proto.training_info:
        return model
    used = _used(model) if any(True for _ in _optional(model)) else set()
    names = {name for _, _, name in _optional(model) if name not in used}
    if not names and not idle(model):
        return model
    fork = model.fork()
    remove(fork, names_of(fork) - needed(fork))
    for node, slot, name in list(_optional(fork)):
        if name in names:
            graph_node = fork.proto.graph.node[node]
            graph_node.output[slot] = ""
            while not graph_node.output[-1]:
                del graph_node.output[-1]
    remove(fork, names)
    fork.refresh()
    return fork


def _optional(model: Model) -> Iterator[tuple[int, int, str]]:
    for number, node in enumerate(model.proto.graph.node):
        if len(node.output) > 1 and node.output[0] and Trait.ASIDE in traits_of(node.op_type, node.domain):
            yield from ((number, slot, name) for slot, name in enumerate(node.output) if slot and name)


def _used(model: Model) -> set[str]:
    """Return what is read by the graph's outputs and by the nodes that these need; annotations read nothing."""
    graph, live = model.proto.graph, needed(model)
    used = {value.name for value in graph.output}
    for node in graph.node:
        if not live.isdisjoint(node.output):
            used.update(node.input, captured(node) if node.attribute else ())
    return used
