"""What nothing needs locks nothing: dead nodes, indices of a MaxPool, averages of a LayerNorm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import NothingToPrune
from onnxprune.graph.inline import inline
from onnxprune.model import Model

RNG = np.random.default_rng(0)


def _weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)


def _value(name: str, elem: int, shape: list | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem, shape)


def _model(
    nodes: list[onnx.NodeProto], outputs: list[str], weights: list[TensorProto], shape: list
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [_value("x", TensorProto.FLOAT, shape)],
        [_value(n, TensorProto.INT64 if n == "at" else TensorProto.FLOAT) for n in outputs],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def pooled(reader: str = "", outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p", "at"], kernel_shape=[2, 2], strides=[2, 2]),
        *([helper.make_node(reader, ["at"], ["dead"])] if reader else []),
        helper.make_node("Conv", ["p", "b"], ["y"]),
    ]
    weights = [_weight("a", 16, 8, 1, 1), _weight("b", 3, 16, 1, 1)]
    return _model(nodes, list(outputs), weights, ["N", 8, "H", "W"])


def normed(outputs: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["m"]),
        helper.make_node("LayerNormalization", ["m", "s", "o"], ["l", "mu", "sd"][:outputs]),
        helper.make_node("MatMul", ["l", "b"], ["y"]),
    ]
    weights = [_weight("a", 8, 16), _weight("s", 16), _weight("o", 16), _weight("b", 16, 3)]
    return _model(nodes, ["y"], weights, ["N", 8])


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(["y"], {"x": x})[0]


@pytest.mark.parametrize("reader", ["", "Shape", "Neg"])
def test_indices_that_nothing_needs_lock_no_channels(tmp_path: Path, reader: str) -> None:
    model = pooled(reader)
    onnx.save(model, tmp_path / "in.onnx")
    result = onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none")
    small, masked = onnx.load(tmp_path / "out.onnx"), onnx.ModelProto.FromString(model.SerializeToString())
    onnx.checker.check_model(small, full_check=True)
    assert [list(n.output) for n in small.graph.node if n.op_type == "MaxPool"] == [["p"]]
    gone = next(c.removed for c in result.report.cuts if c.tensor == "b")
    assert len(gone) == 8
    weight = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight[:, list(gone)] = 0
    masked.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "b"))
    for shape in [(1, 8, 4, 6), (3, 8, 9, 2), (2, 8, 17, 17)]:
        x = RNG.normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(run(small, x), run(masked, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dead", ["LRN", "Softmax", "Unique", "Conv", "nobody.knows"])
def test_nodes_that_nothing_needs_lock_no_channels(tmp_path: Path, dead: str) -> None:
    """They go: what they read may be narrower than they could take."""
    model, attrs = pooled(), {"LRN": {"size": 3}, "nobody.knows": {"domain": dead}}.get(dead, {})
    inputs = ["r", "c2"] if dead == "Conv" else ["r"]
    model.graph.node.append(helper.make_node(dead.replace("nobody.knows", "Odd"), inputs, ["d"], **attrs))
    model.graph.node.append(helper.make_node("Shape", ["d"], ["e"]))
    model.graph.initializer.append(_weight("c2", 5, 16, 1, 1))
    model.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    onnx.save(model, tmp_path / "in.onnx")
    result = onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none")
    small = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(small, full_check=True)
    assert [n.op_type for n in small.graph.node] == ["Conv", "Relu", "MaxPool", "Conv"]
    assert [t.name for t in small.graph.initializer] == ["a", "b"]
    assert any(note == "2 nodes that no output needs are gone" for note in result.report.notes)
    assert run(small, RNG.normal(size=(3, 8, 9, 2)).astype(np.float32)).shape == (3, 3, 4, 1)


def test_a_node_without_outputs_stays_with_what_it_reads() -> None:
    model = pooled()
    model.graph.node.extend(
        [helper.make_node("Neg", ["r"], ["n"]), helper.make_node("Say", ["n"], [], domain="own")]
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert [n.op_type for n in inline(Model.load(model)).proto.graph.node][-2:] == ["Neg", "Say"]


def test_averages_that_nothing_needs_lock_no_width(tmp_path: Path) -> None:
    left = []
    for outputs in (1, 3):
        onnx.save(normed(outputs), tmp_path / "in.onnx")
        onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none")
        left.append(sum(np.prod(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer))
    assert left[0] == left[1] < 224 * 0.6


def test_indices_that_are_read_lock_their_channels(tmp_path: Path) -> None:
    onnx.save(pooled(outputs=("y", "at")), tmp_path / "in.onnx")
    with pytest.raises(NothingToPrune, match="indices of MaxPool count through this axis"):
        onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none")


def test_what_a_body_or_training_reads_stays() -> None:
    model = Model.load(pooled(outputs=("y", "at")))
    assert inline(model) is model
    inner = [helper.make_node("Identity", ["at"], ["i"])]
    body = helper.make_graph(inner, "then", [], [_value("i", TensorProto.INT64)])
    read = pooled(outputs=("y",))
    read.graph.input.append(_value("when", TensorProto.BOOL, []))
    read.graph.node.append(helper.make_node("If", ["when"], ["z"], then_branch=body, else_branch=body))
    read.graph.output.append(_value("z", TensorProto.INT64))
    assert any("at" in n.output for n in inline(Model.load(read)).proto.graph.node)
    trained = pooled()
    trained.training_info.add()
    assert any("at" in n.output for n in inline(Model.load(trained)).proto.graph.node)


def branched(dead: bool, weights: bool = False) -> onnx.ModelProto:
    """Both branches of an If read channels; in one of them only what nothing needs would lock these."""

    def extra(name: str) -> list[onnx.NodeProto]:
        soft = helper.make_node("Softmax", ["r"], [f"{name}s"])
        return [soft, helper.make_node("LRN", [f"{name}s"], [f"{name}l"], size=3)]

    inner = helper.make_node("If", ["when"], ["k"], **{
        f"{name}_branch": helper.make_graph(
            [*extra(name), helper.make_node("MaxPool", ["r"], ["k", "at"], kernel_shape=[1, 1])], name, [],
            [_value("k", TensorProto.FLOAT)], [_weight("spare", 9, 16)] if weights else [],
        ) for name in ("then", "else")
    })  # fmt: skip
    then = helper.make_graph(
        [*(extra("outer") if dead else []), inner], "a", [], [_value("k", TensorProto.FLOAT)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["r"], ["m"])], "b", [], [_value("m", TensorProto.FLOAT)]
    )
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("If", ["when"], ["p"], then_branch=then, else_branch=other),
        helper.make_node("Conv", ["p", "b"], ["y"]),
    ]
    model = _model(nodes, ["y"], [_weight("a", 16, 8, 1, 1), _weight("b", 3, 16, 1, 1)], ["N", 8, "H", "W"])
    model.graph.input.append(_value("when", TensorProto.BOOL, []))
    return model


@pytest.mark.parametrize("dead", [False, True])
def test_nodes_of_bodies_that_nothing_needs_lock_no_channels(dead: bool) -> None:
    model = branched(dead, weights=True)
    result = onnxprune.prune(model, ratio=0.5, align="none")
    gone = next(c.removed for c in result.report.cuts if c.tensor == "b")
    assert len(gone) == 8
    count = 6 if dead else 4
    assert f"{count} nodes that no output needs are gone" in result.report.notes
    assert "2 weights that no output needs are gone (1,152 bytes)" in result.report.notes
    small, masked = result.model, onnx.ModelProto.FromString(model.SerializeToString())
    assert b"spare" not in small.SerializeToString()
    weight = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight[:, list(gone)] = 0
    masked.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "b"))
    for when in (True, False):
        feed = {"x": RNG.normal(size=(2, 8, 4, 5)).astype(np.float32), "when": np.array(when)}
        one, other = (
            ort.InferenceSession(m.SerializeToString()).run(["y"], feed)[0] for m in (small, masked)
        )
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("declared", [False, True])
def test_weights_that_nothing_needs_go_unless_they_are_inputs(declared: bool) -> None:
    model = pooled()
    model.graph.initializer.append(_weight("spare", 100, 16))
    if declared:
        model.graph.input.append(_value("spare", TensorProto.FLOAT, [100, 16]))
    result = onnxprune.prune(model, ratio=0.5, align="none")
    assert [t.name for t in result.model.graph.initializer] == ["a", "b", *(["spare"] if declared else [])]
    said = "1 weight that no output needs is gone (6,400 bytes)" in result.report.notes
    assert said is not declared
