"""What errors of groups weigh at a model's end, found by looks."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.calibration.ends import Ends, ends_of
from onnxprune.calibration.samples import load_samples
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.pruning import weighing
from onnxprune.pruning.on_samples import FromSamples
from onnxprune.pruning.weighing import bundles, depths, few_of, looked, weights_of
from onnxprune.reconstruction.least_squares import Curve


def test_depth_is_the_mean_over_readers() -> None:
    readers = {"first": [3], "last": [9], "stream": [3, 9]}
    assert depths(readers, [3, 5, 9]) == {"first": 0.0, "last": 1.0, "stream": 0.5}


def test_what_nobody_could_measure_weighs_as_the_dearest() -> None:
    """Else weights that make late errors dear let all go that is known from norms alone."""
    curve = Curve(np.arange(3), np.array([0.0, 1.0, 2.0, np.inf]))
    made = SimpleNamespace(curves=dict.fromkeys(("first", "last", "norm"), curve))
    weights = {"first": 0.5, "last": 3.0}
    rankings = FromSamples._weighed(SimpleNamespace(calibration=made), weights)  # type: ignore[arg-type]
    assert rankings["norm"].error[1] == pytest.approx(rankings["last"].error[1])
    assert rankings["last"].error[1] == pytest.approx(6 * rankings["first"].error[1])


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=30), st.integers(1, 12))
def test_bundles_are_neighbours_in_depth_and_hold_each_name_once(
    found: list[tuple[float, float]], most: int
) -> None:
    errors, depth = ({str(n): pair[i] for n, pair in enumerate(found)} for i in (0, 1))
    parts = bundles(errors, depth, most)
    assert sorted(name for part in parts for name in part) == sorted(errors)
    assert len(parts) == min(most, len(errors))
    row = [depth[name] for part in parts for name in part]
    assert row == sorted(row)


def test_the_dearest_are_looked_at_alone() -> None:
    depth = {name: float(n) for n, name in enumerate("abcdef")}
    parts = bundles({"a": 1, "b": 9, "c": 1, "d": 1, "e": 9, "f": 1}, depth, 4)
    assert ["c", "d"] in parts
    assert sum(len(part) for part in parts if {"b", "e"} & {*part}) <= 4


def test_looks_find_what_errors_cost_about_their_mean_within_bounds() -> None:
    true = {"a": 1.0, "b": 4.0, "c": 1e9, "d": 0.0, "e": np.nan}

    def far(names: Sequence[str]) -> float:
        return sum(true[n] for n in names)

    told: list[str] = []
    found = looked({"a": 3.0, "b": 3.0}, [["a"], ["b"]], far, told.append)
    assert found == {"a": pytest.approx(0.5), "b": pytest.approx(2.0)}
    seeming = looked({"a": 0.5, "b": 8.0}, [["a"], ["b"]], far, lambda what: None)
    assert seeming == {"a": pytest.approx(2.0), "b": pytest.approx(0.5)}
    assert told == ["a", "b"]
    together = looked(dict.fromkeys("ab", 2.0), [["a", "b"]], far, told.append)
    assert together == {"a": pytest.approx(1.0), "b": pytest.approx(1.0)}
    assert told[-1] == "a and 1 more"
    wild = looked(dict.fromkeys("acd", 1.0), [["a"], ["c"], ["d"]], far, told.append)
    assert wild["c"] == weighing.MOST
    assert wild["d"] == 1 / weighing.MOST
    assert looked({"e": 1.0}, [["e"]], far, told.append) == {}
    assert looked({"a": 1.0, "e": 1.0}, [["a"], ["e"]], far, told.append) == {"a": pytest.approx(1.0)}


def net(
    outputs: Sequence[str], *parts: tuple[str, Sequence[str], str, dict[str, Any]], **arrays: Any
) -> onnx.ModelProto:
    nodes = [helper.make_node(op, list(reads), [gives], **more) for op, reads, gives, more in parts]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 12])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    weights = [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", values, ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def two_branches() -> onnx.ModelProto:
    """Two branches of equal layers; what one gives counts a hundredth of the other in the sum."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}{n}": rng.standard_normal((12, 16) if n == 1 else (16, 12)) for name in "pq" for n in (1, 2)
    }
    parts = [
        part
        for name in "pq"
        for part in (
            ("MatMul", ["x", f"{name}1"], f"{name}h", {}),
            ("Relu", [f"{name}h"], f"{name}r", {}),
            ("MatMul", [f"{name}r", f"{name}2"], f"{name}o", {}),
            ("Tanh", [f"{name}o"], f"{name}t", {}),
        )
    ]
    rest = [("Mul", ["qt", "small"], "qs", {}), ("Add", ["pt", "qs"], "y", {})]
    return net(["y"], *parts, *rest, **arrays, small=0.1)


def test_what_hardly_counts_at_the_end_goes_first() -> None:
    """The curves of both branches are alike; only the outputs say which of them matters."""
    x = np.random.default_rng(1).standard_normal((200, 12)).astype(np.float32)
    asked: dict[str, Any] = {"target": "macs=0.7", "align": None, "calib": {"x": x}, "recover": "lstsq"}

    def gone(trials: int) -> dict[str, int]:
        report = onnxprune.prune(two_branches(), trials=trials, **asked).report
        return {name: sum(g["removed"] for g in report.groups if g["name"].startswith(name)) for name in "pq"}

    blind, seen = gone(0), gone(12)
    assert abs(blind["p"] - blind["q"]) <= 3
    assert seen["q"] >= seen["p"] + 6


def test_all_outputs_count_and_those_of_other_shapes_do_not() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 12, 3)).astype(np.float32)
    x = rng.standard_normal((40, 12)).astype(np.float32)

    def model(left: Any, right: Any) -> Model:
        return Model.load(
            net(["y", "z"], ("MatMul", ["x", "a"], "y", {}), ("MatMul", ["x", "b"], "z", {}), a=left, b=right)
        )

    whole = model(a, b)
    ends = Ends(whole, load_samples(whole.proto.graph, {"x": x}))
    assert ends.distance(whole) == 0.0
    assert ends.distance(model(a, 0.9 * b)) == pytest.approx(0.5 * 0.01, rel=1e-4)
    assert ends.distance(model(1.2 * a, 0.9 * b)) == pytest.approx(0.5 * (0.04 + 0.01), rel=1e-4)
    assert ends.distance(model(a[:, :2], 0.9 * b)) == pytest.approx(0.01, rel=1e-4)
    assert np.isnan(ends.distance(model(a[:, :2], b[:, :2])))


def ended(
    outputs: Sequence[tuple[str, int]], *rest: tuple[str, Sequence[str], Sequence[str], dict[str, Any]]
) -> Any:
    """Two branches, and nodes behind them; the outputs are asked for with their types."""
    made = two_branches()
    graph = made.graph
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in outputs)
    graph.node.extend(
        helper.make_node(op, list(reads), list(gives), **more) for op, reads, gives, more in rest
    )
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.int64), name)
        for name, value in (("k", [3]), ("last", [1]), ("shape", [0, 3, 4]))
    )
    return onnx.shape_inference.infer_shapes(made)


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize(
    ("outputs", "rest", "found"),
    [
        ([("y", FLOAT)], [], ["y"]),
        ([("c", INT64)], [("ArgMax", ["y"], ["c"], {"axis": 1})], ["y"]),
        (
            [("c", INT64), ("s", FLOAT)],
            [("ArgMax", ["s"], ["c"], {"axis": 1}), ("Softmax", ["y"], ["s"], {"axis": 1})],
            ["s"],
        ),
        (  # boxes in the order of their scores
            [("b", FLOAT)],
            [
                ("Sigmoid", ["y"], ["s"], {}),
                ("TopK", ["s", "k"], ["v", "i"], {}),
                ("Exp", ["y"], ["e"], {}),
                ("GatherElements", ["e", "i"], ["g"], {"axis": 1}),
                ("Neg", ["g"], ["b"], {}),
            ],
            ["e", "s"],
        ),
        (  # the mask of an activation, and sizes: integers that choose nothing
            [("z", FLOAT)],
            [
                ("Shape", ["y"], ["n"], {}),
                ("Reshape", ["y", "n"], ["r"], {}),
                ("Greater", ["r", "small"], ["m"], {}),
                ("Where", ["m", "r", "small"], ["z"], {}),
            ],
            ["z"],
        ),
    ],
)
def test_looks_are_at_what_changes_little_where_layers_do(outputs: Any, rest: Any, found: list[str]) -> None:
    analysis = analyse(Model.load(ended(outputs, *sorted(rest, key=lambda node: node[0] == "ArgMax"))))
    layers = [n for n, a in enumerate(analysis.coupling.nodes) if a.proto.op_type == "MatMul"]
    assert sorted(ends_of(analysis, layers)) == found


def test_integers_that_a_layer_reads_choose_nothing_at_the_end() -> None:
    """As where experts are chosen: what they give is compared all the same."""
    rest = [
        ("TopK", ["pt", "k"], ["v", "i"], {}),
        ("GatherElements", ["y", "i"], ["g"], {"axis": 1}),
        ("MatMul", ["g", "w3"], ["m"], {}),
        ("Add", ["m", "g"], ["z"], {}),
    ]
    made = ended([("z", FLOAT)], *rest)
    made.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3), np.float32), "w3"))
    analysis = analyse(Model.load(made))
    layers = [n for n, a in enumerate(analysis.coupling.nodes) if a.proto.op_type == "MatMul"]
    assert ends_of(analysis, layers) == ["z"]
    assert sorted(ends_of(analysis, layers[:-1])) == ["pt", "y"]  # were the last one no layer


def test_a_model_that_gives_classes_is_looked_at_too() -> None:
    x = np.random.default_rng(1).standard_normal((200, 12)).astype(np.float32)
    made = ended([("c", INT64)], ("ArgMax", ["y"], ["c"], {"axis": 1}))
    asked: dict[str, Any] = {"target": "macs=0.7", "align": None, "calib": {"x": x}, "recover": "lstsq"}

    def gone(trials: int) -> dict[str, int]:
        report = onnxprune.prune(made, trials=trials, **asked).report
        return {name: sum(g["removed"] for g in report.groups if g["name"].startswith(name)) for name in "pq"}

    assert gone(12)["q"] >= gone(0)["q"] + 3


@pytest.mark.parametrize(
    ("macs", "expected"), [(1 << 20, 256), (1 << 28, 256), (1 << 29, 128), (1 << 40, 64)]
)
def test_looks_take_fewer_samples_of_a_model_that_costs_more(
    monkeypatch: pytest.MonkeyPatch, macs: int, expected: int
) -> None:
    """By what a sample takes, whatever batch was analysed."""
    model = Model.load(two_branches())
    analysis = analyse(model, input_shapes={"x": (5, 12)})
    samples = load_samples(model.proto.graph, {"x": np.zeros((40, 12), np.float32)})
    monkeypatch.setattr(weighing, "macs_of_run", lambda coupling: 5 * macs)
    assert weighing._bearable(analysis, samples) == expected


@pytest.mark.parametrize(
    ("count", "fitted", "found"),
    [
        (31, None, None),
        (32, None, (16, 16)),
        (60, 64, (30, 30)),
        (200, 64, (64, 136)),
        (900, 64, (64, 192)),
        (900, None, (128, 128)),
    ],
)
def test_few_samples_are_all_used_and_what_is_fitted_on_does_not_judge(
    count: int, fitted: int | None, found: tuple[int, int] | None
) -> None:
    model = Model.load(two_branches())
    x = np.arange(12 * count, dtype=np.float32).reshape(count, 12)
    parts = few_of(load_samples(model.proto.graph, {"x": x}), fitted)
    assert (None if parts is None else tuple(part.count for part in parts)) == found
    if parts is not None:
        rows = [{float(row[0]) for batch in part.batches for row in batch["x"]} for part in parts]
        assert not rows[0] & rows[1]


def test_nothing_is_looked_at_where_no_group_has_a_curve_that_layers_gave() -> None:
    model = Model.load(two_branches())
    samples = load_samples(model.proto.graph, {"x": np.zeros((40, 12), np.float32)})
    run = SimpleNamespace(model=model, options=SimpleNamespace(trials=8), notes=[])
    curve = Curve(np.arange(2), np.array([0.0, np.inf, np.inf]))
    made = SimpleNamespace(
        analysis=None,
        measure=SimpleNamespace(curve=None),
        sites=[],
        on=lambda *_: None,
        curves={"a": curve, "b": curve},
    )
    for places in ({}, {"a": [0], "b": [0, 1]}):
        made.places = places
        found = weights_of(run, made, samples, lambda weights: {})  # type: ignore[arg-type]
        assert found == {name: weighing.SHARED if len(read) > 1 else 1.0 for name, read in places.items()}
    assert not run.notes
