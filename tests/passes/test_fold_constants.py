"""The pass `fold_constants`: the same outputs, and a file that doesn't grow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.passes import fold_constants

from outside import feeds_of, run  # isort: skip
from small_models import Builder  # isort: skip
from graph.test_branches import CASES, decided  # isort: skip
from graph.test_folding import WAYS, net  # isort: skip


def folded(model: onnx.ModelProto, growth: float = 1.0) -> onnx.ModelProto:
    """Fold, and check that nothing else has changed."""
    loaded = Model.load(model)
    before = loaded.proto.SerializeToString(deterministic=True)
    result = fold_constants.run(loaded, growth=growth)
    assert loaded.proto.SerializeToString(deterministic=True) == before, "the input was edited"
    found = result.to_proto()
    onnx.checker.check_model(found, full_check=True)
    for batch in (1, 2, 5):
        feeds = feeds_of(model, batch)
        for want, have in zip(run(model, feeds), run(found, feeds), strict=True):
            np.testing.assert_allclose(have, want, rtol=0, atol=2e-6 * np.abs(want).max())
    assert fold_constants.run(result, growth=growth) is result
    return found


def ops_of(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


@pytest.mark.parametrize("way", WAYS)
def test_computed_weights_become_weights(way: str) -> None:
    model = net(WAYS[way])
    found = folded(model, 1.25)
    assert ops_of(found) == ["Conv", "Relu", "Conv", "Relu", "Conv"]
    assert {"second.weight_out", "second.norm.weight_out"} & {t.name for t in found.graph.initializer}
    assert len(found.SerializeToString()) < len(model.SerializeToString())


@pytest.mark.parametrize("kind", [kind for kind in CASES if kind not in ("loop behind", "function")])
def test_decided_branches_are_inlined(kind: str) -> None:
    assert "If" not in ops_of(folded(decided(kind)))


def test_integers_and_chains_of_movement() -> None:
    """Shapes and indices from constants, a transposed weight, a cast; what follows the input stays."""
    b = Builder(4)
    w = b.op(
        "Transpose", [b.op("Cast", [b.constant("w", b.rng.normal(size=(6, 32)))], "cast", to=1)], "turned"
    )
    total = b.op("Add", [b.constant("two", np.array([2])), b.constant("four", np.array([4]))], "total")
    target = b.op("Concat", [b.constant("minus", np.array([-1])), total], "target", axis=0)
    y = b.op("Reshape", [b.op("MatMul", ["x", w], "product"), target], "reshape")
    same = b.op("Mul", [b.op("Shape", [y], "shape"), b.constant("one", np.array([1, 1]))], "mul")
    found = folded(b.model({"x": ["N", 32]}, b.op("Reshape", [y, same], "again")))
    assert ops_of(found) == ["MatMul", "Reshape", "Shape", "Mul", "Reshape"]


@pytest.mark.parametrize(
    "kind", ["expand", "constant of shape", "factors", "shared", "dequantised", "random", "output"]
)
def test_what_stays(kind: str) -> None:
    b = Builder(4)
    w = b.weight("w", 32, 32)
    if kind == "expand":
        w = b.op("Expand", [b.weight("row", 1, 32), b.constant("to", np.array([32, 32]))], "wide")
    elif kind == "constant of shape":
        w = b.op("ConstantOfShape", [b.constant("to", np.array([32, 32]))], "filled")
    elif kind == "factors":
        w = b.op("MatMul", [b.weight("b", 32, 2), b.weight("a", 2, 32)], "product")
    elif kind == "shared":  # the weight is needed as it is, too
        y = b.op("MatMul", ["x", w], "first")
        w = b.op("Transpose", [w], "turned")
        w = b.op("MatMul", [y, w], "second")
    elif kind == "dequantised":
        q = b.constant("q", b.rng.integers(-90, 90, (32, 32)).astype(np.int8))
        w = b.op(
            "Transpose", [b.op("DequantizeLinear", [q, b.constant("s", np.float32(0.01))], "dq")], "turned"
        )
    elif kind == "random":
        w = b.op("RandomNormalLike", [w], "noise", seed=1.0)
    else:
        w = b.op("Transpose", [w], "turned")
    y = w if kind == "shared" else b.op("MatMul", ["x", w], "last")
    model = b.model({"x": ["N", 32]}, y)
    if kind == "output":
        model.graph.output.append(helper.make_tensor_value_info(w, TensorProto.FLOAT, [32, 32]))
    loaded = Model.load(model)
    assert fold_constants.run(loaded) is loaded
    if kind in ("factors", "expand", "shared"):
        assert len(fold_constants.run(loaded, growth=100).proto.graph.node) < len(model.graph.node) + (
            kind == "shared"
        )


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="growth must be 0 or more"):
        fold_constants.run(Model.load(net(WAYS["by_norm"])), growth=-1)
