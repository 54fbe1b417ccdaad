"""Which operands of a node a sum of products runs over, and which of their axes count what: asked of its row.

Letters of an operand W, and of the operand X that it is multiplied with:

==========  =========  =========  =======================================================
in a result  in X       kind       Conv ``(g o) i *k``, ConvTranspose ``(g i) o *k``, MatMul
==========  =========  =========  =======================================================
no           yes        inputs     i; i; k
yes          no         outputs    o (with its g); o; n
yes          yes        blocks     -; g; batch axes
no           no         taps       k; k; -
==========  =========  =========  =======================================================

The row is asked before any trace: the first operand of unknown shape, and the results, get that of W, other operands
(scales) that of a number. Nothing that is read here, the letters of W's own axes, depends on it. An op that runs over a
sequence step by step is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from onnx import NodeProto

from onnxprune.graph.trace import attributes
from onnxprune.ops import Elem, Node, Refusal, Row, Trait, lookup, parse
from onnxprune.ops.notation import Axis, Letter, Operand, Star, Sum, Unit, letters_of
from onnxprune.runtime.binding import Shape

__all__ = ["Factor", "canonical", "factors"]

#: Kinds of axes, in the canonical order.
BLOCKS, OUTPUTS, INPUTS, TAPS = range(4)


@dataclass(frozen=True)
class Factor:
    """An operand that a sum runs over.

    Attributes
    ----------
    slot : int
    zero : int
        The input that says what stands for zero; -1 where the op has none.
    axes : tuple of tuple of (kind, size)
        For each axis, its parts from the outermost on; a size of 0 is what is left of the axis. Empty for a packed
        weight, of which several values share a byte.
    """

    slot: int
    zero: int
    axes: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def outputs(self) -> int:
        """The axis that counts the outputs; the last where none does."""
        return next(
            (n for n, parts in enumerate(self.axes) if any(k == OUTPUTS for k, _ in parts)),
            len(self.axes) - 1,
        )


def factors(
    node: NodeProto, shape_of: Callable[[str], Shape | None], opsets: Mapping[str, int]
) -> Iterator[Factor]:
    """Yield the operands of known shape that a node sums products of.

    Parameters
    ----------
    node : NodeProto
    shape_of : callable
        Tensor -> its shape, None where it isn't known.
    opsets : mapping
        Domain -> version.
    """
    domain = node.domain.replace("ai.onnx", "")
    shapes = [shape_of(name) if name else None for name in node.input]
    if len(shapes) < 2 or not any(shapes):
        return
    attrs = attributes(node)
    first = next((n for n, s in enumerate(shapes) if s is None and node.input[n]), -1)
    stand_ins = [() if s is None and name else s for name, s in zip(node.input, shapes, strict=True)]
    for slot, own in enumerate(shapes):
        if own:
            asked = Node(
                node.op_type, domain, opsets.get(domain, 1), node.name, attrs,
                tuple(own if n == first else s for n, s in enumerate(stand_ins)),
                tuple(own for _ in node.output), tuple(None for _ in shapes),
                tuple(s is not None for s in shapes), tuple(node.input), tuple(node.output),
                (Elem.FLOAT,) * len(shapes),
            )  # fmt: skip
            row = lookup(asked)
            if Trait.RECURRENT in asked.traits or isinstance(row, Refusal):
                return
            if slot in row.kinds:
                yield Factor(slot, row.zeros.get(slot, len(shapes)), _said(row.kinds[slot]))
            axes = _axes(row, slot, len(own)) if not row.kinds else None
            if axes is not None:
                yield Factor(slot, row.zeros.get(slot, len(shapes) if "quant" in row.roles else -1), axes)


def _said(kinds: str) -> tuple[tuple[tuple[int, int], ...], ...]:
    names = {"b": BLOCKS, "o": OUTPUTS, "i": INPUTS}
    return tuple(((names[kind], 0),) for kind in kinds)


def _axes(row: Row, slot: int, rank: int) -> tuple[tuple[tuple[int, int], ...], ...] | None:
    """Return the kinds of an operand's axes; None where no sum of products runs over it."""
    parsed = parse(row.text)
    made = _names(*parsed.outputs)
    if slot >= len(parsed.inputs):
        return None
    try:
        axes = parsed.inputs[slot].expand(rank)
    except ValueError:
        return None
    letters = letters_of(*axes)
    gone = {x.name for x in letters if not x.lock and not x.contract and x.name not in made}
    partner = next((_names(o) for n, o in enumerate(parsed.inputs) if n != slot and gone & _names(o)), None)
    if partner is None or any(isinstance(axis, Sum) for axis in axes):
        return None

    def kind(letter: Letter) -> int:
        base = letter.name.partition(".")[0]
        if base in made:
            return BLOCKS if base in partner else OUTPUTS
        return INPUTS if base in partner else TAPS

    parts_by_axis = tuple(_parts(axis, kind, row) for axis in axes)
    kinds = {k for parts in parts_by_axis for k, _ in parts}
    role = row.roles[slot] if slot < len(row.roles) else "data"
    locked = any(x.lock and kind(x) == INPUTS for x in letters)
    if locked or (role != "weight" and TAPS in kinds) or role in ("range", "quant"):
        return None
    return parts_by_axis


def _parts(axis: Axis, kind: Callable[[Letter], int], row: Row) -> tuple[tuple[int, int], ...]:
    letters = letters_of(axis)
    kinds = [kind(x) for x in letters]
    if isinstance(axis, Unit):
        return ((BLOCKS, 0),)
    if OUTPUTS in kinds:  # groups of a convolution whose outputs lie side by side
        return ((OUTPUTS, 0),)
    return tuple((k, row.sizes.get(x.name, 0)) for k, x in zip(kinds, letters, strict=True))


def _names(*operands: Operand) -> set[str]:
    stars = {axis.name for o in operands for axis in o.axes if isinstance(axis, Star)}
    return stars | {x.name for o in operands for x in letters_of(*o.axes)}


def canonical(factor: Factor, dims: Shape) -> list[tuple[str, Shape]]:
    """Return the reshapes and transposes that make blocks, outputs, inputs, taps of an operand.

    Raises
    ------
    ValueError
        If it hasn't the axes that the op reads.
    """
    split: list[tuple[int, int]] = []
    for parts, whole in zip(factor.axes, dims, strict=True):
        rest = whole // max(prod(size for _, size in parts if size), 1)
        split += [(k, size or rest) for k, size in parts]
    order = sorted(range(len(split)), key=lambda n: split[n][0])
    sizes = [prod(size for k, size in split if k == kind) for kind in range(4)]
    turned = [split[n][0] for n in range(len(split))]
    swapped = sorted(order, key=lambda n: (0, 2, 1, 3)[split[n][0]])
    if swapped == list(range(len(split))) and turned != sorted(turned):
        blocks, outputs, inputs, taps = sizes
        return [("reshape", (blocks, inputs, outputs, taps)), ("transpose", (0, 2, 1, 3))]
    steps: list[tuple[str, Shape]] = []
    if order != list(range(len(split))):
        steps = [("reshape", tuple(size for _, size in split)), ("transpose", tuple(order))]
    return [*steps, ("reshape", (sizes[0], sizes[1], sizes[2], sizes[3]))]
