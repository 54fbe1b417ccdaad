"""Texts, numbers without axes, empty axes and other unusual inputs, in every form that samples come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.calibration.inputs import feeds
from onnxprune.calibration.samples import load_samples
from onnxprune.calibration.synthetic import synthetic
from onnxprune.errors import CalibrationError, UsageError, VerificationError
from onnxprune.graph.analysis import analyse
from onnxprune.latency.clock import bench_of
from onnxprune.model import Model
from onnxprune.runtime.binding import bindings
from onnxprune.runtime.categories import categories

from .input_models import MODELS, Feed, Net, one_hot, rows, scalars, texts, time_first, unlisted

COUNT = 12


def elements(graph: onnx.GraphProto) -> dict[str, int]:
    return {v.name: v.type.tensor_type.elem_type for v in graph.input}


def as_npz(folder: Path, feed: Feed) -> str:
    np.savez(folder / "s.npz", **feed)
    return str(folder / "s.npz")


def as_folder(folder: Path, feed: Feed) -> str:
    (folder / "arrays").mkdir()
    for name, array in feed.items():
        np.save(folder / "arrays" / f"{name}.npy", array)
    return str(folder / "arrays")


def as_data_sets(folder: Path, feed: Feed, step: int = 4) -> str:
    """Write sets of four samples, numbers whole."""
    for n in range(0, COUNT, step):
        one = folder / "sets" / f"test_data_set_{n // step}"
        one.mkdir(parents=True)
        for k, (name, array) in enumerate(feed.items()):
            part = np.asarray(array)[n : n + step] if np.ndim(array) else np.asarray(array)
            part = part.astype(object) if part.dtype.kind == "U" else part
            (one / f"input_{k}.pb").write_bytes(numpy_helper.from_array(part, name).SerializeToString())
    return str(folder / "sets")


def as_script(folder: Path, feed: Feed) -> str:
    path = as_npz(folder, feed)
    text = f"import numpy as np\ndef load():\n    with np.load({path!r}) as z:\n        return dict(z)\n"
    (folder / "script.py").write_text(text, encoding="utf-8")
    return str(folder / "script.py:load")


class Reader:
    def __init__(self, feed: Feed) -> None:
        self.parts = iter(
            [{n: a[i : i + 3] if np.ndim(a) else a for n, a in feed.items()} for i in range(0, COUNT, 3)]
        )

    def get_next(self) -> Feed | None:
        return next(self.parts, None)


FORMS: dict[str, Callable[[Path, Feed], Any]] = {
    "npz": as_npz, "folder": as_folder, "data_sets": as_data_sets, "script": as_script,
    "reader": lambda folder, feed: Reader(feed), "dict": lambda folder, feed: feed,
    "list": lambda folder, feed: [feed],
}  # fmt: skip


def joined(batches: list[Feed]) -> Feed:
    """Return all samples of batches as one dictionary."""
    return {
        n: np.concatenate([b[n] for b in batches]) if batches[0][n].ndim else batches[0][n]
        for n in batches[0]
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_samples_arrive_in_every_form(name: str, form: str, tmp_path: Path) -> None:
    build, make = MODELS[name]
    graph, feed = build().graph, make(COUNT)
    step = 1 if name == "fixed_scalar" else 4
    given = as_data_sets(tmp_path, feed, step) if form == "data_sets" else FORMS[form](tmp_path, feed)
    found = load_samples(graph, given)
    assert found.count == COUNT
    runs = feeds(graph, Reader(feed) if form == "reader" else given)  # a reader can be read once
    for key, array in [*joined(found.batches).items(), *joined(runs).items()]:
        wanted = helper.tensor_dtype_to_np_dtype(elements(graph)[key])
        assert array.dtype == wanted
        assert array.tolist() == np.asarray(feed[key]).tolist()
    first, second = found.split(0.25)
    assert first.count + (second.count if second else 0) == COUNT


@pytest.mark.parametrize("name", MODELS)
def test_models_are_pruned_on_them_and_proved(name: str, tmp_path: Path) -> None:
    build, make = MODELS[name]
    feed = make(40)
    result = onnxprune.prune(build(), ratio=0.5, align="none", calib=feed, recover="lstsq", inputs=[make(4)])
    assert result.report.law1["max_relative_error"] < 1e-4
    assert 12 in [len(g.removed_units) for g in result.plan.groups]


@pytest.mark.parametrize("name", [n for n in MODELS if n != "unlisted"])
def test_synthetic_samples_and_random_inputs_need_no_data(name: str) -> None:
    build, _ = MODELS[name]
    result = onnxprune.prune(build(), ratio=0.5, align="none", calib="synthetic", samples=40, recover="lstsq")
    assert result.report.law1["inputs"] >= 1


def test_blocks_are_fitted_with_numbers_beside_samples() -> None:
    x, t, s = rows(40), np.linspace(0, 1, 40, dtype=np.float32), np.arange(40) % 10
    for feed in ({"x": x, "temperature": t[3], "step": s[3]}, {"x": x, "temperature": t, "step": s}):
        assert onnxprune.prune(scalars(), ratio=0.5, align="none", calib=feed).report.law1


def test_a_number_for_each_sample() -> None:
    x, t, s = rows(6), np.linspace(0, 1, 6, dtype=np.float32), np.arange(6)
    for given in ({"x": x, "temperature": t, "step": s}, {"x": x[:, None], "temperature": t, "step": s}):
        found = load_samples(scalars().graph, given)
        assert found.counts == [1] * 6
        assert [float(b["temperature"]) for b in found.batches] == t.tolist()
        assert [int(b["step"]) for b in found.batches] == s.tolist()
        assert all(b["step"].shape == () and isinstance(b["step"], np.ndarray) for b in found.batches)
        assert np.concatenate([b["x"] for b in found.batches]).tolist() == x.tolist()


@pytest.mark.parametrize(
    ("temperature", "step"), [(0.5, 3), (np.float32(0.5), np.int64(3)), (1, np.int32(3))]
)
def test_numbers_of_python_and_numpy(temperature: Any, step: Any) -> None:
    found = load_samples(scalars().graph, {"x": rows(4), "temperature": temperature, "step": step})
    assert found.batches[0]["temperature"].dtype == np.float32
    assert found.batches[0]["step"].dtype == np.int64


@pytest.mark.parametrize(("name", "wrong"), [("step", 0.5), ("temperature", "warm"), ("step", 2**70)])
def test_numbers_that_would_change_are_refused(name: str, wrong: Any) -> None:
    feed = {"x": rows(4), "temperature": 0.5, "step": 3, name: wrong}
    with pytest.raises(CalibrationError, match=f"The samples' '{name}' are .*, but the model's input is "):
        load_samples(scalars().graph, feed)


@pytest.mark.parametrize(
    ("s", "message"),
    [
        (np.zeros((4, 1), np.int64), "'s' are int64, but the model's input is string"),
        (np.array([["a"], [None], ["b"], ["c"]], object), "'s' must be texts, but some are not"),
        (np.full((4, 1, 1, 1), "a"), "'s' have 4 axes"),
    ],
)
def test_what_are_no_texts_is_said(s: np.ndarray, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        load_samples(texts().graph, {"s": s, "x": rows(4)})


def test_texts_as_bytes_are_decoded() -> None:
    s = np.char.encode(np.array([["red"], ["grün"]]), "utf-8")
    assert load_samples(texts().graph, {"s": s, "x": rows(2)}).batches[0]["s"].tolist() == [["red"], ["grün"]]


def test_texts_in_a_file_of_objects_are_explained(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", s=np.array([["a"]], object), x=rows(1))
    with pytest.raises(CalibrationError, match=r"astype\(str\)"):
        load_samples(texts().graph, str(tmp_path / "s.npz"))
    with pytest.raises(CalibrationError, match=r"astype\(str\)"):
        onnxprune.prune(texts(), ratio=0.5, inputs=str(tmp_path / "s.npz"))


def test_given_inputs_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(CalibrationError, match="given input 's' is int64, but the model's is string"):
        onnxprune.prune(texts(), ratio=0.5, inputs={"s": np.zeros((2, 1), np.int64), "x": rows(2)})
    with pytest.raises(CalibrationError, match="given input 'x' is <U1, but the model's is float"):
        onnxprune.prune(texts(), ratio=0.5, inputs={"s": np.full((2, 1), "a"), "x": np.full((2, 16), "1")})


def test_the_model_says_which_texts_it_knows() -> None:
    assert categories(texts().graph, "s") == ["red", "grün", "蓝"]
    assert categories(one_hot().graph, "s") == ["a", "b", "c", "d"]
    assert categories(unlisted().graph, "s") == []
    net = Net()
    s, x = net.input("s", TensorProto.STRING, ["N", 1]), net.input("x", TensorProto.FLOAT, ["N", 16])
    model = net.layers(net.op("Mul", x, net.op("Cast", net.op("Equal", s, "known"), to=TensorProto.FLOAT)))
    model.graph.initializer.append(numpy_helper.from_array(np.array(["yes"], object), "known"))
    assert categories(model.graph, "s") == ["yes"]
    assert onnxprune.prune(model, ratio=0.5, align="none").report.law1["inputs"] >= 1


def test_without_a_list_the_sentence_says_so() -> None:
    with pytest.raises(
        CalibrationError, match="drawn for the input 's', which takes texts, since no node behind it"
    ):
        onnxprune.prune(unlisted(), ratio=0.5, calib="synthetic")
    with pytest.raises(VerificationError, match="drawn for the input 's', which takes texts") as caught:
        onnxprune.prune(unlisted(), ratio=0.5)
    assert "--inputs" in str(caught.value)


@pytest.mark.parametrize("asked", [{"check_speed": True, "ratio": 0.5}, {"target": "latency=0.9"}])
def test_what_cannot_be_drawn_cannot_be_timed(asked: dict[str, Any]) -> None:
    _, make = MODELS["unlisted"]
    with pytest.raises(UsageError, match="can't be timed: no values can be drawn for the input 's'"):
        onnxprune.prune(unlisted(), inputs=[make(4)], **asked)


def test_batches_that_are_timed_give_one_name_one_size() -> None:
    model = Model.load(time_first())
    feeds = bench_of(model, analyse(model), "cpu", 3, None).feeds
    assert {n: a.shape for n, a in feeds.items()} == {"x": (3, 3, 16), "h": (3, 16)}


def test_an_empty_axis_is_given_not_bound() -> None:
    with pytest.raises(UsageError, match=r"has a size below 1; .* with --inputs"):
        onnxprune.prune(MODELS["past"][0](), ratio=0.5, input_shapes={"past": (2, 0, 16)})
    law = onnxprune.prune(
        MODELS["past"][0](), ratio=0.5, align="none", inputs=MODELS["past"][1](4)
    ).report.law1
    assert law["given_inputs"] == 1


def test_given_inputs_do_where_none_can_be_drawn() -> None:
    _, make = MODELS["unlisted"]
    law = onnxprune.prune(unlisted(), ratio=0.5, align="none", inputs=[make(4), make(3)]).report.law1
    assert law["inputs"] == 2


def sizes_by_name(graph: onnx.GraphProto, feed: Feed) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for value in graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, feed[value.name].shape, strict=True):
            found.setdefault(dim.dim_param, set()).add(size)
    found.pop("", None)
    return found


@pytest.mark.parametrize("count", [1, 7, 64, 100])
def test_axes_of_one_name_have_one_size(count: int) -> None:
    graph = time_first().graph
    shapes = next(iter(bindings(graph, {})))
    batches = synthetic(graph, shapes, count, 0)
    assert batches
    for feed in batches:
        assert all(len(sizes) == 1 for sizes in sizes_by_name(graph, feed).values())
    assert not load_samples(graph, batches).free


def test_time_first_is_calibrated_and_never_cut_along_time() -> None:
    for calib in ("synthetic", [{"x": rows(120).reshape(10, 12, 16), "h": rows(12)} for _ in range(6)]):
        result = onnxprune.prune(time_first(), ratio=0.5, align="none", calib=calib, samples=60)
        assert result.report.law1["inputs"] >= 1
    alike = load_samples(time_first().graph, {"x": rows(64).reshape(8, 8, 16), "h": rows(8)})  # T equals B
    assert [b["x"].shape for b in alike.batches] == [(8, 8, 16)]
    one, other = alike.split(0.5)
    assert other is not None
    assert [(s.count, s.batches[0]["x"].shape, s.batches[0]["h"].shape) for s in (one, other)] == [
        (4, (8, 4, 16), (4, 16))
    ] * 2


def kinds_without_numpy() -> Iterator[tuple[str, onnx.ValueInfoProto]]:
    yield "bfloat16", helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["N", 16])
    yield "int4", helper.make_tensor_value_info("x", TensorProto.INT4, ["N", 16])
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 16])
    yield "sequence", helper.make_value_info("x", helper.make_sequence_type_proto(inner))
    yield "optional", helper.make_value_info("x", helper.make_optional_type_proto(inner))


@pytest.mark.parametrize(
    ("kind", "value"), list(kinds_without_numpy()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_samples_cannot_hold_is_said(kind: str, value: onnx.ValueInfoProto) -> None:
    graph = onnx.GraphProto(name="g", input=[value])
    with pytest.raises(CalibrationError, match=f"input 'x' is {kind}, which .*; leave out --calib"):
        load_samples(graph, {"x": rows(4)})


def in_a_sequence(optional: bool) -> onnx.ModelProto:
    net = Net()
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 16])
    make = helper.make_optional_type_proto if optional else helper.make_sequence_type_proto
    net.inputs.append(helper.make_value_info("s", make(inner)))
    op = net.op("OptionalGetElement", "s") if optional else net.op("ConcatFromSequence", "s", axis=0)
    return net.layers(op)


@pytest.mark.parametrize("optional", [False, True])
def test_sequences_and_optional_values_are_drawn_and_given(optional: bool) -> None:
    model = in_a_sequence(optional)
    given = {"s": rows(3) if optional else [rows(3), rows(2)]}
    for inputs in (None, given):
        law = onnxprune.prune(model, ratio=0.5, align="none", inputs=inputs).report.law1
        assert law["inputs"] >= 1
        assert law["max_relative_error"] < 1e-4
