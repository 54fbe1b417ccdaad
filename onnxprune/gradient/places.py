"""Gradients of ops that read from, or write to, places that other tensors name.

What is read from a place gives its gradient back there, what is written there takes it from there; places that are
read several times get the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.gradient.tape import Grads, NoGradient, Tape, vjp
from onnxprune.ops.base import Node

#: The opset from which what is written to a place can be added to what is there.
ADDS = 16


def _zeros(t: Tape, like: str) -> str:
    return t.expand(t.const(np.zeros(1)), like)


def _added(t: Tape, node: Node, op: str, grad: str) -> Grads:
    """Add what was read from places to zeros there."""
    if t.opset < ADDS:
        raise NoGradient(f"nothing is added at places in opset {t.opset}")
    x, places = node.inputs
    axis: dict[str, Any] = {"axis": int(node.attr("axis", 0))} if op == "ScatterElements" else {}
    return {0: t.op(op, _zeros(t, x), places, grad, reduction="add", **axis)}


def _written(t: Tape, node: Node, dy: str, need: frozenset[int], read: str) -> Grads:
    """Take the gradient of what was written from its places, where the data's own is lost unless it was added to."""
    reduction = str(node.attr("reduction", "none"))
    if reduction not in ("none", "add"):
        raise NoGradient(f"its reduction is {reduction}")
    _, places, updates = node.inputs
    axis: dict[str, Any] = {} if read == "GatherND" else {"axis": int(node.attr("axis", 0))}
    grads = {}
    if 0 in need:
        lost = t.op(node.op, dy, places, _zeros(t, updates), **axis)
        grads[0] = dy if reduction == "add" else lost
    if 2 in need:
        grads[2] = t.op(read, dy, places, **axis)
    return grads


@vjp("GatherElements")
def gather_elements(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    return _added(t, node, "ScatterElements", dy[0])


@vjp("GatherND")
def gather_nd(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    if int(node.attr("batch_dims", 0)):
        raise NoGradient("it reads from each sample of a batch by itself")
    return _added(t, node, "ScatterND", dy[0])


@vjp("ScatterElements", "Scatter")
def scatter_elements(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    if t.opset < 11:
        raise NoGradient(f"nothing reads from places in opset {t.opset}")
    return _written(t, node, dy[0], need, "GatherElements")


@vjp("ScatterND")
def scatter_nd(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    return _written(t, node, dy[0], need, "GatherND")
