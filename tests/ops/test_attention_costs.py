"""What fused attention multiplies is what it multiplies when it is written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune

MS = "com.microsoft"
B, S, T, H, D, V, I = 2, 5, 7, 4, 8, 6, 10  # noqa: E741  batch, queries, keys, heads, widths, inputs
SCORES = B * H * S * T * D + B * H * S * T * V


def _macs(node: Any, shapes: dict[str, tuple[int, ...]], weights: dict[str, Any]) -> int:
    rng = np.random.default_rng(0)
    opset = 23 if node.domain == "" else 17
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in node.output],
        [
            numpy_helper.from_array(s if isinstance(s, np.ndarray) else rng.standard_normal(s).astype(np.float32), n)
            for n, s in weights.items()
        ],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return int(onnxprune.inspect(model).size.macs)


def test_multi_head_attention() -> None:
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain=MS, num_heads=H)
    assert _macs(node, {"q": (B, S, H * D), "k": (B, T, H * D), "v": (B, T, H * V)}, {}) == SCORES


def test_attention_of_onnx_with_fewer_heads_of_keys() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    shapes = {"q": (B, H, S, D), "k": (B, H // 2, T, D), "v": (B, H // 2, T, V)}
    assert _macs(node, shapes, {}) == SCORES


def test_attention_over_a_cache_counts_all_keys() -> None:
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v", "", "", "", "pk", "pv"], ["y", "nk", "nv"], domain=MS,
                            num_heads=H)  # fmt: skip
    shapes = {
        "q": (B, S, H * D),
        "k": (B, S, H * D),
        "v": (B, S, H * D),
        "pk": (B, H, 3, D),
        "pv": (B, H, 3, D),
    }
    assert _macs(node, shapes, {}) == 2 * B * H * S * (S + 3) * D


@pytest.mark.parametrize("widths", [None, [H * D, H * D, H * V]])
def test_attention_that_makes_queries_keys_and_values(widths: list[int] | None) -> None:
    more = {"qkv_hidden_sizes": widths} if widths else {}
    node = helper.make_node("Attention", ["x", "w", "b"], ["y"], domain=MS, num_heads=H, **more)
    whole, last = sum(widths or [H * D] * 3), (widths or [H * D] * 3)[2]
    products = B * S * I * whole + B * S * S * (H * D + last)
    assert _macs(node, {"x": (B, S, I)}, {"w": (I, whole), "b": (whole,)}) == products


def test_groups_of_queries_without_a_cache_count_their_own_keys() -> None:
    wide, groups = 16, H // 2
    lengths = {"lengths": np.full(B, S - 1, np.int32), "total": np.array(S, np.int32)}
    node = helper.make_node("GroupQueryAttention", ["q", "k", "v", "", "", *lengths], ["y", "nk", "nv"], domain=MS,
                            num_heads=H, kv_num_heads=groups)  # fmt: skip
    shapes = {"q": (B, S, H * wide), "k": (B, S, groups * wide), "v": (B, S, groups * wide)}
    assert _macs(node, shapes, lengths) == 2 * B * H * S * S * wide


def test_a_sum_in_front_of_a_norm_multiplies_nothing() -> None:
    for op, weights in (("SkipLayerNormalization", ["s", "c"]), ("SkipSimplifiedLayerNormalization", ["s"])):
        node = helper.make_node(op, ["x", "z", *weights], ["y"], domain=MS)
        assert not _macs(node, {"x": (B, S, D), "z": (B, S, D)}, dict.fromkeys(weights, (D,)))
