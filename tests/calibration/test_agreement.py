"""Figures of agreement where the outputs are numbers of classes."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from pruning.test_calibrated import images, residual

import onnxprune
from onnxprune.calibration import agreement as _agreement
from onnxprune.calibration.agreement import Outputs, compare, distance, outputs, paired
from onnxprune.calibration.samples import load_samples
from onnxprune.errors import CalibrationError
from onnxprune.model import Model
from onnxprune.runtime.saturation import saturates


def ending(op, kind, **attrs):
    """The residual net with another last node."""
    model = residual()
    graph = model.graph
    last = graph.output[0].name
    graph.node.append(helper.make_node(op, [last], ["number"], **attrs))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("number", kind, None))
    return model


def test_integers_are_numbers_of_classes():
    a = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    b = np.array([[0, 1, 2, 2], [4, 5, 6, 7]])
    found = compare(a, b, labels=b)
    assert found["agreement"] == found["cosine"] == 7 / 8
    hot = [np.eye(8)[x.ravel()] for x in (a, b)]
    assert found["relative_error"] == pytest.approx(np.linalg.norm(hot[0] - hot[1]) / np.linalg.norm(hot[0]))
    assert (found["accuracy"]["before"], found["accuracy"]["after"]) == (87.5, 100.0)
    assert distance(a, a) == 0 < distance(a, b) < distance(a, a + 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_said_of_outputs_that_are_no_numbers(value):
    a = np.random.default_rng(0).standard_normal((20, 5))
    b = np.where(np.arange(20)[:, None] == 3, value, a)
    with pytest.raises(CalibrationError, match="NaN or infinity on the samples"):
        compare(b, a)


def test_classes_that_are_ruled_out_count_nothing():
    a = np.random.default_rng(0).standard_normal((20, 5))
    b = a + 0.1 * np.random.default_rng(1).standard_normal((20, 5))
    lost = np.full((20, 1), -np.inf)
    found = compare(np.hstack([a, lost]), np.hstack([b, lost]))
    expected = compare(a, b)
    assert {k: found[k] for k in ("relative_error", "cosine", "kl", "agreement")} == pytest.approx(
        {k: expected[k] for k in ("relative_error", "cosine", "kl", "agreement")}
    )


def test_samples_of_nothing_in_both_agree():
    a = np.random.default_rng(0).standard_normal((4, 5))
    a[1] = 0
    assert compare(a, a)["cosine"] == pytest.approx(1)
    assert compare(a, a + (np.arange(4) == 1)[:, None])["cosine"] == pytest.approx(0.75)


def test_the_interval_of_a_drop_comes_from_the_items_that_differ() -> None:
    same = paired(0, 0, 1000)
    assert same[0] == -same[1]
    assert same[1] < 0.003
    low, high = paired(30, 10, 1000)  # as Agresti and Min have it: 20.5 / 1002 about its middle
    assert (low + high) / 2 == pytest.approx(20 / 1002)
    wide = paired(130, 110, 1000)
    assert wide[0] < 0 < low
    assert wide[1] > high


def test_a_model_that_ends_in_argmax_is_pruned_with_samples():
    model = ending("ArgMax", TensorProto.INT64, axis=1, keepdims=0)
    x = images()
    result = onnxprune.prune(model, target="macs=0.7", calib={"x": x}, align=None)
    found = result.report.calibration["original"]
    assert 0.5 < found["agreement"] <= 1
    assert "kl" not in found
    result.report.show()


def test_outputs_without_numbers_are_refused():
    model = ending("SequenceConstruct", TensorProto.FLOAT)
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("number", TensorProto.FLOAT, None))
    loaded = Model.load(model)
    samples = load_samples(loaded.proto.graph, {"x": images(20)})
    with pytest.raises(CalibrationError, match="no output of numbers"):
        outputs(loaded, samples)


@pytest.mark.parametrize("shape", [(30, 7), (30, 3, 5), (30, 7, 1, 1)])
def test_outputs_are_compared_in_pieces_as_they_are_whole(shape, monkeypatch):
    rng = np.random.default_rng(0)
    one = rng.standard_normal(shape).astype(np.float32)
    two = one + 0.3 * rng.standard_normal(shape).astype(np.float32)
    labels = rng.integers(0, 7, 30)
    whole = compare(one, two, labels)
    monkeypatch.setattr(_agreement, "ENTRIES", 40)
    seen = []
    monkeypatch.setattr(_agreement._Figures, "of", _watched(_agreement._Figures.of, seen))
    for cuts in ([], [10, 11, 27], [2, 4, 6]):
        pieces = compare(np.split(one, cuts), np.split(two, cuts), labels)
        assert pieces.keys() == whole.keys()
        for name, value in whole.items():
            exact = name in ("accuracy", "agreement", "agreement_interval", "samples")
            assert pieces[name] == (value if exact else pytest.approx(value, rel=1e-12))
    assert len(seen) > 3 * 3
    assert max(seen) <= 40 + 10 * 15
    assert sum(seen) == 3 * one.size


def _watched(function, seen):
    def of(original, pruned, classes):
        seen.append(original.size)
        return function(original, pruned, classes)

    return of


def test_numbers_of_classes_are_compared_batch_by_batch_as_well():
    a, b = np.arange(12), np.array([*range(11), 0])
    assert compare([a[:5], a[5:]], [b[:5], b[5:]], labels=a) == compare(a, b, labels=a)


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_outputs_are_held_while_there_is_room(room):
    model, x = Model.load(residual()), images()
    samples = load_samples(model.proto.graph, {"x": x}, types={"x": (1, *x.shape[1:])}).cut_into(16)
    given = Outputs(model, samples, room=room)
    first = list(given)
    np.testing.assert_array_equal(np.concatenate(first), outputs(model, samples))
    again = list(given)
    assert all(a is b for a, b in zip(first, again, strict=True)) == (room > 0)
    np.testing.assert_array_equal(np.concatenate(again), given.whole())


def masked(shape, spoilt=()):
    """States of positions, or one number for each, from which the positions in `spoilt` are made far off."""
    far = np.zeros((shape[1], *[1] * (len(shape) - 2)), np.float32)
    far[list(spoilt)] = 100.0
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "far"], ["y"])],
        "masked",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape[1:]]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["N", shape[1]]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(far, "far")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("shape", "heeded"), [((6, 5, 3), True), ((6, 5), False)])
def test_states_of_padding_count_nothing(shape, heeded):
    """What stands at padding is read by nobody; a number for each position may be the score of a class."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    mask = np.ones(shape[:2], np.int64)
    mask[:, 3:] = 0
    whole, padding, real = (Model.load(masked(shape, spoilt)) for spoilt in ((), (3, 4), (2,)))
    types = {"x": (1, *shape[1:]), "attention_mask": (1, shape[1])}
    samples = load_samples(whole.proto.graph, {"x": x, "attention_mask": mask}, types=types).cut_into(2)
    dense = Outputs(whole, samples)
    assert (distance(dense, Outputs(padding, samples)) == 0) is heeded
    assert distance(dense, Outputs(real, samples)) > 1


def positions(kind):
    """A class for each position of texts of any length; as scores, or as their numbers."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["numbers"], axis=-1, keepdims=0),
    ]
    weights = {"table": (50, 12), "w1": (12, 16), "w2": (16, 5)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "length", 5])
            if kind == "scores"
            else helper.make_tensor_value_info("numbers", TensorProto.INT64, ["n", "length"])
        ],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def texts(count=30, of=2, **more):
    rng = np.random.default_rng(1)
    return [
        {"ids": rng.integers(0, 50, (of, 1 + k % 4))} | {n: f(rng, of, 1 + k % 4) for n, f in more.items()}
        for k in range(count)
    ]


@pytest.mark.parametrize("kind", ["scores", "numbers"])
def test_texts_of_several_lengths_are_compared(kind):
    result = onnxprune.prune(positions(kind), target="macs=0.6", calib=texts(60), align=None, recover="lstsq")
    found = result.report.calibration["original"]
    assert found["samples"] == 12
    assert ("agreement" in found) is (kind == "numbers")


def test_labels_of_texts_of_several_lengths_measure_nothing():
    given = texts(60, y=lambda rng, n, length: rng.integers(0, 5, n))
    model = positions("scores")
    result = onnxprune.prune(model, ratio=0.5, calib=given, labels="y", align=None, recover="lstsq")
    assert "accuracy" not in result.report.calibration["original"]
    assert any("no accuracy was measured" in note for note in result.report.notes)
    samples = load_samples(model.graph, given, labels="y")
    with pytest.raises(CalibrationError, match="several shapes, such as"):
        outputs(Model.load(model), samples)


def test_labels_of_several_lengths_are_refused():
    given = texts(y=lambda rng, n, length: rng.integers(0, 5, (n, length)))
    with pytest.raises(CalibrationError, match="several shapes for one sample"):
        load_samples(positions("numbers").graph, given, labels="y")


def test_outputs_of_which_some_alone_are_classes_are_none():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((2, length, 5)) for length in (3, 1)]
    for order in (parts, parts[::-1]):
        found = compare(iter(order), iter(order), labels=np.zeros(4))
        assert found["samples"] == 4
        assert not {"agreement", "accuracy"} & set(found)


def test_labels_say_how_many_samples_lie_along_a_later_axis():
    rng = np.random.default_rng(0)
    inputs = [
        helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["time", "n", 6]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", 5]),
    ]
    graph = helper.make_graph([], "g", inputs, [])
    given = [
        {
            "frames": np.zeros((7, 4, 6), np.float32),
            "state": np.zeros((4, 5), np.float32),
            "y": rng.integers(0, 3, 4),
        }
        for _ in range(5)
    ]
    samples = load_samples(graph, given, labels="y")
    assert samples.counts == [4] * 5


def test_what_is_told_is_what_users_have() -> None:
    """Sums of u8 times s8 saturate in onnxruntime's defaults on x86 without VNNI, and not in what is chosen by."""
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
            helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(rng.integers(100, 127, (64, 8)).astype(np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = rng.uniform(0, 1, (16, 64)).astype(np.float32)
    samples = load_samples(model.graph, {"x": x})
    theirs = ort.InferenceSession(model.SerializeToString()).run(None, {"x": samples.batches[0]["x"]})[0]
    np.testing.assert_array_equal(next(iter(Outputs(Model.load(model), samples, served=True))), theirs)
    assert (theirs != next(iter(Outputs(Model.load(model), samples)))).any() == saturates()


def test_samples_behind_other_axes_of_an_output_are_told_apart():
    """Time first, as speech has it; there are as many samples as steps, so that lengths don't say which is which."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", "N", 4])
    kernel = np.random.default_rng(0).standard_normal((4, 4, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Transpose", ["c"], ["y"], perm=[2, 0, 1]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(kernel, "w")])
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    given = np.random.default_rng(1).standard_normal((8, 4, 8)).astype(np.float32)
    found = outputs(model, load_samples(graph, {"x": given}))
    alone = outputs(model, load_samples(graph, {"x": given[2:3]}))
    assert found.shape == (8, 8, 4)
    assert np.allclose(found[2:3], alone, atol=1e-6)
    assert compare(found, found + 1)["samples"] == 8


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_entries_that_only_one_model_chooses_are_different(kind):
    """Boxes that are left of many: their number is the model's own."""
    a = np.arange(1, 22).reshape(1, 7, 3).astype(kind)
    longer, shorter = compare(a[:, :5], a), compare(a, a[:, :5])
    same = compare(a, a)
    assert same["relative_error"] == 0
    for found in (longer, shorter):
        assert found["samples"] == 1
        assert found["relative_error"] > 0.3
        assert found["cosine"] < 0.95
    assert distance([a, a[:, :3]], [a[:, :5], a]) > distance([a, a], [a[:, :6], a]) > 0
    if kind is np.int64:
        assert shorter["agreement"] == longer["agreement"] == 5 / 7


def detector():
    """Ends in the boxes that are left of many, and in which these are."""
    rng = np.random.default_rng(0)
    weights = {
        "c": rng.standard_normal((24, 3, 3, 3)), "b": rng.standard_normal((4, 24, 1, 1)),
        "s": 0.3 * rng.standard_normal((5, 24, 1, 1)),
    }  # fmt: skip
    values = {"to4": np.array([0, 4, -1]), "to5": np.array([0, 5, -1]), "most": np.array([1000]),
              "iou": np.array([0.5], np.float32), "least": np.array([0.5], np.float32),
              "two": np.array(2), "zero": np.array([0])}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["f"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["f"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["b0"]),
        helper.make_node("Conv", ["r", "s"], ["s0"]),
        helper.make_node("Reshape", ["b0", "to4"], ["b1"]),
        helper.make_node("Transpose", ["b1"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["s0", "to5"], ["s1"]),
        helper.make_node("Sigmoid", ["s1"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["chosen"]),
        helper.make_node("Gather", ["chosen", "two"], ["which"], axis=1),
        helper.make_node("Squeeze", ["boxes", "zero"], ["all"]),
        helper.make_node("Gather", ["all", "which"], ["left"], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [
            helper.make_tensor_value_info("left", TensorProto.FLOAT, ["K", 4]),
            helper.make_tensor_value_info("chosen", TensorProto.INT64, ["K", 3]),
        ],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
        + [numpy_helper.from_array(a, n) for n, a in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("end", ["chosen", "left"])
def test_a_detector_whose_boxes_are_chosen_is_cut_and_compared(end):
    model, given = detector(), np.random.default_rng(1).standard_normal((40, 3, 16, 16)).astype(np.float32)
    kept = [v for v in model.graph.output if v.name == end]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    told = onnxprune.prune(model, ratio=0.5, calib={"x": given}, recover="lstsq").report.to_json()[
        "calibration"
    ]
    assert told["original"]["samples"] == 4
    assert 0.3 < told["original"]["cosine"] < 0.99
    assert told["original"]["relative_error"] > 0.1
