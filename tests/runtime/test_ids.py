"""Random ids: what the tables behind an input have rows for, whatever is added on the way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import node, normal
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.model import Model
from onnxprune.runtime.ids import Ids, id_bounds
from onnxprune.runtime.inputs import random_inputs
from onnxprune.runtime.session import open_session

ROWS = 40


def table(nodes: list[onnx.NodeProto], constants: dict[str, object], fields: int = 4) -> onnx.ModelProto:
    """Ids of some fields that look up rows of one table at 'at', and two layers behind it."""
    nodes = [
        *nodes,
        node("Gather", "table at", "rows"),
        node("MatMul", "rows w", "wide"),
        node("Relu", "wide", "above"),
        node("MatMul", "above v", "y"),
    ]
    weights = {"table": normal(ROWS, 6), "w": normal(6, 8), "v": normal(8, 2)} | constants
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", fields])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def bounds(model: onnx.ModelProto) -> tuple[object, object]:
    own = id_bounds(Model.load(model), {})["ids"]
    return own.least.tolist(), own.end.tolist()


FIELDS = [0, 10, 20, 35]
MADE = {
    "at their places": ([node("Add", "off ids", "at")], {"off": FIELDS}, (0, [40, 30, 20, 5])),
    "cast before": (
        [node("Cast", "ids", "short", to=6), node("Add", "short off", "at")],
        {"off": np.array(FIELDS, np.int32)},
        (0, [40, 30, 20, 5]),
    ),
    "moved before": (
        [node("Transpose", "ids", "turned", perm=[1, 0]), node("Add", "turned off", "at")],
        {"off": np.array(FIELDS)[:, None]},
        (0, 5),
    ),
    "moved behind": (
        [node("Add", "ids off", "sum"), node("Transpose", "sum", "at", perm=[1, 0])],
        {"off": FIELDS},
        (0, [40, 30, 20, 5]),
    ),
    "subtracted": ([node("Sub", "ids off", "at")], {"off": FIELDS}, (FIELDS, [40, 50, 60, 75])),
    "twice": (
        [node("Add", "ids off", "sum"), node("Sub", "sum one", "at")],
        {"off": FIELDS, "one": 1},
        ([1, 0, 0, 0], [41, 31, 21, 6]),
    ),
    "one way or another": (
        [node("Add", "ids off", "sum"), node("Concat", "ids sum", "at", axis=1)],
        {"off": [3, 3, 3, 7]},
        (0, 33),
    ),
    "and what isn't known": (
        [node("Add", "ids off", "sum"), node("Mul", "ids ids", "more"), node("Add", "sum more", "at")],
        {"off": 10},
        (0, 15),
    ),
}


@pytest.mark.parametrize("how", MADE)
def test_offsets_are_read(how: str) -> None:
    nodes, constants, known = MADE[how]
    model = table(nodes, constants)
    least, end = bounds(model)
    assert (np.array(least) == known[0]).all()
    assert (np.array(end) == known[1]).all()


@pytest.mark.parametrize("how", sorted(MADE.keys() - {"and what isn't known"}))
@pytest.mark.parametrize("ones", [False, True])
def test_ids_with_offsets_are_in_the_table(how: str, ones: bool) -> None:
    model = table(*MADE[how][:2])
    session = open_session(model)
    for seed in range(4):
        feeds = random_inputs(Model.load(model), {"ids": (9, 4)}, np.random.default_rng(seed), ones=ones)
        session.run(feeds)
        assert ones or len(np.unique(feeds["ids"])) > 4


def test_the_bounds_of_several_tables_are_kept() -> None:
    first, other = Ids(np.array([0, 2]), np.array([5, 9])), Ids(np.array([1]), np.array([7]))
    both = first.both(other)
    assert (both.least.tolist(), both.end.tolist()) == ([1, 2], [5, 7])
    apart = first.both(Ids(np.zeros(3, int), np.array([4, 3, 8])))
    assert (apart.least.tolist(), apart.end.tolist()) == (2, 3)
    drawn = first.draw((3, 1), np.random.default_rng(0))  # each of these ids is read at both places
    assert 2 <= drawn.min() <= drawn.max() < 5


def test_fields_of_one_table_are_proved_on_ids_of_each() -> None:
    model = table(*MADE["at their places"][:2])
    for seed in range(3):
        result = onnxprune.prune(model, ratio=0.5, align=None, seed=seed)
        assert result.report.law1["inputs"] == 3
        assert not [n for n in result.report.notes if "all one" in n or "scaled" in n]
    onnxprune.prune(model, ratio=0.5, align=None, calib="synthetic", samples=16)


def test_ids_that_are_not_understood_are_said_not_to_run() -> None:
    """Nothing is followed through a product: of what is drawn here, ones alone are in the table."""
    nodes = [node("Mul", "ids five", "more"), node("Sub", "more least", "at")]
    model = table(nodes, {"five": 5 * ROWS, "least": 5 * ROWS})
    notes = onnxprune.prune(model, ratio=0.5, align=None).report.notes
    assert "integer inputs were all one, since the original doesn't run otherwise" in notes
