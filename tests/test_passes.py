"""The passes: the same outputs, less of what isn't needed, and a refusal where that can't be had."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import Builder, attention, chain, residual

import onnxprune
from onnxprune import Model, passlist
from onnxprune.passes import drop_dead
from onnxprune.passes.shrink import shrink

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
CNN = SAMPLES / "01_digits_cnn" / "digits_cnn.onnx"
# Channels of the net are named that matter to it: training has silenced many others nearly, not quite.
TRANSFORMER = SAMPLES / "02_digits_transformer" / "digits_transformer.onnx"


def run(model: onnx.ModelProto, passes: str) -> onnx.ModelProto:
    return passlist.apply(Model.load(model), passlist.parse(passes)).to_proto()


def outputs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[np.ndarray] = ort.InferenceSession(model.SerializeToString(), options).run(None, dict(feeds))
    return found


def feeds_of(model: onnx.ModelProto, sizes: Sequence[int] = (2, 5)) -> dict[str, np.ndarray]:
    """Draw an input for each size that a dynamic axis takes in turn."""
    rng, free = np.random.default_rng(7), iter(sizes)
    found = {}
    for value in model.graph.input:
        shape = [d.dim_value or next(free) for d in value.type.tensor_type.shape.dim]
        found[value.name] = rng.normal(size=shape).astype(np.float32)
    return found


def error(one: onnx.ModelProto, other: onnx.ModelProto, sizes: Sequence[int] = (2, 5)) -> float:
    """Return the greatest relative difference; fails if the outputs say nothing."""
    feeds = feeds_of(one, sizes)
    worst = 0.0
    for a, b in zip(outputs(one, feeds), outputs(other, feeds), strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        assert np.ptp(a) > 0
        worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()))
    return worst


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def dims(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def edit(model: onnx.ModelProto, name: str, index: Any, value: float = 0.0) -> None:
    """Set part of a weight, which may be an initializer or the value of a Constant node."""
    tensors = {t.name: t for t in model.graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    array = numpy_helper.to_array(tensors[name]).copy()
    array[index] = value
    tensors[name].CopyFrom(numpy_helper.from_array(array, tensors[name].name))


# resolve_shapes


def spelled_out(seq: int | str = "seq") -> onnx.ModelProto:
    """Spell a Reshape into heads as the TorchScript-based exporter does: from Shape, Gather and Concat."""
    b = Builder(5)
    x = b.linear("x", "up", 16, 24)
    shape = b.op("Shape", [x], "shape")
    parts = []
    for i in range(2):
        size = b.op("Gather", [shape, b.constant(f"at{i}", np.array(i, np.int64))], f"size{i}", axis=0)
        parts.append(b.op("Unsqueeze", [size, b.constant(f"axes{i}", np.array([0], np.int64))], f"one{i}"))
    width = b.op("Gather", [shape, b.constant("at2", np.array(2, np.int64))], "width", axis=0)
    each = b.op("Div", [width, b.constant("heads", np.array(4, np.int64))], "each")
    parts += [b.constant("four", np.array([4], np.int64)), b.op("Unsqueeze", [each, "axes0"], "last")]
    y = b.op("Reshape", [x, b.op("Concat", parts, "target", axis=0)], "split")
    y = b.op("Transpose", [y], "turn", perm=[0, 2, 1, 3])
    root = b.op("Sqrt", [b.op("Cast", [each], "float", to=TensorProto.FLOAT)], "root")
    return b.model({"x": ["batch", seq, 16]}, b.op("Div", [y, root], "scaled"))


def test_shape_arithmetic_becomes_constant() -> None:
    model = spelled_out()
    found = run(model, "resolve_shapes")
    assert ops(found) == ["MatMul", "Add", "Reshape", "Transpose", "Div"]
    constants = {t.name: numpy_helper.to_array(t) for t in found.graph.initializer}
    reshape = next(n for n in found.graph.node if n.op_type == "Reshape")
    assert constants[reshape.input[1]].tolist() == [0, 0, 4, 6]
    assert all(error(model, found, sizes) == 0 for sizes in ((1, 1), (2, 5), (3, 130)))
    assert found.graph.input == model.graph.input
    assert found.graph.output == model.graph.output


def test_sizes_that_follow_the_input_stay_computed() -> None:
    b = Builder(6)
    shape = b.op("Shape", ["x"], "shape")
    one = b.constant("one", np.array([1], np.int64))
    length = b.op(
        "Slice",
        [shape, one, b.constant("two", np.array([2], np.int64)), b.constant("zero", np.array([0], np.int64))],
        "n",
    )
    capped = b.op(
        "Min", [length, b.constant("cap", np.array([5], np.int64))], "capped"
    )  # 5 for all but short inputs
    model = b.model({"x": ["batch", "seq", 4]}, b.op("Slice", ["x", "zero", capped, one], "part"))
    found = run(model, "resolve_shapes")
    assert all(error(model, found, sizes) == 0 for sizes in ((1, 3), (2, 5), (2, 9)))
    assert "Min" in ops(found)


def test_a_merge_of_two_dynamic_axes_keeps_minus_one() -> None:
    b = Builder(6)
    shape = b.op("Shape", ["x"], "shape")
    at = [b.constant(f"at{i}", np.array([i], np.int64)) for i in range(3)]
    sizes = [b.op("Gather", [shape, name], f"size{i}", axis=0) for i, name in enumerate(at)]
    rows = b.op("Mul", sizes[:2], "rows")
    y = b.op("Reshape", ["x", b.op("Concat", [rows, sizes[2]], "target", axis=0)], "flat")
    model = b.model({"x": ["batch", "seq", 4]}, b.op("Relu", [y], "relu"))
    found = run(model, "resolve_shapes")
    assert ops(found) == ["Reshape", "Relu"]
    assert numpy_helper.to_array(found.graph.initializer[-1]).tolist() == [-1, 4]
    assert all(error(model, found, s) == 0 for s in ((1, 1), (2, 5)))


def test_a_size_that_can_be_overridden_is_not_known() -> None:
    model = spelled_out()
    model.graph.input.append(helper.make_tensor_value_info("heads", TensorProto.INT64, []))
    found = run(model, "resolve_shapes")
    assert "heads" in dims(found)
    assert "Div" in ops(found)[:-1]


def test_nothing_to_resolve_gives_the_model_itself() -> None:
    model = Model.load(chain())
    assert passlist.apply(model, passlist.parse("resolve_shapes,drop_dead,shrink")) is model


# drop_dead


def test_what_no_output_needs_goes() -> None:
    model = chain()
    graph = model.graph
    graph.node.append(helper.make_node("Relu", ["conv1.relu_out"], ["lost"], name="lost"))
    graph.node.append(helper.make_node("Add", ["lost", "unread"], ["lost2"], name="lost2"))
    graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "unread"))
    graph.initializer.append(numpy_helper.from_array(np.ones(900, np.float32), "nobody"))
    graph.value_info.append(helper.make_tensor_value_info("lost", TensorProto.FLOAT, None))
    found = run(model, "drop_dead")
    assert found == chain()


def test_inputs_and_what_bodies_read_stay() -> None:
    b = Builder(8)
    inner = helper.make_graph(
        [helper.make_node("Mul", ["doubled", "factor"], ["then_out"])],
        "then",
        [],
        [helper.make_tensor_value_info("then_out", 1, None)],
    )
    outer = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["else_out"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_out", 1, None)],
    )
    b.op("Add", ["x", "x"], "doubled")
    b.nodes[-1].output[0] = "doubled"
    b.constant("factor", np.array([3.0, 4.0, 5.0, 6.0], np.float32))
    y = b.op("If", [b.constant("which", np.array(True))], "if", then_branch=inner, else_branch=outer)
    b.op("Neg", ["x"], "dead")
    model = b.model({"x": ["n", 4], "spare": [1]}, y)
    found = run(model, "drop_dead")
    assert ops(found) == ["Add", "If"]
    assert [v.name for v in found.graph.input] == ["x", "spare"]
    assert set(dims(found)) == {"factor", "which"}
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    feeds = {"x": x, "spare": np.zeros(1, np.float32)}
    assert np.array_equal(outputs(model, feeds)[0], outputs(found, feeds)[0])


def test_training_info_and_defaults_of_inputs_stay() -> None:
    model = chain()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["lost"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "default"))
    model.graph.input.append(helper.make_tensor_value_info("default", TensorProto.FLOAT, [2]))
    found = run(model, "drop_dead")
    assert "default" in dims(found)
    assert len(found.graph.node) == len(model.graph.node) - 1
    model.training_info.add()
    assert run(model, "drop_dead") == model


def test_graphsurgeon_agrees_and_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["lost"]))
    kept = drop_dead._surgeon(Model.load(model))
    assert kept is not None
    assert "lost" not in kept
    assert "fc_out" in kept
    monkeypatch.setattr("onnx_graphsurgeon.import_onnx", lambda graph: 1 / 0)
    assert drop_dead._surgeon(Model.load(model)) is None
    assert run(model, "drop_dead") == chain()


def test_a_node_that_graphsurgeon_keeps_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["lost"]))
    monkeypatch.setattr(drop_dead, "_surgeon", lambda model: {"lost"})
    assert run(model, "drop_dead") == model


# shrink


@pytest.mark.parametrize("path", [CNN, TRANSFORMER])
def test_a_trained_net_without_dead_channels_stays(path: Path) -> None:
    model = Model.load(path)
    assert shrink(model).model is model


def test_zero_filters_of_a_trained_net_go() -> None:
    """Filters 13 and 27 of res1 are zero, and so are the BatchNorm biases: nothing comes out of the Relu."""
    model = onnx.load(CNN)
    for name in ("res1.1.weight", "res1.1.bias"):
        edit(model, name, [13, 27])
    found = shrink(Model.load(model))
    assert sum(found.removed.values()) == 2
    small = found.model.to_proto()
    assert dims(small)["res1.0.weight"] == (30, 32, 3, 3)
    assert dims(small)["res2.0.weight"] == (32, 30, 3, 3)
    assert error(model, small, [4]) < 1e-5
    rest = np.delete(np.arange(32), [13, 27])
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
    assert np.array_equal(after["res2.0.weight"], before["res2.0.weight"][:, rest])


def test_channels_that_nobody_reads_go() -> None:
    model = onnx.load(CNN)
    edit(model, "last.0.weight", (slice(None), slice(0, 8)))  # all readers of one group of `grouped`
    found = shrink(Model.load(model)).model.to_proto()
    assert dims(found)["grouped.0.weight"] == (56, 8, 3, 3)
    assert error(model, found, [4]) < 1e-5


def test_a_constant_is_folded_into_the_bias_of_a_gemm() -> None:
    """Channels 21 and 62 come out of BatchNorm and Relu as 0.7, go through a mean, and arrive at the Gemm."""
    model = onnx.load(CNN)
    edit(model, "last.1.weight", [21, 62])
    edit(model, "last.1.bias", [21, 62], 0.7)
    found = shrink(Model.load(model))
    small = found.model.to_proto()
    assert dims(small)["fc.weight"] == (10, 126)
    assert error(model, small, [4]) < 1e-5
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    gemm = next(n for n in small.graph.node if n.op_type == "Gemm")
    bias = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}[gemm.input[2]]
    assert np.allclose(bias, weights["fc.bias"] + 0.7 * weights["fc.weight"][:, [21, 62]].sum(1), atol=1e-6)


def test_a_constant_is_folded_into_a_conv_that_had_no_bias() -> None:
    """Channel 56 of `depthwise` comes out as 0.3; `pointwise` doesn't pad. Its other side, `down`, is zero."""
    model = onnx.load(CNN)
    for name in ("down.1.weight", "down.1.bias", "depthwise.1.weight"):
        edit(model, name, [56])
    edit(model, "depthwise.1.bias", [56], 0.3)
    found = shrink(Model.load(model))
    small = found.model.to_proto()
    assert dims(small)["down.0.weight"] == (63, 32, 3, 3)
    pointwise = next(n for n in small.graph.node if "pointwise.0.weight" in n.input)
    assert len(pointwise.input) == 3
    assert error(model, small, [4]) < 1e-5


def test_a_constant_before_zero_padding_stays_and_is_said() -> None:
    model = onnx.load(CNN)
    edit(model, "res1.1.weight", [13])
    edit(model, "res1.1.bias", [13], 0.7)
    found = shrink(Model.load(model))
    assert not found.removed
    ((reason, units),) = found.refused.items()
    assert units == 1
    assert "pads with zeros" in reason


def test_a_unit_goes_only_if_all_members_allow_it() -> None:
    """A zero filter in the stem doesn't silence the channel: the residual sum writes to it too."""
    model = onnx.load(CNN)
    for name in ("stem.1.weight", "stem.1.bias"):
        edit(model, name, [10])
    assert not shrink(Model.load(model)).removed
    for name in ("res2.1.weight", "res2.1.bias"):
        edit(model, name, [10])
    small = shrink(Model.load(model)).model.to_proto()
    assert dims(small)["stem.0.weight"] == (31, 1, 3, 3)
    assert error(model, small, [4]) < 1e-5


def test_one_channel_stays_where_all_are_dead() -> None:
    model = residual()
    edit(model, "block1.conv1.weight", slice(None))
    edit(model, "block1.conv1.bias", slice(None), -1.0)
    small = shrink(Model.load(model)).model.to_proto()
    assert dims(small)["block1.conv1.weight"] == (1, 8, 3, 3)
    assert error(model, small) < 1e-5


def test_what_dies_with_others_goes_in_the_next_round() -> None:
    """Nobody reads channel 2 of conv2; once it is gone, nobody reads channel 5 of conv1."""
    model = chain()
    edit(model, "fc.weight", (slice(None), 2))
    weight = np.array([i for i in range(8) if i != 2])
    edit(model, "conv2.weight", (weight, 5))
    small = shrink(Model.load(model)).model.to_proto()
    assert dims(small)["conv2.weight"] == (7, 7, 3, 3)
    assert error(model, small) < 1e-5


def test_dead_neurons_and_heads_of_a_transformer_go() -> None:
    model = attention()
    edit(model, "ffn.up.weight", (slice(None), [1, 7]))
    edit(
        model, "ffn.up.bias", [1, 7], 0.5
    )  # the Relu lets 0.5 through: folded into the Add behind the MatMul
    edit(model, "attn.out.weight", slice(6, 12))  # nobody reads head 1
    small = shrink(Model.load(model)).model.to_proto()
    assert dims(small)["ffn.down.weight"] == (30, 20)
    assert dims(small)["attn.q.weight"] == (20, 18)
    assert ops(small) == ops(model)
    assert error(model, small, [9]) < 1e-5


def test_weights_that_are_inputs_prove_nothing() -> None:
    model = chain()
    edit(model, "fc.weight", (slice(None), 2))
    model.graph.input.append(helper.make_tensor_value_info("fc.weight", TensorProto.FLOAT, [10, 8]))
    loaded = Model.load(model)
    assert shrink(loaded).model is loaded


def test_a_wrong_bias_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the compensation the comparison must fail."""
    model = onnx.load(CNN)
    edit(model, "last.1.weight", [21, 62])
    edit(model, "last.1.bias", [21, 62], 0.7)
    monkeypatch.setattr("onnxprune.passes.shrink._Judge.compensate", lambda *args: None)
    with pytest.raises(onnxprune.OnnxPruneError):
        shrink(Model.load(model))
    wrong = shrink(Model.load(model), verify=False).model.to_proto()
    assert error(model, wrong, [4]) > 1e-3


def test_shrink_says_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    model = chain()
    edit(model, "fc.weight", (slice(None), 2))
    with caplog.at_level(logging.INFO):
        run(model, "shrink")
    assert "1 dead units are gone" in caplog.text


# together


def test_passes_in_a_row(tmp_path: Path) -> None:
    onnx.save(attention(), tmp_path / "in.onnx")
    passes = "resolve_shapes,prune{ratio=0.5 align=none},drop_dead,shrink"
    small = onnxprune.run(tmp_path / "in.onnx", passes, tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    assert dims(small.to_proto())["attn.q.weight"] == (20, 12)


def with_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the first Relu into a model-local function."""
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    relu.op_type, relu.domain = "MyRelu", "mine"
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(
        helper.make_function("mine", "MyRelu", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    return model


def test_functions_are_inlined_where_something_goes() -> None:
    model = with_function(chain())
    loaded = Model.load(model)
    assert passlist.apply(loaded, passlist.parse("resolve_shapes,drop_dead,shrink")) is loaded
    edit(model, "fc.weight", (slice(None), 2))
    small = shrink(Model.load(model)).model.to_proto()
    assert dims(small)["conv2.weight"] == (7, 8, 3, 3)
    assert not small.functions
    assert error(model, small) < 1e-5
