"""Mixtures of experts, and what they compute in numpy: onnxruntime's CPU lacks some of their forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from .contrib_cases import Array, Case, case, f, scale, u8

EXPERTS, TOKENS, HIDDEN, UNITS = 4, 5, 6, 10


def floats(fused: int = 0, gate: bool = False, bias: bool = True, hidden: int = HIDDEN) -> list[Array | None]:
    """Return inputs of MoE: tokens, scores of experts, weights and biases."""
    rows = UNITS * (2 if fused else 1)
    weights: list[Array | None] = [
        f(EXPERTS, rows, hidden), f(EXPERTS, rows), f(EXPERTS, hidden, UNITS), f(EXPERTS, hidden),
    ]  # fmt: skip
    weights += [f(EXPERTS, UNITS, hidden), f(EXPERTS, UNITS)] if gate else []
    tokens = [f(TOKENS, hidden), f(TOKENS, EXPERTS)]
    return [*tokens, *(w if bias or n % 2 == 0 else None for n, w in enumerate(weights))]


def packed(
    bits: int, block: int, points: bool, fused: int, hidden: int = 32, units: int = 64
) -> list[Array | None]:
    """Return inputs of QMoE: weights of a few bits, scales of rows or blocks, zero points."""
    rows = units * (2 if fused else 1)

    def matrix(outputs: int, inputs: int) -> list[Array | None]:
        own = scale(EXPERTS, outputs, inputs // block) if block else scale(EXPERTS, outputs)
        return [u8(EXPERTS, outputs, inputs * bits // 8), own, f(EXPERTS, outputs)]

    def zeros(outputs: int, inputs: int) -> Array:
        if block:
            return u8(EXPERTS, outputs, -(-(inputs // block) * bits // 8))
        return u8(EXPERTS, -(-outputs * bits // 8))

    tokens: list[Array | None] = [f(TOKENS, hidden), f(TOKENS, EXPERTS)]
    two = [(rows, hidden), (hidden, units)]
    last = [None, None, None, *(zeros(*sizes) for sizes in two)] if points else []
    return [*tokens, *matrix(*two[0]), *matrix(*two[1]), *last]


def cases() -> Iterator[Case]:
    """Yield nodes that onnxruntime runs on a CPU."""
    own: dict[str, Any] = {"k": 2}
    for act in ("relu", "gelu", "silu", "identity"):
        yield case(f"MoE {act}", *floats(), activation_type=act, **own)
    normal = {"normalize_routing_weights": 1}
    yield case("MoE without biases", *floats(bias=False), activation_type="silu", **own, **normal)
    yield case("MoE of one expert a token", *floats(), activation_type="silu", k=1)
    yield case("MoE with a sparse mixer", *floats(), activation_type="silu", use_sparse_mixer=1, **own)
    batched = f(2, 3, HIDDEN), f(6, EXPERTS)
    yield case("MoE of a batch", *batched, *floats()[2:], activation_type="silu", **own)
    clipped = {"activation_alpha": 1.7, "activation_beta": 1.0, "swiglu_limit": 0.5}
    gated = {"activation_type": "swiglu", "swiglu_fusion": 1}
    yield case("MoE swiglu in pairs", *floats(1), **gated, **clipped, **own)
    for bits in (2, 4, 8):
        for block in (0, 16):
            for points in (False, True):
                what = f"QMoE of {bits} bits, blocks of {block}, {'with' if points else 'no'} points"
                sizes: dict[str, Any] = {"expert_weight_bits": bits} | (
                    {"block_size": block} if block else {}
                )
                yield case(what, *packed(bits, block, points, 0), activation_type="silu", **own, **sizes)
                yield case(f"{what}, swiglu", *packed(bits, block, points, 1), **gated, **own, **sizes)
    weights8 = {"expert_weight_bits": 8, "weights_prepacked": 0}
    yield case(
        "QMoE of raw halves", *_halves(packed(8, 0, False, 0)), activation_type="silu", **own, **weights8
    )


def elsewhere() -> Iterator[Case]:
    """Yield forms of MoE that no kernel of onnxruntime's CPU knows: `evaluate` does."""
    own: dict[str, Any] = {"k": 2}
    yield case("MoE silu with a gate", *floats(0, gate=True), activation_type="silu", **own)
    yield case("MoE swiglu in two", *floats(0, gate=True), activation_type="swiglu", swiglu_fusion=0, **own)
    yield case("MoE swiglu in halves", *floats(2), activation_type="swiglu", swiglu_fusion=2, **own)
    yield case("MoE geglu in halves", *floats(2), activation_type="geglu", swiglu_fusion=2, **own)
    yield case("MoE geglu in pairs", *floats(1), activation_type="geglu", swiglu_fusion=1, **own)


def _halves(arrays: list[Array | None]) -> list[Array | None]:
    floating = (a.astype(np.float16) if a is not None and a.dtype == np.float32 else a for a in arrays)
    return list(floating)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _gelu(x: Array) -> Array:
    return np.asarray(x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2)


def _activate(name: str, x: Array) -> Array:
    table = {"relu": np.maximum(x, 0), "gelu": _gelu(x), "silu": x * _sigmoid(x), "identity": x}
    return np.asarray(table[name])


def _gated(name: str, gate: Array, value: Array, attrs: dict[str, Any]) -> Array:
    if name == "geglu":
        return np.asarray(_gelu(gate) * value)
    limit = attrs.get("swiglu_limit", np.inf)
    gate, value = np.minimum(gate, limit), np.clip(value, -limit, limit)
    return np.asarray(
        gate
        * _sigmoid(attrs.get("activation_alpha", 1.0) * gate)
        * (value + attrs.get("activation_beta", 0.0))
    )


def evaluate(node: NodeProto, inputs: list[Array | None]) -> NDArray[np.float32]:
    """Return what MoE gives, in doubles: the routers' softmax over all experts, then over the chosen ones."""
    from onnxprune.graph.trace import attributes

    attrs = attributes(node)
    arrays = [None if a is None else a.astype(np.float64) for a in inputs] + [None] * (8 - len(inputs))
    x, scores, one, bias_one, two, bias_two, gate, bias_gate = arrays
    assert x is not None and scores is not None and one is not None and two is not None  # noqa: PT018
    chance = np.exp(scores - scores.max(-1, keepdims=True))
    chance /= chance.sum(-1, keepdims=True)
    tokens = x.reshape(-1, x.shape[-1])
    result = np.zeros_like(tokens)
    kind, fused = attrs["activation_type"], attrs.get("swiglu_fusion", 0)
    for t, token in enumerate(tokens):
        chosen = np.argsort(-chance[t], kind="stable")[: attrs["k"]]
        share = chance[t][chosen]
        share = share / share.sum() if attrs.get("normalize_routing_weights") else share
        for e, part in zip(chosen, share, strict=True):
            inner = one[e] @ token + (0 if bias_one is None else bias_one[e])
            if fused:
                left, right = (inner[::2], inner[1::2]) if fused == 1 else np.split(inner, 2)
                inner = _gated(kind, left, right, attrs)
            elif gate is not None:
                other = gate[e] @ token + (0 if bias_gate is None else bias_gate[e])
                inner = (
                    _gated(kind, inner, other, attrs) if kind == "swiglu" else _activate(kind, inner) * other
                )
            else:
                inner = _activate(kind, inner)
            result[t] += part * (two[e] @ inner + (0 if bias_two is None else bias_two[e]))
    return result.reshape(x.shape).astype(np.float32)
