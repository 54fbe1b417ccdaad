"""Sound graphs of families that were once refused or left whole; law 1 is checked from outside, on masked weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune.errors import ModelError
from onnxprune.ops import TABLE, Node, Refusal, Row

from outside import exact, feeds_of, half, run  # isort: skip
from small_models import Builder  # isort: skip


class Quantized(Builder):
    """Builds graphs of integers: uint8 data, int8 weights, one scale and zero point a tensor."""

    def quant(self, name: str, scale: float, zero: int, kind: type = np.uint8) -> list[str]:
        step = self.constant(f"{name}.scale", np.float32(scale).reshape(()))
        return [step, self.constant(f"{name}.zero", np.array(zero, kind))]

    def qconv(self, x: str, name: str, cin: int, cout: int) -> str:
        w = self.constant(f"{name}.w", self.rng.integers(-90, 91, (cout, cin, 3, 3)).astype(np.int8))
        own = [*self.quant(f"{name}.in", 0.03, 128), w, *self.quant(f"{name}.w", 0.01, 0, np.int8)]
        return self.op("QLinearConv", [x, *own, *self.quant(f"{name}.out", 0.05, 128)], name, pads=[1] * 4)

    def contrib(self, op: str, inputs: list[str], name: str, **attrs: Any) -> str:
        return self.op(op, inputs, name, domain="com.microsoft", **attrs)


def quantized(kind: str) -> onnx.ModelProto:
    """Two quantised convolutions, an op of onnxruntime, and one more convolution."""
    b = Quantized(3)
    left, right = b.qconv("x", "left", 4, 16), b.qconv("x", "right", 4, 16)
    s = b.quant
    channels, floats = 16, False
    if kind == "concat":
        parts = [left, *s("l", 0.05, 128), right, *s("r", 0.05, 128)]
        y, channels = b.contrib("QLinearConcat", [*s("c", 0.05, 128), *parts], "op", axis=1), 32
    elif kind == "where":
        condition = b.constant("condition", np.arange(64).reshape(8, 8) % 3 == 0)
        parts = [left, *s("l", 0.05, 128), right, *s("r", 0.05, 120), *s("c", 0.05, 128)]
        y = b.contrib("QLinearWhere", [condition, *parts], "op")
    elif kind in ("QLinearAdd", "QLinearMul"):
        y = b.contrib(kind, [left, *s("l", 0.05, 128), right, *s("r", 0.05, 120), *s("c", 0.05, 128)], "op")
    elif kind in ("QLinearLeakyRelu", "QLinearSigmoid"):
        attrs = {"alpha": 0.2} if kind == "QLinearLeakyRelu" else {}
        y = b.contrib(kind, [left, *s("l", 0.05, 128), *s("c", 0.01, 40)], "op", **attrs)
    elif kind == "QLinearAveragePool":
        ends = [*s("l", 0.05, 128), *s("c", 0.02, 128)]
        y = b.contrib(kind, [left, *ends], "op", kernel_shape=[3, 3], pads=[1] * 4)
    elif kind == "QLinearGlobalAveragePool":
        y = b.contrib(kind, [left, *s("l", 0.05, 128), *s("c", 0.01, 128)], "op")
    elif kind == "DequantizeLinear":
        y, floats = b.contrib(kind, [left, *s("l", 0.05, 128)], "op"), True
    else:
        real = b.op("DequantizeLinear", [left, *s("l", 0.05, 128)], "real")
        y = b.contrib("QuantizeLinear", [real, *s("c", 0.05, 128)], "op")
    if floats:
        last = b.conv(y, "last", channels, 4)
    else:
        last = b.qconv(y, "last", channels, 4)
        last = b.op("DequantizeLinear", [last, *s("y", 0.05, 128)], "floats")
    found = b.model({"x": ["N", 4, 8, 8]}, last, domain="com.microsoft")
    found.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return found


QUANTIZED = [
    "concat", "where", "QLinearAdd", "QLinearMul", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearAveragePool",
    "QLinearGlobalAveragePool", "DequantizeLinear", "QuantizeLinear",
]  # fmt: skip


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantised_ops_have_their_data_type(kind: str) -> None:
    found = half(quantized(kind))
    assert found.report.law1 is not None
    assert found.report.after.parameters < 0.62 * found.report.before.parameters
    run(found.model, feeds_of(found.model))


def sliced(kind: str) -> onnx.ModelProto:
    """A convolution whose 24 channels are taken in steps, and one that reads what was taken."""
    b = Builder(5)
    x = b.op("Relu", [b.conv("x", "first", 3, 24)], "relu")

    def part(name: str, start: int, end: int, step: int) -> str:
        own = [b.constant(f"{name}.{n}", np.array([v])) for n, v in enumerate((start, end, 1, step))]
        return b.op("Slice", [x, *own], name)

    if kind == "halves":
        y = b.op("Concat", [part("odd", 1, 24, 2), part("even", 0, 24, 2)], "cat", axis=1)
    elif kind == "backwards":
        y = part("back", -1, -(2**31), -1)
    elif kind == "thirds":
        parts = [part(f"p{n}", n, 24, 3) for n in range(3)]
        y = b.op("Add", [b.op("Mul", parts[:2], "mul"), parts[2]], "add")
    elif kind == "back by two":
        y = b.op("Mul", [part("a", 23, 3, -2), part("b", 2, 22, 2)], "mul")
    else:
        y = b.op("Concat", [part("back", 20, 2, -3), part("rest", 0, 2**31, 1)], "cat", axis=1)
    channels = {"halves": 24, "backwards": 24, "thirds": 8, "back by two": 10}.get(kind, 30)
    return b.model({"x": ["N", 3, 8, 8]}, b.conv(y, "last", channels, 4))


@pytest.mark.parametrize("kind", ["halves", "backwards", "thirds", "back by two", "overlap"])
@pytest.mark.parametrize("criterion", ["l2", "random"])
def test_stepped_slices_are_cut(kind: str, criterion: str) -> None:
    model = sliced(kind)
    assert exact(model, half(model, criterion=criterion)) < 0.62


def test_axes_of_one_are_repeated_freely() -> None:
    """Tile of an axis of length 1 behaves as Expand; other axes are still repeated whole."""
    b = Builder(2)
    x = b.op("Relu", [b.conv("x", "first", 3, 16)], "relu")
    total = b.op("ReduceSum", [x, b.constant("axes", np.array([1]))], "sum")
    wide = b.op("Tile", [total, b.constant("counts", np.array([1, 16, 1, 1]))], "tile")
    twice = b.op(
        "Tile", [b.op("Mul", [x, wide], "mul"), b.constant("twice", np.array([1, 1, 2, 1]))], "twice"
    )
    model = b.model({"x": ["N", 3, 8, 8]}, b.conv(twice, "last", 16, 4))
    found = half(model)
    assert exact(model, found) < 0.6


def test_reasons_of_indexed_axes_are_true() -> None:
    for op, known in (
        ("ScatterND", True),
        ("ScatterND", False),
        ("GatherND", True),
        ("GatherElements", True),
    ):
        b = Builder(2)
        x = b.linear("x", "first", 6, 16)
        ids = b.constant("ids", np.arange(4).reshape(4, 1)) if known else "ids"
        x = b.op("Transpose", [x], "t", perm=[1, 0])
        if op == "GatherElements":
            ids = b.constant("table", np.arange(4).reshape(4, 1))
        more = [b.weight("update", 4, 3)] if op == "ScatterND" else []
        y = b.op(op, [x, ids, *more], "op")
        y = b.op("MatMul", [b.weight("w", 5, 16 if op == "ScatterND" else 4), y], "last")
        model = b.model({"x": [3, 6]}, y)
        if not known:
            model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [4, 1]))
        reasons = {f.reason for f in onnxprune.inspect(model).frozen if op in f.reason}
        assert reasons
        assert any("run time" in r for r in reasons) != known, reasons


def test_maxima_open_where_inexact_is_allowed() -> None:
    b = Builder(4)
    x = b.op("Tanh", [b.conv("x", "first", 3, 16)], "tanh")
    y = b.op("Mul", [x, b.op("Sigmoid", [b.op("ReduceMax", [x], "max", axes=[1])], "gate")], "mul")
    model = b.model({"x": ["N", 3, 8, 8]}, b.conv(y, "last", 16, 4))
    with pytest.raises(onnxprune.OnnxPruneError, match=r"a maximum is taken over it.*--allow-inexact"):
        half(model)
    found = half(model, allow_inexact=True)
    assert found.report.inexact
    assert found.report.after.parameters < 0.6 * found.report.before.parameters


def test_a_model_that_runs_is_never_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where inference is wrong about a model, the types of a run count; only one that doesn't run is at fault."""
    rule = TABLE["com.microsoft", "QLinearConcat"]

    def forgetful(node: Node) -> Row | Refusal:
        row = rule(node)
        return dataclasses.replace(row, elems={}) if isinstance(row, Row) else row

    monkeypatch.setitem(TABLE, ("com.microsoft", "QLinearConcat"), forgetful)
    found = half(quantized("concat"))
    assert found.report.after.parameters < 0.62 * found.report.before.parameters
    b = Builder(3)
    broken = b.op("Add", [b.conv("x", "first", 3, 16), b.weight("w", 5, 1, 1)], "add")
    with pytest.raises(ModelError, match="onnxruntime doesn't load it either"):
        onnxprune.inspect(onnx.helper.make_model(
            helper.make_graph(b.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
                              [helper.make_tensor_value_info(broken, TensorProto.FLOAT, None)], b.weights),
            opset_imports=[helper.make_opsetid("", 17)], ir_version=9))  # fmt: skip


def unknown(shape: list[int | str] | None, batch: int | str = 2) -> onnx.ModelProto:
    """Two convolutions, an op that nobody knows, and two more; the op's result has a declared shape, or none."""
    b = Builder(6)
    x = b.op("Relu", [b.conv(b.conv("x", "one", 3, 16), "two", 16, 16)], "relu")
    y = b.op("Strange", [x], "strange", domain="my.plugin")
    y = b.conv(b.op("Relu", [b.conv(y, "three", 16, 32)], "last"), "four", 32, 4)
    model = b.model({"x": [batch, 3, 8, 8]}, y, domain="my.plugin")
    if shape is not None:
        model.graph.value_info.append(helper.make_tensor_value_info("strange_out", TensorProto.FLOAT, shape))
    return model


@pytest.mark.parametrize(
    ("shape", "batch", "opened"),
    [([2, 16, 8, 8], 2, True), (["N", 16, 8, 8], "N", True), (["M", 16, 8, 8], "N", False), (None, 2, False)],
)
def test_declared_shapes_count_behind_unknown_ops(
    shape: list[int | str] | None, batch: int | str, opened: bool
) -> None:
    found = half(unknown(shape, batch), verify=False)
    assert {(c.tensor, c.axis) for c in found.report.cuts} >= {("one.weight", 0), ("two.weight", 1)}
    assert (("three.weight", 0) in {(c.tensor, c.axis) for c in found.report.cuts}) == opened
    assert not {("two.weight", 0), ("three.weight", 1)} & {(c.tensor, c.axis) for c in found.report.cuts}
    declared = [v for v in found.model.graph.value_info if v.name == "strange_out"]
    assert [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in declared] == [
        shape
    ] * len(declared)


def dynamic(kind: str, act: str) -> onnx.ModelProto:
    """Two layers whose inputs are quantised at run time; between them 24 channels."""
    b = Quantized(8)
    shape: list[int | str] = ["N", 3, 8, 8] if kind == "ConvInteger" else ["N", 10]
    zero = 0 if kind in ("ConvInteger", "MatMulIntegerToFloat") else 3

    def layer(x: str, name: str, cin: int, cout: int) -> str:
        dims = (cout, cin, 3, 3) if kind == "ConvInteger" else (cin, cout)
        w = b.constant(f"{name}.w", b.rng.integers(-60, 60, dims).astype(np.int8))
        scale, point = b.quant(f"{name}.w", 0.01, zero, np.int8)
        if kind == "DynamicQuantizeMatMul":
            return b.contrib(kind, [x, w, scale, point, b.weight(f"{name}.bias", cout)], name)
        q = b.op("DynamicQuantizeLinear", [x], f"{name}.q", outputs=3)
        step, low = f"{name}.q_out1", f"{name}.q_out2"
        if kind == "MatMulIntegerToFloat":
            return b.contrib(kind, [q, w, step, scale, low, point, b.weight(f"{name}.bias", cout)], name)
        more = {"pads": [1] * 4} if kind == "ConvInteger" else {}
        y = b.op("Cast", [b.op(kind, [q, w, low, point], name, **more)], f"{name}.cast", to=TensorProto.FLOAT)
        bias = b.weight(f"{name}.bias", cout, *([1, 1] if kind == "ConvInteger" else []))
        return b.op(
            "Add",
            [b.op("Mul", [y, b.op("Mul", [step, scale], f"{name}.step")], f"{name}.mul"), bias],
            f"{name}.add",
        )

    hidden = b.op(act, [layer("x", "one", int(shape[1]), 24)], "hidden")
    return b.model({"x": shape}, layer(hidden, "two", 24, 6), domain="com.microsoft")


@pytest.mark.parametrize("act", ["Relu", "Sigmoid"])
@pytest.mark.parametrize(
    "kind", ["MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"]
)
def test_dynamic_quantisation_is_cut(kind: str, act: str) -> None:
    """Its range always holds zero, so a channel that is zero where it is quantised has no part in it."""
    model = dynamic(kind, act)
    found = half(model, criterion="random")
    removed = {(c.tensor, c.axis): c.removed for c in found.report.cuts}
    axis = 1 if kind == "ConvInteger" else 0
    gone = removed["two.w", axis]
    assert len(gone) == 12
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    mask = np.ones((24, 1, 1) if axis else 24, np.float32)
    mask[list(gone)] = 0
    twin.graph.initializer.append(onnx.numpy_helper.from_array(mask, "mask"))
    at = next(i for i, n in enumerate(twin.graph.node) if n.name == "hidden")
    for reader in (n for n in twin.graph.node if "hidden_out" in n.input):
        reader.input[list(reader.input).index("hidden_out")] = "masked"
    twin.graph.node.insert(at + 1, helper.make_node("Mul", ["hidden_out", "mask"], ["masked"]))
    for seed in range(3):
        feeds = feeds_of(model, 3, seed)
        want, have, whole = (run(m, feeds)[0] for m in (twin, found.model, model))
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-5 * np.abs(want).max())
        assert np.abs(whole - want).max() > 1e-3 * np.abs(want).max()
