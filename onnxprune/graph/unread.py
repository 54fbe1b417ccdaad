"""Optional outputs that no output of the graph needs: a node that gives them is one that doesn't.

The indices of a MaxPool count through its channels, and the average of a LayerNorm is over its width, so that neither
can be cut. Exporters declare them where nothing reads them, or where only what is dead itself does. Ops with such
outputs say so (``Trait.ASIDE``).
"""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.files.protowalk import captured
from onnxprune.graph.live import names_of, needed, remove
from onnxprune.model import Model
from onnxprune.ops import Trait, traits_of

__all__ = ["without_unread"]


def without_unread(model: Model) -> Model:
    """Return a model without optional outputs that are of no use, and what reads them: the same one if it has none.

    Parameters
    ----------
    model : Model
        Without local functions. With training info, which reads by name, it stays as it is.
    """
    if not any(True for _ in _optional(model)) or model.proto.training_info:
        return model
    used = _used(model)
    names = {name for _, _, name in _optional(model) if name not in used}
    if not names:
        return model
    fork = model.fork()
    remove(fork, names_of(fork) - needed(fork))  # what is dead reads them, perhaps
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
