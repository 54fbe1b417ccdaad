"""What exporters say of where a node and a weight come from: the modules of the framework's model."""

from __future__ import annotations

import ast
import re

from onnx import NodeProto

__all__ = ["is_anonymous", "module_of", "names_of"]

#: Where PyTorch's exporter writes the modules around a node, from the outermost to the operation itself.
SCOPES = "pkg.torch.onnx.name_scopes"
#: Names that exporters number because they have no better one.
_NUMBERED = re.compile(
    r"(onnx::[A-Za-z]+_|_?val_|const_fold_opt__|t_|tensor_|initializer_|const_)?\d+(_quantized|_Q[48])?"
)


def is_anonymous(weight: str) -> bool:
    """Whether an exporter has numbered a weight and not named it, as ``onnx::MatMul_353``, ``val_75`` and ``12``."""
    return _NUMBERED.fullmatch(weight) is not None


def module_of(name: str, proto: NodeProto) -> str:
    """Return the module that a node was exported from, such as ``model.layers.0.mlp.gate_proj``; empty if unsaid.

    Parameters
    ----------
    name : str
        Of the node: TorchScript's exporter writes ``/model/layers.0/mlp/gate_proj/MatMul``.
    proto : NodeProto
        With the metadata that the newer exporter writes.
    """
    modules = _modules(proto)
    if modules:
        return modules[-1]
    return ".".join(name.split("/")[1:-1]) if name.startswith("/") else ""


def names_of(name: str, proto: NodeProto) -> list[str]:
    """Return what a node is called: its own name, and the module that it was exported from, where the metadata says."""
    return [n for n in (name, *_modules(proto)[-1:]) if n]


def _modules(proto: NodeProto) -> list[str]:
    scopes = next((p.value for p in proto.metadata_props if p.key == SCOPES), "[]")
    try:
        path = ast.literal_eval(scopes)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        path = []
    return [m for m in path[:-1] if isinstance(m, str) and m] if isinstance(path, list) else []
