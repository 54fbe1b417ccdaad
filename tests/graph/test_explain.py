"""`onnxprune explain`: what goes with an axis, through which nodes, and what freezes it."""

import io
import json
import re
from pathlib import Path

import networkx as nx
import numpy as np
import onnx
import pytest
from nets import build, node, normal
from small_models import MODELS, Builder, attention, chain, residual

from onnxprune.api import explain, prune
from onnxprune.cli import main
from onnxprune.errors import NothingToPrune, UsageError


def concat() -> onnx.ModelProto:
    weights = {"w1": normal(8, 3, 1, 1), "w2": normal(6, 3, 1, 1), "w3": normal(5, 14, 1, 1)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Conv", "x w2", "b"),
        node("Concat", "a b", "c", axis=1),
        node("Conv", "c w3", "y"),
    ]
    return build(nodes, weights)


def test_a_path_names_the_nodes_between_two_weights() -> None:
    (line,) = explain(concat(), "w1", 0).axes
    (group,) = line.groups
    assert (group["name"], group["units"], group["channels"], line.frozen) == ("w1:0", 8, 8, [])
    (reader,) = group["coupled"]
    assert (reader["tensor"], reader["axis"], reader["read"]) == ("w3", 1, True)
    assert reader["path"] == [
        "w1:0",
        "Conv 'Conv_a'",
        "a:1",
        "Concat 'Concat_c'",
        "c:1",
        "Conv 'Conv_y'",
        "w3:1",
    ]


def test_a_dynamic_axis_is_called_by_its_name_and_not_by_the_size_that_stands_in() -> None:
    b = Builder()
    h = b.op("Relu", [b.linear("x", "first", 6, 8)], "relu")
    joined = b.op("Concat", [h, h], "joined", axis=0)
    model = b.model({"x": ["N", 6]}, b.linear(joined, "head", 8, 5))
    lines = {name: explain(model, name, 0).axes[0] for name in ("x", h, joined, "head.weight")}
    assert [line.dynamic for line in lines.values()] == ["N", "N", "", None]
    assert re.fullmatch(r"dynamic length 'N' \(\d+ stands in for it\)", lines["x"].length)
    assert re.fullmatch(r"dynamic length \(\d+ stands in for it\)", lines[joined].length)
    assert lines["head.weight"].length == "length 8"
    stream = io.StringIO()
    explain(model, "x", 0).show(stream)
    assert stream.getvalue().startswith("x, axis 0 of dynamic length 'N' (")


def test_an_axis_of_two_groups_lists_both() -> None:
    (line,) = explain(concat(), "w3:1").axes
    assert {g["name"]: g["channels"] for g in line.groups} == {"w1:0": 8, "w2:0": 6}
    assert {c["tensor"] for g in line.groups for c in g["coupled"]} == {"w1", "w2"}


def test_frozen_axes_lead_to_what_freezes_them() -> None:
    (line,) = explain(concat(), "w3", 0).axes
    assert line.groups == []
    (why,) = line.frozen
    assert why["reason"] == "axis of the graph output 'y'"
    assert why["path"] == ["w3:0", "Conv 'Conv_y'", "y:1"]


def test_softmax_is_named_with_the_path_to_it() -> None:
    model = attention()
    found = [line for i in model.graph.initializer for line in explain(model, i.name).axes]
    reasons = {why["reason"]: why["path"] for line in found for why in line.frozen}
    assert reasons, "the model has frozen axes"
    for reason, path in reasons.items():
        assert len(path) >= 2, (reason, path)


@pytest.mark.parametrize("make", [residual, chain, attention])
def test_all_that_a_group_holds_is_reached(make: object) -> None:
    """What explain lists is what the group's members are: nothing is missing, nothing more."""
    from onnxprune.graph.analysis import analyse
    from onnxprune.model import Model
    from onnxprune.pruning.explanation import explain as of

    analysis = analyse(Model.load(make()))  # type: ignore[operator]
    assert analysis.grouping.groups
    for group in analysis.grouping.groups:
        axes = {(m.tensor, m.axis) for m in group.members}
        tensor, axis = sorted(axes)[0]
        (line,) = of(analysis, tensor, axis).axes
        found = next(g for g in line.groups if g["name"] == group.name)
        assert {(c["tensor"], c["axis"]) for c in found["coupled"]} == axes - {(tensor, axis)}
        for other in found["coupled"]:
            steps = nx.path_graph(other["path"])
            assert len(steps) == len(other["path"]), "a shortest path passes nothing twice"


def test_a_node_stands_for_its_output_and_negative_axes_count_from_the_end() -> None:
    assert explain(concat(), "Concat_c", -3) == explain(concat(), "c", 1)


def test_wrong_names_and_axes_are_told_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"no tensor or node 'w33'.*near names are 'w3'"):
        explain(concat(), "w33")
    with pytest.raises(UsageError, match=r"'w3' has 4 axes, so there is no axis 4; give 0 to 3"):
        explain(concat(), "w3", 4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(concat(), path)
    assert main(["explain", str(path), "w1", "0"]) == 0
    assert "all in group 'w1:0': 8 channels" in capsys.readouterr().out
    assert main(["explain", str(path), "w1", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["axes"][0]["groups"][0]["name"] == "w1:0"
    assert main(["explain", str(path), "nothing"]) == 2


def test_every_small_model_can_be_explained() -> None:
    for make in MODELS.values():
        model = make()
        for initializer in model.graph.initializer:
            if len(initializer.dims):
                for line in explain(model, initializer.name).axes:
                    assert line.groups or line.frozen


def picked(*, apart: bool) -> onnx.ModelProto:
    """A layer of 16 channels, each of which is taken apart, or is bound to its neighbour."""
    parts = [f"p{n}" for n in range(16)]
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "r")]
    if apart:
        nodes += [onnx.helper.make_node("Split", ["r"], parts, name="each", axis=-1)]
        nodes += [node("Tanh", "p2", "t2")]  # between two parts, which could be picked by one Gather
        nodes += [onnx.helper.make_node("Concat", ["t2", *parts[3:9]], ["c"], name="some", axis=-1)]
    else:
        nodes += [node("Slice", "r one far last", "front"), node("Slice", "r zero end last", "back")]
        nodes += [node("Sub", "front back", "c")]
    numbers = {"one": [1], "far": [99], "last": [-1], "zero": [0], "end": [-1]}
    weights = {"w1": normal(8, 16), "w2": normal(7 if apart else 15, 4)}
    if not apart:
        weights |= {name: np.array(value) for name, value in numbers.items()}
    return build([*nodes, node("MatMul", "c w2", "y")], weights, ("N", 8))


@pytest.mark.parametrize(
    ("apart", "why"),
    [
        (True, "by itself an axis of one element (Split"),
        (False, "all channels of an axis are one unit (Slice"),
    ],
)
def test_an_axis_that_cannot_go_by_parts_says_why(apart: bool, why: str) -> None:
    model = picked(apart=apart)
    (line,) = explain(model, "w1", 1).axes
    (told,) = line.frozen
    assert told["channels"] == 16
    assert told["reason"].startswith(why)
    assert told["path"][-1].startswith(("Split", "Slice"))
    with pytest.raises(NothingToPrune, match=re.escape(why)):
        prune(model, ratio=0.5)
