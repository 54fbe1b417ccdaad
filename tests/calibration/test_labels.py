"""Labels that aren't the model's classes are refused or named, and right ones aren't."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession
from small_models import Builder

from onnxprune.api import compress, prune, sparsify
from onnxprune.calibration.agreement import compare
from onnxprune.calibration.labels import all_alike, check_labels
from onnxprune.calibration.samples import load_samples
from onnxprune.errors import CalibrationError
from onnxprune.reconstruction.walk import Walk

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(1, 9, 200)
SCORES = np.eye(10)[CLASSES] + 0.1 * RNG.standard_normal((200, 10))


def test_right_labels_pass() -> None:
    wrong = CLASSES.copy()
    wrong[:60] = 0
    assert check_labels(SCORES, CLASSES) == check_labels(SCORES, wrong) == []


@pytest.mark.parametrize(("by", "where"), [(1, "above"), (-1, "below")])
def test_labels_that_are_off_by_one_are_refused(by: int, where: str) -> None:
    with pytest.raises(CalibrationError, match=f"one {where} the model's classes"):
        check_labels(SCORES, CLASSES + by)


@pytest.mark.parametrize(("by", "where"), [(1, "above"), (-1, "below")])
def test_labels_of_numbers_of_classes_that_are_off_by_one_are_refused(by: int, where: str) -> None:
    assert check_labels(CLASSES, CLASSES) == check_labels(CLASSES, np.roll(CLASSES, 1)) == []
    with pytest.raises(CalibrationError, match=f"one {where} the model's classes"):
        check_labels(CLASSES, CLASSES + by)


def test_few_labels_that_are_off_by_chance_pass() -> None:
    scores = np.eye(4)[[2, 2, 1, 0]]
    assert check_labels(scores, np.array([3, 3, 3, 3])) == []  # two of four, as one pair of guesses in four
    with pytest.raises(CalibrationError, match="one above"):
        check_labels(scores, np.array([3, 3, 2, 1]))


def test_numbers_beyond_the_classes_are_refused() -> None:
    with pytest.raises(CalibrationError, match="0 to 9"):
        check_labels(SCORES, np.where(CLASSES == 3, 11, CLASSES))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda y: np.roll(y, 1), "no more than on the same labels in any order"),
        (lambda y: y * 3 % 10, "100.0% with classes in another order"),
    ],
)
def test_labels_of_other_samples_or_in_another_order_of_classes_are_named(
    wrong: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400)
    scores = rng.standard_normal((400, 10)) + 6 * np.eye(10)[labels]
    assert check_labels(scores, labels) == []
    (note,) = check_labels(scores, wrong(labels))
    assert said in note


@pytest.mark.parametrize(("right", "classes"), [(0.7, 2), (0.1, 100), (0.35, 5)])
def test_a_poor_model_is_no_reason_to_doubt_labels(right: float, classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 100)
    said = np.where(np.arange(100) < 100 * right, labels, rng.integers(0, classes, 100))
    assert check_labels(np.eye(classes)[said], labels) == []


def test_labels_of_one_class_are_not_doubted() -> None:
    scores = np.random.default_rng(0).standard_normal((60, 3))
    assert check_labels(scores, np.zeros(60, int)) == []


def test_labels_of_something_else_are_named() -> None:
    (note,) = check_labels(SCORES, (CLASSES + 5) % 10)
    assert "labels of something else" in note


@pytest.mark.parametrize("scores", [RNG.standard_normal((200, 4, 10)), SCORES[:100]])
def test_labels_of_another_shape_are_named(scores: np.ndarray) -> None:
    (note,) = check_labels(scores, CLASSES)
    assert "no accuracy was measured" in note


def graph(batch: int | str) -> onnx.GraphProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])
    return helper.make_graph([], "g", [x], [])


def given(**more: object) -> dict[str, object]:
    return {"x": RNG.standard_normal((40, 3, 8, 8)).astype(np.float32), **more}


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.full(40, "cat"), "'y' are <U3, and not numbers"),
        (np.where(np.arange(40) == 7, np.nan, 1.0), "'y' hold nan"),
        (np.where(np.arange(40) == 7, np.inf, 1.0), "'y' hold inf"),
        (np.arange(40) % 3 + 0.5, "'y' hold 0.5"),
        (np.arange(30) % 3, "30 labels for 40 samples"),
        (np.arange(50) % 3, "50 labels for 40 samples"),
    ],
)
def test_labels_that_are_no_classes_are_refused_as_they_are_read(labels: np.ndarray, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        load_samples(graph("n"), given(y=labels), labels="y")


@pytest.mark.parametrize(
    ("answers", "alike"),
    [
        ([np.ones((4, 3)), np.ones((2, 3))], True),
        ([np.ones((4, 3)), np.eye(3)], False),
        ([np.eye(3)], False),
        ([np.ones((1, 3))], False),  # there is but one
        ([np.ones((2, 3)), np.ones((2, 4))], False),
        ([np.full((5, 2), np.nan)], True),
    ],
)
def test_answers_that_are_all_the_same_are_told(answers: list[np.ndarray], alike: bool) -> None:
    said = all_alike(answers)
    assert bool(said) is alike
    if alike:
        assert f"all {sum(map(len, answers))} samples" in said[0]


def test_a_misspelt_key_of_labels_is_named_with_the_one_that_was_meant() -> None:
    files = (given(label=np.arange(40) % 3), [given(label=np.arange(40) % 3)])
    for one in files:
        with pytest.raises(CalibrationError, match=r"no array 'lable' .* Did you mean 'label'\?$"):
            load_samples(graph("n"), one, labels="lable")
    with pytest.raises(CalibrationError, match="no array 'lable' of labels; name the key"):
        load_samples(graph("n"), given(), labels="lable")
    with pytest.raises(CalibrationError, match=r"have 'X', which is no input .* Did you mean 'x'\?"):
        load_samples(graph("n"), {"X": given()["x"], "label": np.arange(40)}, labels="label")


@pytest.mark.parametrize("kind", [np.uint8, np.float32, bool])
def test_one_hot_labels_are_the_classes_that_they_stand_for(kind: type) -> None:
    classes, scored = np.arange(40) % 3, graph("n")
    scored.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 3]))
    rows = np.eye(3)[classes].astype(kind)
    with pytest.warns(UserWarning, match="labels 'y' are a row of 0 and a 1 for each sample"):
        found = load_samples(scored, given(y=rows), labels="y").labels
    assert found is not None
    assert found.tolist() == classes.tolist()
    rows[5] = 1  # several are right at once
    for one, other in ((scored, rows), (graph("n"), np.eye(3)[classes])):
        kept = load_samples(one, given(y=other), labels="y").labels
        assert kept is not None
        assert kept.shape == (40, 3)


def test_one_is_no_plural() -> None:
    with pytest.raises(CalibrationError, match="1 label for 40 samples; give one for each"):
        load_samples(graph("n"), given(y=[1]), labels="y")
    with pytest.raises(CalibrationError, match="There is 1 sample only"):
        load_samples(graph("n"), {"x": np.ones((1, 3, 8, 8), np.float32)}).set_aside()


def test_a_label_for_one_sample_may_be_a_number() -> None:
    batches = [{"x": given()["x"][i : i + 1], "y": i % 3} for i in range(9)]  # type: ignore[index]
    found = load_samples(graph("n"), batches, labels="y").labels
    assert found is not None
    assert found.tolist() == [0, 1, 2] * 3


def test_labels_of_another_shape_measure_no_accuracy() -> None:
    found = compare(SCORES, SCORES + 0.01, labels=np.eye(10)[CLASSES])
    assert found["agreement"] == 1.0
    assert "accuracy" not in found


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint64, np.int32, np.float32, bool])
def test_labels_of_any_type_are_read(kind: type) -> None:
    """Image sets come with labels of uint8, and one less than 0 of those is no number."""
    scores = SCORES[:, :2] if kind is bool else SCORES
    classes = scores.argmax(axis=1)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph([], "g", [value], [])
    given = {"x": np.zeros((200, 3), np.float32), "y": classes.astype(kind)}
    labels = load_samples(graph, given, labels="y").labels
    assert labels is not None
    assert check_labels(scores, labels) == []
    assert compare(scores, scores, labels)["accuracy"]["before"] == 100
    if kind is not bool:
        with pytest.raises(CalibrationError, match="one below"):
            check_labels(
                scores, load_samples(graph, {**given, "y": (classes - 1).astype(kind)}, labels="y").labels
            )


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (prune, {"ratio": 0.5, "align": "none", "recover": "lstsq"}),
        (sparsify, {"pattern": "2:4"}),
        (compress, {"target": "bytes=0.6", "to": "zst"}),
    ],
    ids=["prune", "sparsify", "compress"],
)
def test_wrong_labels_are_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any], options: dict[str, Any]
) -> None:
    b = Builder(3)
    h = b.op("Relu", [b.linear("x", "first", 12, 24)], "relu")
    model = b.model({"x": ["N", 12]}, b.linear(h, "head", 24, 6))
    x = np.random.default_rng(0).standard_normal((300, 12)).astype(np.float32)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    chosen = session.run(None, {"x": x})[0].argmax(axis=1)
    given = {"x": x, "y": chosen}
    assert command(model, calib=given, labels="y", **options)

    def worked(*_: object, **__: object) -> None:
        raise AssertionError("layers are looked at")

    monkeypatch.setattr(Walk, "of", worked)
    with pytest.raises(CalibrationError, match="labels are one above"):
        command(model, calib={**given, "y": chosen + 1}, labels="y", **options)
    with pytest.raises(AssertionError, match="layers are looked at"):
        command(model, calib=given, labels="y", **options)
