"""Whatever changes a model holds at sizes that it wasn't analysed with, not pruning alone."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import Model
from onnxprune.calibration.samples import load_samples
from onnxprune.graph import analysis as analysis_module
from onnxprune.graph.analysis import analyse
from onnxprune.permutation.permute import permute
from onnxprune.rotation.basis import rotate

from pass_models import ops, run as passed  # isort: skip
from size_models import CASES, Case, Sized  # isort: skip
from graph.test_sizes import TOLERANCE, feeds, masked, run  # isort: skip


def gap(case: Case, one: onnx.ModelProto, two: onnx.ModelProto) -> float:
    """Greatest relative difference of two models over all sizes of a case."""
    found = []
    for size in (case.at, *case.runs):
        given = feeds(one, size)
        want, have = run(one, given), run(two, given)
        assert np.abs(want).max() > 1e-3
        found.append(float(np.abs(have - want).max() / np.abs(want).max()))
    return max(found)


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in model.graph.initializer}


def silenced(case: Case) -> onnx.ModelProto:
    """Zero half of the table, and every second neuron."""
    model = case.model()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "pos":
            array[(slice(None),) * case.axis + (slice(array.shape[case.axis] // 2, None),)] = 0
        if tensor.name == "w1":
            array[:, ::2] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@pytest.mark.parametrize("name", ["sliced", "position ids", "window", "causal", "rotary", "padded", "split"])
def test_shrink_keeps_rows_that_are_zero(name: str) -> None:
    case = CASES[name]
    model = silenced(case)
    found = passed(model, "shrink")
    before, after = shapes(model), shapes(found)
    assert before["pos"] == after["pos"]
    assert after["w1"][1] == before["w1"][1] // 2
    assert gap(case, model, found) <= TOLERANCE


def test_the_locks_are_what_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis_module, "follow", lambda *_: None)
    model = silenced(CASES["sliced"])
    assert shapes(passed(model, "shrink{verify=false}"))["pos"] != shapes(model)["pos"]
    assert shapes(passed(model, "shrink"))["pos"] == shapes(model)["pos"], (
        "the comparison at other sizes sees it, too"
    )


@pytest.mark.parametrize("name", CASES)
def test_resolved_shapes_hold(name: str) -> None:
    case = CASES[name]
    model = case.model()
    assert gap(case, model, passed(model, "resolve_shapes")) == 0


def test_a_maximum_that_no_size_reaches_is_not_known() -> None:
    """What comes out as 1,000 for all sizes that anyone would try."""
    b = Sized()
    most = b.do("Max", b.size("x", 1), 1000)
    y = b.do("Mul", "x", b.floats(most))
    model = b.model({"x": ("N", "T", 4)}, y)
    found = passed(model, "resolve_shapes")
    assert "Max" in ops(found)
    given = {"x": np.ones((1, 1200, 4), np.float32)}
    assert np.array_equal(run(model, given), run(found, given))


@pytest.mark.parametrize("name", ["sliced", "causal", "rotary", "class token"])
def test_another_order_holds(name: str) -> None:
    case = CASES[name]
    model = Model.load(case.model())
    rng = np.random.default_rng(0)
    found = permute(model, lambda weight: rng.random(model.info(weight).dims), (2, 4), rounds=5)
    assert found.gains
    assert gap(case, model.to_proto(), found.model.to_proto()) <= TOLERANCE


def samples(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(2).normal(size=(40, 12, 16)).astype(np.float32)}


@pytest.mark.parametrize("name", ["causal", "alibi", "buckets"])
def test_rotated_heads_hold(name: str) -> None:
    case = CASES[name]
    proto = case.model()
    analysis = analyse(Model.load(proto))
    given = load_samples(proto.graph, samples(proto), types=analysis.inputs)
    found = rotate(analysis, analysis.grouping.groups, given)
    assert found.mixed
    assert gap(case, proto, found.analysis.model.to_proto()) <= TOLERANCE


@pytest.mark.parametrize("name", ["sliced", "class token", "causal"])
def test_with_samples_too(name: str) -> None:
    case = CASES[name]
    model = case.model()
    result = onnxprune.prune(
        model, ratio=0.5, align=1, calib=samples(model), recover="none", rotate=False, verify=False
    )
    cuts = result.report.cuts
    assert ("w1", 1) in {(cut.tensor, cut.axis) for cut in cuts}
    assert shapes(result.model)["pos"][case.axis] == shapes(model)["pos"][case.axis]
    assert gap(case, masked(model, cuts), result.model) <= TOLERANCE


def test_sizes_of_what_samples_give_are_known_to_a_part() -> None:
    """A table resized to an image: the part of the model that starts behind the image must know its rank."""
    b = Sized()
    x = b.op("Relu", [b.conv("x", "conv1", 3, 8)], "relu1")
    x = b.op("Relu", [b.conv(x, "conv2", 8, 8)], "relu2")
    place = b.do("Slice", b.do("Shape", x), [2], [4], [0])
    sizes = b.do("Concat", [1, 8], place, axis=0)
    table = b.op("Resize", [b.weight("pos", 1, 8, 6, 6), "", "", sizes], "resize", mode="linear")
    y = b.conv(b.op("Relu", [b.op("Add", [x, table], "add")], "relu3"), "conv3", 8, 4)
    model = b.model({"x": ("N", 3, "H", "W")}, y)
    given = {"x": np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)}
    result = onnxprune.prune(model, ratio=0.5, align=1, calib=given, recover="lstsq")
    assert shapes(result.model)["pos"] == [1, 4, 6, 6]
