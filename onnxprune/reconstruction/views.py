"""Layers as regressions: rows of inputs and outputs, and the way to and from a layer's weight.

A `View` turns one kind of layer into

    y = W^T x + b,    W (blocks, d, O), x (blocks, rows, d), y (blocks, rows, O), d = channels * taps:

for each of its blocks (the groups of a grouped convolution, else one) the regressors ``x`` are a channel's taps side by
side, and a row is one output position of a sample. What differs between ops is only how regressors are read from an
activation; what follows is the same algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.ops import Node

__all__ = ["View", "channels_last", "columns", "view_of"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

#: A position by itself takes as long as so many that are moved all together.
SPARSE = 3


@dataclass(frozen=True)
class View:
    """One layer as a regression.

    Attributes
    ----------
    blocks : int
        Independent regressions of equal size.
    channels, taps, outputs : int
        Of each block: regressors are ``channels * taps``.
    weight_axis : int
        Axis of the weight that counts the channels of a block.
    factors : tuple of (int, int)
        Where several axes of the weight count them, each with its length, the outermost first; else empty.
    out_axis : int
        Channel axis of the output.
    read : callable
        (activation, rows) -> array [blocks, len(rows), taps, channels], the regressors as they come cheapest; ``rows``
        are output positions over the batch.
    y : callable
        (output, rows) -> array [len(rows), blocks * outputs].
    pack, unpack : callable
        Matrices [blocks, channels * taps, outputs] to the weight's own layout, and back.
    bias_slot : int
        Input that is the bias; -1 where the op has none.
    bias_factor : float
        The op multiplies its bias by this.
    """

    blocks: int
    channels: int
    taps: int
    outputs: int
    weight_axis: int
    out_axis: int
    read: Callable[[Array, Ints], Array]
    y: Callable[[Array, Ints], Array]
    pack: Callable[[Array], Array]
    unpack: Callable[[Array], Array]
    bias_slot: int = -1
    bias_factor: float = 1.0
    factors: tuple[tuple[int, int], ...] = ()

    @property
    def width(self) -> int:
        """Regressors of a block."""
        return self.channels * self.taps

    @property
    def order(self) -> Ints:
        """int64[channels * taps]: where each regressor stands in a row of ``taps * channels`` that `read` gives."""
        return np.arange(self.width).reshape(self.taps, self.channels).T.ravel()

    def positions(self, output: Array) -> int:
        """Return how many positions an output of the layer has, over the batch."""
        return int(output.size // (self.blocks * self.outputs))

    def reads(self, axis: int) -> bool:
        """Whether an axis of the weight counts the channels of a block."""
        return axis in dict(self.factors) if self.factors else axis == self.weight_axis

    def channels_at(self, axis: int, index: Ints) -> Ints:
        """Return int64[len(index), ...]: the channels of a block at positions on one of its `factors`."""
        table = np.arange(self.channels).reshape([size for _, size in self.factors])
        return np.moveaxis(table, list(dict(self.factors)).index(axis), 0)[index].reshape(len(index), -1)

    def x(self, array: Array, rows: Ints) -> Array:
        """Return the regressors of an activation, array [blocks, len(rows), channels * taps], at output positions."""
        regressors = self.read(array, rows).swapaxes(2, 3)
        return regressors.reshape(self.blocks, len(rows), self.width)


def view_of(node: Node) -> View | None:
    """Return a layer's view; None where it is no regression on a constant weight, or its view isn't known."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    maker = _VIEWS.get((domain, node.op))
    if maker is None or len(node.constant) < 2 or not node.constant[1] or node.shapes[1] is None:
        return None
    return maker(node) if None not in (node.shapes[0], node.out_shapes[0]) else None


def channels_last(array: Array, axis: int) -> Array:
    """Return [positions, channels] of an array, positions in row-major order of the other axes."""
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def columns(array: Array, axis: int, rows: Ints) -> Array:
    """Return [len(rows), channels], some positions of `channels_last`; where they are few, only they are moved."""
    axis %= array.ndim
    channels, inner = array.shape[axis], prod(array.shape[axis + 1 :])
    if inner == 1 or len(rows) * channels * SPARSE > array.size:
        return channels_last(array, axis)[rows]
    at, spot = np.divmod(rows, inner)
    return np.asarray(array.reshape(-1, channels, inner)[at, :, spot])


def _conv(node: Node) -> View | None:
    weight, given = node.shape(1), node.shape(0)
    kernel, spatial = weight[2:], len(weight) - 2
    groups = int(node.attr("group", 1))
    strides = [int(s) for s in node.attr("strides", [1] * spatial)]
    dilations = [int(d) for d in node.attr("dilations", [1] * spatial)]
    channels, outputs, taps = weight[1], weight[0] // groups, prod(kernel)
    attrs, places = node.attrs, list(np.ndindex(*kernel))

    def read(array: Array, rows: Ints) -> Array:
        pads = _pads(attrs, array.shape[2:], kernel, strides, dilations)
        sizes = [n + a + b for n, (a, b) in zip(array.shape[2:], pads, strict=True)]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        counts = [(n - r) // s + 1 for n, r, s in zip(sizes, reach, strides, strict=True)]
        at, *spot = np.unravel_index(rows, (len(array), *counts))
        steps = np.cumprod([1, *sizes[:0:-1]])[::-1]
        first = at * prod(sizes) + sum(p * s * n for p, s, n in zip(spot, strides, steps, strict=True))
        if taps == 1 and not any(map(any, pads)):
            patches = columns(array, 1, first)
        else:
            # channels last: each tap of a row is then one piece of memory
            padded = np.zeros((len(array), *sizes, array.shape[1]), array.dtype)
            inside = tuple(slice(a, a + n) for n, (a, _) in zip(array.shape[2:], pads, strict=True))
            padded[(slice(None), *inside)] = np.moveaxis(array, 1, -1)
            shifts = [sum(p * d * n for p, d, n in zip(t, dilations, steps, strict=True)) for t in places]
            patches = padded.reshape(-1, array.shape[1]).take(first[:, None] + np.array(shifts), axis=0)
        return patches.reshape(len(rows), taps, groups, channels).transpose(2, 0, 1, 3)

    def y(array: Array, rows: Ints) -> Array:
        return columns(array, 1, rows)

    def unpack(array: Array) -> Array:
        return np.asarray(array).reshape(groups, outputs, channels * taps).transpose(0, 2, 1)

    def pack(matrices: Array) -> Array:
        return matrices.transpose(0, 2, 1).reshape(weight)

    if len(given) != len(weight):
        return None
    return View(groups, channels, taps, outputs, 1, 1, read, y, pack, unpack, bias_slot=2)


def _pads(
    attrs: Mapping[str, Any],
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
) -> list[tuple[int, int]]:
    mode = str(attrs.get("auto_pad", "NOTSET"))
    if mode == "VALID":
        return [(0, 0)] * len(kernel)
    if mode.startswith("SAME"):
        borders = []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small = total // 2
            borders.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
        return borders
    pads = [int(p) for p in attrs.get("pads", [0] * (2 * len(kernel)))]
    return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))


def _conv_transpose(node: Node) -> View | None:
    """An output position reads the input positions that reach it: a window of the input with zeros put between."""
    weight, spatial = node.shape(1), len(node.shape(1)) - 2
    kernel, groups = weight[2:], int(node.attr("group", 1))
    strides = [int(s) for s in node.attr("strides", [1] * spatial)]
    dilations = [int(d) for d in node.attr("dilations", [1] * spatial)]
    pads = [int(p) for p in node.attr("pads", [0] * (2 * spatial))]
    if str(node.attr("auto_pad", "NOTSET")) not in ("NOTSET", "VALID") or "output_shape" in node.attrs:
        return None
    channels, outputs, taps = weight[0] // groups, weight[1], prod(kernel)
    extra = [int(p) for p in node.attr("output_padding", [0] * spatial)]

    def read(array: Array, rows: Ints) -> Array:
        batch, shape = array.shape[0], array.shape[2:]
        reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        spread = [(n - 1) * s + 1 for n, s in zip(shape, strides, strict=True)]
        full = [n + 2 * r + e for n, r, e in zip(spread, reach, extra, strict=True)]
        wide = np.zeros((batch, array.shape[1], *full), array.dtype)
        inside = tuple(slice(r, r + n, s) for r, n, s in zip(reach, spread, strides, strict=True))
        wide[(slice(None), slice(None), *inside)] = array
        first = [pads[i] for i in range(spatial)]
        last = [wide.shape[2 + i] - pads[spatial + i] for i in range(spatial)]
        cut = wide[(slice(None), slice(None), *(slice(a, b) for a, b in zip(first, last, strict=True)))]
        windows = np.lib.stride_tricks.sliding_window_view(
            cut, [r + 1 for r in reach], axis=tuple(range(2, 2 + spatial))
        )
        backwards: tuple[Any, ...] = (..., *(slice(None, None, -d) for d in dilations))  # as the kernel runs
        windows = windows[backwards]
        at: tuple[Any, ...] = np.unravel_index(rows, (batch, *windows.shape[2 : 2 + spatial]))
        every: Any = slice(None)
        picked = windows[(at[0], every, *at[1:])]
        return np.asarray(picked.reshape(len(rows), groups, channels, taps).transpose(1, 0, 3, 2))

    def y(array: Array, rows: Ints) -> Array:
        return columns(array, 1, rows)

    def unpack(array: Array) -> Array:
        split = np.asarray(array).reshape(groups, channels, outputs, taps)
        return split.transpose(0, 1, 3, 2).reshape(groups, channels * taps, outputs)

    def pack(matrices: Array) -> Array:
        split = matrices.reshape(groups, channels, taps, outputs)
        return split.transpose(0, 1, 3, 2).reshape(weight)

    return View(groups, channels, taps, outputs, 0, 1, read, y, pack, unpack, bias_slot=2)


def _product(node: Node) -> View | None:
    """MatMul and Gemm with a constant matrix on the right."""
    weight, given = node.shape(1), node.shape(0)
    if len(weight) != 2 or len(given) < 2:
        return None
    left, right = bool(node.attr("transA", 0)), bool(node.attr("transB", 0))
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    channels, outputs = (weight[1], weight[0]) if right else weight
    if alpha == 0 or beta == 0:
        return None

    def read(array: Array, rows: Ints) -> Array:
        return columns(array, -2 if left else -1, rows)[None, :, None]

    def y(array: Array, rows: Ints) -> Array:
        return columns(array, -1, rows)

    def unpack(array: Array) -> Array:
        scaled = np.asarray(array) * alpha if alpha != 1 else np.asarray(array)
        return (scaled.T if right else scaled)[None]

    def pack(matrices: Array) -> Array:
        matrix = matrices[0].T if right else matrices[0]
        return np.asarray(matrix / alpha if alpha != 1 else matrix)

    bias_slot = 2 if node.op.endswith("Gemm") else -1
    if bias_slot == 2 and node.has(2) and prod(node.shape(2)) not in (1, outputs):
        return None
    return View(1, channels, 1, outputs, 1 if right else 0, -1, read, y, pack, unpack, bias_slot, beta)


def _einsum(node: Node) -> View | None:
    """Einsum of an activation and a constant: letters of both are read where they end, else they are blocks."""
    left, _, right = "".join(str(node.attrs["equation"]).split()).partition("->")
    terms = left.split(",")
    if len(terms) != 2 or "." in terms[1] or not right or len(node.inputs) != 2:
        return None
    dots = "ABCDEFGH"[: node.rank() - len(terms[0].replace("...", ""))] if "..." in left else ""
    if set(dots) & set(left):
        return None
    x, w, out = (term.replace("...", dots) for term in (*terms, right))
    blocks, read = [c for c in w if c in x and c in out], [c for c in w if c in x and c not in out]
    made, rows = [c for c in w if c not in x], [c for c in x if c not in w]
    sizes = dict(zip(w, node.shape(1), strict=True))
    plain = (
        all(len(set(term)) == len(term) for term in (x, w, out))
        and read
        and set(rows + made + blocks) == set(out)
    )
    if not plain or any(sizes[c] != n for c, n in zip(x, node.shape(0), strict=True) if c in sizes):
        return None
    count, channels, outputs = (prod(sizes[c] for c in part) for part in (blocks, read, made))

    def order(term: str, *parts: list[str]) -> list[int]:
        return [term.index(c) for part in parts for c in part]

    def regressors(array: Array, index: Ints) -> Array:
        moved = array.transpose(order(x, rows, blocks, read)).reshape(-1, count, channels)
        return moved[index].transpose(1, 0, 2)[:, :, None]

    def y(array: Array, index: Ints) -> Array:
        return np.asarray(array.transpose(order(out, rows, blocks, made)).reshape(-1, count * outputs)[index])

    ways = order(w, blocks, read, made)

    def unpack(array: Array) -> Array:
        return np.asarray(array).transpose(ways).reshape(count, channels, outputs)

    def pack(matrices: Array) -> Array:
        split = matrices.reshape([sizes[c] for c in (*blocks, *read, *made)])
        return np.asarray(split.transpose(np.argsort(ways)))

    factors = tuple((w.index(c), sizes[c]) for c in read)
    last = out.index(made[-1]) if made else out.index(blocks[-1]) if blocks else -1
    return View(
        count, channels, 1, outputs, factors[0][0], last, regressors, y, pack, unpack, factors=factors
    )


_VIEWS: dict[tuple[str, str], Callable[[Node], View | None]] = {
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Gemm"): _product,
    ("", "MatMul"): _product,
    ("", "Einsum"): _einsum,
    ("com.microsoft", "FusedMatMul"): _product,
}
