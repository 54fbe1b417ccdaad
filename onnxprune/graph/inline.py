"""Calls of model-local functions, replaced by their bodies.

A function that is called twice can't be cut in two ways, so functions are inlined before the analysis. `Model.load` has
refused recursive functions and those that inline to more nodes than it allows.
"""

from __future__ import annotations

from onnxprune.model import Model


def inline(model: Model) -> Model:
    """Return a model without local functions: the same one if it has none, else an inlined fork."""
    if not model.proto.functions:
        return model
    import onnx.inliner

    fork = model.fork()
    fork.proto.CopyFrom(onnx.inliner.inline_local_functions(fork.proto))
    fork.refresh()
    return fork
