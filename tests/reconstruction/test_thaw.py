"""Quantised models as floats, and descent on their grid."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantised_models import FORMS, IR, OUT, WIDTH, Quantiser, deep
from small_models import Builder

import onnxprune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import thaw
from onnxprune.reconstruction.thaw import thawed
from onnxprune.runtime.session import open_session


def samples(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def outputs(model, x):
    return open_session(model).run({"x": x})


@pytest.mark.parametrize("form", FORMS)
def test_a_thawed_model_computes_the_same_but_for_rounding(form):
    model = deep(form)
    analysis = analyse(Model.load(model), input_shapes={"x": (4, WIDTH)})
    found = thawed(analysis)
    assert len(found.frozen) == 3
    assert {n.op_type for n in found.model.proto.graph.node} <= {"MatMul", "Add", "Relu", "Clip", "Transpose"}
    wanted, made = (next(iter(outputs(m, samples(50)).values())) for m in (model, found.model))
    assert np.abs(wanted - made).max() < 0.1 * np.abs(wanted).max()
    weights = {n: np.array(found.model.weight(n)) for n in found.frozen}
    for name, value in found.settle(weights).items():
        assert np.allclose(value, weights[name], atol=1e-6)  # they lie on the grid
    other = found.settle({n: w * 0.8 for n, w in weights.items()})
    fork = analysis.model.fork()
    for name, value in other.items():
        assert not np.array_equal(value, weights[name])
        found.frozen[name].write(fork, value)
    again = thawed(analyse(fork, input_shapes={"x": (4, WIDTH)}))
    for name, value in other.items():
        assert np.allclose(again.model.weight(name), value, atol=1e-6)


@pytest.mark.parametrize(("form", "slot"), [("fused", 4), ("to_float", 6), ("nbits", 5)])
def test_a_bias_that_the_product_takes_itself_is_added(form, slot):
    model = deep(form)
    graph = model.graph
    for add in [n for n in graph.node if n.op_type == "Add"]:
        (node,) = (n for n in graph.node if n.output[0] == add.input[0])
        node.input.extend([*[""] * (slot - len(node.input)), add.input[1]])
        node.output[0] = add.output[0]
        graph.node.remove(add)
    found = thawed(analyse(Model.load(model), input_shapes={"x": (4, WIDTH)}))
    assert [n.op_type for n in found.model.proto.graph.node].count("Add") == 3
    wanted, made = (next(iter(outputs(m, samples(50)).values())) for m in (model, found.model))
    assert np.abs(wanted - made).max() < 0.1 * np.abs(wanted).max()


def test_nothing_is_thawed_where_nothing_is_quantised():
    b = Builder(0)
    model = b.model({"x": ["N", WIDTH]}, b.linear("x", "only", WIDTH, 4))
    assert thawed(analyse(Model.load(model), input_shapes={"x": (4, WIDTH)})) is None


@pytest.mark.parametrize(
    ("form", "recover"),
    [
        ("qdq", "blocks"),
        ("qdq", "distill"),
        ("dynamic", "blocks"),
        ("to_float", "distill"),
        ("nbits", "blocks"),
    ],
)
def test_layers_go_down_together_on_their_grid(form, recover, tmp_path):
    onnx.save(deep(form), tmp_path / "m.onnx")
    errors, fresh = {}, samples(500, 9)
    for how in ("lstsq", recover):
        out = tmp_path / f"{how}.onnx"
        given = {"x": samples(3000)}
        result = onnxprune.prune(
            tmp_path / "m.onnx", out, ratio=0.5, align=1, calib=given, recover=how, criterion="obs"
        )
        made, wanted = (next(iter(outputs(onnx.load(p), fresh).values())) for p in (out, tmp_path / "m.onnx"))
        errors[how] = float(np.square(made - wanted).mean() / wanted.var())
    (segment,) = result.report.calibration["segments"]
    assert segment["after"] < 0.95 * segment["before"]
    assert errors[recover] < 0.9 * errors["lstsq"]
    first, after = (Model.load(tmp_path / f"{name}.onnx") for name in ("lstsq", recover))
    assert np.array_equal(
        first.weight("down_scale"), after.weight("down_scale")
    )  # those that least squares left
    assert after.weight("down_q").dtype == (np.uint8 if form == "nbits" else np.int8)
    assert {n.op_type for n in after.proto.graph.node} == {n.op_type for n in first.proto.graph.node}
    assert not np.array_equal(first.weight("down_q"), after.weight("down_q"))


def convolved_dynamically() -> onnx.ModelProto:
    """ConvInteger between two products of dynamic int8."""
    b = Builder(3)
    numbers = Quantiser(b, "dynamic").numbers
    q, scale, zero = numbers("conv", b.rng.normal(size=(6, 4, 3, 3)).astype(np.float32), None)
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]))
    y = b.op("ConvInteger", ["xq", q, "xz", zero], "conv", pads=[1] * 4, strides=[2, 2])
    y = b.op("Cast", [y], "cast", to=TensorProto.FLOAT)
    return b.model({"x": ["N", 4, 8, 8]}, b.op("Mul", [y, b.op("Mul", ["xs", scale], "scales")], "mul"))


def attending_in_integers() -> onnx.ModelProto:
    """QAttention, and a layer of dynamic int8 behind it."""
    b = Builder(3)
    quantiser = Quantiser(b, "dynamic")
    w, scale, zero = quantiser.numbers("qkv", b.rng.normal(size=(WIDTH, 3 * WIDTH)).astype(np.float32) / 9, 1)
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]))
    inputs = ["xq", w, b.weight("qkv_b", 3 * WIDTH), "xs", scale, "", "xz", zero]
    y = b.op("QAttention", inputs, "attention", domain="com.microsoft", num_heads=2)
    model = b.model({"x": ["N", 5, WIDTH]}, quantiser.linear(y, "down", WIDTH, OUT), 17, "com.microsoft")
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize(
    ("model", "shape", "ops"),
    [
        (convolved_dynamically(), (20, 4, 8, 8), {"Conv"}),
        (attending_in_integers(), (20, 5, WIDTH), {"Attention", "MatMul", "Add"}),
    ],
)
def test_convolutions_and_attention_of_integers_become_those_of_floats(model, shape, ops):
    found = thawed(analyse(Model.load(model), input_shapes={"x": (4, *shape[1:])}))
    assert {n.op_type for n in found.model.proto.graph.node} == ops
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    wanted, made = (next(iter(outputs(m, x).values())) for m in (model, found.model))
    assert 0 < np.abs(wanted - made).max() < 0.05 * np.abs(wanted).max()


def unfit(kind: str) -> onnx.ModelProto:
    """A product of a layer that moves, and one or two that don't."""
    b = Builder(6)
    form = "dynamic" if kind == "shared integers" else "nbits"
    quantiser = Quantiser(b, form)
    h = b.op("Relu", [quantiser.linear("x", "up", WIDTH, 48 if kind == "begun block" else WIDTH)], "relu")
    if kind == "begun block":  # 40 inputs in blocks of 16
        h = b.op(
            "Slice", [h, *(b.constant(n, np.int64([v])) for n, v in (("s", 0), ("e", 40), ("a", 1)))], "cut"
        )
        w = np.concatenate([b.rng.normal(size=(40, OUT)), np.zeros((8, OUT))]).astype(np.float32)
        y = quantiser.nbits(h, "odd", w)
        next(a for a in b.nodes[-1].attribute if a.name == "K").i = 40
    else:
        y = b.op("Relu", [quantiser.linear(h, "twice", WIDTH, WIDTH)], "first")
        again = [
            n
            for n in b.nodes
            if n.name in ("twice", "twice_mul", "twice_cast", "twice_scales") or n.output[0] == "twice_x"
        ]
        renamed = {"relu_out": y} | {o: f"{o}_2" for n in again for o in n.output}
        for node in again:
            b.nodes.append(
                helper.make_node(
                    node.op_type,
                    [renamed.get(i, i) for i in node.input],
                    [renamed[o] for o in node.output],
                    domain=node.domain,
                )
            )
            b.nodes[-1].attribute.extend(node.attribute)
        y = b.nodes[-1].output[0]
    model = b.model({"x": ["N", WIDTH]}, y, 21, "com.microsoft")
    model.ir_version = IR
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize("kind", ["begun block", "shared blocks", "shared integers"])
def test_layers_that_cannot_move_let_gradients_pass(kind):
    model = unfit(kind)
    found = thawed(analyse(Model.load(model), input_shapes={"x": (4, WIDTH)}))
    assert len(found.frozen) == 1
    ops = [n.op_type for n in found.model.proto.graph.node]
    assert ops.count("MatMul") == (2 if kind == "begun block" else 3)
    assert not [op for op in ops if "Integer" in op or "Quantize" in op or "NBits" in op]
    wanted, made = (next(iter(outputs(m, samples(50)).values())) for m in (model, found.model))
    assert np.abs(wanted - made).max() < 0.1 * np.abs(wanted).max()


def test_activations_of_small_floats_are_clipped_to_their_ends():
    b = Builder(3)
    step, zero = b.constant("s", np.float32(0.01)), "z"
    b.weights.append(helper.make_tensor(zero, TensorProto.FLOAT8E4M3FN, [], [0.0]))
    x = b.op("DequantizeLinear", [b.op("QuantizeLinear", ["x", step, zero], "q"), step, zero], "dq")
    dq = b.op(
        "DequantizeLinear",
        Quantiser(b, "qdq").numbers("w", b.rng.normal(size=(WIDTH, OUT)), 1),
        "w_dq",
        axis=1,
    )
    model = b.model({"x": ["N", WIDTH]}, b.op("MatMul", [x, dq], "product"), 21)
    model.ir_version = IR
    del model.graph.value_info[:]
    found = thawed(analyse(Model.load(model), input_shapes={"x": (4, WIDTH)}))
    (clip,) = (n for n in found.model.proto.graph.node if n.op_type == "Clip")
    assert [float(found.model.weight(n)) for n in clip.input[1:]] == pytest.approx([-4.48, 4.48])


def test_a_model_too_large_as_floats_isn_t_thawed(monkeypatch):
    analysis = analyse(Model.load(deep("nbits")), input_shapes={"x": (4, WIDTH)})
    monkeypatch.setattr(thaw, "MOST", 1000)
    assert thawed(analysis) is None
