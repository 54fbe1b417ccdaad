"""What an op says about itself: a row, or a refusal with its reason.

``TABLE`` maps (domain, op type) to a rule; importing :mod:`onnxprune.ops` fills it. A rule reads a :class:`Node`
(shapes, attributes, known values) and returns a :class:`Row`. What it doesn't know it refuses; nothing is ever guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.ops.traits import Trait, declare, moved, traits_of

__all__ = [
    "EMITTERS", "TABLE", "Cut", "Edit", "Elem", "Map", "Node", "Pick", "Refusal", "Row", "SetAttr", "SetInput",
    "Multiplied", "PACKED", "Unknown", "ZEROED", "emit", "emitter", "literal", "lookup", "op",
]  # fmt: skip

Indices: TypeAlias = NDArray[np.int64]
Shape: TypeAlias = tuple[int, ...]


#: Roles of inputs in which channels that go are zeroed in any case; of factors one is enough.
ZEROED = frozenset({"bias", "range"})
#: The role of inputs that are never zeroed: their elements aren't numbers.
PACKED = "packed"


class Unknown(ValueError):
    """A rule needs something (a shape, a value) that is not known before the model runs."""


class Elem(IntEnum):
    """Element types, by ONNX's numbers: the few that ops outside ONNX give whatever they read."""

    FLOAT = TensorProto.FLOAT
    UINT8 = TensorProto.UINT8
    INT32 = TensorProto.INT32
    INT64 = TensorProto.INT64
    BOOL = TensorProto.BOOL


#: Element types of floats.
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})


@dataclass(frozen=True, slots=True)
class Map:
    """An output letter that takes elements of an input letter: ``d[j] = source[index[j]]``; -1 has no source."""

    source: str
    index: Indices


@dataclass(frozen=True, slots=True)
class Row:
    """One op, described: see :mod:`onnxprune.ops.notation` for ``text``.

    Attributes
    ----------
    text : the signature.
    sizes : sizes of letters that shapes alone do not give (the number of groups).
    maps : output letter -> where its elements come from (Slice, Gather, Pad).
    pinned : letter -> indices of it that must stay (a scalar Gather's element); the others are free.
    attrs : attribute -> letter whose kept count is the attribute's new value.
    why : letter (or ``*star``'s name) -> reason of its lock.
    zeros : input slot -> input slot of the zero point that is its zero.
    elems : output slot -> the input slot whose element type it has, or a type's ONNX number; the first input's where
        nothing is said. Asked only where ONNX itself doesn't know the op.
    roles : role of each input: "data", "weight", "bias", "scale", "mean", "var", "shape", "quant", "range" (data
        whose range is taken as well, so that its channels must be zero there whatever they are multiplied with) or
        "packed" (a weight of several values a byte: its scales are zeroed in its place).
    kinds : input slot -> kinds of a weight's axes, where other letters than those of a result are made in between:
        b (matrices side by side), o (outputs), i (inputs); empty: a packed weight, whose axes count no numbers.
    packs : input slot of a constant that holds several numbers a byte -> the letter that these run along, which is
        none of its axes, and the bits of each: rows of whole bytes, which are packed anew where the letter is cut.
    looked : letter of a table -> the input slot whose values, not known before the run, pick rows along it.
    indexed : as ``looked``, for letters whose other positions are left as they were (Scatter), or are zero (OneHot).
    places : output slot -> the letter on whose axis its numbers are positions, such as those of the chosen.
    lowest : letter of which the op looks at all elements, and chooses or weighs them -> the input slot in which one
        that is the least number counts as little as one that isn't there.
    fewest : letter -> how many of its elements must stay, since the op chooses so many, or needs them.
    macs : letters whose sizes multiplied are the multiply-accumulates of each sum of products, where the operands
        don't show them; a letter of no operand has its size in ``sizes``.
    """

    text: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)
    pinned: Mapping[str, Indices] = field(default_factory=dict)
    attrs: Mapping[str, str] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)
    zeros: Mapping[int, int] = field(default_factory=dict)
    roles: tuple[str, ...] = ()
    elems: Mapping[int, int | Elem] = field(default_factory=dict)
    kinds: Mapping[int, str] = field(default_factory=dict)
    packs: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    looked: Mapping[str, int] = field(default_factory=dict)
    indexed: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[int, str] = field(default_factory=dict)
    lowest: Mapping[str, int] = field(default_factory=dict)
    fewest: Mapping[str, int] = field(default_factory=dict)
    macs: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """No row: every axis that the node touches is frozen, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Node:
    """What a rule may look at. Slots that are absent or unknown hold None."""

    op: str
    domain: str
    opset: int
    name: str
    attrs: Mapping[str, Any]
    shapes: tuple[Shape | None, ...]
    out_shapes: tuple[Shape | None, ...]
    values: tuple[NDArray[Any] | None, ...]
    constant: tuple[bool, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    elems: tuple[int, ...] = ()
    squares: tuple[bool, ...] = ()
    centred: tuple[bool, ...] = ()
    natural: tuple[bool, ...] = ()

    def is_square(self, slot: int) -> bool:
        """Whether an input is known to hold squares of what no average was taken off, as in an RMS."""
        return slot < len(self.squares) and self.squares[slot]

    def is_natural(self, slot: int) -> bool:
        """Whether no element of an input is below zero, as far as that is known."""
        return slot < len(self.natural) and self.natural[slot]

    def is_centred(self, slot: int) -> bool:
        """Whether an average was taken off an input, or may be: then zeros before are something else behind."""
        return slot < len(self.centred) and self.centred[slot]

    def elem(self, slot: int) -> int:
        """Return the element type of an input, by its ONNX number; 0 where it isn't known."""
        return self.elems[slot] if slot < len(self.elems) else 0

    @property
    def traits(self) -> Trait:
        """What is known of all nodes of this op."""
        return traits_of(self.op, self.domain)

    @property
    def moved(self) -> list[str]:
        """The inputs whose elements the outputs consist of, where the op only moves them."""
        return [self.inputs[slot] for slot in moved(self.op, len(self.inputs), self.domain)]

    def has(self, slot: int) -> bool:
        """Whether the optional input ``slot`` is given."""
        return slot < len(self.inputs) and self.inputs[slot] != ""

    def gives(self, slot: int) -> bool:
        """Whether the optional output ``slot`` is asked for."""
        return slot < len(self.outputs) and self.outputs[slot] != ""

    def shape(self, slot: int) -> Shape:
        """Return the shape of an input, or raise :class:`Unknown`."""
        shape = self.shapes[slot] if slot < len(self.shapes) else None
        if shape is None:
            raise Unknown(f"the shape of input {slot} is unknown")
        return shape

    def out_shape(self, slot: int = 0) -> Shape:
        """Return the shape of an output, or raise :class:`Unknown`."""
        shape = self.out_shapes[slot] if slot < len(self.out_shapes) else None
        if shape is None:
            raise Unknown(f"the shape of output {slot} is unknown")
        return shape

    def rank(self, slot: int = 0) -> int:
        """Return the rank of an input, or raise :class:`Unknown`."""
        return len(self.shape(slot))

    def value(self, slot: int) -> NDArray[Any]:
        """Return the value of an input, or raise :class:`Unknown`."""
        value = self.values[slot] if slot < len(self.values) else None
        if value is None:
            raise Unknown(f"the value of input {slot} is computed at run time")
        return value

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute or its default."""
        return self.attrs.get(name, default)

    def ints(self, name: str, slot: int, since: int) -> list[int] | None:
        """Return a list: attribute ``name`` before opset ``since``, input ``slot`` from it on; None: absent."""
        if self.opset < since or name in self.attrs:
            numbers = self.attrs.get(name)
            return None if numbers is None else [int(i) for i in numbers]
        return [int(i) for i in self.value(slot).reshape(-1)] if self.has(slot) else None

    def axis(self, default: int, rank: int | None = None, name: str = "axis") -> int:
        """Return an axis attribute, counted from the front.

        Raises
        ------
        ValueError
            If it is out of range.
        """
        rank = self.rank() if rank is None else rank
        return normal(int(self.attrs.get(name, default)), rank)


def normal(axis: int, rank: int) -> int:
    """Count an axis from the front; ValueError when it is out of range."""
    if not -rank <= axis < max(rank, 1):
        raise ValueError(f"axis {axis} is out of range for rank {rank}")
    return axis + rank if axis < 0 else axis


@dataclass(frozen=True, slots=True)
class SetInput:
    """Input ``slot`` must become this constant. Entries equal to the old value need no change."""

    slot: int
    array: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pick:
    """Of input ``slot``, the node must read these positions along an axis, in this order: a Gather in front of it."""

    slot: int
    axis: int
    index: Indices


@dataclass(frozen=True, slots=True)
class Multiplied:
    """The node must read input ``slot`` multiplied by a number: a Mul in front of it."""

    slot: int
    factor: float


@dataclass(frozen=True, slots=True)
class SetAttr:
    """Attribute ``name`` must become this value; None: it must go."""

    name: str
    value: Any


Edit: TypeAlias = SetInput | SetAttr | Pick | Multiplied


class Cut(Protocol):
    """What an emitter may ask about a decided cut."""

    def kept(self, slot: int, axis: int) -> Indices:
        """Indices kept on an input's axis, ascending."""
        ...

    def kept_out(self, slot: int, axis: int) -> Indices:
        """Indices kept on an output's axis, ascending."""
        ...

    def new_shape(self, slot: int) -> Shape:
        """Shape of an input after the cut."""
        ...

    def new_out_shape(self, slot: int) -> Shape:
        """Shape of an output after the cut."""
        ...


Rule: TypeAlias = Callable[[Node], Row | Refusal]
Emitter: TypeAlias = Callable[[Node, Cut], list[Edit]]
TABLE: dict[tuple[str, str], Rule] = {}
EMITTERS: dict[tuple[str, str], Emitter] = {}


def op(*names: str, domain: str = "", traits: Trait = Trait(0)) -> Callable[[Rule], Rule]:  # noqa: B008  a constant
    """Register a rule under one or several op types of a domain, with what else is known of them."""

    def register(rule: Rule) -> Rule:
        for name in names:
            if (domain, name) in TABLE:
                raise ValueError(f"{domain}::{name} has two rules")
            TABLE[domain, name] = rule
            declare((domain, name), traits)
        return rule

    return register


def emitter(*names: str, domain: str = "") -> Callable[[Emitter], Emitter]:
    """Register what rewrites an op's constants that encode sizes."""

    def register(rule: Emitter) -> Emitter:
        for name in names:
            if (domain, name) in EMITTERS:
                raise ValueError(f"{domain}::{name} has two emitters")
            EMITTERS[domain, name] = rule
        return rule

    return register


def literal(
    text: str,
    names: Iterable[str],
    domain: str = "",
    traits: Trait = Trait(0),  # noqa: B008  a constant
    **fields: Any,
) -> None:
    """Register a row that doesn't depend on the node."""
    row = Row(text, **fields)
    op(*names, domain=domain, traits=traits)(lambda node: row)


def _key(node: Node) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op)


def lookup(node: Node) -> Row | Refusal:
    """Return the row of a node, or the reason why it has none."""
    key = _key(node)
    rule = TABLE.get(key)
    if rule is None:
        return Refusal(f"no row for {key[0] or 'ai.onnx'}::{node.op}: all its axes are frozen")
    try:
        return rule(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as reason:
        return Refusal(f"{node.op}: {reason}")


def emit(node: Node, cut: Cut) -> list[Edit]:
    """Return the edits that a cut needs on constants and attributes that encode sizes; empty: none."""
    rule = EMITTERS.get(_key(node))
    return [] if rule is None else rule(node, cut)
