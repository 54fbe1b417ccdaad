"""Bodies of Loop and Scan are cut: a carried value has the same channels in each step."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import VerificationError
from onnxprune.model import Model
from onnxprune.pruning.journey import Result
from onnxprune.runtime.inputs import random_inputs

from body_models import info, node, normal  # isort: skip
from outside import half, masked, run  # isort: skip

INT, BOOL = TensorProto.INT64, TensorProto.BOOL


def model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: list[int | str]) -> onnx.ModelProto:
    outputs = [info(n, None) for n in nodes[-1].output]
    own = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", [info("x", x)], outputs, own)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def loop(steps: int = 3, grows: bool = False, chooses: bool = False) -> onnx.ModelProto:
    """A state of 16 channels that goes through a layer in each step, and 12 channels that each step gives."""
    inside = [
        node("MatMul", "h u", "a"),
        node("Tanh", "a", "t"),
        node("MatMul", "t v", "g"),
        node("Identity", "go", "on"),
    ]
    if grows:
        inside.insert(2, node("Concat", "t h", "more", axis=0))
    if chooses:
        then = helper.make_graph([node("Neg", "a", "n")], "then", [], [info("n")])
        other = helper.make_graph([node("MatMul", "a q", "r")], "other", [], [info("r")],
                                  [numpy_helper.from_array(normal(16, 16, seed=5), "q")])  # fmt: skip
        inside[1:2] = [
            node("Equal", "i first", "start"),
            helper.make_node("If", ["start"], ["b"], name="if", then_branch=then, else_branch=other),
            node("Tanh", "b", "t"),
        ]
    body = helper.make_graph(
        inside, "body", [info("i", [], INT), info("go", [], BOOL), info("h", None)],
        [info("on", [], BOOL), info("more" if grows else "t", None), info("g", None)],
        [numpy_helper.from_array(normal(16, 12), "v"), numpy_helper.from_array(np.array(0), "first")],
    )  # fmt: skip
    nodes = [
        node("MatMul", "x w", "h0"),
        helper.make_node("Loop", ["steps", "yes", "h0"], ["last", "all"], name="loop", body=body),
        node("MatMul", "last o", "y"),
        node("ReduceSum", "all zero", "sum", keepdims=0),
        node("MatMul", "sum p", "z"),
        node("Split", "yz", "y1 z1", axis=1),
    ]
    nodes[5:5] = [node("Concat", "y z", "yz", axis=1)] if not grows else []
    if grows:
        nodes[-1:] = [node("Identity", "y", "out")]
    weights = {"w": normal(8, 16), "u": normal(16, 16), "o": normal(16, 6), "p": normal(12, 6), "yes": np.array(True),
               "steps": np.array(steps), "zero": np.array([0])}  # fmt: skip
    return model(nodes, weights, ["N", 8])


def scan() -> onnx.ModelProto:
    """A recurrence over the first axis: what a step reads is made by a layer before, what it gives is read by one."""
    body = helper.make_graph(
        [node("MatMul", "h u", "a"), node("Add", "a s", "b"), node("Tanh", "b", "t"), node("Identity", "t", "g")],
        "body", [info("h", None), info("s", None)], [info("t", None), info("g", None)],
    )  # fmt: skip
    nodes = [
        node("MatMul", "x w", "xs"),
        helper.make_node("Scan", ["h0", "xs"], ["last", "all"], name="scan", body=body, num_scan_inputs=1),
        node("MatMul", "all o", "q"),
        node("MatMul", "last p", "r"),
        node("Add", "q r", "y"),
    ]
    weights = {"w": normal(8, 16), "u": normal(16, 16), "o": normal(16, 6), "p": normal(16, 6),
               "h0": normal(2, 16, seed=3)}  # fmt: skip
    return model(nodes, weights, ["T", 2, 8])


def exact(original: onnx.ModelProto, result: Result, shapes: list[tuple[int, ...]]) -> None:
    twin = masked(original, result)
    for seed, shape in enumerate(shapes):
        given = {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}
        for want, have, whole in zip(
            run(twin, given), run(result.model, given), run(original, given), strict=True
        ):
            assert np.abs(want - have).max() <= 1e-5 * np.abs(want).max()
            assert np.abs(whole - have).max() > 1e-3 * np.abs(want).max()


@pytest.mark.parametrize("options", [{}, {"steps": 7}, {"chooses": True}])
def test_what_a_loop_carries_and_gathers_is_cut(options: dict[str, Any]) -> None:
    original = loop(**options)
    result = half(original)
    cuts = {(c.tensor, c.axis): len(c.removed) for c in result.report.cuts}
    assert (
        cuts.items() >= {("w", 1): 8, ("u", 0): 8, ("u", 1): 8, ("o", 0): 8, ("v", 0): 8}.items() or options
    )
    assert cuts["v", 1] == cuts["p", 0] == 6
    exact(original, result, [(2, 8), (1, 8), (5, 8)])


def asked_for(given: str) -> onnx.ModelProto:
    """A loop that runs as often as an input says, or as long as the data say, which may be not at all."""
    found = loop()
    (at,) = [n for n, v in enumerate(found.graph.node) if v.op_type == "Loop"]
    found.graph.node[at].attribute[0].g.output[2].CopyFrom(info("g", ["rows", 12]))
    if given == "steps":
        del found.graph.initializer[[t.name for t in found.graph.initializer].index("steps")]
        found.graph.input.append(info("k", [1], INT))
        found.graph.node.insert(0, node("Squeeze", "k", "steps"))
    else:
        found.graph.node[at].input[1] = "larger"
        found.graph.initializer.append(numpy_helper.from_array(np.float32(1e9), "much"))
        found.graph.node.insert(0, node("Greater", "most much", "larger"))
        found.graph.node.insert(0, node("ReduceMax", "x", "most", keepdims=0))
    return found


def test_an_input_says_how_often_a_loop_runs() -> None:
    """What it gathers is seen after a step or more: without one it has no axes."""
    opened = Model.load(asked_for("steps"))
    for m, seed in product((opened, opened.unfold()), range(4)):
        assert random_inputs(m, {"x": (2, 8), "k": (1,)}, np.random.default_rng(seed))["k"] > 1
    result = half(asked_for("steps"))
    cuts = {(c.tensor, c.axis): len(c.removed) for c in result.report.cuts}
    assert cuts["v", 1] == cuts["p", 0] == 6
    assert cuts["w", 1] == cuts["u", 0] == 8
    for steps in (1, 3):
        given = {"x": normal(4, 8), "k": np.array([steps])}
        want, have = (run(m, given) for m in (masked(asked_for("steps"), result), result.model))
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(want, have, strict=True))


def test_what_no_step_gathers_is_unknown_not_empty() -> None:
    frozen = onnxprune.inspect(asked_for("data")).frozen
    assert any("shape of its output 'all' is unknown" in f.reason for f in frozen)
    assert not any("0 there" in f.reason for f in frozen)


def test_what_a_scan_carries_reads_and_gathers_is_cut() -> None:
    original = scan()
    result = half(original)
    cuts = {(c.tensor, c.axis) for c in result.report.cuts}
    assert cuts == {("w", 1), ("u", 0), ("u", 1), ("o", 0), ("p", 0), ("h0", 1)}
    exact(original, result, [(3, 2, 8), (1, 2, 8), (6, 2, 8)])


@pytest.mark.parametrize("original", [loop(), loop(chooses=True), scan(), loop(grows=True)])
def test_what_is_laid_open_closes_to_the_same_bytes(original: onnx.ModelProto) -> None:
    opened = Model.load(original).unfold()
    assert not opened.edited
    assert {n.op_type for n in opened.proto.graph.node if n.domain} & {"LoopEntry", "ScanEntry"}
    assert opened.serialize() == original.SerializeToString(deterministic=True)


def test_a_state_that_grows_stays_in_its_body() -> None:
    original = loop(grows=True)
    with pytest.raises(onnxprune.OnnxPruneError, match="read by a subgraph"):
        half(original)
    notes = onnxprune.inspect(original).notes
    assert [n.split(" contradicts")[0] for n in notes] == ["the body of Loop 'loop'"]


def test_a_wrong_step_is_seen() -> None:
    """Negative control: a state that is cut otherwise inside."""
    original = scan()
    result = half(original)
    wrong = result.model
    u = next(t for t in wrong.graph.initializer if t.name == "u")
    u.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(u)[::-1]), "u"))
    with pytest.raises(VerificationError, match="law 1 doesn't hold"):
        onnxprune.verify(original, wrong, result.plan)
