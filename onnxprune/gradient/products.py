"""Gradients of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.gradient.tape import Grads, NoGradient, Tape, vjp
from onnxprune.ops.base import Node


@vjp("Gemm")
def gemm(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    a, b = node.inputs[:2]
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    turn_a, turn_b = int(node.attr("transA", 0)), int(node.attr("transB", 0))
    grads = {}
    if 0 in need:
        grads[0] = (
            _gemm(t, b, dy[0], alpha, turn_b, 1) if turn_a else _gemm(t, dy[0], b, alpha, 0, 1 - turn_b)
        )
    if 1 in need:
        grads[1] = (
            _gemm(t, dy[0], a, alpha, 1, turn_a) if turn_b else _gemm(t, a, dy[0], alpha, 1 - turn_a, 0)
        )
    if 2 in need:
        grads[2] = t.unbroadcast(t.scaled(dy[0], beta), node.inputs[2], node.outputs[0])
    return grads


def _gemm(t: Tape, a: str, b: str, alpha: float, turn_a: int, turn_b: int) -> str:
    return t.op("Gemm", a, b, *t.no_bias(), alpha=alpha, transA=turn_a, transB=turn_b)


@vjp("MatMul")
def matmul(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    a, b = node.inputs
    rank_a, rank_b = len(t.dims(a)), len(t.dims(b))
    if rank_a == 1 or rank_b == 1:
        return _vector(t, node, dy[0], need)
    by_slot = {}
    if 0 in need:
        by_slot[0] = _batch_sum(t, t.matmul(dy[0], _turned(t, b, rank_b)), a, node.outputs[0])
    if 1 in need:
        if rank_b == 2 and rank_a > 2:  # all rows at once rather than a sum of products
            rows, grads = t.reshape(a, [-1, *t.static(a, [-1])]), t.reshape(dy[0], [-1, *t.static(b, [-1])])
            by_slot[1] = t.matmul(_transposed(t, rows, 2), grads)
        else:
            by_slot[1] = _batch_sum(t, t.matmul(_turned(t, a, rank_a), dy[0]), b, node.outputs[0])
    return by_slot


@vjp("FusedMatMul", domain="com.microsoft")
def fused_matmul(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    """A product of operands of which the last two axes may be swapped, times alpha."""
    if any(node.attr(name, 0) for name in ("transBatchA", "transBatchB")):
        raise NoGradient("it transposes a batch axis")
    ranks = [len(t.dims(name)) for name in node.inputs]
    if min(ranks) == 1:
        raise NoGradient("it multiplies a vector")
    turns = [bool(node.attr(name, 0)) for name in ("transA", "transB")]
    every = zip(node.inputs, ranks, turns, strict=True)
    a, b = (_transposed(t, name, rank) if turn else name for name, rank, turn in every)
    out = t.scaled(dy[0], float(node.attr("alpha", 1.0)))
    grads = {}
    for slot in need:
        other = _transposed(t, (b, a)[slot], ranks[1 - slot])
        grad = t.matmul(other, out) if slot else t.matmul(out, other)
        grad = _transposed(t, grad, len(t.dims(node.outputs[0]))) if turns[slot] else grad
        grads[slot] = _batch_sum(t, grad, node.inputs[slot], node.outputs[0])
    return grads


def _turned(t: Tape, name: str, rank: int) -> str:
    if name in t.model and rank == 2:
        return t.const(np.asarray(t.model.weight(name)).T)
    return _transposed(t, name, rank)


def _transposed(t: Tape, name: str, rank: int) -> str:
    return t.transpose(name, [*range(rank - 2), rank - 1, rank - 2])


def _batch_sum(t: Tape, value: str, name: str, out: str) -> str:
    """Sum a product over the batch axes along which an operand was broadcast."""
    want, have = t.dims(name)[:-2], t.dims(out)[:-2]
    lead = len(have) - len(want)
    if lead > 0:
        value = t.reduce("ReduceSum", value, range(lead), keep=False)
    pairs = zip(want, have[max(lead, 0) :], strict=True)
    axes = [i for i, (w, h) in enumerate(pairs) if w == 1 and h != 1]
    return t.reduce("ReduceSum", value, axes) if axes else value


def _vector(t: Tape, node: Node, dy: str, need: frozenset[int]) -> Grads:
    """A product with a vector on one side."""
    a, b = node.inputs
    rank_a, rank_b = len(t.dims(a)), len(t.dims(b))
    if rank_a == 1 and rank_b == 1:
        return {slot: t.mul(dy, node.inputs[1 - slot]) for slot in need}
    if rank_a == 1:
        raise NoGradient("a vector multiplies a matrix from the left")
    column = t.unsqueeze(dy, [rank_a - 1])  # [..., M, 1]
    grads = {}
    if 0 in need:
        grads[0] = t.mul(column, b)
    if 1 in need:
        grads[1] = t.reduce("ReduceSum", t.mul(column, a), range(rank_a - 1), keep=False)
    return grads


@vjp("Einsum")
def einsum(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    text = str(node.attrs["equation"]).replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    if not arrow or "." in text or len(terms) > 2 or any(len(set(x)) != len(x) for x in [*terms, out]):
        raise NoGradient(f"the equation {text!r}")
    grads = {}
    for slot in need:
        others = [i for i in range(len(terms)) if i != slot]
        have = {*out, *(c for i in others for c in terms[i])}
        if not set(terms[slot]) <= have:
            raise NoGradient(f"the equation {text!r}, which sums an axis of one operand alone")
        equation = ",".join([out, *(terms[i] for i in others)]) + "->" + terms[slot]
        grads[slot] = t.op("Einsum", dy[0], *(node.inputs[i] for i in others), equation=equation)
    return grads
