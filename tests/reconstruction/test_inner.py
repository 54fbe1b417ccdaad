"""Layers inside of nodes: Q, K and V that onnxruntime's Attention makes are fitted like any layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.pruning import on_samples
from onnxprune.reconstruction.inner import is_inner, with_inner
from onnxprune.reconstruction.layers import sites
from onnxprune.runtime.session import open_session

WIDTH, HEADS, INPUTS, LENGTH = 16, 4, 8, 6


def model(bias: bool = True, elem: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A product, a fused attention and a product; what the first makes is strongly correlated."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((INPUTS, WIDTH)) * np.linspace(1.5, 0.2, WIDTH)
    weights = {"first": low / 2, "qkv": rng.standard_normal((WIDTH, 3 * WIDTH)) / 4}
    weights |= {"bias": rng.standard_normal(3 * WIDTH) / 4} if bias else {}
    weights["last"] = rng.standard_normal((WIDTH, 5)) / 4
    fused = ["h", "qkv", *(["bias"] if bias else [])]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "first"),
        helper.make_node("Attention", fused, ["a"], "fused", domain="com.microsoft", num_heads=HEADS),
        helper.make_node("MatMul", ["a", "last"], ["y"], "last"),
    ]
    kind = helper.tensor_dtype_to_np_dtype(elem)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", elem, ["n", LENGTH, INPUTS])],
        [helper.make_tensor_value_info("y", elem, ["n", LENGTH, 5])],
        [numpy_helper.from_array(a.astype(kind), n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def samples(count: int, seed: int = 1) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((count, LENGTH, INPUTS)).astype(np.float32)
    return {"x": x}


@pytest.mark.parametrize("bias", [True, False])
def test_what_attention_makes_of_fewer_channels_is_fitted(bias):
    proto, fresh = model(bias), samples(100, 9)
    dense, off = open_session(Model.load(proto)).run(fresh)["y"], {}
    for recover in ("none", "lstsq"):
        result = prune(proto, ratio=0.5, calib=samples(200), recover=recover, align=1, rotate=False)
        off[recover] = np.square(open_session(Model.load(result.model)).run(fresh)["y"] - dense).mean()
    told = {line["layer"]: line for line in result.report.calibration["layers"]}
    assert told["fused"]["variant"].startswith("lstsq")
    assert told["fused"]["after"] < 0.8 * told["fused"]["before"]
    assert not result.report.calibration["by_norm"]
    assert off["lstsq"] < 0.7 * off["none"]


def test_only_those_who_ask_for_layers_inside_of_nodes_see_them():
    analysis = analyse(Model.load(model()))
    assert [site.name for site in sites(analysis)] == ["first", "last"]
    every = with_inner(analysis)
    assert [site.name for site in every] == ["first", "fused", "last"]
    assert [is_inner(site) for site in every] == [False, True, False]


def test_a_weight_that_is_read_elsewhere_is_none():
    proto = model()
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    proto.graph.node.append(helper.make_node("ReduceSum", ["qkv"], ["z"], "other"))
    assert not [site for site in with_inner(analyse(Model.load(proto))) if is_inner(site)]


@pytest.mark.parametrize("recover", ["blocks", "distill"])
def test_what_attention_makes_moves_with_the_layers_around_it(recover, monkeypatch):
    """Whether all layers are nearer to the original than their blocks (they aren't here) is held elsewhere."""
    monkeypatch.setattr(on_samples, "farther", lambda one, two: False)
    proto = model()
    made = {
        how: prune(proto, ratio=0.5, calib=samples(400), recover=how, align=1) for how in ("lstsq", recover)
    }
    first, after = (Model.load(made[how].model) for how in ("lstsq", recover))
    told = made[recover].report.calibration
    (part,) = [told["whole"]] if recover == "distill" else told["segments"]
    assert "fused" in part["layers"]
    assert part["after"] < part["before"]
    assert not np.array_equal(first.weight("qkv"), after.weight("qkv"))
    fresh = samples(200, 9)
    dense, *outs = (open_session(m).run(fresh)["y"] for m in (Model.load(proto), first, after))
    errors = [np.square(out - dense).mean() for out in outs]
    assert errors[1] < errors[0]
