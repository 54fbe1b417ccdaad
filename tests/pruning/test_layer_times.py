"""Where the time goes: layers, the groups that reach them, and what nothing reaches."""

import io

import numpy as np
import onnx
import pytest
from budgets.test_budgets import wide
from nets import convs, node
from onnx import helper, numpy_helper

from onnxprune import cli
from onnxprune.api import profile
from onnxprune.graph.analysis import analyse
from onnxprune.graph.select import pick
from onnxprune.latency.clock import bench_of
from onnxprune.latency.profile import Timed
from onnxprune.model import Model
from onnxprune.pruning.layer_times import arranged


def times_of(proto: onnx.ModelProto, seconds: dict[str, float], rest: float = 0.0):
    """Arrange invented times, given by the op types of nodes in their order."""
    model = Model.load(proto)
    analysis = analyse(model)
    ops = [applied.node.op for applied in analysis.coupling.nodes]
    timed = Timed(1.0, {ops.index(op): value for op, value in seconds.items()}, rest)
    return arranged(
        analysis, pick(analysis.grouping, (), ()), timed, bench_of(model, analysis, "cpu", None, 1)
    )


def test_what_no_group_reaches_is_said() -> None:
    """A reduction to one number keeps its length whatever is cut before it."""
    last = [node("Identity", "h", "y"), node("Size", "x", "n")]
    times = times_of(convs(last, outputs={"y": 1, "n": 7}), {"Conv": 0.6, "Size": 0.3}, rest=0.1)
    assert times.beyond == pytest.approx(0.3)
    assert times.rest == pytest.approx(0.1)
    assert times.unreached() == "No cut reaches 30% of the time (Size 30%)."
    first = times.layers[0]
    assert (first["op"], first["share"]) == ("Conv", pytest.approx(0.6))
    assert first["groups"] == [group["name"] for group in times.groups if group["seconds"]]


def test_all_is_reached_where_groups_reach_all() -> None:
    times = times_of(convs(), {"Conv": 1.0})
    assert times.beyond == 0
    assert (
        times.unreached() == "Cuts reach all layers, but not the time that each of them takes at any width."
    )


def test_where_nothing_is_timed_that_is_said_and_why() -> None:
    """Onnxruntime folds what depends on no input, and drops what does nothing."""
    folded = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", 1, [4, 5])],
        [
            numpy_helper.from_array(np.ones(shape, np.float32), n)
            for n, shape in (("a", (4, 8)), ("b", (8, 5)))
        ],
    )
    times = profile(helper.make_model(folded, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    stream = io.StringIO()
    times.show(stream)
    assert stream.getvalue().splitlines()[1:] == [
        "No layer was timed: the model has no inputs, so onnxruntime computes its outputs when it loads it."
    ]
    assert "no layer was timed" in times.brief()
    assert "leaves nothing to run" in times_of(convs(), {}).unreached()
    assert "all that onnxruntime runs of the model is its own" in times_of(convs(), {}, rest=1.0).unreached()


def test_it_is_measured_on_a_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.latency.profile.ROUNDS", 5)
    times = profile(wide(64, 96), threads=1)
    assert times.seconds > 0
    assert {line["op"] for line in times.layers[:2]} == {"Conv"}
    shares = sum(line["share"] for line in times.layers) + times.rest
    assert shares == pytest.approx(1.0)
    stream = io.StringIO()
    times.show(stream)
    assert times.unreached() in stream.getvalue()


def test_a_latency_that_cannot_be_had_says_what_no_cut_reaches(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onnxprune.latency.profile.ROUNDS", 5)
    onnx.save(wide(64, 96), tmp_path / "m.onnx")
    line = [
        "prune",
        str(tmp_path / "m.onnx"),
        str(tmp_path / "o.onnx"),
        "--target",
        "latency=0.001",
        "--threads",
        "1",
    ]
    assert cli.main(line) == 4
    said = capsys.readouterr().err
    assert "No cut reaches" in said or "Cuts reach all layers" in said
    assert len([text for text in said.splitlines() if "error" in text]) == 1
