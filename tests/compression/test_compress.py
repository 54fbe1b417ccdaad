"""The whole journey: budgets hold, the file loads and runs, what is unpacked is what was packed, refusals say why."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnxruntime import InferenceSession
from report.test_page import Page, sound
from small_models import FLOAT, Builder, chain

import onnxprune
from onnxprune import cli
from onnxprune.api import compress, decompress
from onnxprune.compression.forms import Stored, dequantised, step_of
from onnxprune.errors import ModelError, NothingToPrune, OutputError, UsageError
from onnxprune.model import Model
from onnxprune.report import page


def net(opset: int = 17, width: int = 24) -> onnx.ModelProto:
    """Convolutions (one of them depthwise), a residual sum, a product."""
    b = Builder(3)
    first = b.op("Relu", [b.conv("x", "one", 3, width)], "r1")
    deep = b.op("Conv", [first, b.weight("deep.w", width, 1, 3, 3)], "deep", group=width, pads=[1, 1, 1, 1])
    second = b.op("Add", [b.conv(deep, "two", width, width), first], "sum")
    pooled = b.op("GlobalAveragePool", [b.op("Relu", [second], "r2")], "pool")
    return b.model(
        {"x": ["n", 3, 8, 8]}, b.linear(b.op("Flatten", [pooled], "flat"), "head", width, 5), opset
    )


def images(count: int = 60) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, 3, 8, 8)).astype(np.float32)}


def run(path: Path | onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    source = path.SerializeToString() if isinstance(path, onnx.ModelProto) else str(path)
    (out,) = InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return np.asarray(out)


def error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


@pytest.mark.parametrize("form", ["out.onnx", "out.onnx.zst"])
def test_a_budget_holds_and_the_model_runs(tmp_path: Path, form: str) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    share = 0.3 if form == "out.onnx" else 0.22
    result = compress(tmp_path / "in.onnx", tmp_path / form, target=f"bytes={share}", calib=images())
    size, before = (tmp_path / form).stat().st_size, (tmp_path / "in.onnx").stat().st_size
    assert 0.8 * share * before < size <= share * before
    assert result.report.bytes_after == size
    assert result.report.lines
    plain = tmp_path / "out.onnx"
    if form.endswith(".zst"):
        facts = decompress(tmp_path / form, plain)
        assert facts.files[0]["sha256"] == result.report.sha256["unpacked"]
        assert plain.read_bytes() == Model.load(result.model).serialize()
    x = images(9)["x"]
    assert np.array_equal(run(plain, x), run(result.model, x))
    assert error(run(tmp_path / "in.onnx", x), run(plain, x)) < 0.3
    assert result.report.calibration is not None
    assert result.report.calibration["original"] is None or result.report.calibration["samples"] > 0


def test_samples_pay() -> None:
    """The same bytes with samples lose less than without."""
    x = images(20)["x"]
    model = net(width=40)
    with_ = compress(model, target="bytes=0.14", to="zst", calib=images())
    without = compress(model, target="bytes=0.14", to="zst")
    truth = run(model, x)
    assert error(truth, run(with_.model, x)) < 0.8 * error(truth, run(without.model, x))


def test_the_same_words_give_the_same_bytes(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    for name in ("a.zst", "b.zst"):
        compress(tmp_path / "in.onnx", tmp_path / name, target="bytes=0.22", calib=images())
    assert (tmp_path / "a.zst").read_bytes() == (tmp_path / "b.zst").read_bytes()


def test_weights_that_follow_from_others_are_folded(tmp_path: Path) -> None:
    """As torch's exporter gives those of an LSTM: gates sliced off and joined in another order."""
    b = Builder(3)
    whole = b.weight("whole", 48, 24)
    gates = [
        b.op("Slice", [whole, *(b.constant(f"{n}.{at}", np.array([v])) for at, v in ends)], f"gate{n}")
        for n, ends in enumerate(
            [(("from", 24), ("to", 48), ("axis", 0)), (("from", 0), ("to", 24), ("axis", 0))]
        )
    ]
    joined = b.op("Transpose", [b.op("Concat", gates, "joined", axis=0)], "turned", perm=[1, 0])
    h = b.op("Relu", [b.op("MatMul", ["x", joined], "mm")], "relu")
    proto = b.model({"x": ["N", 24]}, b.linear(h, "head", 48, 6))
    onnx.save(proto, tmp_path / "in.onnx")
    x = np.random.default_rng(0).standard_normal((60, 24)).astype(np.float32)
    out = tmp_path / "out.onnx.zst"
    report = compress(tmp_path / "in.onnx", out, target="bytes=0.3", calib={"x": x}).report
    assert {line["tensor"] for line in report.lines} == {"turned_out", "head.weight"}
    assert out.stat().st_size <= 0.3 * (tmp_path / "in.onnx").stat().st_size
    decompress(out, tmp_path / "plain.onnx")
    assert error(run(proto, x), run(tmp_path / "plain.onnx", x)) < 0.1


def test_without_a_target_no_weight_changes(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    result = compress(tmp_path / "in.onnx", tmp_path / "out.onnx", to="zst")
    assert result.path == tmp_path / "out.onnx.zst"
    decompress(tmp_path / "out.onnx.zst", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()
    assert result.report.sha256["unpacked"] == result.report.sha256["input"]
    easy = compress(tmp_path / "in.onnx", tmp_path / "easy.zst", target="bytes=1.0")
    assert not easy.report.lines
    assert "no weight was changed" in easy.report.notes[0]


def test_external_data_comes_along(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    x = images(4)["x"]
    for target in (None, "bytes=0.3"):
        result = compress(tmp_path / "in.onnx", tmp_path / "out.zst", target=target)
        decompress(tmp_path / "out.zst", tmp_path / "alone" / "back.onnx")
        assert [p.name for p in (tmp_path / "alone").iterdir()] == ["back.onnx"]
        assert np.array_equal(run(tmp_path / "alone" / "back.onnx", x), run(result.model, x))
    assert result.report.bytes_before == sum((tmp_path / n).stat().st_size for n in ("in.onnx", "in.data"))
    with pytest.raises(OutputError):
        compress(tmp_path / "in.onnx", tmp_path / "in.data", target="bytes=0.3")


def test_more_than_protobuf_holds_goes_as_a_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.compression.packing.MOST_EMBEDDED", 1000)
    monkeypatch.setattr("onnxprune.files.output.MOST_EMBEDDED", 1000)
    onnx.save(net(), tmp_path / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    compress(tmp_path / "in.onnx", tmp_path / "out.zst")
    facts = decompress(tmp_path / "out.zst", tmp_path / "new" / "model.onnx")
    assert [one["name"] for one in facts.files] == ["model.onnx", "in.data"]
    x = images(4)["x"]
    assert np.array_equal(run(tmp_path / "in.onnx", x), run(tmp_path / "new" / "model.onnx", x))


@pytest.mark.parametrize("opset", [8, 11, 13, 17, 21])
@pytest.mark.parametrize(
    ("each", "ends"), [(1, (-127, 127)), (2, (-8, 7)), (2, (0, 15)), (3, (-2, 3)), (5, (-1, 1))]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_stored_weights_are_those_floats_at_every_opset(
    opset: int, each: int, ends: tuple[int, int], dtype: type
) -> None:
    rng = np.random.default_rng(opset)
    k = rng.integers(*ends, (6, 5), dtype=np.int8, endpoint=True)
    k[0, :2] = ends
    step = rng.uniform(0.01, 0.1, (1, 5)).astype(dtype)
    kind = numpy_helper.from_array(np.zeros(0, dtype)).data_type
    values = [
        onnx.helper.make_tensor_value_info(name, kind, ["n", size]) for name, size in (("x", 6), ("y", 5))
    ]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = numpy_helper.from_array(dequantised(k, step, np.dtype(dtype)), "w")
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    model = Model.load(made)
    assert Stored(model).put("w", k, step) == 8 / each
    x = np.eye(6, dtype=dtype)
    proto = model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    assert np.array_equal(run(proto, x), run(made, x))
    assert model.nbytes < made.ByteSize() + 1000


def test_steps_have_one_number_where_all_are_equal() -> None:
    assert step_of(np.full((3, 4), 2.0)).tolist() == [[2.0]]
    assert step_of(np.array([[1.0, 2.0], [1.0, 2.0]])).shape == (1, 2)
    assert step_of(np.array([[1.0, 2.0], [1.0, 3.0]])).shape == (2, 2)


def test_names_that_are_taken_stay_theirs() -> None:
    """Those of weights and of activations: what nodes compute for the first weight would be called w.1, w.2, ..."""
    b = Builder()
    x = b.op("MatMul", ["x", b.weight("w", 32, 32)], "first")
    x = b.op("MatMul", [x, b.weight("w_scale", 32, 32)], "second")
    model = b.model({"x": ["n", 32]}, x)
    for node in model.graph.node:  # an activation with the name of the first value
        node.input[:] = ["w.1" if name == "first_out" else name for name in node.input]
        node.output[:] = ["w.1" if name == "first_out" else name for name in node.output]
    del model.graph.value_info[:]
    made = compress(model, target="bytes=0.45", to="onnx").model
    assert {t.name for t in made.graph.initializer}.isdisjoint({"w", "w_scale"})  # both lie on grids
    onnx.checker.check_model(made, full_check=True)
    x = np.eye(32, dtype=np.float32)
    assert error(run(model, x), run(made, x)) < 0.05


def test_what_may_not_change_stays(tmp_path: Path) -> None:
    model = net()
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = compress(model, target="bytes=0.4", to="zst", ignore=("^one",))
    kept = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}
    assert np.array_equal(kept["one.weight"], weights["one.weight"])
    assert {one.name: one.reason for one in made.report.left}["one.weight"] == "--ignore"
    assert "two.weight" not in kept
    shared = net()
    shared.graph.input.append(
        onnx.helper.make_tensor_value_info("one.weight", FLOAT, weights["one.weight"].shape)
    )
    left = {one.name: one.reason for one in compress(shared, target="bytes=0.5", to="zst").report.left}
    assert "can change at run time" in left["one.weight"]
    with pytest.raises(UsageError, match="matches no weight"):
        compress(model, target="bytes=0.4", to="zst", ignore=("nothing",))


@pytest.mark.parametrize("head", ["MatMul", "Gemm", "output"])
def test_a_table_that_is_turned_for_the_head_lies_on_a_grid(head: str) -> None:
    """Small language models tie their head to the embedding; whose turned table is an output it stays."""
    b = Builder(0)
    x = b.op("Gather", [b.weight("table", 96, 32), "ids"], "x")
    turned = b.op("Transpose", ["table"], "turned", perm=[1, 0])
    y = b.op("Reshape", [x, b.constant("flat", np.array([-1, 32], np.int64))], "rows")
    y = b.op("Gemm" if head == "Gemm" else "MatMul", [y, turned], "y")
    model = b.model({"ids": ["N"]}, y)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    if head == "output":
        model.graph.output.append(onnx.helper.make_tensor_value_info(turned, FLOAT, [32, 96]))
        with pytest.raises(NothingToPrune, match="Transpose reads it"):
            compress(model, target="bytes=0.4", to="onnx")
        return
    report = compress(model, target="bytes=0.4", to="onnx").report
    assert [line["tensor"] for line in report.lines] == ["table"]


def test_a_turned_table_is_looked_up_as_one_that_is_not() -> None:
    """What reads behind the lookup doesn't matter there either."""
    b = Builder(0)
    rows = b.op("Gather", [b.weight("table", 64, 64), "ids"], "rows")
    columns = b.op("Gather", [b.op("Transpose", ["table"], "turned", perm=[1, 0]), "ids"], "columns")
    model = b.model({"ids": ["N"]}, b.op("Mul", [rows, columns], "y"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    report = compress(model, target="bytes=0.4", to="onnx").report
    assert [line["tensor"] for line in report.lines] == ["table"]


@pytest.mark.parametrize("opset", [6, 17])
def test_models_without_weights_that_may_change_say_what_could_be(opset: int) -> None:
    b = Builder()
    model = b.model({"x": ["n", 4]}, b.op("Relu", ["x"], "y"), 17)
    with pytest.raises(NothingToPrune, match="none is large enough and of floats"):
        compress(model, target="bytes=0.1", to="zst")
    if opset < 7:
        with pytest.raises(NothingToPrune, match="opset is older than 7"):
            compress(chain(opset=opset), target="bytes=0.1", to="zst")


@pytest.mark.parametrize(("places", "why"), [(64, "it is quantised already"), (4096, "Slice reads it")])
def test_the_reason_that_keeps_most_bytes_is_named(places: int, why: str) -> None:
    """Small positions that are sliced stand first in the file, and products are of 8 bits."""
    b = Builder()
    positions = b.constant("pos", np.random.default_rng(0).normal(size=(places, 2)).astype(np.float32))
    few = b.op("Slice", [positions, b.constant("start", np.array([0], np.int64)), "stop"], "few")
    x = b.op("Add", ["x", few], "moved")
    for n, (rows, columns) in enumerate([(2, 64), (64, 64)]):
        w = b.constant(f"w{n}", np.random.default_rng(n).integers(-99, 99, (rows, columns), np.int8))
        floats = b.op("DequantizeLinear", [w, b.constant(f"s{n}", np.array(0.1, np.float32))], f"f{n}")
        x = b.op("MatMul", [x, floats], f"y{n}")
    model = b.model({"x": ["n", 2], "stop": [1]}, x)
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    what = "'w1' and 1 other weight: " if places == 64 else "'pos': "
    with pytest.raises(NothingToPrune, match=re.escape(f"on a grid ({what}{why}")):
        compress(model, target="bytes=0.1", to="zst")


def test_a_budget_that_cannot_be_met_says_what_could_be(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    with pytest.raises(NothingToPrune, match=r"the file takes [0-9,]+ bytes.*--to zst"):
        compress(tmp_path / "in.onnx", tmp_path / "out.onnx", target="bytes=0.05")
    with pytest.raises(NothingToPrune, match=r"the file takes [0-9,]+ bytes"):
        compress(tmp_path / "in.onnx", tmp_path / "out.zst", target="bytes=0.01", calib=images())
    assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]


def test_halves_and_what_is_quantised_already() -> None:
    model = net()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    x = images(4)["x"].astype(np.float16)
    made = compress(model, target="bytes=0.4", to="zst")
    assert error(run(model, x).astype(np.float32), run(made.model, x).astype(np.float32)) < 0.3
    small = compress(net(), target="bytes=0.5", to="onnx").model
    again = compress(small, target="bytes=0.9", to="zst")
    assert again.report.bytes_after < 0.9 * small.ByteSize()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"target": "macs=0.5"}, "one budget of bytes"),
        ({"target": "bytes=0.5,0.3"}, "one budget of bytes"),
        ({"target": "bytes=2"}, "an amount needs a unit"),
        ({"to": "gz"}, "--to must be one of"),
        ({"calib": "synthetic"}, "--calib is for what --target changes"),
        ({"seed": 2, "target": "bytes=0.5"}, "--seed needs samples"),
    ],
)
def test_options_that_say_nothing_are_refused(words: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compress(net(), **words)  # type: ignore[arg-type]


def test_a_name_for_each_form(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    with pytest.raises(UsageError, match=r"ends in \.zst"):
        compress(tmp_path / "in.onnx", tmp_path / "o.zst", to="onnx")
    with pytest.raises(UsageError, match="leave the file as it is"):
        compress(tmp_path / "in.onnx", tmp_path / "o.onnx")


def test_the_command_and_its_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    np.savez(tmp_path / "s.npz", **images())
    line = ["compress", str(tmp_path / "in.onnx"), str(tmp_path / "o.onnx.zst"), "--target", "bytes=0.22"]
    line += ["--calib", str(tmp_path / "s.npz"), "--report"]
    for name in ("r.json", "r.html", "r.md", "r.csv"):
        assert cli.main([*line, str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert "in transfer" in said
    values = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert values["bytes"]["after"] == (tmp_path / "o.onnx.zst").stat().st_size
    assert sum(t["zeros"] for t in values["tensors"]) == values["zeros"]
    sizes = [one["bytes"] for one in values["curve"]]
    assert sizes == sorted(sizes)
    assert [one["loss"] for one in values["curve"]] == sorted(
        (one["loss"] for one in values["curve"]), reverse=True
    )
    found = Page(page.render_compressed(values))
    assert {"summary", "weights", "curve", "left", "run"} <= set(sound(found))
    assert sum(attrs.get("class") == "weight" for _, attrs in found.tags) == len(values["tensors"])
    assert cli.main(["decompress", str(tmp_path / "o.onnx.zst"), str(tmp_path / "o.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["name"] == "o.onnx"
    onnxprune.Model.load(tmp_path / "o.onnx")
    with pytest.raises(ModelError):
        onnxprune.Model.load(tmp_path / "o.onnx.zst")
