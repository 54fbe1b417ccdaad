"""One graph: calls of model-local functions are their bodies, and bodies of If, Loop and Scan are laid open.

A function that is called twice can't be cut in two ways, so functions are inlined before the analysis. `Model.load` has
refused recursive functions and those that inline to more nodes than it allows. Sequences and optionals whose tensors
are known go (`onnxprune.graph.sequences`), and so does an `If` that always takes the same branch
(`onnxprune.graph.branches`); the bodies of the others are unfolded (`onnxprune.files.bodies`). Single channels that
are split off and joined again are gathered (`onnxprune.graph.rejoined`), and what is looked up in its own order is
reshaped (`onnxprune.graph.reread`). States of zeros become a layer's own (`onnxprune.graph.begun`).
Weights that are stored sparse become dense. What no output of the graph needs goes (`onnxprune.graph.unread`).
"""

from __future__ import annotations

import numpy as np
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from onnxprune.errors import many
from onnxprune.files.protowalk import sparse_value, sparse_weights
from onnxprune.graph.begun import begun
from onnxprune.graph.branches import settle
from onnxprune.graph.rejoined import rejoined
from onnxprune.graph.reread import reread
from onnxprune.graph.sequences import dissolved
from onnxprune.graph.unread import unread, without_unread
from onnxprune.model import Model
from onnxprune.wall import board as wall

#: Weights that are gone are told from so many bytes on; exporters leave many a number behind.
TOLD = 1024


def inline(model: Model) -> Model:
    """Return a model of one graph: the same one if it is one, else a fork."""
    settled = settle(dissolved(dense(inline_functions(model))))
    return without_unread(begun(reread(rejoined(settled)))).unfold()


def notes_of(model: Model) -> list[str]:
    """Return what is to be said of a model that was made one graph: what is stored in another way, and what is gone."""
    graph, idle = model.proto.graph, unread(dense(model))
    sparse = {weight.values.name for weight in graph.sparse_initializer}
    sparse |= {node.output[0] for node in graph.node if sparse_value(node) is not None}
    count = len(sparse - idle.names)
    were, are = ("was", "is") if count == 1 else ("were", "are")
    notes = [f"{many(count, 'weight')} that {were} stored sparse {are} dense now"] if count else []
    if idle.nodes:
        notes.append(f"{_counted(idle.nodes, 'node')} gone")
    if idle.nbytes >= TOLD:
        notes.append(f"{_counted(idle.weights, 'weight')} gone ({idle.nbytes:,} bytes)")
    return notes


def _counted(count: int, what: str) -> str:
    return f"1 {what} that no output needs is" if count == 1 else f"{count} {what}s that no output needs are"


def dense(model: Model) -> Model:
    """Return a model whose weights are stored dense: the same one if none of its main graph is sparse, else a fork."""
    if not any(True for _ in sparse_weights(model.proto.graph)):
        return model
    fork, whole = model.fork(), model.to_proto().graph
    del fork.proto.graph.sparse_initializer[:]
    for sparse in whole.sparse_initializer:
        fork.proto.graph.initializer.append(_dense(sparse, sparse.values.name))
    for old, node in zip(whole.node, fork.proto.graph.node, strict=True):
        if (sparse_constant := sparse_value(old)) is not None:
            value = _dense(sparse_constant, node.output[0])
            node.attribute[0].CopyFrom(helper.make_attribute("value", value))
    fork.refresh()
    return fork


def _dense(sparse: SparseTensorProto, name: str) -> TensorProto:
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    if places.ndim == 1:
        array.reshape(-1)[places] = values
    else:
        array[tuple(places.T)] = values
    return numpy_helper.from_array(array, name)


def inline_functions(model: Model) -> Model:
    """Return a model without local functions: the same one if it has none, else a fork."""
    if not model.proto.functions:
        return model
    import onnx.inliner

    fork = model.fork()
    with wall.stage("Inlining the functions of the model"):
        fork.proto.CopyFrom(onnx.inliner.inline_local_functions(fork.proto))
    fork.refresh()
    return fork
