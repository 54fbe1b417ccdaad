"""Bodies of If are cut like the graph around them: their own weights, shared ones, and what passes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import VerificationError
from onnxprune.model import Model
from onnxprune.pruning.journey import Result
from onnxprune.report.sentences import at_sizes

from body_models import Weights, body, info, node, normal  # isort: skip
from outside import half, masked, run  # isort: skip


def mlp(x: str, first: str, second: str, y: str) -> list[NodeProto]:
    """Two layers; names of what is between them are the same in each branch."""
    return [node("MatMul", f"{x} {first}", "a"), node("Relu", "a", "r"), node("MatMul", f"r {second}", y)]


def model(
    nodes: Sequence[NodeProto], weights: Weights, width: int = 8, outputs: str = "y"
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", [info("x", ["N", width]), info("yes", [], TensorProto.BOOL)],
        [info(n, ["N", None]) for n in outputs.split()],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def either(then: onnx.GraphProto, other: onnx.GraphProto, outputs: str = "y", yes: str = "yes") -> NodeProto:
    return helper.make_node(
        "If", [yes], outputs.split(), name=f"if_{outputs.split()[0]}", then_branch=then, else_branch=other
    )


def shared() -> onnx.ModelProto:
    """Both branches hold the whole model; the weights are around them."""
    weights = {"w1": normal(8, 16), "w2": normal(16, 6)}
    then = body([*mlp("x", "w1", "w2", "t")], ["t"])
    other = body([*mlp("x", "w1", "w2", "e"), node("Neg", "e", "n")], ["n"])
    return model([either(then, other)], weights)


def own() -> onnx.ModelProto:
    """Each branch has weights of its own, of other widths."""
    then = body(mlp("x", "t1", "t2", "t"), ["t"], {"t1": normal(8, 16), "t2": normal(16, 6)})
    other = body(mlp("x", "e1", "e2", "e"), ["e"], {"e1": normal(8, 24), "e2": normal(24, 6)})
    return model([either(then, other)], {})


def through() -> onnx.ModelProto:
    """A layer reads what either branch gives, and the branches read what a layer gives."""
    then = body([node("MatMul", "h t1", "t")], ["t"], {"t1": normal(16, 12)})
    other = body([node("MatMul", "h e1", "a"), node("Relu", "a", "e")], ["e"], {"e1": normal(16, 12, seed=1)})
    nodes = [
        node("MatMul", "x w1", "h"),
        either(then, other, "z"),
        node("Add", "z b", "zb"),
        node("MatMul", "zb w2", "y"),
    ]
    return model(nodes, {"w1": normal(8, 16), "b": normal(12), "w2": normal(12, 6)})


def nested() -> onnx.ModelProto:
    """An If in a branch of another."""
    inner = either(
        body([node("MatMul", "r t2", "t")], ["t"], {"t2": normal(16, 6)}),
        body([node("MatMul", "r e2", "e")], ["e"], {"e2": normal(16, 6, seed=1)}),
        "i",
        "more",
    )
    then = body(
        [node("MatMul", "x t1", "a"), node("Relu", "a", "r"), node("ReduceSum", "a", "s", keepdims=0),
         node("Greater", "s zero", "more"), inner],
        ["i"], {"t1": normal(8, 16), "zero": np.float32(0)},
    )  # fmt: skip
    other = body(mlp("x", "e1", "o2", "o"), ["o"], {"e1": normal(8, 16, seed=2), "o2": normal(16, 6, seed=3)})
    return model([either(then, other)], {})


def feeds(yes: bool, batch: int, seed: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((batch, 8)).astype(np.float32)
    return {"x": x, "yes": np.array(yes)}


def exact(original: onnx.ModelProto, result: Result) -> None:
    """Check both branches, with code of its own."""
    twin = masked(original, result)
    for yes in (True, False):
        for batch, seed in ((2, 0), (1, 1), (5, 2), (7, 3)):
            given = feeds(yes, batch, seed)
            for want, have, whole in zip(
                run(twin, given), run(result.model, given), run(original, given), strict=True
            ):
                assert np.abs(want - have).max() <= 1e-5 * np.abs(want).max()
                assert np.abs(whole - have).max() > 1e-3 * np.abs(want).max()


CASES = {"shared": (shared, 16), "own": (own, 40), "through": (through, 28), "nested": (nested, 32)}


@pytest.mark.parametrize("name", CASES)
def test_bodies_are_cut_as_far_as_the_graph_around_them(name: str) -> None:
    build, units = CASES[name]
    original = build()
    result = half(original)
    assert sum(g["removed"] for g in result.report.groups) == units // 2
    assert result.report.after.parameters < 0.6 * result.report.before.parameters
    exact(original, result)
    law = result.report.law1
    assert {then for way in law["branches"] for then in way.values()} == {True, False}
    assert "branches of" in at_sizes(law)


@pytest.mark.parametrize("build", [build for build, _ in CASES.values()])
def test_what_is_laid_open_closes_to_the_same_bytes(build: Any) -> None:
    original = build()
    opened = Model.load(original).unfold()
    assert not opened.edited
    assert all(n.op_type != "If" or n.domain for n in opened.proto.graph.node)
    names = [name for n in opened.proto.graph.node for name in n.output]
    assert len(set(names)) == len(names)
    assert opened.serialize() == original.SerializeToString(deterministic=True)
    assert opened.fold().unfold().proto == opened.proto


def test_nodes_that_leave_their_bodies_are_told_apart() -> None:
    """What is wanted of both branches stands in one graph, which may name no node twice."""
    original = shared()
    for branch in original.graph.node[0].attribute:
        for number, inner in enumerate(branch.g.node):
            inner.name = f"node_{number}"
    opened = Model.load(original).unfold()
    made = [n.output[0] for n in opened.proto.graph.node if n.op_type == "Relu"]
    assert len(made) == 2
    hoisted, _ = opened.session_parts(made)
    proto = onnx.ModelProto.FromString(hoisted)
    proto.graph.output.extend(info(name, ["N", 16]) for name in made)
    values = run(proto, feeds(True, 2, 0))
    np.testing.assert_array_equal(values[1], values[2])
    names = [n.name for n in proto.graph.node]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("build", [build for build, _ in CASES.values()])
def test_weights_stay_in_their_bodies(build: Any) -> None:
    original = build()
    result = half(original)

    def places(graph: onnx.GraphProto, where: str = "") -> list[tuple[str, str]]:
        inner = [
            p
            for n in graph.node
            for a in n.attribute
            if a.HasField("g")
            for p in places(a.g, f"{where}/{a.name}")
        ]
        return [*((where, t.name) for t in graph.initializer), *inner]

    assert places(result.model.graph) == places(original.graph)


def test_where_branches_disagree_the_axis_stays() -> None:
    """One branch gives 12 numbers, the other 6; one a matrix, the other more."""
    then = body([node("MatMul", "h t1", "t"), node("MatMul", "h t3", "t2")], ["t", "t2"],
                {"t1": normal(16, 12), "t3": normal(16, 5)})  # fmt: skip
    other = body([node("MatMul", "h e1", "e"), node("MatMul", "h e3", "b"), node("Unsqueeze", "b zero", "e2")],
                 ["e", "e2"], {"e1": normal(16, 6), "e3": normal(16, 5, seed=1), "zero": np.array([0])})  # fmt: skip
    nodes = [node("MatMul", "x w1", "h"), either(then, other, "y z")]
    original = model(nodes, {"w1": normal(8, 16)}, outputs="y")
    result = half(original)
    assert {(c.tensor, c.axis) for c in result.report.cuts} == {
        ("w1", 1),
        ("t1", 0),
        ("t3", 0),
        ("e1", 0),
        ("e3", 0),
    }
    exact(original, result)
    why = {f.tensor: f.reason for f in result.report.frozen if f.axis == 1}
    assert "the branches differ" in why["t1"]
    assert "the branches differ" in why["e3"]


def test_a_branch_that_the_inputs_never_take_is_verified() -> None:
    """The condition is never true; a pruned model that is wrong only there is found."""
    then = body(mlp("x", "t1", "t2", "t"), ["t"], {"t1": normal(8, 16), "t2": normal(16, 6)})
    other = body(mlp("x", "e1", "e2", "e"), ["e"], {"e1": normal(8, 16, seed=1), "e2": normal(16, 6, seed=1)})
    nodes = [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum most", "more"),
             either(then, other, yes="more")]  # fmt: skip
    original = model(nodes, {"most": np.float32(1e9)})
    result = half(original)
    onnxprune.verify(original, result.model, result.plan)
    wrong = result.model
    branch = next(a.g for a in wrong.graph.node[-1].attribute if a.name == "then_branch")
    array = numpy_helper.to_array(branch.initializer[1]).copy()
    array[0, 0] += 1
    branch.initializer[1].CopyFrom(numpy_helper.from_array(array, "t2"))
    with pytest.raises(VerificationError, match="law 1 doesn't hold"):
        onnxprune.verify(original, wrong, result.plan)


def test_a_branch_that_contradicts_the_sizes_stays_closed() -> None:
    """What exporters write for `x.squeeze(0) if x.shape[0] == 1 else x`, of a length that is never one."""
    then = body([node("Squeeze", "m one", "t")], ["t"], {"one": np.array([0])})
    other = body([node("Neg", "m", "e")], ["e"])
    nodes = [*mlp("x", "w1", "w2", "m"), either(then, other, "z", "no"), node("Abs", "z", "y")]
    nodes[3:3] = [node("ReduceMax", "x", "most", keepdims=0), node("Greater", "most far", "no")]
    original = model(nodes, {"w1": normal(8, 16), "w2": normal(16, 6), "far": np.float32(1e9)})
    result = half(original, input_shapes={"x": (2, 8)})
    assert [(c.tensor, c.axis) for c in result.report.cuts] == [("w1", 1), ("w2", 0)]
    assert any("then branch of If 'if_z' contradicts" in note for note in result.report.notes)


def test_equal_names_in_bodies_are_told_apart() -> None:
    original = shared()
    assert [(line.op, line.rows) for line in onnxprune.inspect(original).ops if line.op == "If"] == [
        ("If", ("its bodies",))
    ]
    opened = Model.load(original).unfold()
    assert {"a@then_branch", "a@else_branch"} <= {o for n in opened.proto.graph.node for o in n.output}


def test_a_count_of_channels_that_branches_give_stays_what_it_was() -> None:
    """Each branch counts what is cut; the graph gives the number, or its negative, out."""
    then = body([node("Identity", "size", "t")], ["t"])
    other = body([node("Neg", "size", "e")], ["e"])
    for branch in (then, other):
        branch.output[0].type.tensor_type.elem_type = TensorProto.INT64
    nodes = [
        *mlp("x", "w1", "w2", "y"),
        node("Shape", "r", "shape"),
        node("Gather", "shape one", "size"),
        either(then, other, "count"),
    ]
    original = model(nodes, {"w1": normal(8, 16), "w2": normal(16, 6), "one": np.array(1)})
    original.graph.output.append(info("count", [], TensorProto.INT64))
    result = half(original)
    assert {(c.tensor, c.axis) for c in result.report.cuts} == {("w1", 1), ("w2", 0)}
    assert [int(run(result.model, feeds(yes, 2, 0))[1]) for yes in (True, False)] == [16, -16]
