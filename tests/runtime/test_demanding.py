"""The first command works on models that take few sizes: they are found, and law 1 is checked around them."""

import html
import io
from pathlib import Path

import demanding_images  # its models join the others
import numpy as np
import onnx
import pytest
from demanding import MODELS, demands, ints, mlp, model
from nets import node, normal
from onnx import helper

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import ModelError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.interface import interface
from onnxprune.model import Model
from onnxprune.runtime.binding import Axes, bindings, terms
from onnxprune.runtime.inputs import Trial, random_inputs
from onnxprune.runtime.said import said_in_values
from onnxprune.runtime.session import open_session

assert demanding_images.demands is demands


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_found(name: str) -> None:
    make, demanded = MODELS[name]
    proto = make()
    result = onnxprune.prune(proto, ratio=0.5, align=1)
    assert result.report.after.parameters < result.report.before.parameters
    assert not result.report.put_back
    law = result.report.to_json()["law1"]
    assert law["max_relative_error"] <= 1e-4
    bound = law["sizes"][0]
    assert {a: s for a, s in bound.items() if a in demanded} == demanded
    assert max(bound.values()) <= 512, "sizes stay small"
    free = [a for a in bound if a not in demanded]
    for axis in free:
        assert len({s[axis] for s in law["sizes"]}) > 1, "a free axis is compared at several sizes"
    for axis in demanded:
        assert any(one["sizes"][axis] != demanded[axis] for one in law["refused"]), (
            "others are tried, and named"
        )


@pytest.mark.parametrize("name", MODELS)
def test_shape_arithmetic_is_resolved(name: str) -> None:
    proto = MODELS[name][0]()
    loaded = Model.load(proto)
    analysis = analyse(loaded, runs=Trial(loaded))
    feeds = random_inputs(analysis.model, analysis.inputs, np.random.default_rng(0))
    one, other = (
        open_session(m).run(feeds) for m in (analysis.model, onnxprune.run(proto, "resolve_shapes"))
    )
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[n], other[n]) and one[n].size for n in one)


@pytest.mark.parametrize(
    "name", ["lstm_from_batch_first", "batch_of_a_table", "baked_image", "lengths_in_values"]
)
def test_synthetic_samples_have_the_batch_that_a_model_takes(name: str) -> None:
    proto = MODELS[name][0]()
    found = onnxprune.sparsify(proto, pattern="2:4", calib="synthetic", samples=30, method="wanda")
    assert found.report.fits
    pruned = onnxprune.prune(proto, calib="synthetic", samples=30, ratio=0.3, align=1, recover="lstsq")
    assert pruned.report.after.parameters < pruned.report.before.parameters


def test_a_batch_of_any_size_stays_free() -> None:
    analysis = analyse(Model.load(MODELS["unet"][0]()))
    assert interface(analysis).input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    fixed = analyse(Model.load(MODELS["patches_of_a_whole_batch"][0]()))
    assert interface(fixed).input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_given_shapes_that_do_not_run_are_mended_and_told() -> None:
    make, _ = MODELS["batch_of_a_table"]
    result = onnxprune.prune(make(), ratio=0.5, align=1, input_shapes={"x": (2, 11, 6)})
    assert result.report.input_shapes == {"x": [6, 11, 6]}
    notes = [
        n for n in result.report.notes if "--input-shape x:2,11,6" in n and "--input-shape x:6,11,6" in n
    ]
    assert len(notes) == 1
    inspection = onnxprune.inspect(make(), input_shapes={"x": (2, 11, 6)})
    explanation = onnxprune.explain(make(), inspection.groups[0].name, input_shapes={"x": (2, 11, 6)})
    for shown in (inspection, explanation):
        assert shown.notes == notes
        shown.show(text := io.StringIO())
        assert f"note: {notes[0]}\n" in text.getvalue()
    assert html.escape(notes[0]) in inspection.page()


def test_given_shapes_that_run_stay() -> None:
    make, _ = MODELS["channels_of_a_kernel"]
    result = onnxprune.prune(make(), ratio=0.5, align=1, input_shapes={"x": (5, 3, 33, 17)})
    assert result.report.input_shapes == {"x": [5, 3, 33, 17]}
    assert not result.report.notes
    assert not onnxprune.inspect(make(), input_shapes={"x": (5, 3, 33, 17)}).notes


def test_a_model_that_no_size_fits_is_refused_with_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, weights = mlp("b", 8)
    weights |= {"w": normal(6, 8), "to": ints(3, 5, 8), "other": normal(3, 4, 8)}
    nodes = [node("MatMul", "x w", "a"), node("Reshape", "a to", "r"), node("Add", "r other", "b"), *head]
    proto = model(nodes, weights, {"x": ("N", "T", 6)})
    with pytest.raises(ModelError, match=r"--input-shape x:\d+,\d+,6"):
        onnxprune.prune(proto, ratio=0.5)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    assert main(["prune", str(path), str(tmp_path / "o.onnx"), "--ratio", "0.5"]) == 3
    assert "--input-shape x:" in capsys.readouterr().err


def test_names_that_are_calculated() -> None:
    values = [
        helper.make_tensor_value_info(n, 1, axes)
        for n, axes in {
            "mask": ("b", "past + new"),
            "half": ("b", "(past - 2) // 2"),
            "past": ("b", "past"),
            "ids": ("b", "new"),
            "odd": ("batch-size", "seq-len + other"),
        }.items()
    ]
    graph = helper.make_graph([], "g", values, [])
    shapes = next(bindings(graph, {}))
    assert shapes["mask"] == (2, 24)
    assert shapes["half"] == (2, 5)
    assert shapes["odd"] == (2, 12)
    axes = Axes.of(graph, shapes)
    assert set(axes.sizes) == {"b", "past", "new", "batch-size", "seq-len + other"}
    assert axes.batch == {"b", "batch-size"}
    changed = axes.shapes({**axes.sizes, "past": 6, "new": 1})
    assert changed is not None
    assert (changed["mask"], changed["half"]) == ((2, 7), (2, 2))
    assert axes.shapes({**axes.sizes, "past": 0}) is None, "an axis can't be negative"
    assert terms("a" * 10) == frozenset()
    assert terms("__import__('os').x + a") != frozenset(), "it is text, and never run"


def test_lengths_that_values_say() -> None:
    graph = MODELS["lengths_in_values"][0]().graph
    shapes = {
        "ids": (1, 5),
        "past_k": (1, 2, 7, 8),
        "past_v": (1, 2, 7, 8),
        "seqlens_k": (1,),
        "total_sequence_length": (),
    }
    assert said_in_values(graph, shapes) == {"seqlens_k": 11, "total_sequence_length": 12}
    feeds = random_inputs(Model.load(MODELS["lengths_in_values"][0]()), shapes, np.random.default_rng(0))
    assert (feeds["seqlens_k"].tolist(), feeds["total_sequence_length"].tolist()) == ([11], 12)
    assert said_in_values(MODELS["unet"][0]().graph, {"x": (2, 3, 8, 8)}) == {}


def test_lengths_that_values_say_are_told_by_what_reads_them() -> None:
    """Nothing has a name that says so: the cache and the tokens are found by the slots of the attention."""
    model = MODELS["lengths_in_values"][0]()
    called = {"batch_size": "N", "sequence_length": "T", "past_sequence_length": "P"}
    called |= {"seqlens_k": "a", "total_sequence_length": "b"}
    for value in model.graph.input:
        value.name = called.get(value.name, value.name)
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = called[dim.dim_param]
    for one in model.graph.node:
        one.input[:] = [called.get(name, name) for name in one.input]
    for new, past in ((5, 7), (1, 0), (3, 2)):
        shapes = {"ids": (1, new), "past_k": (1, 2, past, 8), "past_v": (1, 2, past, 8), "a": (1,), "b": ()}
        assert said_in_values(model.graph, shapes) == {"a": new + past - 1, "b": new + past}
    law = onnxprune.prune(model, ratio=0.5, align=1).report.to_json()["law1"]
    assert law["max_relative_error"] <= 1e-4
    assert len(law["sizes"]) > 1


def test_the_smallest_sizes_that_run_are_taken() -> None:
    make, _ = MODELS["unet"]
    shapes = onnxprune.prune(make(), ratio=0.5, align=1).report.input_shapes
    assert np.prod(shapes["x"]) <= 2 * 3 * 64 * 64
