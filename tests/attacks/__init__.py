"""Hostile and broken models, made in code: each attack writes its files into a folder.

An attack is a function that gives the path to open, under ``@attack(says)``; `says` is a pattern that the one
sentence of the refusal must match. The tests run every attack on the file layer and on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["ATTACKS", "Attack", "attack", "chain", "external", "save"]

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Attack:
    """One hostile file: what makes it, and what must be said of it."""

    name: str
    make: Callable[[Path], Path]
    says: str


ATTACKS: list[Attack] = []


def attack(says: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Register an attack."""

    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        ATTACKS.append(Attack(make.__name__, make, says))
        return make

    return register


def chain(
    nodes: Sequence[onnx.NodeProto] = (),
    weights: Sequence[TensorProto] | None = None,
    output: str = "y",
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A sound small model, x -> MatMul w -> Relu -> y, or other nodes and weights in the same frame."""
    if not nodes:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["y"], "last"),
        ]
    if weights is None:
        weights = [numpy_helper.from_array(np.arange(1024, dtype=np.float32).reshape(32, 32) / 999, "w")]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 32])],
        [helper.make_tensor_value_info(output, FLOAT, [1, 32])],
        list(weights),
    )
    domains = sorted({node.domain for node in nodes} - {""} | {f.domain for f in functions})
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=list(functions))


def external(name: str = "w", dims: Sequence[int] = (32, 32), **entries: object) -> TensorProto:
    """A float tensor with the given external data entries."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=list(dims), data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def save(folder: Path, model: onnx.ModelProto, content: bytes = b"") -> Path:
    """Write a model, and a data file ``w.bin`` if there is content for it."""
    if content:
        (folder / "w.bin").write_bytes(content)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


from attacks import data, files, graphs, ops  # noqa: E402, F401  they register
