"""Rules of ops that move values."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.errors import CalibrationError
from tests.gradient.finite import (
    X,
    disagreement,
    i64,
    linear_gap,
    model,
    node,
    normal,
)

CLOSE = 2e-4
Nodes = list[onnx.NodeProto]

MOVES: dict[str, tuple[Callable[[], Nodes], dict[str, np.ndarray], int]] = {
    "reshape": (lambda: [node("Reshape", "x", "s")], {"s": i64(0, -1)}, 17),
    "flatten": (lambda: [node("Flatten", "x", axis=2)], {}, 17),
    "unsqueeze": (lambda: [node("Unsqueeze", "x", "s")], {"s": i64(1, 4)}, 17),
    "unsqueeze, old": (lambda: [node("Unsqueeze", "x", axes=[1], out="h"), node("Squeeze", "h", axes=[1])], {}, 9),
    "transpose": (lambda: [node("Transpose", "x", perm=[2, 0, 1])], {}, 17),
    "reverse": (lambda: [node("Transpose", "x")], {}, 17),
    "concat": (lambda: [node("Tanh", "x", out="h"), node("Concat", "h", "x", "h", axis=-2)], {}, 17),
    "concat, old": (lambda: [node("Concat", "x", "x", axis=1)], {}, 9),
    "slice": (lambda: [node("Slice", "x", "a", "b", "c", "d")],
              {"a": i64(1, -1), "b": i64(4, -9), "c": i64(1, 2), "d": i64(2, -1)}, 17),
    "slice, old": (lambda: [node("Slice", "x", starts=[1, 0], ends=[3, 2], axes=[1, 2])], {}, 9),
    "gather": (lambda: [node("Gather", "x", "i", axis=1)], {"i": i64(3, 0, -2)}, 17),
    "gather twice": (lambda: [node("Gather", "x", "i", axis=2)], {"i": i64(3, 0, 3)}, 17),
    "gather one": (lambda: [node("Gather", "x", "i", axis=1)], {"i": np.int64(-1)}, 17),
    "gather table": (lambda: [node("Gather", "x", "i", axis=1)], {"i": np.array([[0, 1, 1], [3, -1, 2]])}, 17),
    "trilu": (lambda: [node("Trilu", "x", "k", upper=0)], {"k": np.int64(1)}, 17),
    "elements": (lambda: [node("GatherElements", "x", "i", axis=1)],
                 {"i": np.array([[[1, 0, -1, 2, 2], [1, 1, 3, 2, 0]]] * 3)}, 13),
    "of places": (lambda: [node("GatherND", "x", "i")], {"i": np.array([[0, 1], [2, -1], [0, 1]])}, 17),
    "pad": (lambda: [node("Pad", "x", "p")], {"p": i64(0, 1, 2, 0, 0, 3)}, 17),
    "pad, old": (lambda: [node("Pad", "x", pads=[0, 1, 2, 0, 0, 3])], {}, 9),
    "pad, reflecting": (lambda: [node("Pad", "x", "p", mode="reflect")], {"p": i64(0, 2, 1, 0, 1, 2)}, 17),
    "pad, edge": (lambda: [node("Pad", "x", "p", mode="edge")], {"p": i64(0, 2, 1, 0, 1, 2)}, 17),
    "tile": (lambda: [node("Tile", "x", "r")], {"r": i64(1, 2, 3)}, 17),
    "dropout": (lambda: [node("Dropout", "x")], {}, 17),
    "cast": (lambda: [node("Cast", "x", to=1)], {}, 17),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVES)
def test_movement(case: str) -> None:
    nodes, weights, opset = MOVES[case]
    assert disagreement(model(nodes(), X, weights, opset), X, ["x"]) < CLOSE


def test_pad_that_crops() -> None:
    proto = model([node("Pad", "x", "p")], X, {"p": i64(0, -1, 2, 0, -2, -1)})
    assert linear_gap(proto, X) < CLOSE


@pytest.mark.parametrize(
    ("opset", "axis", "largest"), [(9, 1, 1), (10, -1, 1), (11, 1, 0), (17, -1, 1), (24, 0, 1)]
)
def test_the_largest_of_an_axis(opset: int, axis: int, largest: int) -> None:
    attrs = {"largest": largest} if opset >= 11 else {}
    weights = {"k": i64(2)}
    if opset < 10:
        attrs["k"], weights = 2, {}
    top = helper.make_node("TopK", ["x", *weights], ["top", "i"], axis=axis, **attrs)
    proto = model([top, node("Mul", "top", "top")], X, weights, opset)
    assert disagreement(proto, X, ["x"]) < CLOSE


def test_scores_that_are_masked_by_infinity() -> None:
    """Zeros times what is infinite would be no numbers."""
    mask = np.array([[0, -np.inf, 0, 0, 0]], np.float32)
    top = helper.make_node("TopK", ["masked", "k"], ["top", "i"], axis=-1)
    nodes = [node("Add", "x", "mask", out="masked"), top, node("Tanh", "top")]
    assert disagreement(model(nodes, X, {"mask": mask, "k": i64(2)}), X, ["x"]) < CLOSE


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split_of_which_a_part_is_read(opset: int) -> None:
    sizes = {"split": [1, 2, 1]} if opset < 13 else {}
    inputs = ["x"] if opset < 13 else ["x", "s"]
    nodes = [
        helper.make_node("Split", inputs, ["a", "b", "c"], axis=1, **sizes),
        node("Concat", "c", "a", axis=1),
    ]
    assert disagreement(model(nodes, X, {"s": i64(1, 2, 1)}, opset), X, ["x"]) < CLOSE


def test_expand_and_ids_at_run_time() -> None:
    feeds = {"x": normal(3, 1, 5)}
    assert disagreement(model([node("Expand", "x", "s")], feeds, {"s": i64(1, 4, 5)}), feeds, ["x"]) < CLOSE
    ids = {"i": np.array([[1, 0, -1], [2, 2, 3]])}
    proto = model([node("Gather", "w", "i")], ids, {"w": normal(4, 6)})
    assert disagreement(proto, ids, ["w"]) < CLOSE


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("kind", ["ScatterElements", "ScatterND"])
def test_what_is_written_to_places(kind: str, reduction: str) -> None:
    again = int(reduction == "add")  # the first place once more
    if kind == "ScatterND":
        places, updates, attrs = np.array([[0, 1], [2, 3], [0, 1 + 1 - again]]), normal(3, 5), {}
    else:
        places, updates, attrs = np.array([[[1], [0], [2 - again]]] * 3), normal(3, 3, 1), {"axis": 1}
    nodes = [node("Tanh", "x", out="h"), node(kind, "h", "i", "u", reduction=reduction, **attrs)]
    proto = model(nodes, X, {"i": places, "u": updates}, 18)
    assert disagreement(proto, X, ["x", "u"]) < CLOSE


def test_other_reductions_and_old_opsets_have_none() -> None:
    for op, reduction, opset in (("ScatterElements", "max", 18), ("GatherElements", None, 12)):
        given = ["x", "i", "u"][: 3 if reduction else 2]
        attrs = {"reduction": reduction} if reduction else {}
        proto = model(
            [node(op, *given, axis=1, **attrs)],
            X,
            {"i": np.zeros((3, 1, 5), np.int64), "u": normal(3, 1, 5)},
            opset,
        )
        with pytest.raises(CalibrationError, match=reduction or "opset"):
            disagreement(proto, X, ["x"])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_blocks(mode: str) -> None:
    feeds = {"x": normal(2, 8, 2, 3)}
    assert (
        disagreement(model([node("DepthToSpace", "x", blocksize=2, mode=mode)], feeds), feeds, ["x"]) < CLOSE
    )
    feeds = {"x": normal(2, 2, 4, 6)}
    assert disagreement(model([node("SpaceToDepth", "x", blocksize=2)], feeds), feeds, ["x"]) < CLOSE


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize(mode: str, coordinates: str) -> None:
    feeds = {"x": normal(2, 3, 4, 5)}
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
    for inputs, opset in ((("x", "", "r"), 17), (("x", "", "", "s"), 17), (("x", "e", "e", "s"), 11)):
        weights = {
            "r": np.array([1, 1, 2, 1.6], np.float32),
            "s": i64(2, 3, 7, 3),
            "e": np.zeros(0, np.float32),
        }
        assert (
            linear_gap(
                model([node("Resize", *inputs, **attrs)], feeds, weights, opset, free="r" in inputs), feeds
            )
            < CLOSE
        )
