"""Zeros in the weights of fused attention and of experts: each matrix along what it sums over, or a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.api import inspect_sparsity
from onnxprune.model import Model
from onnxprune.sparsity.weights import find
from onnxprune.testing.node import run_node

from .models import graph, values

MS = "com.microsoft"
OPSETS = {"": 21, MS: 1}
EXPERTS, HIDDEN, UNITS = 3, 8, 12


def _attention() -> onnx.ModelProto:
    node = helper.make_node("Attention", ["x", "w", "b"], ["y"], "layer", domain=MS, num_heads=2)
    return graph([node], {"w": values((8, 24)), "b": values(24)}, [1, 5, 8])


def _experts(fused: bool = False) -> onnx.ModelProto:
    rows = UNITS * (2 if fused else 1)
    kind = {"activation_type": "swiglu", "swiglu_fusion": 1} if fused else {"activation_type": "silu"}
    nodes = [
        helper.make_node("MatMul", ["x", "router"], ["scores"]),
        helper.make_node("MoE", ["x", "scores", "w", "", "v"], ["y"], "layer", domain=MS, k=2, **kind),
    ]
    shapes = {"router": (HIDDEN, EXPERTS), "w": (EXPERTS, rows, HIDDEN), "v": (EXPERTS, HIDDEN, UNITS)}
    return graph(nodes, {n: values(s, i) for i, (n, s) in enumerate(shapes.items())}, ["N", HIDDEN])


def _picked(op: str) -> onnx.ModelProto:
    """Each token takes the matrix of its best expert along."""
    nodes = [
        helper.make_node("MatMul", ["x", "router"], ["scores"]),
        helper.make_node("TopK", ["scores", "one"], ["best", "column"], axis=-1),
        helper.make_node("Squeeze", ["column", "last"], ["ids"]),
        helper.make_node("Unsqueeze", ["ids", "last"], ["at"]),
        helper.make_node(op, ["w", "ids" if op == "Gather" else "at"], ["own"]),
        helper.make_node("Transpose", ["own"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["x", "middle"], ["row"]),
        helper.make_node("MatMul", ["row", "turned"], ["y"], "layer"),
    ]
    weights = {"router": values((HIDDEN, EXPERTS)), "w": values((EXPERTS, UNITS, HIDDEN)), "one": np.array([1]),
               "last": np.array([-1]), "middle": np.array([1])}  # fmt: skip
    return graph(nodes, weights, ["N", HIDDEN])


@pytest.mark.parametrize(
    ("model", "axes"),
    [
        (_attention(), {"w": 0}), (_experts(), {"w": 2, "v": 2}), (_experts(fused=True), {"w": 2, "v": 2}),
        (_picked("Gather"), {"w": 2}), (_picked("GatherND"), {"w": 2}),
    ],
)  # fmt: skip
def test_two_of_four_lie_along_what_is_summed_over(model: onnx.ModelProto, axes: dict[str, int]) -> None:
    result = onnxprune.sparsify(model, pattern="2:4")
    for name, axis in axes.items():
        target = next(t for t in find(Model.load(model))[0] if t.name == name)
        assert target.layout.axis == axis
        weight = np.moveaxis(result.sparse.weight(name), axis, -1)
        zeros = (weight == 0).reshape(*weight.shape[:-1], -1, 4).sum(-1)
        assert (zeros == 2).all()


def test_an_input_whose_weights_are_zero_has_no_part() -> None:
    """The axis that counts inputs is told apart from the outputs' by what data does, also where both are as long."""
    rng = np.random.default_rng(0)
    arrays: list[Any] = [rng.standard_normal(s).astype(np.float32) for s in ((4, 6), (4, 3), (3, 6, 6))]
    node = helper.make_node("MoE", ["x", "s", "w", "", "v"], ["y"], domain=MS, k=2, activation_type="silu")
    two = np.ones((3, 6, 6), np.float32)
    weights = {"w": arrays[2], "v": two}
    (target, _) = find(Model.load(graph([node], weights | {"s": arrays[1]}, [4, 6])))[0]
    view = target.layout.view(arrays[2])
    assert np.shares_memory(view, arrays[2])
    view[:, :, 2] = 0
    before = run_node(node, [*arrays, None, two], OPSETS)[0]
    for channel, same in ((2, True), (1, False)):
        other = arrays[0].copy()
        other[:, channel] += 1
        after = run_node(node, [other, arrays[1], arrays[2], None, two], OPSETS)[0]
        assert np.allclose(before, after) is same


def _packed() -> onnx.ModelProto:
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["h"], "few", domain=MS, K=32, N=8, bits=4, block_size=16
    )
    codes = np.random.default_rng(0).integers(0, 256, (8, 2, 8), np.uint8)
    weights = {"w": codes, "s": np.ones((8, 2), np.float32), "v": values((8, 16))}
    return graph([node, helper.make_node("MatMul", ["h", "v"], ["y"])], weights, ["N", 32])


def _looked_up() -> onnx.ModelProto:
    model = _picked("GatherND")
    next(n for n in model.graph.node if n.op_type == "GatherND").input[1] = "column"
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_packed(), "MatMulNBits reads it in bytes or blocks"),
        (_looked_up(), "a stack of which GatherND picks"),
    ],
)
def test_what_is_not_followed_stays_and_is_named(model: onnx.ModelProto, reason: str) -> None:
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    result = onnxprune.sparsify(model, pattern="2:4")
    assert reason in {one.name: one.reason for one in result.report.left}["w"]
    assert np.array_equal(result.sparse.weight("w"), before["w"])


def test_inspection_names_them_too() -> None:
    seen = inspect_sparsity(onnxprune.sparsify(_experts(), pattern="2:4").sparse)
    held = {one.tensor: one.holds for one in seen.tensors}
    assert "2:4" in held["w"]
    assert "2:4" in held["v"]
    left = {one.name: one.reason for one in inspect_sparsity(_packed()).left}
    assert "MatMulNBits" in left["w"]
