"""Samples tell of the branches that they take: moments, fits and zeros of layers in bodies."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.graph.analysis import analyse
from onnxprune.graph.inline import inline
from onnxprune.model import Model
from onnxprune.reconstruction.layers import seen, sites

from body_models import Weights, body, info, node, normal  # isort: skip
from outside import run  # isort: skip


def mlp(first: str, second: str, y: str) -> list[onnx.NodeProto]:
    return [node("MatMul", f"x {first}", "a"), node("Relu", "a", "r"), node("MatMul", f"r {second}", y)]


def model(shared: bool = False, most: float = 0.0) -> onnx.ModelProto:
    """Which branch is taken is said by the first number of a batch."""
    own: list[Weights] = [{}, {}] if shared else [
        {f"{b}1": normal(8, 32, seed=n), f"{b}2": normal(32, 6, seed=n)} for n, b in enumerate("te")
    ]  # fmt: skip
    first, second = (["w1", "w2"], ["w1", "w2"]) if shared else (["t1", "t2"], ["e1", "e2"])
    then = body([*mlp(*first, "t"), node("Neg", "t", "n")], ["n"], own[0])
    other = body(mlp(*second, "e"), ["e"], own[1])
    nodes = [
        node("Slice", "x zero one both", "first"),
        node("Slice", "first zero one second", "number"),
        node("Squeeze", "number", "scalar"),
        node("Greater", "scalar most", "yes"),
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=then, else_branch=other),
    ]
    weights: Weights = {"zero": np.array([0]), "one": np.array([1]), "both": np.array([0]), "second": np.array([1]),
                        "most": np.float32(most)}  # fmt: skip
    weights |= {"w1": normal(8, 32), "w2": normal(32, 6)} if shared else {}
    graph = helper.make_graph(
        nodes, "g", [info("x", [10, 8])], [info("y", [10, 6])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data(count: int = 2000) -> np.ndarray:
    """Return samples of few directions, so that what is cut can be made up for."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((3, 8))
    return (rng.standard_normal((count, 3)) @ mixed).astype(np.float32)


def error(original: onnx.ModelProto, other: onnx.ModelProto, then: bool) -> float:
    """Return the squared error on batches that take a branch and that no fit has seen."""
    batches = [b["x"] for b in samples(data(3000)[2000:]).batches if (b["x"][0, 0] > 0) == then]
    return sum(float(np.square(run(original, {"x": x})[0] - run(other, {"x": x})[0]).sum()) for x in batches)


def samples(x: np.ndarray, batch: int = 10) -> Samples:
    batches = [{"x": x[n : n + batch]} for n in range(0, len(x), batch)]
    return Samples(batches, [batch] * len(batches))


def test_a_stream_gives_each_batch_what_its_branch_makes() -> None:
    analysis = analyse(inline(Model.load(model())))
    x = data(200)
    runs = stream_of(analysis.model, samples(x), analysis.types)
    last = len(analysis.coupling.nodes)
    wanted = ["r@then_branch", "r@else_branch", "y"]
    stops = [n for n, a in enumerate(analysis.coupling.nodes) if set(wanted[:2]) & set(a.node.outputs)]
    found = list(runs.run(max(stops) + 1, wanted[:2]))
    runs.keep |= set(wanted)
    ends = list(runs.run(last, ["y"]))
    graph = {
        t.name: numpy_helper.to_array(t) for a in model().graph.node[-1].attribute for t in a.g.initializer
    }
    taken = set()
    for batch, values, end in zip(samples(x).batches, found, ends, strict=True):
        then = bool(batch["x"][0, 0] > 0)
        branch, other = ("then", "else") if then else ("else", "then")
        taken.add(branch)
        assert f"r@{other}_branch" not in values
        want = np.maximum(batch["x"] @ graph[f"{branch[0]}1"], 0)
        assert np.allclose(values[f"r@{branch}_branch"], want, atol=1e-5)
        assert np.allclose(end["y"], run(model(), batch)[0], atol=1e-5)
    assert taken == {"then", "else"}


@pytest.mark.parametrize("shared", [False, True])
def test_layers_in_branches_are_fitted(shared: bool) -> None:
    original, x = model(shared), data()
    plain = onnxprune.prune(original, ratio=0.5, align=1)
    fitted = onnxprune.prune(original, ratio=0.5, align=1, calib={"x": x})
    assert {then for way in fitted.report.law1["branches"] for then in way.values()} == {True, False}
    layers = {
        line["layer"]
        for line in fitted.report.calibration["layers"]
        if line["variant"].startswith(("lstsq", "local")) and line["before"] > 1e-6
    }
    assert len(layers) == (1 if shared else 2)
    for then in (True, False):
        assert error(original, fitted.model, then) < 0.5 * error(original, plain.model, then)


def test_a_sum_inside_of_a_branch_is_fitted_though_others_do_not_take_it() -> None:
    """What the layer's output is added to comes from outside, and is gone where the other branch is taken."""
    own: list[Weights] = [
        {f"{b}1": normal(8, 16, seed=n), f"{b}2": normal(16, 8, seed=n)} for n, b in enumerate("te")
    ]
    branches = []
    for b, w in zip("te", own, strict=True):
        inside = [
            node("Tanh", "x", f"{b}h"),
            node("MatMul", f"{b}h {b}1", f"{b}a"),
            node("Relu", f"{b}a", f"{b}r"),
        ]
        inside += [node("MatMul", f"{b}r {b}2", f"{b}m"), node("Add", f"x {b}m", f"{b}s")]
        branches.append(body([*inside, node("MatMul", f"{b}s last", b)], [b], w))
    nodes = [
        node("MatMul", "given in", "x"),
        node("ReduceMean", "x", "number", keepdims=0),
        node("Greater", "number zero", "yes"),
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1]),
    ]
    weights: Weights = {"in": normal(8, 8), "last": normal(8, 6), "zero": np.float32(0)}
    graph = helper.make_graph(
        nodes, "g", [info("given", [10, 8])], [info("y", [10, 6])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )  # fmt: skip
    original = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fitted = onnxprune.prune(original, ratio=0.5, align=1, calib={"given": data()}, recover="lstsq")
    lines = fitted.report.calibration["layers"]
    assert sum(line["variant"].startswith(("lstsq", "local")) for line in lines) >= 2


def test_a_branch_that_no_sample_takes_is_cut_by_its_weights() -> None:
    original = model(most=1e9)
    result = onnxprune.prune(original, ratio=0.5, align=1, calib={"x": data()})
    layers = {line["layer"] for line in result.report.calibration["layers"]}
    assert not any("then_branch" in layer for layer in layers)
    assert {c.tensor for c in result.report.cuts} == {"t1", "t2", "e1", "e2"}
    graph = next(a.g for a in result.model.graph.node[-1].attribute if a.name == "then_branch")
    kept = {t.name: numpy_helper.to_array(t) for t in graph.initializer}["t2"]
    whole = normal(32, 6, seed=0)
    assert all(any(np.array_equal(row, other) for other in whole) for row in kept)


def test_a_layer_in_a_loop_is_no_regression() -> None:
    inside = [node("MatMul", "h u", "a"), node("Tanh", "a", "t"), node("Identity", "go", "on")]
    loop = helper.make_graph(
        inside, "body", [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("h")],
        [info("on", [], TensorProto.BOOL), info("t")],
    )  # fmt: skip
    nodes = [
        node("MatMul", "x w", "h0"),
        helper.make_node("Loop", ["steps", "yes", "h0"], ["last"], name="loop", body=loop),
        node("MatMul", "last o", "y"),
    ]
    weights: dict[str, Any] = {"w": normal(8, 16), "u": normal(16, 16), "o": normal(16, 6), "yes": np.array(True),
                               "steps": np.array(3)}  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [info("x", ["N", 8])], [info("y", ["N", 6])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    original = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    analysis = analyse(inline(Model.load(original)))
    layers = sites(analysis)
    assert {s.weight for s in layers} == {"w", "u", "o"}
    assert {s.weight for s in seen(layers, stream_of(analysis.model, samples(data(50))))} == {"w", "o"}
    result = onnxprune.prune(original, ratio=0.5, align=1, calib={"x": data()})
    assert {(c.tensor, c.axis) for c in result.report.cuts} == {("w", 1), ("u", 0), ("u", 1), ("o", 0)}


def test_products_in_a_loop_are_not_turned() -> None:
    """Queries and keys of a body are of many steps, and no run gives them."""
    inside = [
        node("MatMul", "h q", "a"),
        node("MatMul", "h k", "b"),
        node("Transpose", "b", "bt", perm=[0, 2, 1]),
        node("MatMul", "a bt", "scores"),
        node("Softmax", "scores", "shares"),
        node("MatMul", "shares h", "t"),
        node("Identity", "go", "on"),
    ]
    loop = helper.make_graph(
        inside, "body", [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("h")],
        [info("on", [], TensorProto.BOOL), info("t")],
    )  # fmt: skip
    nodes = [
        helper.make_node("Loop", ["steps", "yes", "x"], ["last"], name="loop", body=loop),
        node("MatMul", "last o", "y"),
    ]
    weights: dict[str, Any] = {"q": normal(8, 16), "k": normal(8, 16), "o": normal(8, 6), "yes": np.array(True),
                               "steps": np.array(3)}  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [info("x", ["N", 5, 8])], [info("y", ["N", 5, 6])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    original = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = onnxprune.prune(
        original, ratio=0.5, align=1, calib={"x": data(500).reshape(100, 5, 8)}, recover="lstsq"
    )
    assert {(c.tensor, c.axis) for c in result.report.cuts} == {("q", 1), ("k", 1)}


def test_zeros_are_fitted_in_branches() -> None:
    original, x = model(), data()
    fitted = onnxprune.sparsify(original, pattern="2:4", calib={"x": x})
    plain = onnxprune.sparsify(original, pattern="2:4")
    for name in ("then_branch", "else_branch"):
        graph = next(a.g for a in fitted.model.graph.node[-1].attribute if a.name == name)
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor).reshape(-1, 4, tensor.dims[1])
            assert ((array == 0).sum(axis=1) >= 2).all()
    for then in (True, False):
        assert error(original, fitted.model, then) < 0.8 * error(original, plain.model, then)


def test_what_needs_gradients_through_a_branch_says_so() -> None:
    result = onnxprune.prune(model(), ratio=0.5, align=1, calib={"x": data(200)}, recover="distill")
    assert "bodies of If" in str(result.report.calibration)
    with pytest.raises(onnxprune.OnnxPruneError, match="If 'if' has no gradient rule"):
        onnxprune.prune(model(), ratio=0.5, align=1, calib={"x": data(200)}, criterion="taylor")
