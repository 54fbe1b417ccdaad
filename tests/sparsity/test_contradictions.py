"""Models whose shapes contradict each other are refused by sparsify as by everything else, in the same words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.sparsity.inspection import inspect_sparsity

RNG = np.random.default_rng(0)
Nodes = list[onnx.NodeProto]


def model_of(nodes: Nodes, weights: dict[str, np.ndarray], shape: tuple[int | str, ...]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def deconv() -> onnx.ModelProto:
    """32 channels in 3 groups."""
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=3, name="up")]
    return model_of(nodes, {"w": floats(32, 64, 3, 3)}, ("N", 32, 8, 8))


def conv() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="c")]
    return model_of(nodes, {"w": floats(16, 24, 3, 3)}, ("N", 32, 8, 8))


def reshaped() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Reshape", ["w", "s"], ["v"], name="r"),
        helper.make_node("MatMul", ["x", "v"], ["y"], name="m"),
    ]
    return model_of(nodes, {"w": floats(16, 16), "s": np.array([16, 32])}, ("N", 16))


def turned() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["w"], ["v"], perm=[0, 2], name="t"),
        helper.make_node("MatMul", ["x", "v"], ["y"], name="m"),
    ]
    return model_of(nodes, {"w": floats(16, 16)}, ("N", 16))


def scaled() -> onnx.ModelProto:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], axis=1, name="d"),
        helper.make_node("MatMul", ["x", "v"], ["y"], name="m"),
    ]
    weights = {"w": RNG.integers(-9, 9, (16, 16)).astype(np.int8), "s": np.ones(7, np.float32)}
    return model_of(nodes, {**weights, "z": np.zeros(7, np.int8)}, ("N", 16))


def product() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")]
    return model_of(nodes, {"w": floats(24, 16)}, ("N", 16))


@pytest.mark.parametrize("build", [deconv, turned])
def test_all_commands_say_the_same(build: Callable[[], onnx.ModelProto]) -> None:
    said = set()
    for command in (
        onnxprune.inspect,
        lambda m: onnxprune.prune(m, ratio=0.5),
        lambda m: onnxprune.sparsify(m, pattern="2:4"),
        lambda m: onnxprune.sparsify(m, pattern="unstructured", sparsity=0.5),
        lambda m: inspect_sparsity(Model.load(m)),
    ):
        with pytest.raises(ModelError, match="shapes of the graph do not agree") as caught:
            command(build())
        assert caught.value.exit_code == 3
        said.add(str(caught.value).partition("): ")[0])
    assert len(said) == 1


@pytest.mark.parametrize("build", [scaled, conv, product, reshaped])
@pytest.mark.parametrize("pattern", ["2:4", "kernel"])
def test_none_is_a_bug(build: Callable[[], onnx.ModelProto], pattern: str) -> None:
    """What contradicts the rest of the graph, not its own layer, is left or done, and never a crash."""
    more = {} if pattern == "2:4" else {"sparsity": 0.5}
    with contextlib.suppress(onnxprune.OnnxPruneError):
        report = onnxprune.sparsify(build(), pattern=pattern, **more).report
        assert {line.tensor for line in report.lines} | {left.name for left in report.left} == {"w"}
