"""What reads a stale size is mended; a cut whose shapes don't come out is refused."""

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from nets import build, node, normal

from onnxprune.cut import mend
from onnxprune.cut.rewrite import rewrite
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.proof.verify import verify


def split_in_two() -> tuple:
    """Eight channels as four pairs, the batch left to Reshape: a stale 2 there halves the batch."""
    weights = {"w1": normal(3, 8), "pairs": np.array([-1, 4, 2]), "w2": normal(2, 5)}
    nodes = [node("MatMul", "x w1", "h"), node("Reshape", "h pairs", "p"), node("MatMul", "p w2", "y")]
    analysis = analyse(Model.load(build(nodes, weights, (2, 3))))
    (pair,) = analysis.grouping.groups
    return analysis, analysis.grouping.dead({pair.name: np.array([0])})


def test_a_reshape_gets_the_sizes_that_are_left() -> None:
    analysis, dead = split_in_two()
    found = rewrite(analysis.model, analysis.coupling, analysis.tracer, dead).model
    assert found.weight("pairs").tolist() == [-1, 4, 1]


def test_a_node_whose_shape_is_not_what_the_cut_implies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stale Reshape runs: only its shape shows that the batch has become 1."""
    analysis, dead = split_in_two()
    monkeypatch.setattr(mend, "emit", lambda node, cut: ())
    says = "would give 'p' the shape (1, 4, 2), where the cut implies (2, 4, 1)"
    with pytest.raises(mend.RewriteError, match=re.escape(says)):
        rewrite(analysis.model, analysis.coupling, analysis.tracer, dead)


def test_a_zero_of_reshape_is_replaced_where_it_copies_another_length() -> None:
    """Of [3, 4, 6] as [6, 4, 3] the four are other elements: without half of the six only two of them are left."""
    weights = {"w1": normal(7, 6), "to": np.array([6, 0, 3]), "w2": normal(4, 5)}
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Reshape", "h to", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1]),
        node("MatMul", "t w2", "y"),
    ]
    analysis = analyse(Model.load(build(nodes, weights, (3, 4, 7))))
    (found,) = analysis.grouping.groups
    assert found.units == 2
    dead = analysis.grouping.dead({found.name: np.array([1])})
    small = rewrite(analysis.model, analysis.coupling, analysis.tracer, dead).model
    assert small.weight("to").tolist() in ([6, 2, 3], [6, -1, 3])


def test_sizes_that_two_nodes_share_are_written_for_each() -> None:
    weights = {"w1": normal(3, 8), "pairs": np.array([-1, 4, 2]), "w2": normal(2, 5), "w3": normal(3, 8)}
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Reshape", "h pairs", "p"),
        node("MatMul", "p w2", "y"),
        node("MatMul", "x w3", "k"),
        node("Reshape", "k pairs", "z"),
    ]
    analysis = analyse(Model.load(build(nodes, weights, (2, 3), outputs={"y": 1, "z": 1})))
    (pair,) = analysis.grouping.groups
    dead = analysis.grouping.dead({pair.name: np.array([0])})
    found = rewrite(analysis.model, analysis.coupling, analysis.tracer, dead).model
    read = [found.weight(n.input[1]).tolist() for n in found.proto.graph.node if n.op_type == "Reshape"]
    assert read == [[-1, 4, 1], [-1, 4, 2]]


def _batch_of(tensor: str) -> list[onnx.NodeProto]:
    return [node("Shape", tensor, "sizes"), node("Gather", "sizes first", "n")]


def _looked_up() -> onnx.ModelProto:
    """Four of sixteen channels, by a table that is as long as the batch."""
    nodes = [
        node("Conv", "x w1", "h", pads=[1] * 4),
        *_batch_of("h"),
        node("Concat", "n rows", "target", axis=0),
        node("Expand", "table target", "each"),
        node("GatherND", "h each", "t", batch_dims=1),
        node("Conv", "t w2", "y"),
    ]
    weights = {
        "w1": normal(16, 3, 3, 3),
        "first": np.array([0]),
        "rows": np.array([4, 1]),
        "w2": normal(6, 4, 1, 1),
    }
    return build(nodes, weights | {"table": np.array([[[1], [3], [4], [6]]])}, ("N", 3, 6, 6))


def _one_position() -> onnx.ModelProto:
    """The first position of each channel, by a table as wide as the channels."""
    nodes = [
        node("MatMul", "x w1", "h"),
        *_batch_of("h"),
        node("Concat", "n rows", "target", axis=0),
        node("Expand", "table target", "each"),
        node("GatherElements", "h each", "t", axis=1),
        node("MatMul", "t w2", "y"),
    ]
    weights = {"w1": normal(6, 8), "first": np.array([0]), "rows": np.array([1, 8]), "w2": normal(8, 5)}
    return build(nodes, weights | {"table": np.array([[[0]]])}, ("N", 3, 6))


@pytest.mark.parametrize("make", [_looked_up, _one_position])
def test_known_values_that_are_cut_are_mended_as_data_is(make: Callable[[], onnx.ModelProto]) -> None:
    model = Model.load(make())
    analysis = analyse(model)
    (found,) = analysis.grouping.groups
    dead = analysis.grouping.dead({found.name: np.arange(0, found.units, 2)})
    small = rewrite(model, analysis.coupling, analysis.tracer, dead, analysis.other_values()).model
    proof = verify(analysis, dead, small)
    assert proof.passed, proof.failures
