"""Which operands a sum of products runs over follows from rows: held against what is known of each op."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.sparsity.products import Factor, canonical, factors
from onnxprune.testing.node import run_node

Shape = tuple[int, ...]
MS = "com.microsoft"


def asked(op: str, *shapes: Shape | None, domain: str = "", **attrs: Any) -> list[Factor]:
    names = [f"i{n}" for n in range(len(shapes))]
    node = helper.make_node(op, names, ["y"], domain=domain, **attrs)
    known = dict(zip(names, shapes, strict=True))
    return list(factors(node, known.get, {"": 17, MS: 1}))


@pytest.mark.parametrize(
    ("op", "shapes", "domain", "attrs", "slot", "zero", "wanted"),
    [
        ("Conv", (None, (6, 3, 5, 5), (6,)), "", {"group": 2}, 1, -1, (1, 6, 3, 25)),
        ("ConvTranspose", (None, (6, 3, 5, 5)), "", {"group": 2}, 1, -1, (2, 3, 3, 25)),
        ("Gemm", (None, (8, 4), (4,)), "", {}, 1, -1, (1, 4, 8, 1)),
        ("Gemm", (None, (4, 8), (4,)), "", {"transB": 1}, 1, -1, (1, 4, 8, 1)),
        ("Gemm", ((4, 8), None), "", {}, 0, -1, (1, 4, 8, 1)),
        ("Gemm", ((8, 4), None), "", {"transA": 1}, 0, -1, (1, 4, 8, 1)),
        ("MatMul", (None, (2, 3, 8, 4)), "", {}, 1, -1, (6, 4, 8, 1)),
        ("MatMul", ((3, 4, 8), None), "", {}, 0, -1, (3, 4, 8, 1)),
        ("MatMul", (None, (8,)), "", {}, 1, -1, (1, 1, 8, 1)),
        ("MatMulInteger", (None, (8, 4), (), ()), "", {}, 1, 3, (1, 4, 8, 1)),
        ("MatMulInteger", (None, (8, 4)), "", {}, 1, 2, (1, 4, 8, 1)),
        ("ConvInteger", (None, (6, 3, 5, 5), (), ()), "", {}, 1, 3, (1, 6, 3, 25)),
        ("ConvInteger", (None, (6, 3, 5, 5), None, ()), "", {}, 1, 3, (1, 6, 3, 25)),
        ("QLinearConv", (None, (), (), (6, 3, 5, 5), (6,), (6,), (), ()), "", {}, 3, 5, (1, 6, 3, 25)),
        ("QLinearMatMul", (None, (), (), (8, 4), (), (), (), ()), "", {}, 3, 5, (1, 4, 8, 1)),
        ("FusedConv", (None, (6, 3, 5, 5), (6,)), MS, {}, 1, -1, (1, 6, 3, 25)),
        ("FusedMatMul", (None, (4, 8)), MS, {"transB": 1}, 1, -1, (1, 4, 8, 1)),
        ("NhwcConv", (None, (6, 3, 5, 5), (6,)), MS, {}, 1, -1, (1, 6, 3, 25)),
        ("QGemm", (None, (), (), (4, 8), (), (), (4,)), MS, {"transB": 1}, 3, 5, (1, 4, 8, 1)),
    ],
)
def test_layers(
    op: str,
    shapes: tuple[Shape | None, ...],
    domain: str,
    attrs: dict[str, Any],
    slot: int,
    zero: int,
    wanted: Shape,
) -> None:
    (factor,) = (f for f in asked(op, *shapes, domain=domain, **attrs) if f.slot == slot)
    assert factor.zero == zero
    size = shapes[slot] or ()
    steps = canonical(factor, size)
    array = np.arange(int(np.prod(size))).reshape(size)
    for kind, argument in steps:
        array = array.reshape(argument) if kind == "reshape" else array.transpose(argument)
    assert array.shape == wanted


@pytest.mark.parametrize(
    ("op", "shapes", "domain"),
    [
        ("Add", (None, (8, 4)), ""),
        ("Mul", ((8, 4), None), ""),
        ("Gather", ((8, 4), None), ""),
        ("LSTM", (None, (1, 8, 3), (1, 8, 2)), ""),
        ("NoSuchOp", (None, (8, 4)), ""),
        ("FusedMatMul", (None, None), MS),
    ],
)
def test_others_have_no_weight_that_is_summed_over(
    op: str, shapes: tuple[Shape | None, ...], domain: str
) -> None:
    assert not asked(op, *shapes, domain=domain)


@pytest.mark.parametrize(
    ("op", "attrs"), [("Conv", {}), ("ConvTranspose", {}), ("MatMul", {}), ("Gemm", {"transB": 1})]
)
def test_outputs_and_inputs_are_what_they_are_called(op: str, attrs: dict[str, Any]) -> None:
    """Without the weights of an input its data has no part in the results; another's has."""
    rng = np.random.default_rng(1)
    image = "Conv" in op
    x = rng.standard_normal((2, 4, 6, 6) if image else (3, 4)).astype(np.float32)
    w = rng.standard_normal((4, 4, 3, 3) if image else (4, 4)).astype(np.float32)
    (factor,) = (f for f in asked(op, None, w.shape, **attrs) if f.slot == 1)
    view = w
    for kind, argument in canonical(factor, w.shape):
        view = view.reshape(argument) if kind == "reshape" else view.transpose(argument)
    assert np.shares_memory(view, w)
    view[:, :, 2] = 0
    node = helper.make_node(op, ["x", "w"], ["y"], **attrs)
    before = run_node(node, [x, w], {"": 17})[0]
    for channel, same in ((2, True), (1, False)):
        other = x.copy()
        other[:, channel] += 1
        assert np.allclose(before, run_node(node, [other, w], {"": 17})[0]) is same


def test_a_layer_of_onnxruntime_gets_zeros_where_its_zero_point_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.integers(0, 255, (16, 8)).astype(np.uint8),
        "s": np.full(8, 0.01, np.float32),
        "z": np.arange(100, 108).astype(np.uint8),
    }
    graph = helper.make_graph(
        [helper.make_node("DynamicQuantizeMatMul", ["x", *weights], ["y"], domain=MS, name="m")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 8])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "a.onnx")
    onnxprune.sparsify(tmp_path / "a.onnx", tmp_path / "b.onnx", pattern="2:4")
    after = numpy_helper.to_array(onnx.load(tmp_path / "b.onnx").graph.initializer[0])
    assert ((after == weights["z"]).reshape(4, 4, 8).sum(1) >= 2).all()
    assert not (weights["w"] == weights["z"]).reshape(4, 4, 8).sum(1).min() >= 2
