"""Gradients of a convolution's weight, tap by tap or all taps at once.

What a tap sees is the input, moved; the gradient of that tap is the product of what it saw and of the outputs'
gradients, summed over samples and positions ``p``:

    d_W[o, i, tap] = sum over p of dy[o, p] x[i, s p + d tap].

For each tap that is one product of matrices, which runs as fast as the convolution itself. All taps at once are a
convolution with batch and channels swapped, whose kernel is as large as the outputs: a quarter as fast for the usual
3 x 3 (onnxruntime, one thread), but faster for the hundreds of taps of a pitch tracker, and for the first layer of a
net for pictures, whose three channels fill no product. Group ``g`` of the swapped convolution is group ``g`` of the
layer, so one node serves any number of groups. A depthwise layer has no products: moved inputs times gradients are
summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxprune.gradient.tape import Tape

__all__ = ["Window", "taps_gradient"]

#: More taps than this are better taken at once.
MOST_TAPS = 32
#: Fewer inputs than this fill no product.
FEWEST_INPUTS = 8


@dataclass(frozen=True)
class Window:
    """How a window moves from an input ``x`` to an output, one entry for each spatial axis.

    Attributes
    ----------
    kernel, strides, dilations, begin, end : tuple of int
        ``end`` is negative where the last positions of the input are never read.
    known : bool
        Whether the sizes are static; otherwise the declared padding is taken.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    known: bool = True

    @property
    def pads(self) -> list[int]:
        """Padding as ONNX wants it, never negative."""
        return [*self.begin, *(max(e, 0) for e in self.end)]

    @property
    def unread(self) -> list[int]:
        """Positions at the end of each axis that no window reads."""
        return [max(-e, 0) for e in self.end]


def taps_gradient(
    t: Tape,
    x: str,
    dy: str,
    w: Window,
    group: int,
    sizes: tuple[list[int], list[int]],
    channels: Sequence[int],
    *,
    fewer: bool = False,
) -> str:
    """Write the gradient of a Conv weight, [outputs, inputs / group, taps...].

    Parameters
    ----------
    sizes : pair of list of int
        Spatial sizes of ``x`` and of ``dy``.
    channels : sequence of int
        The weight's first two sizes: outputs, and inputs of a group.
    fewer : bool
        Whether ``dy`` has fewer channels than ``x``.
    """
    outputs, inputs = channels
    if prod(w.kernel) <= MOST_TAPS and t.opset >= 11:
        if group == 1 and inputs >= FEWEST_INPUTS:
            return _taps_by_products(t, x, dy, w, sizes[1], channels)
        if inputs == 1 and group == outputs and {*w.strides} == {1}:
            return _taps_of_planes(t, x, dy, w, sizes[1])
    if group == 1 and fewer and _slides_back(t, w):
        return _taps_from_outputs(t, x, dy, w)
    spatial = list(range(len(w.kernel)))
    if group == 1:
        data = t.transpose(x, [1, 0, *(2 + i for i in spatial)])
    else:
        split = t.reshape(x, [0, group, inputs, prod(sizes[0])])
        data = t.reshape(t.transpose(split, [2, 1, 0, 3]), [inputs, -1, *sizes[0]])
    kernel = t.transpose(dy, [1, 0, *(2 + i for i in spatial)])
    taps = t.op("Conv", data, kernel, group=group, strides=w.dilations, dilations=w.strides, pads=w.pads)
    if any(w.unread):
        taps = t.slice(taps, [2 + i for i in spatial], [0] * len(spatial), list(w.kernel))
    return t.transpose(taps, [1, 0, *(2 + i for i in spatial)])


def _taps_by_products(
    t: Tape, x: str, dy: str, w: Window, results: Sequence[int], channels: Sequence[int]
) -> str:
    """Write one product of matrices for each tap."""
    axes = [2 + i for i in range(len(w.kernel))]
    outputs, inputs = channels
    rows = t.reshape(t.transpose(dy, [1, 0, *axes]), [outputs, -1])
    last = t.transpose(x, [0, *axes, 1])
    padded = t.pad(last, [0, *w.begin, 0], [0, *w.pads[len(axes) :], 0])
    seen = (t.reshape(each, [-1, inputs]) for each in _moved(t, padded, w, results, 1))
    products = [t.matmul(rows, each) for each in seen]
    joined = products[0] if len(products) == 1 else t.op("Concat", *products, axis=1)
    taps = t.reshape(joined, [outputs, *w.kernel, inputs])
    return t.transpose(taps, [0, 1 + len(axes), *(1 + i for i in range(len(axes)))])


def _taps_of_planes(t: Tape, x: str, dy: str, w: Window, results: Sequence[int]) -> str:
    """Write sums over samples and positions of each channel, one for each tap."""
    axes = [2 + i for i in range(len(w.kernel))]
    padded = t.pad(x, [0, 0, *w.begin], [0, 0, *w.pads[len(axes) :]])
    sums = [
        t.reduce("ReduceSum", t.mul(each, dy), [0, *axes], keep=False)
        for each in _moved(t, padded, w, results, 2)
    ]
    stacked = t.op("Concat", *(t.unsqueeze(each, [1]) for each in sums), axis=1)
    return t.reshape(stacked, [-1, 1, *w.kernel])


def _moved(t: Tape, padded: str, w: Window, results: Sequence[int], first: int) -> Iterator[str]:
    """Yield what each tap sees of a padded input whose positions begin at an axis."""
    axes = t.ints_const([first + i for i in range(len(w.kernel))])
    for tap in np.ndindex(*w.kernel):
        starts = [d * k for d, k in zip(w.dilations, tap, strict=True)]
        ends = [a + (m - 1) * s + 1 for a, m, s in zip(starts, results, w.strides, strict=True)]
        yield t.op(
            "Slice", padded, t.ints_const(starts), t.ints_const(ends), axes, t.ints_const(list(w.strides))
        )


def _slides_back(t: Tape, w: Window) -> bool:
    """Whether outputs may slide over inputs as well as inputs over outputs."""
    inside = all(b < k and 0 <= e < k for b, e, k in zip(w.begin, w.end, w.kernel, strict=True))
    return inside and {*w.strides, *w.dilations} == {1} and t.opset >= 10


def _taps_from_outputs(t: Tape, x: str, dy: str, w: Window) -> str:
    """Write the gradient as a Conv that slides over the outputs: cheaper where these have fewer channels."""
    axes = [2 + i for i in range(len(w.kernel))]
    pads = [k - 1 - b for k, b in zip(w.kernel, w.begin, strict=True)]
    pads += [k - 1 - e for k, e in zip(w.kernel, w.end, strict=True)]
    taps = t.op("Conv", t.transpose(dy, [1, 0, *axes]), t.transpose(x, [1, 0, *axes]), pads=pads)
    back = [t.ints_const([value] * len(axes)) for value in (-1, -(1 << 30))]
    return t.op("Slice", taps, *back, t.ints_const(axes), t.ints_const([-1] * len(axes)))
