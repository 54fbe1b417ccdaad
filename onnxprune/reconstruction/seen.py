"""What a node is to a fit: a layer of floats, whatever form its weight and its input have in the file.

==========================================  ===========================================  ===============================
node                                        its weight                                   its input and output
==========================================  ===========================================  ===============================
Conv, MatMul, Gemm, ...                     a weight, or DequantizeLinear of one         as they are
MatMulInteger, ConvInteger and the Cast     integers, with the scale of the Mul          what DynamicQuantizeLinear
and Mul behind it                                                                        reads; what the Mul makes
DynamicQuantizeMatMul, MatMulIntegerToFloat integers, with their own scale               floats
MatMulNBits                                 packed in blocks                             floats
QLinearConv, QLinearMatMul, QGemm           integers, with their own scale               integers: x - zero, y - zero
==========================================  ===========================================  ===============================

Between DequantizeLinear and its layer there may be Transpose, Identity and Cast. What DynamicQuantizeLinear rounds is
rounded for the fit as well:

    x' = (clip(round(x / s) + z, 0, 255) - z) s,    s = (max(x, 0) - min(x, 0)) / 255,    z = round(-min(x, 0) / s),

with the range of one batch of the samples. What a QLinearConv gives is clipped to its type, often instead of a Relu:
what it gave before that is computed from its input, in steps of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.coupling import Applied
from onnxprune.model import Model
from onnxprune.ops import FLOATS, Node
from onnxprune.reconstruction.stored import INTEGERS, Codec, Floats, Packed, Quantised, Rounded
from onnxprune.reconstruction.views import View, view_of

__all__ = ["Around", "FloatLayer", "as_floats", "weight_slot"]

Array = NDArray[Any]
Uses = Mapping[str, Sequence[tuple[int, int]]]

_SLOTS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
_PLAIN = {"MatMulInteger": "MatMul", "ConvInteger": "Conv", "DynamicQuantizeMatMul": "MatMul",
          "MatMulIntegerToFloat": "MatMul", "MatMulNBits": "MatMul", "QLinearConv": "Conv", "QLinearMatMul": "MatMul",
          "QGemm": "Gemm"}  # fmt: skip


def weight_slot(node: Node) -> int:
    """Return the input that is the weight of a layer."""
    return _SLOTS.get(node.op, 1)


@dataclass(frozen=True)
class Around:
    """The graph around a node.

    Attributes
    ----------
    model : Model
    nodes : sequence of Applied
    uses : mapping
        Tensor -> (node, slot) that read it.
    outer : set of str
        Tensors that are read elsewhere too: outputs, and what bodies read.
    fixed : bool
        Whether layers are only read: their weights may be those of others, too, or in a form that can't be written.
    """

    model: Model
    nodes: Sequence[Applied]
    uses: Uses
    outer: set[str]
    fixed: bool = False
    maker: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Find who makes what."""
        made = {name: n for n, a in enumerate(self.nodes) for name in a.node.outputs if name}
        object.__setattr__(self, "maker", made)

    def made_by(self, name: str, *ops: str) -> Node | None:
        """Return the node that makes a tensor, if it is one of some ops."""
        number = self.maker.get(name)
        node = None if number is None else self.nodes[number].node
        return node if node is not None and node.op in ops else None

    def alone(self, name: str) -> bool:
        """Whether one node reads a tensor, and nothing else does."""
        return len(self.uses.get(name, ())) == 1 and name not in self.outer

    def own(self, name: str) -> bool:
        """Whether a layer may have a tensor for its weight."""
        return self.fixed or self.alone(name)

    def sole(self, name: str) -> int | None:
        """Return the node that alone reads a tensor, once."""
        return self.uses[name][0][0] if self.alone(name) else None

    def number(self, name: str) -> float | None:
        """Return a weight that is one number; None where it is none."""
        if name not in self.model or prod(self.model.info(name).dims) != 1:
            return None
        return float(np.asarray(self.model.weight(name)).reshape(-1)[0])

    def constant(self, name: str, *, read_alone: bool = True) -> tuple[Codec, tuple[int, ...]] | None:
        """Return how a constant is stored, and the order in which its axes arrive; None where it isn't known.

        Parameters
        ----------
        name : str
            As a node reads it.
        read_alone : bool
            Whether nothing else may read what it is made of.
        """
        perms: list[tuple[int, ...]] = []
        first = name
        while name not in self.model:
            node = self.made_by(name, "DequantizeLinear", "Transpose", "Identity", "Cast")
            if node is None or (name != first and read_alone and not self.alone(name)):
                return None
            if node.op == "Transpose":
                perms.append(tuple(node.attr("perm", range(node.rank())[::-1])))
            name = node.inputs[0]
            if node.op == "DequantizeLinear":
                codec = self._dequantised(node, read_alone=read_alone)
                return None if codec is None else (codec, _order(perms, node.rank()))
        floats = name == first and self.model.weight(name).dtype.kind == "f"
        return (Floats(name), tuple(range(len(self.model.info(name).dims)))) if floats else None

    def _dequantised(self, node: Node, *, read_alone: bool) -> Quantised | None:
        name, kind = node.inputs[0], Quantised
        before = self.made_by(name, "QuantizeLinear")
        if before is not None and before.inputs[1:] == node.inputs[1:]:
            if read_alone and not self.alone(name):
                return None
            name, kind = before.inputs[0], Rounded
        if read_alone and not self.alone(name):
            return None
        rank, zero = node.rank(), node.inputs[2] if node.has(2) else ""
        axis = int(node.attr("axis", 1)) % max(rank, 1)
        codec = kind(name, node.inputs[1], zero, axis, int(node.attr("block_size", 0)))
        return codec if self.known(codec) else None

    def known(self, codec: Quantised) -> bool:
        """Whether all parts of a codec are weights of types that are known, with a zero point of integers."""
        if any(name not in self.model for name in codec.tensors):
            return False
        whole = {self.model.info(n).elem_type for n in (codec.name, codec.zero) if n}
        floats = {self.model.info(codec.scale).elem_type}
        if isinstance(codec, Rounded):
            floats.add(self.model.info(codec.name).elem_type)
            whole.discard(self.model.info(codec.name).elem_type)
        return whole <= INTEGERS.keys() and floats <= FLOATS


def _order(perms: Sequence[tuple[int, ...]], rank: int) -> tuple[int, ...]:
    order = tuple(range(rank))
    for perm in reversed(perms):
        order = tuple(order[axis] for axis in perm)
    return order


@dataclass(frozen=True)
class FloatLayer:
    """A layer of floats.

    Attributes
    ----------
    view : View
        In the axes of the stored weight.
    codec : Codec
    x, y : str
        Input and output, before a bias that a node of its own adds.
    end : int
        Position of the node that makes ``y``.
    bias : Codec or None
        Where the node has one whose scale is none of the graph's.
    clipped : bool
        Whether ``y`` is clipped to integers.
    plain : str
        The op of floats that computes ``y`` from ``x`` but for rounding, where the node isn't one.
    """

    view: View
    codec: Codec
    x: str
    y: str
    end: int
    bias: Codec | None = None
    clipped: bool = False
    plain: str = ""


def as_floats(around: Around, number: int) -> FloatLayer | None:
    """Return what a node is as a layer of floats; None where it is none, or isn't understood.

    Parameters
    ----------
    around : Around
    number : int
        Position of the node.
    """
    applied = around.nodes[number]
    node = applied.node
    if applied.row is None or not node.has(weight_slot(node)):
        return None
    if node.op in _SPECIAL:
        return _SPECIAL[node.op](around, number, node)
    stored = around.constant(node.inputs[1])
    if stored is None or node.inputs[0] in around.model:
        return None
    codec, order = stored
    view = view_of(_constant_weight(node))
    if view is None or (view.blocks > 1 and order != tuple(range(len(order)))):
        return None
    if not codec.exact and view.bias_slot >= 0 and not node.has(view.bias_slot):
        view = replace(view, bias_slot=-1)  # a bias of floats would keep a runtime from fusing the layer
    return FloatLayer(_moved(view, order), codec, node.inputs[0], node.outputs[0], number)


def _constant_weight(node: Node) -> Node:
    return replace(node, constant=(node.constant[0], True, *node.constant[2:]))


def _moved(view: View, order: tuple[int, ...]) -> View:
    """Return a view of a weight that arrives with its axes in another order than they are stored."""
    if order == tuple(range(len(order))):
        return view
    back = np.argsort(order)
    return replace(
        view,
        weight_axis=order[view.weight_axis],
        factors=tuple((order[axis], size) for axis, size in view.factors),
        unpack=lambda array: view.unpack(np.asarray(array).transpose(order)),
        pack=lambda matrices: view.pack(matrices).transpose(back),
    )


def _plain_view(node: Node, x: tuple[int, ...], weight: tuple[int, ...]) -> View | None:
    """Return the view of the float op that computes the same, without its bias."""
    plain = replace(
        node, op=_PLAIN[node.op], domain="", shapes=(x, weight), constant=(False, True), values=(None, None),
        inputs=("x", "w"),
    )  # fmt: skip
    view = view_of(plain)
    return None if view is None else replace(view, bias_slot=-1)


def _rounding(view: View) -> View:
    """Return a view that reads what is left of an activation by DynamicQuantizeLinear."""
    return replace(view, read=lambda array, rows: view.read(dynamic(array), rows))


def dynamic(array: Array) -> Array:
    """Return an activation rounded to 8 bits over its range, as DynamicQuantizeLinear does it."""
    low, high = min(float(array.min(initial=0.0)), 0.0), max(float(array.max(initial=0.0)), 0.0)
    step = np.float32((high - low) / 255)
    if not step > 0:
        return array
    zero = np.clip(np.rint(-low / step), 0, 255)
    return np.asarray((np.clip(np.rint(array / step) + zero, 0, 255) - zero) * step, array.dtype)


def _integers(around: Around, number: int, node: Node) -> FloatLayer | None:
    """MatMulInteger or ConvInteger of what DynamicQuantizeLinear makes, and the Cast and Mul behind it."""
    source = around.made_by(node.inputs[0], "DynamicQuantizeLinear")
    cast = around.sole(node.outputs[0])
    if source is None or cast is None or around.nodes[cast].node.op != "Cast":
        return None
    end = around.sole(around.nodes[cast].node.outputs[0])
    if end is None or around.nodes[end].node.op != "Mul":
        return None
    last = around.nodes[end].node
    scale = around.made_by(next(n for n in last.inputs if n not in around.nodes[cast].node.outputs), "Mul")
    if scale is None or source.outputs[1] not in scale.inputs or not _zero_of(node, 2, source):
        return None
    own = next(n for n in scale.inputs if n != source.outputs[1])
    return _integer_layer(around, node, source, own, 3, last.outputs[0], end)


def _to_float(around: Around, number: int, node: Node) -> FloatLayer | None:
    """MatMulIntegerToFloat of what DynamicQuantizeLinear makes."""
    source = around.made_by(node.inputs[0], "DynamicQuantizeLinear")
    if source is None or node.inputs[2] != source.outputs[1] or not _zero_of(node, 4, source):
        return None
    seen = _integer_layer(around, node, source, node.inputs[3], 5, node.outputs[0], number)
    return seen and replace(seen, view=replace(seen.view, bias_slot=6 if node.has(6) else -1))


def _dynamic(around: Around, number: int, node: Node) -> FloatLayer | None:
    """DynamicQuantizeMatMul: A, B, B's scale, B's zero point, bias."""
    seen = _integer_layer(around, node, None, node.inputs[2], 3, node.outputs[0], number)
    return seen and replace(seen, view=replace(seen.view, bias_slot=4 if node.has(4) else -1))


def _zero_of(node: Node, slot: int, source: Node) -> bool:
    return node.has(slot) and node.inputs[slot] == source.outputs[2]


def _integer_layer(
    around: Around, node: Node, source: Node | None, scale: str, zero: int, y: str, end: int
) -> FloatLayer | None:
    """Return the layer of an integer weight in slot 1, with a scale for the tensor or for each output."""
    weight, axis = node.inputs[1], 0 if node.op == "ConvInteger" else 1
    codec = Quantised(weight, scale, node.inputs[zero] if node.has(zero) else "", axis)
    if not around.known(codec) or not around.own(weight):
        return None
    dims = around.model.info(weight).dims
    if any(np.size(around.model.weight(name)) not in (1, dims[axis]) for name in codec.tensors[1:]):
        return None
    x = (node if source is None else source).inputs[0]
    view = _plain_view(node, node.shape(0), dims)
    if view is None or x in around.model:
        return None
    return FloatLayer(_rounding(view), codec, x, y, end, plain=_PLAIN[node.op])


def _blocks(around: Around, number: int, node: Node) -> FloatLayer | None:
    """MatMulNBits: A, B packed, scales, zero points, order of the inputs, bias."""
    width, rows, size = (int(node.attrs[name]) for name in ("K", "N", "block_size"))
    bits = int(node.attr("bits", 4))
    zero = node.inputs[3] if node.has(3) else ""
    weight = node.inputs[1]
    codec = Packed(weight, node.inputs[2], zero, bits=bits, rows=rows, blocks=width // size, size=size)
    if (
        (width % size and not around.fixed)
        or bits not in (2, 4, 8)
        or node.has(4)
        or not around.known(codec)
        or not around.own(weight)
    ):
        return None
    view = _plain_view(node, node.shape(0), (width, rows))
    if view is None or node.inputs[0] in around.model:
        return None
    plain = view
    view = replace(
        view,
        weight_axis=1,
        factors=((1, width // size), (2, size)),
        unpack=lambda array: plain.unpack(np.asarray(array).reshape(rows, width).T),
        pack=lambda matrices: plain.pack(matrices).T.reshape(rows, width // size, size),
        bias_slot=5 if node.has(5) else -1,
    )
    return FloatLayer(view, codec, node.inputs[0], node.outputs[0], number, plain=_PLAIN[node.op])


def _clipped(around: Around, number: int, node: Node) -> FloatLayer | None:
    """QLinearConv, QLinearMatMul or QGemm: x, scale, zero, weight, scale, zero, (bias,) y's scale, zero (, bias)."""
    gemm, conv = node.op == "QGemm", node.op == "QLinearConv"
    bias, (step, level) = 6 if gemm else 8, (7, 8) if gemm else (6, 7)
    ends = [around.number(node.inputs[slot]) for slot in (1, 2, step, level) if node.has(slot)]
    weight, whole = node.inputs[3], node.has(step) and node.has(level)
    if weight not in around.model or not whole or any(value is None for value in ends):
        return None
    dims = around.model.info(weight).dims
    axis = 0 if conv or node.attr("transB", 0) else len(dims) - 1
    unit = (ends[0] or 0.0) / (ends[2] or 1.0)
    codec = Quantised(weight, node.inputs[4], node.inputs[5] if node.has(5) else "", axis, unit=unit)
    if not around.known(codec) or not around.alone(weight) or node.inputs[0] in around.model:
        return None
    view = _plain_view(node, node.shape(0), dims)
    if view is None or any(
        around.model.info(n).dims not in ((), (1,), (dims[axis],)) for n in codec.tensors[1:]
    ):
        return None
    own = (
        Quantised(node.inputs[bias], node.inputs[4], unit=unit)
        if bias < 9 and node.has(bias) and (gemm or conv)
        else None
    )
    plain, zero = view, np.float32(ends[1] or 0.0)
    view = replace(
        view,
        read=lambda array, rows: plain.read(array.astype(np.float32) - zero, rows),
        bias_slot=bias if own is not None else -1,
        bias_factor=float(node.attr("alpha", 1.0)) if gemm else 1.0,
    )
    return FloatLayer(view, codec, node.inputs[0], node.outputs[0], number, own, clipped=True)


_SPECIAL: dict[str, Callable[[Around, int, Node], FloatLayer | None]] = {
    "MatMulInteger": _integers,
    "ConvInteger": _integers,
    "MatMulIntegerToFloat": _to_float,
    "DynamicQuantizeMatMul": _dynamic,
    "MatMulNBits": _blocks,
    "QLinearConv": _clipped,
    "QLinearMatMul": _clipped,
    "QGemm": _clipped,
}
