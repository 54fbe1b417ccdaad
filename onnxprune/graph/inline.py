"""One graph: calls of model-local functions are their bodies, and bodies of If, Loop and Scan are laid open.

A function that is called twice can't be cut in two ways, so functions are inlined before the analysis. `Model.load` has
refused recursive functions and those that inline to more nodes than it allows. Sequences and optionals whose tensors
are known go (`onnxprune.graph.sequences`), and so does an `If` that always takes the same branch
(`onnxprune.graph.branches`); the bodies of the others are unfolded (`onnxprune.files.bodies`).
"""

from __future__ import annotations

from onnxprune.graph.branches import settle
from onnxprune.graph.sequences import dissolved
from onnxprune.model import Model
from onnxprune.wall import board as wall


def inline(model: Model) -> Model:
    """Return a model of one graph: the same one if it is one, else a fork."""
    return settle(dissolved(inline_functions(model))).unfold()


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
