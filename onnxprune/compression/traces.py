"""What PyTorch's exporter writes beside each node about the code that it comes from; no runtime reads it."""

from __future__ import annotations

from onnxprune.files.protowalk import subgraphs
from onnxprune.model import Model

__all__ = ["without_traces"]

#: Of each node. Scopes by name stay: what belongs to a block is told by them (`onnxprune.graph.scopes`).
TRACES = frozenset(
    ("namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.fx_node", "pkg.torch.onnx.stack_trace")
)


def without_traces(model: Model) -> tuple[Model, int]:
    """Return a model whose nodes, those of bodies too, have no traces, and how many bytes these took.

    Parameters
    ----------
    model : Model
        Not touched; the same one is returned where there are none.
    """
    fork, took = model.fork(), 0
    todo = [fork.proto.graph]
    while todo:
        for node in todo.pop().node:
            todo += subgraphs(node)
            before = node.ByteSize()
            for n in reversed(range(len(node.metadata_props))):
                if node.metadata_props[n].key in TRACES:
                    del node.metadata_props[n]
            took += before - node.ByteSize()
    return (fork, took) if took else (model, 0)
