"""Calls of model-local functions, replaced by their bodies, and every `If` that is decided by its branch.

A function that is called twice can't be cut in two ways, so functions are inlined before the analysis. `Model.load` has
refused recursive functions and those that inline to more nodes than it allows. What a body of an `If` reads can't be
cut, so an `If` that always takes the same branch goes (`onnxprune.graph.branches`).
"""

from __future__ import annotations

from onnxprune.graph.branches import settle
from onnxprune.model import Model
from onnxprune.wall import board as wall


def inline(model: Model) -> Model:
    """Return a model without local functions and decided `If`s: the same one if it has none, else a fork."""
    return settle(inline_functions(model))


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
