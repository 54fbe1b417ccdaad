"""The journey through the Python front door."""

import dataclasses
import io
import json
import os
import typing
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import convs, node
from onnx import TensorProto, numpy_helper
from small_models import MODELS, Builder, attention, chain, residual

import onnxprune
from onnxprune.errors import (
    CalibrationError,
    ModelError,
    NothingToPrune,
    PlanError,
    UsageError,
    VerificationError,
)
from onnxprune.ops import TABLE, Node, Row
from onnxprune.options.pruning import OptionFields, Options

GOLDEN = Path(__file__).parents[1] / "golden"


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def test_in_memory_model_in_model_out() -> None:
    model = residual()
    before = model.SerializeToString(deterministic=True)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert isinstance(result.model, onnx.ModelProto)
    assert shapes(result.model)["block1.conv1.weight"] == (8, 4, 3, 3)
    assert shapes(result.model)["fc.weight"] == (5, 16)
    assert model.SerializeToString(deterministic=True) == before
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)
    assert run(result.model, x=x)[0].shape == (1, 5)
    assert result.path is None
    assert result.report.after.bytes == len(result.model.SerializeToString())


def test_pruned_equals_masked_original_by_hand() -> None:
    """Law 1, worked out without the verifier: channels of a plain chain zeroed where the next layer reads them."""
    model = chain()
    result = onnxprune.prune(model, ratio=0.5, align=None, verify=False)
    masked = onnx.ModelProto.FromString(model.SerializeToString())
    for cut in result.report.cuts:
        consumed = (cut.tensor, cut.axis) in {("conv2.weight", 1), ("fc.weight", 1)}
        if consumed:
            weight = next(t for t in masked.graph.initializer if t.name == cut.tensor)
            array = onnx.numpy_helper.to_array(weight).copy()
            np.moveaxis(array, cut.axis, 0)[list(cut.removed)] = 0
            weight.CopyFrom(onnx.numpy_helper.from_array(array, cut.tensor))
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)
    np.testing.assert_allclose(run(result.model, x=x)[0], run(masked, x=x)[0], rtol=1e-5, atol=1e-6)


def test_on_disk_path_in_path_out(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "in.onnx")
    result = onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align=None)
    assert result.path == tmp_path / "out.onnx"
    assert shapes(onnx.load(result.path)) == shapes(result.model)


def test_options_object_and_fields_mix() -> None:
    options = Options(ratio=0.25, align="none")
    assert shapes(onnxprune.prune(chain(), options=options).model)["conv1.weight"][0] == 6
    assert shapes(onnxprune.prune(chain(), options=options, ratio=0.5).model)["conv1.weight"][0] == 4
    with pytest.raises(UsageError, match="rato"):
        onnxprune.prune(chain(), rato=0.5)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="ratio"):
        onnxprune.prune(chain())


def test_options_are_declared_once() -> None:
    """The TypedDict for type checkers and the dataclass have the same fields of the same types."""
    fields = typing.get_type_hints(OptionFields)
    assert fields == {f.name: typing.get_type_hints(Options)[f.name] for f in dataclasses.fields(Options)}
    assert all(f.metadata["help"] and f.metadata["stage"] for f in dataclasses.fields(Options))


def test_plan_then_apply() -> None:
    plan = onnxprune.plan(residual(), ratio=0.5, align=None, criterion="l1")
    two = onnxprune.apply(residual(), plan)
    one = onnxprune.prune(residual(), ratio=0.5, align=None, criterion="l1")
    assert one.model.SerializeToString() == two.model.SerializeToString()
    found = onnxprune.verify(residual(), two.model, plan)
    assert found["max_relative_error"] <= 1e-4
    with pytest.raises(PlanError, match="another model"):
        onnxprune.apply(chain(), plan)


def test_verify_fails_on_another_cut() -> None:
    plan = onnxprune.plan(chain(), ratio=0.5, align=None)
    other = onnxprune.prune(chain(), ratio=0.5, align=None, criterion="random", seed=3)
    assert [c.removed for c in other.report.cuts] != [tuple(c.removed) for c in plan.cuts]
    with pytest.raises(VerificationError, match="isn't what the plan says"):
        onnxprune.verify(chain(), other.model, plan)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("criterion", ["l2", "random"])
def test_golden_plans(name: str, criterion: str) -> None:
    """The same decisions as ever; after a change that is meant: ONNXPRUNE_UPDATE_GOLDEN=1 pytest tests."""
    plan = onnxprune.plan(MODELS[name](), ratio=0.5, align=None, criterion=criterion, seed=7)
    path = GOLDEN / f"{name}_{criterion}.json"
    if os.environ.get("ONNXPRUNE_UPDATE_GOLDEN"):
        path.write_text(plan.dumps(), encoding="utf-8")
    found, wanted = json.loads(plan.dumps()), json.loads(path.read_text(encoding="utf-8"))
    assert found | {"model_sha256": ""} == wanted | {
        "model_sha256": ""
    }  # the test's own model may be written anew


def test_ignore_leaves_a_weight_alone() -> None:
    result = onnxprune.prune(residual(), ratio=0.5, align=None, ignore="^block1.conv1")
    assert not [c for c in result.report.cuts if c.tensor.startswith("block1.conv1")]
    assert [c for c in result.report.cuts if c.tensor == "block2.conv1.weight"]


def test_only_cuts_what_is_produced_there() -> None:
    result = onnxprune.prune(residual(), ratio=0.5, align=None, only=("^block2.conv1",))
    assert {(c.tensor, c.axis) for c in result.report.cuts} == {
        ("block2.conv1.weight", 0),
        ("block2.conv1.bias", 0),
        ("block2.conv2.weight", 1),
    }


def test_alternative_groups_wait_for_only() -> None:
    kinds = {g.name: g for g in onnxprune.inspect(attention()).groups}
    alternatives = [g for g in kinds.values() if g.alternative]
    assert alternatives
    default = onnxprune.plan(attention(), ratio=0.5, align=None)
    assert not {g.name for g in alternatives} & {g.name for g in default.groups if g.removed_units}
    name = alternatives[0].name
    picked = onnxprune.plan(attention(), ratio=0.5, align=None, only=(f"^{name}$",))
    assert [g.name for g in picked.groups if g.removed_units] == [name]


def test_inexact_is_opt_in_and_marked() -> None:
    exact = onnxprune.prune(attention(), ratio=0.5, align=None, center_norms=False)
    assert not exact.report.inexact
    assert {f.tensor for f in exact.report.frozen if "averages over" in f.reason} >= {
        "ln.scale",
        "embed.weight",
    }
    inexact = onnxprune.prune(attention(), ratio=0.5, align=None, allow_inexact=True)
    assert inexact.report.inexact
    assert shapes(inexact.model)["ln.scale"] == (10,)
    text = io.StringIO()
    inexact.report.show(text)
    assert "inexact" in text.getvalue()


def lie(node: Node) -> Row:
    return Row("*s -> *s")


def liar() -> onnx.ModelProto:
    b = Builder(5)
    x = b.op("Relu", [b.conv("x", "conv1", 3, 8)], "relu1")
    x = b.op("Softmax", [b.conv(x, "conv2", 8, 8)], "softmax", axis=1)
    x = b.op("GlobalAveragePool", [b.conv(x, "conv3", 8, 4)], "pool")
    return b.model({"x": [1, 3, 8, 8]}, x)


def test_what_fails_is_put_back_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, ("", "Softmax"), lie)
    result = onnxprune.prune(liar(), ratio=0.5, align=None)
    assert [entry["group"] for entry in result.report.put_back] == ["conv2.weight:0"]
    assert "law 1 doesn't hold" in result.report.put_back[0]["reason"]
    assert shapes(result.model)["conv2.weight"] == (8, 4, 3, 3)
    assert [g.name for g in result.plan.groups if g.removed_units] == ["conv1.weight:0"]
    text = io.StringIO()
    result.report.show(text)
    assert "put back: conv2.weight:0" in text.getvalue()


def test_fails_where_nothing_can_be_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(TABLE, ("", "Softmax"), lie)
    with pytest.raises(VerificationError, match="whichever group is cut"):
        onnxprune.prune(liar(), tmp_path / "out.onnx", ratio=0.5, align=None, only=("conv2",))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("empty", [False, True], ids=["constant", "empty"])
def test_the_advice_fits_what_says_nothing(empty: bool) -> None:
    """Sizes that said nothing aren't advised again, and none help where nothing passes a threshold."""
    last = [node("NonZero", "h", "y")] if empty else [node("Relu", "h", "y")]
    model = convs(last, shape=(2, 3, "high", "wide"), outputs={"y": TensorProto.INT64} if empty else None)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    with pytest.raises(VerificationError, match="Verification says nothing") as error:
        onnxprune.prune(model, ratio=0.5, align=None, input_shapes={"x": (2, 3, 8, 8)})
    assert "8,8" not in str(error.value)
    assert ("threshold of the model's own: give real samples with --inputs" in str(error.value)) is empty
    assert ("or other sizes as in '--input-shape x:2,3,high,wide'" in str(error.value)) is not empty


def test_a_lie_shows_only_with_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, ("", "Softmax"), lie)
    result = onnxprune.prune(liar(), ratio=0.5, align=None, verify=False)
    assert result.report.law1 is None
    assert shapes(result.model)["conv2.weight"] == (4, 4, 3, 3)


def test_given_inputs_are_used(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8), np.float32)
    np.savez(tmp_path / "inputs.npz", x=x)
    result = onnxprune.prune(chain(), ratio=0.5, align=None, inputs=str(tmp_path / "inputs.npz"))
    assert result.report.law1 is not None
    assert result.report.law1["given_inputs"] == 3
    again = onnxprune.prune(chain(), ratio=0.5, align=None, inputs=[{"x": x[:1]}, {"x": x[1:2]}])
    assert again.report.law1 is not None
    assert again.report.law1["given_inputs"] == 2


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"z": np.zeros((1, 3, 8, 8), np.float32)}, "lack 'x'"),
        ({"x": np.zeros((3, 8, 8), np.float32)}, "has 3 axes"),
        ({"x": np.zeros((1, 3, 9, 8), np.float32)}, "have the shape"),
        ([], "are empty"),
        ("nowhere.npz", "can't be read as inputs"),
        (3, "can't be read from a int"),
    ],
)
def test_given_inputs_that_do_not_fit(inputs: object, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        onnxprune.prune(chain(), ratio=0.5, align=None, inputs=inputs)


def test_nothing_to_prune() -> None:
    b = Builder()
    model = b.model({"x": [2, 3]}, b.op("Relu", ["x"], "relu"))
    with pytest.raises(NothingToPrune, match="no weight with more than"):
        onnxprune.prune(model, ratio=0.5)
    assert onnxprune.prune(model, ratio=0).model == model


def test_bad_sources() -> None:
    with pytest.raises(ModelError):
        onnxprune.prune(onnx.ModelProto(), ratio=0.5)
    with pytest.raises(ModelError):
        onnxprune.inspect("nowhere.onnx")


def test_an_existing_output_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    with pytest.raises(UsageError):
        onnxprune.prune(chain(), out, ratio=0.5, ignore="konv")
    assert out.read_bytes() == b"old"
    onnxprune.prune(chain(), out, ratio=0.5, align=None)
    onnx.checker.check_model(onnx.load(out))
    onnxprune.prune(chain(), tmp_path / "new" / "out.onnx", ratio=0.5, align=None)
    assert (tmp_path / "new" / "out.onnx").read_bytes() == out.read_bytes()


def test_external_data_goes_beside_the_output(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    onnx.save(
        chain(64), tmp_path / "a" / "in.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    result = onnxprune.prune(tmp_path / "a" / "in.onnx", tmp_path / "b" / "out.onnx", ratio=0.5, align=None)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["out.onnx", "out.onnx.data"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["in.onnx", "w.bin"]
    size = sum(p.stat().st_size for p in (tmp_path / "b").iterdir())
    assert result.report.after.bytes == size
    embedded = onnxprune.prune(chain(64), ratio=0.5, align=None)
    assert shapes(onnx.load(tmp_path / "b" / "out.onnx")) == shapes(embedded.model)


def test_threshold_moves_weights_out(tmp_path: Path) -> None:
    onnxprune.prune(chain(64), tmp_path / "out.onnx", ratio=0.5, align=None, external_data_threshold=1024)
    assert (tmp_path / "out.onnx.data").exists()
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_dynamic_axes_stay_dynamic() -> None:
    result = onnxprune.prune(attention(seq="seq"), ratio=0.5, align=None)
    for length in (3, 9):
        x = np.random.default_rng(0).standard_normal((1, length, 16), np.float32)
        assert run(result.model, x=x)[0].shape == (1, length, 5)


def by_shape() -> onnx.ModelProto:
    """Attention scores whose heads are split by shape arithmetic, as exporters write it for a dynamic axis."""
    b = Builder(3)
    x = b.linear("x", "embed", 16, 20)
    length = b.op("Gather", [b.op("Shape", ["x"], "shape"), b.constant("one", np.array(1))], "length", axis=0)
    length = b.op("Unsqueeze", [length, b.constant("axes", np.array([0]))], "unsqueeze")
    ends = [b.constant("batch", np.array([1])), length, b.constant("heads", np.array([4, 6]))]
    split = b.op("Concat", ends, "split", axis=0)
    q, k = (b.op("Reshape", [b.linear(x, name, 20, 24), split], f"{name}.split") for name in "qk")
    q, k = b.op("Transpose", [q], "q.t", perm=[0, 2, 1, 3]), b.op("Transpose", [k], "k.t", perm=[0, 2, 3, 1])
    return b.model({"x": [1, "seq", 16]}, b.op("MatMul", [q, k], "scores"))


@pytest.mark.parametrize("given", [{}, {"x": (1, 8, 16)}])
def test_a_given_shape_does_not_make_an_axis_fixed(given: dict[str, tuple[int, ...]]) -> None:
    result = onnxprune.prune(by_shape(), ratio=0.5, align=None, input_shapes=given)
    assert shapes(result.model)["q.weight"] == (10, 12)
    for length in (8, 5):
        x = np.ones((1, length, 16), np.float32)
        assert run(result.model, x=x)[0].shape == (1, 4, length, length)


def test_front_door() -> None:
    assert len(onnxprune.__all__) <= 21
    assert all(getattr(onnxprune, name).__doc__ for name in onnxprune.__all__)
    assert set(onnxprune.__all__) <= set(dir(onnxprune))
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = onnxprune.nothing_here


def test_a_function_is_not_hidden_by_the_module_of_the_same_name() -> None:
    import importlib

    module = importlib.import_module("onnxprune.pruning.plan")
    assert callable(onnxprune.plan)
    assert not callable(module)


def test_version_is_the_package_version() -> None:
    import tomllib

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["version"] == onnxprune.__version__
