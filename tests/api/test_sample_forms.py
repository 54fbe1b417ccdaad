"""Samples as people have them in Python: arrays, tensors, loaders of pairs, data sets, functions; all say the same."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import chain

import onnxprune
from onnxprune.calibration.samples import load_samples
from onnxprune.errors import CalibrationError

X = np.random.default_rng(12).normal(size=(40, 3, 8, 8)).astype(np.float32)
Y = np.arange(40) % 10


class Tensor:
    """A tensor as torch has it: no array before it is detached and brought to the host."""

    def __init__(self, array: Any, ready: str = "") -> None:
        self.array, self.ready = np.asarray(array), ready

    def detach(self) -> "Tensor":
        return Tensor(self.array, "detached")

    def cpu(self) -> "Tensor":
        assert self.ready == "detached"
        return Tensor(self.array, "here")

    def numpy(self) -> Any:
        assert self.ready == "here"
        return self.array

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor that needs a gradient")


class DataSet:
    """A data set with an index and a length, and no way to iterate that ends."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, at: int) -> tuple[Any, int]:
        return Tensor(X[at % len(X)]), int(Y[at % len(X)])


class Loader:
    """Batches of pairs, again and again."""

    def __iter__(self) -> Iterator[list[Any]]:
        for first in range(0, len(X), 16):
            yield [Tensor(X[first : first + 16]), Tensor(Y[first : first + 16])]


FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: X,
    "tensor": lambda: Tensor(X),
    "pair": lambda: (X, Y),
    "tensors by name": lambda: {"x": Tensor(X), "y": Tensor(Y)},
    "batches": lambda: [X[:16], X[16:]],
    "pairs": lambda: [(X[:16], Y[:16]), (X[16:], Y[16:])],
    "loader": Loader,
    "data set": DataSet,
    "function": lambda: Loader,
    "function of an array": lambda: lambda: X,
}
LABELLED = {"pair", "tensors by name", "pairs", "loader", "data set", "function"}


def model() -> onnx.ModelProto:
    made = chain()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    return made


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str) -> None:
    labels = "y" if form in LABELLED else None
    samples = load_samples(model().graph, FORMS[form](), labels=labels)
    assert np.array_equal(np.concatenate([batch["x"] for batch in samples.batches]), X)
    assert all(set(batch) == {"x"} for batch in samples.batches)
    if labels:
        assert samples.labels is not None
        assert np.array_equal(samples.labels, Y)


def test_a_model_pruned_on_each_is_the_same() -> None:
    how: dict[str, Any] = {"ratio": 0.5, "align": None, "recover": "lstsq"}
    batches = [{"x": X[at : at + 16]} for at in (0, 16, 32)]

    def made(calib: Any) -> bytes:
        return onnxprune.prune(model(), calib=calib, **how).model.SerializeToString(deterministic=True)

    assert made({"x": X}) == made(X) == made((X, Y)) == made(lambda: X)
    assert made(batches) == made(Loader()) == made(Loader)
    assert made(X) != made(X[::-1] * 3)


def test_labels_of_a_loader_count() -> None:
    result = onnxprune.prune(model(), ratio=0.5, align=None, calib=Loader(), labels="y", recover="lstsq")
    assert "accuracy" in result.report.to_json()["calibration"]["original"]


def test_labels_that_nobody_names_are_left_out() -> None:
    samples = load_samples(model().graph, Loader())
    assert samples.labels is None
    assert samples.count == len(X)


def test_verification_takes_them_as_well() -> None:
    checked = onnxprune.prune(chain(), ratio=0.5, inputs=Tensor(X[:1])).report.law1
    assert checked is not None
    assert checked["inputs"] > (onnxprune.prune(chain(), ratio=0.5).report.law1 or {})["inputs"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ((X, Y, Y), r"are the model's inputs in their order, x, and perhaps labels after them; got 3\."),
        ([(X, Y, Y)], "got 3"),
        (["text"], "must be arrays or dictionaries of arrays; got a str"),
        ([()], "must be arrays or dictionaries of arrays; got a tuple"),
        (7, r"can't be read from a int; give a path, arrays, dictionaries of arrays, an iterable"),
        (lambda: 7, "can't be read from a int"),
        (X.astype(np.float64), "are float64, but the model's input is float32; convert them, array.astype"),
        ([X[0][0]], "have 2 axes, but the model's has"),
        (lambda: 1 / 0, "the reader fails with ZeroDivisionError"),
    ],
)
def test_what_is_none_of_them(wrong: Any, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        load_samples(model().graph, wrong)
