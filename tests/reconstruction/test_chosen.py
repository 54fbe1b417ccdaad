"""Rows that a model chooses by its own values are no rows to fit on: a model that is cut chooses others."""

import numpy as np
import onnx
import pytest
from expert_models import EXPERTS, mixture
from small_models import Builder

import onnxprune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction.chosen import chosen_rows
from onnxprune.reconstruction.layers import sites


def layers(model: onnx.ModelProto) -> dict[str, bool]:
    return {site.weight: site.chosen for site in sites(analyse(Model.load(model)))}


def test_layers_of_experts_that_gather_their_tokens() -> None:
    found = layers(mixture("written_out"))
    assert {name for name, chosen in found.items() if chosen} == {
        f"layers.0.experts.{n}.{part}.weight" for n in range(EXPERTS) for part in ("up", "down")
    }
    assert {name for name, chosen in found.items() if not chosen} == {
        "stem.weight", "layers.0.router.weight", "head.weight"
    }  # fmt: skip


@pytest.mark.parametrize("form", ["stacked", "dense", "one_hot", "compared"])
def test_forms_in_which_all_tokens_go_through(form: str) -> None:
    assert not any(layers(mixture(form)).values())


@pytest.mark.parametrize("given", ["lengths", "mask", "scores"])
def test_what_chooses_must_come_from_layers(given: str) -> None:
    """Places of ones that only count, as exporters write a range, and those of an input's mask are always the same."""
    b = Builder(2)
    x = b.linear("x", "first", 6, 6)
    if given == "lengths":
        size = b.op("Gather", [b.op("Shape", [x], "shape"), b.constant("zero", np.array([0]))], "size")
        ones = b.op("ConstantOfShape", [size], "ones", value=onnx.helper.make_tensor("one", 7, [1], [1]))
    else:
        low = b.constant("low", np.float32(0))
        column = b.op("Slice", [{"mask": "x", "scores": x}[given], *(
            b.constant(n, np.array([v])) for n, v in (("from", 0), ("to", 1), ("axis", 1))
        )], "column")  # fmt: skip
        ones = b.op("Greater", [b.op("Squeeze", [column, "axis"], "flat"), low], "ones")
    places = b.op("Squeeze", [b.op("NonZero", [ones], "places"), b.constant("front", np.array([0]))], "row")
    y = b.linear(b.op("Gather", [x, places], "picked", axis=0), "second", 6, 4)
    model = b.model({"x": ["n", 6]}, y)
    assert layers(model) == {"first.weight": False, "second.weight": given == "scores"}
    assert ("picked_out" in chosen_rows(analyse(Model.load(model)))) == (given == "scores")


@pytest.mark.parametrize("recover", ["lstsq", "blocks"])
def test_such_layers_keep_their_weights_and_others_are_fitted(recover: str) -> None:
    x = np.random.default_rng(0).standard_normal((96, 5)).astype(np.float32)
    model = mixture("written_out", layers=2)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    result = onnxprune.prune(model, ratio=0.34, align=1, calib={"x": x}, recover=recover, rotate=False)
    changed = set()
    for tensor in result.model.graph.initializer:
        old = weights[tensor.name]
        kept = np.isin(onnx.numpy_helper.to_array(tensor), old).all()
        changed |= set() if kept else {tensor.name}
    assert not any(".experts." in name and name.endswith("weight") for name in changed)
    assert {"head.weight", "layers.1.router.weight"} <= changed
