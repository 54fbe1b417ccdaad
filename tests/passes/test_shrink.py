"""The pass shrink: the same outputs with fewer channels, and a refusal where that can't be had."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pass_models import CNN, TRANSFORMER, dims, edit, error, ops, run
from small_models import Builder, attention, chain, residual

import onnxprune
from onnxprune import Model
from onnxprune.journey import passes as passlist
from onnxprune.sparsity.dead import shrink

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
    monkeypatch.setattr("onnxprune.graph.dead.DeadUnits.compensate", lambda *args: None)
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


@pytest.mark.parametrize(("alpha", "beta", "gone"), [(1.0, 1.0, 2), (2.5, 1.0, 2), (1.0, 3.0, 0)])
def test_factors_of_a_gemm_count_for_what_is_folded(alpha: float, beta: float, gone: int) -> None:
    """Two channels are constant; what they give is taken alpha times, and a bias that is scaled takes nothing."""
    rng = np.random.default_rng(0)
    b = Builder(3)
    up = b.constant("up", rng.standard_normal((5, 8)).astype(np.float32) * ([1.0] * 6 + [0.0] * 2))
    shift = b.constant("shift", np.array([0.1] * 6 + [0.7, 0.4], np.float32))
    b.weights[0].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(b.weights[0]).astype(np.float32), up))
    x = b.op("Relu", [b.op("Add", [b.op("MatMul", ["x", up], "mm"), shift], "add")], "relu")
    last = [x, b.weight("w", 8, 3), b.weight("c", 3)]
    model = b.model({"x": [4, 5]}, b.op("Gemm", last, "gemm", alpha=alpha, beta=beta))
    found = shrink(Model.load(model))
    assert sum(found.removed.values()) == gone
    assert error(model, found.model.to_proto(), [4]) < 1e-5
    assert any("scales its bias" in why for why in found.refused) == (gone == 0)
