"""Gradients of fused attention and of rotations, by differences or beside the same written in plain ops."""

from collections.abc import Callable
from math import sqrt

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.errors import CalibrationError
from onnxprune.runtime.session import open_session
from tests.gradient.finite import disagreement, fused, gradients, i64, model, ms, node, normal

CLOSE = 2e-4
B, S, T, H, G, D, V = 2, 3, 4, 4, 2, 4, 6
Feeds = dict[str, np.ndarray]
Nodes = list[onnx.NodeProto]


def apart(name: str, out: str, heads: int) -> Nodes:
    """[B, S, heads * d] -> [B, heads, S, d]."""
    return [
        node("Reshape", name, f"shape{heads}", out=f"{out}/r"),
        node("Transpose", f"{out}/r", out=out, perm=[0, 2, 1, 3]),
    ]


def plain(q: str, k: str, v: str, scale: float, *added: str) -> Nodes:
    """Attention of heads that lie apart, and the result with its heads together."""
    scores = [f"s{i}" for i in range(len(added) + 1)]
    return [
        node("Transpose", k, out="kt", perm=[0, 1, 3, 2]),
        node("MatMul", q, "kt", out="raw"),
        node("Mul", "raw", "scale", out="s0"),
        *(node("Add", scores[i], term, out=scores[i + 1]) for i, term in enumerate(added)),
        node("Softmax", scores[-1], out="p", axis=-1),
        node("MatMul", "p", v, out="o"),
        node("Transpose", "o", out="ot", perm=[0, 2, 1, 3]),
        node("Reshape", "ot", "flat", out="y"),
    ]


def constants(scale: float, *heads: int) -> Feeds:
    shapes = {f"shape{n}": i64(0, 0, n, -1) for n in heads}
    return {**shapes, "flat": i64(0, 0, -1), "scale": np.float32(scale)}


def same(
    one: onnx.ModelProto, two: onnx.ModelProto, feeds: Feeds, wanted: list[str], seed: np.ndarray
) -> None:
    got, true = gradients(one, feeds, wanted, seed), gradients(two, feeds, wanted, seed)
    for name in wanted:
        assert np.abs(true[name]).max() > 1e-3
        np.testing.assert_allclose(got[name], true[name], atol=2e-5)


def causal(rows: int, columns: int) -> np.ndarray:
    return np.where(np.arange(columns)[None] > np.arange(rows)[:, None], np.float32(-1e30), np.float32(0))


@pytest.mark.parametrize("mask", ["none", "float", "bool", "causal", "heads"])
@pytest.mark.parametrize("flat", [True, False])
def test_attention(flat: bool, mask: str) -> None:
    shapes = (
        [(B, S, H * D), (B, T, G * D), (B, T, G * V)] if flat else [(B, H, S, D), (B, G, T, D), (B, G, T, V)]
    )
    feeds = {n: normal(*shape) for n, shape in zip("qkv", shapes, strict=True)}
    masks = {"float": normal(S, T), "bool": np.tri(S, T, 1, dtype=bool), "heads": normal(1, H, S, T)}
    given = {"m": masks[mask]} if mask in masks else {}
    attrs = {"q_num_heads": H, "kv_num_heads": G} if flat else {}
    inputs = ["q", "k", "v", *given]
    proto = model(
        [node("Attention", *inputs, is_causal=int(mask == "causal"), **attrs)], feeds, given, opset=23
    )
    wanted = ["q", "k", "v", *(["m"] if mask in ("float", "heads") else [])]
    assert disagreement(proto, feeds, wanted) < CLOSE


def test_attention_with_a_cache() -> None:
    feeds = {n: normal(B, h, S, D) for n, h in zip("qkv", (H, G, G), strict=True)}
    feeds |= {"pk": normal(B, G, T, D), "pv": normal(B, G, T, D)}
    one = helper.make_node(
        "Attention", ["q", "k", "v", "", "pk", "pv"], ["a", "nk", "nv"], scale=0.7, is_causal=1
    )
    # the new cache is read, too
    rest = [
        node("ReduceSum", "nk", "axes", out="sk"), node("ReduceSum", "nv", "axes", out="sv"),
        node("Mul", "sk", "sv", out="kv"), node("Add", "a", "kv"),
    ]  # fmt: skip
    proto = model([one, *rest], feeds, {"axes": i64(1, 2)}, opset=23)
    assert disagreement(proto, feeds, [*feeds]) < CLOSE


def test_attention_whose_scores_are_capped_or_given_out_has_no_gradient() -> None:
    feeds = {n: normal(B, H, S, D) for n in "qkv"}
    proto = model([node("Attention", "q", "k", "v", softcap=2.0)], feeds, opset=23)
    with pytest.raises(CalibrationError, match="a soft cap"):
        gradients(proto, feeds, ["q"], normal(B, H, S, D))


Case = tuple[Nodes, Nodes, Feeds, Feeds, list[str]]


def multi_head(**attrs: object) -> Case:
    feeds = {"q": normal(B, S, H * D), "k": normal(B, T, H * D), "v": normal(B, T, H * D)}
    weights = {"b": normal(3 * H * D), "m": normal(B, H, S, T), "pad": np.array([[1, 1, 1, 0]] * B, np.int32)}
    one = [
        ms(
            "MultiHeadAttention",
            "q",
            "k",
            "v",
            "b",
            "pad",
            "m",
            num_heads=H,
            mask_filter_value=-50.0,
            **attrs,
        )
    ]
    two = [node("Split", "b", "thirds", out="bq")]
    two[0].output.extend(["bk", "bv"])
    for name in "qkv":
        two += [node("Add", name, f"b{name}", out=f"{name}b"), *apart(f"{name}b", f"{name}4", H)]
    hidden = np.array([0, 0, 0, -50], np.float32)
    extra = {**constants(1 / sqrt(D), H), "thirds": i64(*[H * D] * 3), "hidden": hidden}
    return (
        one,
        two + plain("q4", "k4", "v4", 0, "m", "hidden"),
        feeds,
        {**weights, **extra},
        ["q", "k", "v", "b", "m"],
    )


def packed(**attrs: object) -> Case:
    feeds, wide = {"x": normal(B, S, 5)}, 2 * H * D + H * V
    weights = {"w": normal(5, wide), "b": normal(wide), "causal": causal(S, S)}
    one = [
        ms(
            "Attention",
            "x",
            "w",
            "b",
            num_heads=H,
            unidirectional=1,
            qkv_hidden_sizes=[H * D, H * D, H * V],
            scale=0.3,
        )
    ]
    two = [node("MatMul", "x", "w", out="xw"), node("Add", "xw", "b", out="xb")]
    two.append(node("Split", "xb", "parts", out="q", axis=-1))
    two[-1].output.extend("kv")
    for name in "qkv":
        two += apart(name, f"{name}4", H)
    extra = {**constants(0.3, H), "parts": i64(H * D, H * D, H * V)}
    return one, two + plain("q4", "k4", "v4", 0, "causal"), feeds, {**weights, **extra}, ["x", "w", "b"]


@pytest.mark.parametrize("make", [multi_head, packed])
def test_forms_of_onnxruntime(make: Callable[[], Case]) -> None:
    one, two, feeds, weights, wanted = make()
    seed = normal(B, S, H * (V if make is packed else D))
    same(fused(one, feeds, weights), fused(two, feeds, weights), feeds, wanted, seed)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_groups_of_queries(joined: bool, turned: bool) -> None:
    wide = 16
    sizes = {"q": H * wide, "k": G * wide, "v": G * wide}
    feeds = {n: normal(B, S, size) for n, size in sizes.items()}
    angles = np.random.default_rng(0).uniform(0, 3, (S, wide // 2)).astype(np.float32)
    weights = {
        "lengths": np.full(B, S - 1, np.int32), "total": np.array(S, np.int32), "cos": np.cos(angles),
        "sin": np.sin(angles), "ids": np.tile(np.arange(S), (B, 1)), "causal": causal(S, S),
        "pairs": i64(1, 1, H // G, 1, 1), "back": i64(0, H, -1, wide), "axis": i64(2),
        **constants(1 / sqrt(wide), H, G),
    }  # fmt: skip
    lead: Nodes = []
    data = ["q", "k", "v"]
    if joined:
        lead, data = [node("Concat", "q", "k", "v", out="qkv", axis=2)], ["qkv", "", ""]
    tail = ["cos", "sin"] if turned else []
    one = ms(
        "GroupQueryAttention", *data, "", "", "lengths", "total", *tail, num_heads=H, kv_num_heads=G,
        do_rotary=int(turned), outputs=("y", "nk", "nv"),
    )  # fmt: skip
    two: Nodes = []
    for name, heads in zip("qkv", (H, G, G), strict=True):
        two += apart(name, f"{name}4", heads)
    q, k = "q4", "k4"
    if turned:
        two += [ms("RotaryEmbedding", f"{n}4", "ids", "cos", "sin", outputs=(f"{n}r",)) for n in "qk"]
        q, k = "qr", "kr"
    for name in (k, "v4"):
        two += [
            node("Unsqueeze", name, "axis", out=f"{name}u"), node("Expand", f"{name}u", "pairs", out=f"{name}e"),
            node("Reshape", f"{name}e", "back", out=f"{name}g"),
        ]  # fmt: skip
    two += plain(q, f"{k}g", "v4g", 0, "causal")
    seed = normal(B, S, H * wide)
    same(fused([*lead, one], feeds, weights), fused(two, feeds, weights), feeds, ["q", "k", "v"], seed)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_a_rotation_by_differences(interleaved: int) -> None:
    feeds = {"x": normal(B, H, S, D)}
    angles = np.random.default_rng(0).uniform(0, 3, (B, S, D // 2)).astype(np.float32)
    weights = {"cos": np.cos(angles), "sin": np.sin(angles)}
    proto = model(
        [node("RotaryEmbedding", "x", "cos", "sin", interleaved=interleaved)],
        feeds,
        weights,
        opset=23,
        free=False,
    )
    assert disagreement(proto, feeds, ["x"]) < CLOSE


@pytest.mark.parametrize(
    ("rows", "cached", "counted", "read"),
    [(1, 5, [5, 3], False), (1, 5, [5, 3], True), (1, 4, [4, 4], True), (S, 0, [0, 0], False)],
)
def test_groups_of_queries_with_a_cache(rows: int, cached: int, counted: list[int], read: bool) -> None:
    """By differences of onnxruntime's own results: places of the cache that don't count get nothing."""
    wide, batch = 16, len(counted)
    feeds = {"q": normal(batch, rows, H * wide), "k": normal(batch, rows, G * wide), "v": normal(batch, rows, G * wide),
             "pk": normal(batch, G, cached, wide), "pv": normal(batch, G, cached, wide)}  # fmt: skip
    angles = np.random.default_rng(0).uniform(0, 3, (rows + cached, wide // 2)).astype(np.float32)
    weights = {"lengths": np.array(counted, np.int32) + rows - 1, "total": np.array(rows + max(counted), np.int32),
               "cos": np.cos(angles), "sin": np.sin(angles)}  # fmt: skip
    one = ms(
        "GroupQueryAttention", *feeds, "lengths", "total", "cos", "sin", num_heads=H, kv_num_heads=G, do_rotary=1,
        outputs=("a", "nk", "nv"),
    )  # fmt: skip
    tail, wanted = [node("Identity", "a")], [name for name, value in feeds.items() if value.size]
    if read:  # the cache that it gives
        tail = [node("ReduceSum", "nk", "axes", out="sk"), node("ReduceSum", "nv", "axes", out="sv"),
                node("Mul", "sk", "sv", out="kv"), node("Concat", "kv", "kv", "kv", "kv", out="kv4", axis=2),
                node("Reshape", "kv4", "three", out="kv3"), node("Add", "a", "kv3")]  # fmt: skip
        wanted = ["q", "k", "v"]
        weights |= {"axes": i64(1, 2), "three": i64(0, 1, -1)}
    proto, seed = fused([one, *tail], feeds, weights), normal(batch, rows, H * wide)
    got, rng = gradients(proto, feeds, wanted, seed), np.random.default_rng(3)
    session = open_session(proto)
    for name in wanted:
        along = rng.standard_normal(feeds[name].shape).astype(np.float32)
        ends = [
            session.run({**feeds, name: feeds[name] + sign * 1e-2 * along})["y"].astype(np.float64)
            for sign in (1, -1)
        ]
        true = float((seed * (ends[0] - ends[1])).sum() / 2e-2)
        assert abs(float((got[name] * along).sum()) - true) < 5e-3 * float(np.linalg.norm(got[name]))
        assert np.abs(got[name]).max() > 1e-3
    if cached > min(counted) and not read:
        assert not got["pk"][counted.index(min(counted)), :, min(counted) :].any()


def test_how_many_positions_count_as_a_mask_of_one_number_each() -> None:
    feeds, wide = {"x": normal(B, S, 5)}, H * D
    weights = {"w": normal(5, 3 * wide), "counts": np.array([S, 1], np.int32),
               "mask": np.array([[1] * S, [1] + [0] * (S - 1)], np.int32)}  # fmt: skip
    one, two = ([ms("Attention", "x", "w", "", mask, num_heads=H)] for mask in ("counts", "mask"))
    same(fused(one, feeds, weights), fused(two, feeds, weights), feeds, ["x", "w"], normal(B, S, wide))
