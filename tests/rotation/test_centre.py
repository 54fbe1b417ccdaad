"""The width that LayerNorm reads: its norms become RMS norms, which compute the same and can be cut exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from small_models import Builder

import onnxprune
from onnxprune.errors import NothingToPrune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.rotation import centre, norms
from onnxprune.rotation.norms import rewrite
from onnxprune.rotation.streams import NormStream, streams

WIDTH, CONTRIB = 16, "com.microsoft"
Norm = Callable[[Builder, str, str], str]


def fused(b: Builder, x: str, name: str) -> str:
    weights = [b.weight(f"{name}.w", WIDTH, low=0.5), b.weight(f"{name}.b", WIDTH)]
    return b.op("LayerNormalization", [x, *weights], name, axis=-1, epsilon=1e-2)


def spelled_out(b: Builder, x: str, name: str) -> str:
    """As PyTorch exports it below opset 17."""
    mean = b.op("ReduceMean", [x], f"{name}.first", axes=[-1])
    d = b.op("Sub", [x, mean], f"{name}.off")
    squares = b.op("Pow", [d, b.constant(f"{name}.two", np.array(2, np.float32))], f"{name}.pow")
    epsilon = b.constant(f"{name}.eps", np.array(1e-2, np.float32))
    variance = b.op("Add", [b.op("ReduceMean", [squares], f"{name}.mean", axes=[-1]), epsilon], f"{name}.add")
    normed = b.op("Div", [d, b.op("Sqrt", [variance], f"{name}.sqrt")], f"{name}.div")
    scaled = b.op("Mul", [normed, b.weight(f"{name}.w", WIDTH, low=0.5)], f"{name}.scale")
    return b.op("Add", [scaled, b.weight(f"{name}.b", WIDTH)], f"{name}.shift")


def skipping(b: Builder, x: str, name: str) -> str:
    """The sum with a skip and its bias is part of the norm, and read again."""
    skip = b.op("MatMul", [x, b.weight(f"{name}.skip", WIDTH, WIDTH)], f"{name}.matmul")
    inputs = [
        x,
        skip,
        b.weight(f"{name}.w", WIDTH),
        b.weight(f"{name}.b", WIDTH),
        b.weight(f"{name}.c", WIDTH),
    ]
    outputs = [f"{name}.out", "", "", f"{name}.sum"]
    node = helper.make_node("SkipLayerNormalization", inputs, outputs, name, domain=CONTRIB, epsilon=1e-2)
    b.nodes.append(node)
    again = b.linear(outputs[0], f"{name}.again", WIDTH, WIDTH)
    return fused(b, b.op("Add", [again, outputs[3]], f"{name}.both"), f"{name}.second")


KINDS: dict[str, Norm] = {"fused": fused, "spelled out": spelled_out, "skip": skipping}


def start(b: Builder) -> str:
    """Tokens behind a class token, at their positions."""
    x = b.linear("x", "first", 6, WIDTH)
    token = b.op("Concat", [b.weight("token", 1, 1, WIDTH), x], "joined", axis=1)
    return b.op("Add", [token, b.weight("position", 4, WIDTH)], "placed")


def network(norm: Norm, opset: int = 17, *, post: bool = False) -> onnx.ModelProto:
    """Two blocks on a residual stream, with the norms in front of the layers or (post) on the stream."""
    b = Builder(21)
    x = start(b)
    for n in range(2):
        y = x if post else norm(b, x, f"norm{n}")
        act = b.op("Relu", [b.linear(y, f"up{n}", WIDTH, 24)], f"act{n}")
        x = b.op("Add", [x, b.linear(act, f"down{n}", 24, WIDTH)], f"add{n}")
        x = norm(b, x, f"norm{n}") if post else x
    last = x if post else norm(b, x, "last")
    return b.model({"x": [1, 3, 6]}, b.linear(last, "head", WIDTH, 5), opset, CONTRIB)


def dynamic(norm: Norm) -> onnx.ModelProto:
    """The same without the class token and its positions, at any size."""
    b = Builder(22)
    x = b.linear("x", "first", 6, WIDTH)
    for n in range(2):
        act = b.op("Relu", [b.linear(norm(b, x, f"norm{n}"), f"up{n}", WIDTH, 24)], f"act{n}")
        x = b.op("Add", [x, b.linear(act, f"down{n}", 24, WIDTH)], f"add{n}")
    return b.model({"x": ["N", "T", 6]}, b.linear(norm(b, x, "last"), "head", WIDTH, 5), domain=CONTRIB)


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def run(model: onnx.ModelProto, *shape: int) -> Any:
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    return InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def found(model: onnx.ModelProto) -> list[NormStream]:
    return streams(analyse(Model.load(model)))


def half_cut(model: onnx.ModelProto) -> Any:
    return onnxprune.prune(model, ratio=0.5, align=None)


@pytest.mark.parametrize("name", KINDS)
def test_the_width_is_cut_with_all_that_writes_and_reads_it(name: str) -> None:
    result = half_cut(dynamic(KINDS[name]))
    weights = shapes(result.model)
    assert weights["first.weight"] == (6, WIDTH // 2)
    assert weights["down1.weight"] == (12, WIDTH // 2)
    assert weights["head.weight"] == (WIDTH // 2, 5)
    assert not result.report.inexact
    assert not result.report.put_back
    assert result.report.law1["max_relative_error"] < 1e-5
    assert len(result.report.law1["sizes"]) >= 3


@pytest.mark.parametrize("opset", [17, 23])
def test_tokens_and_positions_are_written_without_their_means(opset: int) -> None:
    result = half_cut(network(fused, opset))
    weights = shapes(result.model)
    assert weights["token"] == (1, 1, WIDTH // 2)
    assert weights["position"] == (4, WIDTH // 2)
    assert ("RMSNormalization" in {n.op_type for n in result.model.graph.node}) is (opset == 23)
    assert result.report.law1["max_relative_error"] < 1e-5


@pytest.mark.parametrize("name", ["fused", "spelled out"])
def test_the_norm_of_a_mean_over_positions_is_cut(name: str) -> None:
    b = Builder(24)
    act = b.op("Relu", [b.linear("x", "first", 6, WIDTH)], "act")
    mean = b.op("ReduceMean", [act], "mean", axes=[1], keepdims=0)
    model = b.model({"x": ["N", 3, 6]}, b.linear(KINDS[name](b, mean, "norm"), "head", WIDTH, 5))
    result = half_cut(model)
    assert shapes(result.model)["first.weight"] == (6, WIDTH // 2)
    assert not result.report.inexact
    assert result.report.law1["max_relative_error"] < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_norms_are_put_back_where_their_width_stays(name: str) -> None:
    model = dynamic(KINDS[name])
    result = onnxprune.prune(model, ratio=0.05, align=None)  # of 16 units less than one
    weights = shapes(result.model)
    assert weights["up0.weight"] == (WIDTH, 23)
    assert weights["first.weight"] == (6, WIDTH)
    assert [n.op_type for n in result.model.graph.node] == [n.op_type for n in model.graph.node]
    first, before = (numpy_helper.to_array(m.graph.initializer[0]) for m in (result.model, model))
    assert np.array_equal(first, before)


@pytest.mark.parametrize("name", KINDS)
def test_the_rewritten_model_computes_what_the_original_does(name: str) -> None:
    model = network(KINDS[name])
    analysis = analyse(Model.load(model))
    rewritten = rewrite(analysis, streams(analysis)).model.to_proto()
    assert "LayerNormalization" not in {n.op_type for n in rewritten.graph.node}
    assert np.allclose(run(model, 1, 3, 6), run(rewritten, 1, 3, 6), atol=1e-5)


def test_the_norms_of_a_stream_that_norms_write_take_the_mean_off_themselves() -> None:
    model = network(fused, post=True)
    assert not any(stream.centred for stream in found(model))
    result = half_cut(model)
    assert shapes(result.model)["down0.weight"] == (12, WIDTH // 2)
    assert result.report.law1["max_relative_error"] < 1e-5


def silent(model: onnx.ModelProto) -> onnx.ModelProto:
    """With a head that is still all zeros."""
    for tensor in model.graph.initializer:
        if tensor.name.startswith("head"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    return model


@pytest.mark.parametrize("name", KINDS)
def test_behind_an_output_that_says_nothing_streams_without_their_mean_are_no_fault(name: str) -> None:
    result = half_cut(silent(dynamic(KINDS[name])))
    assert shapes(result.model)["first.weight"] == (6, WIDTH // 2)


def test_behind_an_output_that_says_nothing_norms_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms._Rewriter, "_take_off", lambda self, stream: None)
    result = half_cut(silent(network(fused)))
    assert shapes(result.model)["first.weight"] == (6, WIDTH)
    assert any("stays whole: as RMS norms, law 1 doesn't hold" in note for note in result.report.notes)


def test_without_the_mean_taken_off_the_original_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms._Rewriter, "_take_off", lambda self, stream: None)
    result = half_cut(network(fused))
    assert shapes(result.model)["first.weight"] == (6, WIDTH)
    assert any("stays whole: as RMS norms, law 1 doesn't hold" in note for note in result.report.notes)


def test_what_could_not_be_compared_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.proof import verify as room

    real, first = room.verify, iter([room.Verification("not run", notes=["no inputs"])])  # of the norms
    monkeypatch.setattr(room, "verify", lambda *a, **k: next(first, None) or real(*a, **k))
    result = half_cut(network(fused))
    assert shapes(result.model)["first.weight"] == (6, WIDTH)
    assert any("as RMS norms, no inputs" in note for note in result.report.notes)


def read_otherwise(b: Builder, x: str) -> str:
    return b.op("Relu", [x], "otherwise")


def added(op: Callable[[Builder, str], str], *, output: bool = False) -> onnx.ModelProto:
    """A stream that one norm reads, and something else."""
    b = Builder(23)
    x = b.linear("x", "first", 6, WIDTH)
    other = op(b, x)
    y = b.op("Concat", [b.linear(fused(b, x, "norm"), "head", WIDTH, 5), other], "both", axis=2)
    model = b.model({"x": ["N", 3, 6]}, y)
    if output:
        model.graph.output.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 3, WIDTH]))
    return model


def test_a_stream_that_something_else_reads_keeps_its_mean() -> None:
    stream = found(added(read_otherwise))[0]
    assert not stream.centred
    assert "reads 'first.add_out' as it is" in stream.broken


def test_a_stream_that_is_an_output_is_left_alone() -> None:
    model = added(lambda b, x: b.linear(fused(b, x, "second"), "side", WIDTH, 2), output=True)
    assert found(model)[0].broken == "'first.add_out' is an output, or read by a body"
    with pytest.raises(NothingToPrune, match="axis of the graph output"):
        half_cut(model)


def test_channels_that_move_each_by_itself_have_no_mean_in_common() -> None:
    b = Builder(24)
    x = b.linear("x", "first", 6, WIDTH)
    at = b.constant("at", np.random.default_rng(0).integers(0, 3, (1, 3, WIDTH)))
    mixed = b.op("GatherElements", [x, at], "mixed", axis=1)
    y = b.linear(fused(b, mixed, "norm"), "head", WIDTH, 5)
    stream = found(b.model({"x": [1, 3, 6]}, y))[0]
    assert not stream.layers


def test_a_shared_table_stays_and_its_means_are_looked_up() -> None:
    b = Builder(25)
    table = b.weight("table", 7, WIDTH)
    ids = b.op("Cast", ["x"], "ids", to=TensorProto.INT64)
    x = b.op("Gather", [table, ids], "looked")
    x = b.op("Add", [x, b.linear(fused(b, x, "norm"), "layer", WIDTH, WIDTH)], "sum")
    y = b.op("MatMul", [fused(b, x, "last"), b.op("Transpose", [table], "turned")], "head")
    model = b.model({"x": ["N", "T"]}, y)
    assert found(model)[0].tables
    result = half_cut(model)
    assert shapes(result.model)["table"] == (7, WIDTH // 2)
    assert result.report.law1["max_relative_error"] < 1e-5


def test_a_stream_that_is_not_cut_keeps_its_norms_and_weights() -> None:
    model = network(fused)
    whole = onnxprune.prune(model, ratio=0.5, align=None, only=("up", "first"), center_norms=False)
    left = onnxprune.prune(model, ratio=0.5, align=None, ignore=("first",))
    assert (
        left.model.SerializeToString()
        == onnxprune.prune(
            model, ratio=0.5, align=None, ignore=("first",), center_norms=False
        ).model.SerializeToString()
    )
    assert shapes(whole.model)["first.weight"] == (6, WIDTH)


@pytest.mark.parametrize(
    "what", ["nothing", "a weight", "a weight without its mean", "a bias that was added"]
)
def test_norms_are_put_back_only_where_what_was_fitted_writes_no_mean(what: str) -> None:
    """Descent moves weights any way: a LayerNorm would take off a mean that the fitted model has."""
    analysis = analyse(Model.load(network(fused)))
    rewritten = rewrite(analysis, streams(analysis))
    fitted = rewritten.model.fork()
    weight = fitted.weight("first.weight").astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    if what.startswith("a weight"):
        mean = noise.mean(axis=1, keepdims=True) if "without" in what else 0
        fitted.put("first.weight", weight + noise - mean)
    if what == "a bias that was added":
        name = fitted.add("first_bias", noise[0])
        (add,) = [n for n in fitted.proto.graph.node if "first.bias" in n.input]
        add.input[list(add.input).index("first.bias")] = name
        fitted.refresh()
    kinds = [n.op_type for n in rewritten.restored(fitted).proto.graph.node]
    assert ("LayerNormalization" in kinds) == (what in ("nothing", "a weight without its mean"))


def own_mean() -> onnx.ModelProto:
    """A norm of what no layer writes, which takes the mean off itself, and one of what a layer writes."""
    b = Builder(26)
    first = b.op("Relu", [b.linear("x", "first", 6, WIDTH)], "act")
    second = b.linear(fused(b, first, "norm"), "second", WIDTH, WIDTH)
    return b.model({"x": ["N", "T", 6]}, b.linear(fused(b, second, "last"), "head", WIDTH, 5))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("recover", ["lstsq", "blocks", "distill"])
def test_no_fit_changes_the_mean_that_a_norm_takes_off(recover: str, whole: bool) -> None:
    x = np.random.default_rng(4).standard_normal((64, 3, 6)).astype(np.float32)
    ignore = ("first",) if whole else ()
    result = onnxprune.prune(
        own_mean(), ratio=0.5, align=None, ignore=ignore, recover=recover, calib={"x": x}
    )
    new = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    assert new["second.weight"].shape == (WIDTH if whole else WIDTH // 2, WIDTH // 2)
    assert ("LayerNormalization" in {n.op_type for n in result.model.graph.node}) == whole
    if not whole and recover == "lstsq":  # descent may move it where it is cut: the norm isn't put back then
        assert (new[f"mean_of_{WIDTH}"] == np.float32(1 / WIDTH)).all()
    assert not result.report.put_back
    assert result.report.law1["max_relative_error"] < 1e-5
    assert len(result.report.law1["sizes"]) >= 3


def test_a_norm_whose_own_mean_was_changed_stays_as_it_was_rewritten() -> None:
    analysis = analyse(Model.load(own_mean()))
    rewritten = rewrite(analysis, streams(analysis))
    name = f"mean_of_{WIDTH}"
    assert name in rewritten.model.fixed
    fitted = rewritten.model.fork()
    fitted.put(name, 2 * fitted.weight(name))
    ops = [n.op_type for n in rewritten.restored(fitted).proto.graph.node]
    assert ops.count("LayerNormalization") == 1  # the one whose mean a layer takes off


def test_a_plan_made_without_rms_norms_is_carried_out_without() -> None:
    model = network(fused)
    for choice in (True, False):
        plan = onnxprune.plan(model, ratio=0.5, align=None, center_norms=choice)
        result = onnxprune.apply(model, plan)
        direct = onnxprune.prune(model, ratio=0.5, align=None, center_norms=choice)
        assert result.model.SerializeToString() == direct.model.SerializeToString()


def test_what_is_written_has_no_mean_before_it_is_cut() -> None:
    model, result = network(fused), half_cut(network(fused))
    cut = next(g for g in result.plan.groups if g.units == WIDTH)
    kept = np.setdiff1d(np.arange(WIDTH), cut.removed_units)
    old = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    token = old["token"] - old["token"].mean(axis=-1, keepdims=True)
    assert new["token"] == pytest.approx(token[..., kept], abs=1e-6)


def in_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same in half floats, but for its input and output."""
    result = onnx.ModelProto.FromString(model.SerializeToString())
    graph = result.graph
    for tensor in graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for node in graph.node:
        node.input[:] = ["half" if name == "x" else name for name in node.input]
    last = graph.output[0].name
    graph.node[-1].output[0] = "last_half"
    graph.node.insert(0, helper.make_node("Cast", ["x"], ["half"], "narrow", to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", ["last_half"], [last], "wide", to=TensorProto.FLOAT))
    return result


def test_halves_may_differ_by_their_own_rounding_and_by_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_halves(dynamic(fused))
    result = half_cut(model)
    assert shapes(result.model)["first.weight"] == (6, WIDTH // 2)
    said = next(note for note in result.report.notes if "equal to the original" in note)
    assert 1e-6 < float(said.rpartition(" ")[2]) < centre.HALVES
    assert result.report.law1["max_relative_error"] < 1e-5
    monkeypatch.setattr(centre, "HALVES", 1e-6)
    assert shapes(half_cut(model).model)["first.weight"] == (6, WIDTH)
