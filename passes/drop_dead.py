"""Remove what no output needs: ``drop_dead``.

Rules:

1. A node of the main graph goes if none of its outputs is needed by an output of the graph,
   directly or through other nodes and their bodies.
2. A weight goes (an initializer, dense or sparse, or a Constant node) if nothing that stays reads
   it.
3. With a tensor goes what is only said of it: its value_info, its quantisation annotation.
4. Graph inputs stay, and the weights that are their defaults. Bodies of If, Loop and Scan and local
   functions stay as they are. A model with training info stays whole: that reads weights by name.
5. What stays keeps its bytes and its order; a model in which nothing is dead is returned itself.

What is dead is decided by onnx-graphsurgeon on a weightless copy, and again by a walk of our own; a
node goes only if both say so. Where onnx-graphsurgeon can't read a model (int4 weights, for one)
the walk decides; see docs/decisions/0004-graphsurgeon-as-a-view.md. What remains computes the same
outputs, bit for bit.
"""

from __future__ import annotations

import logging

from onnxprune.graph.live import names_of, needed, remove
from onnxprune.model import Model

__all__ = ["run"]

_log = logging.getLogger(__name__)


def run(model: Model) -> Model:
    """Return a model without what no output needs.

    Parameters
    ----------
    model : Model

    Returns
    -------
    Model
        The same one if nothing in it is dead.
    """
    if model.proto.training_info:
        _log.info("the model has training info, which reads weights by name: nothing is dropped")
        return model
    dead = names_of(model) - needed(model)
    viewed = _surgeon(model) if dead else None
    if viewed is not None:
        made = {name for node in model.proto.graph.node for name in node.output if name}
        dead = {name for name in dead if name not in made or name not in viewed}
    inputs = {value.name for value in model.proto.graph.input}
    graph = model.proto.graph
    empty = sum(all(name in dead for name in node.output if name) for node in graph.node)
    weights = [name for name in model.names() if name in dead and name not in inputs]
    sparse = [t for t in graph.sparse_initializer if t.values.name in dead - inputs]
    if not (empty or weights or sparse):
        return model
    fork = model.fork()
    remove(fork, dead)
    _log.info("%d nodes and %d weights that no output needs are gone", empty, len(weights) + len(sparse))
    return fork


def _surgeon(model: Model) -> set[str] | None:
    """Return the tensors whose nodes onnx-graphsurgeon keeps; None where it can't read the model."""
    import onnx_graphsurgeon as gs

    try:
        graph = gs.import_onnx(model.skeleton())
        graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
    except Exception as error:  # it has no errors of its own
        _log.info("onnx-graphsurgeon can't read the model (%s): decided without it", error)
        return None
    return {tensor.name for node in graph.nodes for tensor in node.outputs if tensor.name}
