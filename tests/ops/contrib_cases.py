"""Nodes of the domain com.microsoft, which onnx's node models don't have; all run on onnxruntime's CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

Array = NDArray[Any]
Case = tuple[str, NodeProto, dict[str, Array]]

RNG = np.random.default_rng(7)


def f(*shape: int, low: float = -1.0, high: float = 1.0) -> Array:
    return RNG.uniform(low, high, shape).astype(np.float32)


def u8(*shape: int) -> Array:
    return RNG.integers(0, 255, shape).astype(np.uint8)


def s8(*shape: int) -> Array:
    # two products of u8 and s8 must fit into 16 bits, or the sums saturate where the processor has no VNNI
    return RNG.integers(-63, 64, shape).astype(np.int8)


def i32(*shape: int, high: int = 40) -> Array:
    return RNG.integers(-high, high, shape).astype(np.int32)


def scale(*shape: int) -> Array:
    return RNG.uniform(0.01, 0.05, shape).astype(np.float32)


def zero(value: int, dtype: type = np.uint8) -> Array:
    return np.array(value, dtype)


def case(
    name: str, *inputs: Array | None, outputs: int = 1, domain: str = "com.microsoft", **attrs: Any
) -> Case:
    """Return a node; ``name`` is its op type, then a blank and what is special about it."""
    names = ["" if array is None else f"i{n}" for n, array in enumerate(inputs)]
    node = helper.make_node(
        name.replace(",", "").split()[0], names, [f"o{n}" for n in range(outputs)], domain=domain, **attrs
    )
    return name, node, {n: array for n, array in zip(names, inputs, strict=True) if array is not None}


def cases() -> list[Case]:
    return [*convolutions(), *products(), *activations(), *norms(), *quantized(), *attention(), *rest()]


def convolutions() -> Iterator[Case]:
    x = f(2, 6, 5, 5)
    yield case("FusedConv", x, f(8, 6, 3, 3), f(8), activation="Relu", kernel_shape=[3, 3])
    yield case(
        "FusedConv in groups, with a sum", x, f(8, 3, 3, 3), f(8), f(2, 8, 3, 3), group=2, activation="Relu"
    )
    yield case("FusedConv depthwise", x, f(6, 1, 3, 3), f(6), group=6, activation="Relu")
    yield case("NhwcMaxPool", u8(1, 6, 6, 4), kernel_shape=[2, 2])
    yield case("GridSample", x, f(2, 4, 4, 2))
    yield case("GridSample of ONNX", x, f(2, 4, 4, 2), domain="")
    yield case("CausalConvWithState", f(2, 6, 7), f(6, 1, 3), f(6), f(2, 6, 2), outputs=2)


def products() -> Iterator[Case]:
    yield case("FusedGemm", f(3, 6), f(8, 6), f(8), activation="Relu", transB=1)
    yield case("FusedMatMul", f(2, 5, 6), f(6, 8), alpha=0.5)
    for turned in ({"transBatchA": 1}, {"transBatchB": 1, "transB": 1}, {"transBatchA": 1, "transBatchB": 1}):
        a = f(5, 2, 3, 6) if "transBatchA" in turned else f(2, 3, 5, 6)
        b = (
            f(2, 3, 6, 8)
            if "transBatchB" not in turned
            else f(8, 2, 3, 6)
            if "transB" in turned
            else f(6, 2, 3, 8)
        )
        yield case(f"FusedMatMul {' '.join(turned)}", a, b, **turned)
    yield case("FusedMatMul transBatchA transA", f(6, 2, 5), f(2, 6, 8), transBatchA=1, transA=1)
    yield case("FusedMatMul transposed", f(2, 6, 5), f(2, 8, 6), transA=1, transB=1)
    yield case("TransposeMatMul", f(2, 5, 6), f(2, 8, 6), transB=1)
    packed = RNG.integers(0, 255, (8, 2, 8)).astype(np.uint8)
    yield case("MatMulNBits", f(3, 32), packed, scale(8, 2), K=32, N=8, bits=4, block_size=16)
    yield case("MatMulNBits flat", f(3, 32), packed, scale(16), u8(8), K=32, N=8, bits=4, block_size=16)
    yield case(
        "MatMulNBits biased", f(3, 32), packed, scale(16), u8(8), None, f(8), K=32, N=8, bits=4, block_size=16
    )


def activations() -> Iterator[Case]:
    x = f(2, 3, 6)
    for name in ("Gelu", "QuickGelu"):
        yield case(name, x)
    for name in ("BiasGelu", "FastGelu"):
        yield case(name, x, f(6))
    yield case("FastGelu without a bias", x)
    yield case("Trilu", f(2, 4, 4))


def norms() -> Iterator[Case]:
    x = f(2, 3, 6)
    own = {"epsilon": 1e-5}
    yield case("LayerNormalization", x, f(6), f(6), domain="", axis=-1, **own)
    yield case("SimplifiedLayerNormalization", x, f(6), domain="", axis=-1, **own)
    yield case("SkipLayerNormalization", x, f(2, 3, 6), f(6), f(6), f(6), **own)
    yield case("SkipLayerNormalization with the sum", x, f(2, 3, 6), f(6), f(6), None, outputs=1, **own)
    yield case("SkipSimplifiedLayerNormalization", x, f(2, 3, 6), f(6), **own)


def quantized() -> Iterator[Case]:
    x, s, z = u8(2, 6, 4), scale(), zero(120)
    yield case("QuantizeLinear", f(2, 6, 4, high=4), scale(6), u8(6), axis=1)
    yield case("DequantizeLinear", x, scale(6), u8(6), axis=1)
    for name in ("QLinearAdd", "QLinearMul"):
        yield case(name, x, s, z, u8(6, 1), scale(), zero(100), scale(), zero(110))
    yield case("QLinearLeakyRelu", x, s, z, scale(), zero(90), alpha=0.1)
    yield case("QLinearSigmoid", x, s, z, np.float32(1 / 256), zero(0))
    yield case("QLinearSoftmax", x, s, z, np.float32(1 / 256), zero(0), axis=-1, opset=13)
    pool = (u8(1, 6, 4, 4), s, z, scale(), zero(100))
    yield case("QLinearAveragePool", *pool, kernel_shape=[2, 2])
    yield case("QLinearGlobalAveragePool", *pool)
    yield case("QLinearGlobalAveragePool channels last", u8(1, 4, 4, 6), *pool[1:], channels_last=1)
    yield case("QLinearConcat", scale(), zero(100), x, s, z, u8(2, 5, 4), scale(), zero(90), axis=1)
    yield case(
        "QLinearWhere", RNG.random((6, 4)) < 0.5, x, s, z, u8(2, 6, 4), scale(), zero(100), scale(), zero(80)
    )
    yield case(
        "QGemm",
        u8(3, 6),
        s,
        z,
        s8(8, 6),
        scale(8),
        np.zeros(8, np.int8),
        i32(8),
        scale(),
        zero(100),
        transB=1,
    )
    yield case(
        "QGemm, a row of bias", u8(3, 6), s, z, s8(8, 6), scale(), zero(3, np.int8), i32(1, 8), s, z, transB=1
    )
    yield case("QGemm to floats", u8(3, 6), s, z, s8(6, 8), scale(), zero(3, np.int8), i32(8), transB=0)
    yield case("MatMulIntegerToFloat", u8(3, 6), s8(6, 8), s, scale(8), z, np.zeros(8, np.int8), f(8))
    yield case("MatMulIntegerToFloat unsigned", u8(2, 3, 6), u8(6, 8), s, scale(), z, zero(100))
    yield case("DynamicQuantizeMatMul", f(3, 6), s8(6, 8), scale(8), np.zeros(8, np.int8), f(8))
    yield case("MatMulInteger16", i32(3, 6).astype(np.int16), i32(6, 8).astype(np.int16))


def attention() -> Iterator[Case]:
    heads, d = 4, 3
    x, wide = f(2, 5, 7), heads * d
    own: dict[str, Any] = {"num_heads": heads}
    yield case("Attention", x, f(7, 3 * wide), f(3 * wide), **own)
    yield case("Attention of unequal widths", x, f(7, 32), f(32), qkv_hidden_sizes=[12, 12, 8], **own)
    yield case(
        "Attention causal, with a scale", x, f(7, 3 * wide), f(3 * wide), unidirectional=1, scale=0.3, **own
    )
    yield case(
        "Attention with a past", x, f(7, 3 * wide), f(3 * wide), None, f(2, 2, heads, 3, d), outputs=2, **own
    )
    yield case(
        "Attention with padding",
        x,
        f(7, 3 * wide),
        f(3 * wide),
        np.array([[1] * 5, [1, 1, 1, 0, 0]], np.int32),
        **own,
    )
    yield case("Attention masked", x, f(7, 3 * wide), f(3 * wide), None, None, f(2, heads, 5, 5), **own)
    q, k, v = f(2, 5, wide), f(2, 6, wide), f(2, 6, heads * 5)
    yield case("MultiHeadAttention", q, k, v, **own)
    yield case("MultiHeadAttention biased", q, k, v, f(2 * wide + heads * 5), **own)
    yield case("MultiHeadAttention masked", q, k, v, None, None, f(2, heads, 5, 6), **own)
    past = (f(2, heads, 3, d), f(2, heads, 3, d))
    yield case(
        "MultiHeadAttention with a past",
        q,
        f(2, 5, wide),
        f(2, 5, wide),
        None,
        None,
        None,
        *past,
        outputs=3,
        **own,
    )
    yield case("MultiHeadAttention with a scale", q, k, v, scale=0.3, **own)
    yield case("MultiHeadAttention crossed", q, f(2, heads, 6, d), f(2, heads, 6, d), **own)
    lengths, total = np.array([4, 4], np.int32), np.array(5, np.int32)
    cache = (f(2, 2, 5, 8), f(2, 2, 5, 8))
    group = (f(2, 5, 32), f(2, 5, 16), f(2, 5, 16))
    yield case("GroupQueryAttention", *group, *cache, lengths, total, outputs=3, kv_num_heads=2, **own)
    yield case(
        "GroupQueryAttention packed",
        f(2, 5, 64),
        None,
        None,
        *cache,
        lengths,
        total,
        outputs=3,
        kv_num_heads=2,
        **own,
    )
    rotary = (f(8, 8), f(8, 8))
    group, cache = (f(2, 5, 64), f(2, 5, 32), f(2, 5, 32)), (f(2, 2, 5, 16), f(2, 2, 5, 16))
    yield case(
        "GroupQueryAttention rotated",
        *group,
        *cache,
        lengths,
        total,
        *rotary,
        outputs=3,
        kv_num_heads=2,
        do_rotary=1,
        **own,
    )
    yield from _decoders(lengths, total)
    point = (np.float32(0.02), scale(), None, zero(120), zero(0, np.int8))
    yield case("QAttention", u8(2, 5, 8), s8(8, 3 * wide), f(3 * wide), *point, **own)
    ids = np.array([[0, 1, 2, 3, 4]] * 2, np.int64)
    yield case("RotaryEmbedding", f(2, 4, 5, 8), ids, f(8, 4), f(8, 4))
    yield case("RotaryEmbedding flat", f(2, 5, 32), ids, f(8, 4), f(8, 4))


def _decoders(lengths: Array, total: Array) -> Iterator[Case]:
    """Yield forms of attention that decoders have: sinks, windows, shared buffers."""
    own: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2}
    group = (f(2, 5, 32), f(2, 5, 16), f(2, 5, 16), f(2, 2, 5, 8), f(2, 2, 5, 8), lengths, total)
    none = [None] * 4
    yield case("GroupQueryAttention with sinks", *group, *none, f(4), outputs=3, **own)
    yield case("GroupQueryAttention smooth", *group, outputs=3, smooth_softmax=1, **own)
    yield case("GroupQueryAttention in a window", *group, outputs=3, local_window_size=3, softcap=2.0, **own)
    yield case(
        "GroupQueryAttention padded", *group, *none, *none, None, np.array([5, 5], np.int32), outputs=3, **own
    )
    yield case("GroupQueryAttention and its scores", *group, outputs=4, qk_output=1, **own)
    yield case("GroupQueryAttention masked", *group, *none[:3], f(2, 4, 5, 5), outputs=3, **own)
    packed = (f(2, 5, 128), None, None, f(2, 2, 5, 16), f(2, 2, 5, 16), lengths, total, f(8, 8), f(8, 8))
    yield case("GroupQueryAttention packed, rotated, with sinks", *packed, None, None, f(4), outputs=3, do_rotary=1,
               **own)  # fmt: skip
    heads, d = 4, 3
    one, buffer = f(2, 1, heads * d), (f(2, heads, 8, d), f(2, heads, 8, d))
    past = np.array([7], np.int32)
    yield case("MultiHeadAttention shared", *(one,) * 3, *none[:3], *buffer, past, outputs=3, num_heads=heads)
    name = "DecoderMaskedMultiHeadAttention"
    share = {"past_present_share_buffer": 1, "num_heads": heads}
    yield case(name, one, *(f(2, 1, heads * d),) * 2, None, None, *buffer, past, outputs=3, **share)
    beams = (np.array([1], np.int32), np.zeros((2, 1, 8), np.int32), f(3 * heads * d))
    yield case(
        f"{name} biased",
        one,
        *(f(2, 1, heads * d),) * 2,
        None,
        None,
        *buffer,
        past,
        *beams,
        outputs=3,
        **share,
    )
    crossed = (f(2, heads, 6, d), f(2, heads, 6, d))
    yield case(f"{name} crossed", one, *crossed, np.ones((2, 6), np.int32), num_heads=heads)


def rest() -> Iterator[Case]:
    """Yield ops of ONNX itself whose node models are too small to be cut, and few others."""
    own: dict[str, Any] = {"domain": ""}
    yield case("GatherND", f(4, 5, 6), np.array([[0, 1], [3, 2]], np.int64), **own)
    yield case("ExpandDims", f(2, 3), np.array(1, np.int32))
    yield case("Pad", f(2, 3), np.array([0, 1, 0, 0], np.int64), mode="constant")
    x = f(2, 4, 5, 5)
    yield case("DeformConv", x, f(6, 2, 2, 2), f(2, 8, 4, 4), f(6), f(2, 4, 4, 4), group=2, **own)
    yield case("Resize", x, None, np.array([1, 1, 2, 2], np.float32), mode="linear", **own)
    yield case("Resize to sizes", x, None, None, np.array([2, 4, 7, 7]), mode="nearest", **own)
    yield case(
        "MaxRoiPool", x, np.array([[0, 0, 0, 3, 3], [1, 1, 1, 4, 4]], np.float32), pooled_shape=[2, 2], **own
    )
    point = (scale(), zero(120))
    weight = (s8(6, 2, 3, 3), scale(6), np.zeros(6, np.int8))
    yield case("QLinearConv", u8(2, 4, 5, 5), *point, *weight, scale(), zero(3), i32(6), group=2, **own)
    yield case(
        "QLinearConv, one scale", u8(2, 4, 5, 5), *point, u8(6, 4, 3, 3), *point, scale(), zero(3), **own
    )
    yield case("QLinearMatMul", u8(3, 4), *point, s8(4, 5), scale(5), np.zeros(5, np.int8), *point, **own)
    yield case("ConvInteger", u8(1, 4, 5, 5), u8(6, 4, 3, 3), zero(7), zero(3), **own)
    yield case(
        "BatchNormalization training",
        f(4, 3, 5),
        f(3),
        f(3),
        f(3),
        f(3) + 2,
        outputs=3,
        training_mode=1,
        **own,
    )
    lstm = (f(5, 2, 3), f(2, 16, 3), f(2, 16, 4), f(2, 32), None, f(2, 2, 4), f(2, 2, 4), f(2, 12))
    yield case("LSTM both ways", *lstm, outputs=3, hidden_size=4, direction="bidirectional", **own)
    gru = (f(5, 2, 3), f(1, 12, 3), f(1, 12, 4), f(1, 24))
    yield case("GRU", *gru, outputs=2, hidden_size=4, linear_before_reset=1, **own)
    yield case("RNN", f(5, 2, 3), f(1, 4, 3), f(1, 4, 4), f(1, 8), outputs=2, hidden_size=4, **own)
