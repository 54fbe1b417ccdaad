"""Mend what reads a stale size: a second trace, over the pruned graph, beside the original one.

Wherever a node would read a shape or a scalar that differs from what it must be (a Reshape target that names
a channel count, an attention scale computed from a Shape), that input is mended; everything else keeps its
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.cut.writer import Writer
from onnxprune.graph.averages import Averages
from onnxprune.graph.coupling import Applied
from onnxprune.graph.kept import Kept, NodeCut
from onnxprune.graph.trace import TraceError, Tracer, Weight
from onnxprune.ops import Multiplied, Node, Pick, SetAttr, SetInput, Trait, emit

__all__ = ["Mender", "RewriteError"]


#: Sizes, and arithmetic of them whose result is a fixed multiple of a size wherever its inputs are.
_MULTIPLES = frozenset({"Shape", "Size", "Mul", "Neg"})
_WHOLE = (TensorProto.INT32, TensorProto.INT64)


class RewriteError(ValueError):
    """The pruned graph can't be given the shapes that the plan asks for."""


class Mender:
    """Second trace, over the pruned graph, that mends what reads a stale size."""

    writer: Writer
    kept: Kept
    old: Tracer
    other: Mapping[str, NDArray[Any]] | None
    new: Tracer

    def __init__(self, writer: Writer, tracer: Tracer, other: Mapping[str, NDArray[Any]] | None) -> None:
        self.writer, self.kept, self.old, self.other = writer, writer.kept, tracer, other
        weights = {}
        model = writer.model
        for name in model.names():
            info = model.info(name)
            before = tracer.weights.get(name)
            same = before is not None and before.shape == tuple(info.dims)
            value = before.value if same and before is not None else self._small(name, before)
            weights[name] = Weight(info.elem_type, tuple(info.dims), value)
        self.new = Tracer(
            tracer.opsets, weights, hints=self._hints(tracer), types=dict(self._inputs(tracer)),
            averages=Averages(tracer.averages.minuends),
        )  # fmt: skip
        self.new.measured = tracer.measured

    def _small(self, name: str, before: Weight | None) -> NDArray[Any] | None:
        return self.writer.model.weight(name) if before is None or before.value is not None else None

    def _inputs(self, tracer: Tracer) -> Sequence[tuple[str, Any]]:
        made = {o for a in self.writer.coupling.nodes for o in a.node.outputs}
        names = [n for n in tracer.types if n not in made and n not in tracer.weights]
        kept = self._hints(tracer)
        return [(n, kept.get(n, tracer.types[n])) for n in names]

    def _hints(self, tracer: Tracer) -> dict[str, Any]:
        dims = self.writer.coupling.dims
        return {n: (t[0], self.kept.shape(dims[n])) for n, t in tracer.types.items() if n in dims}

    def visit(self, number: int) -> None:
        """Mend a node, trace it, and check that its outputs have the shapes that the cut implies."""
        applied = self.writer.coupling.nodes[number]
        proto = self.writer.protos[number]
        if applied.row is not None:
            self._mend(number, applied, applied.node)
        try:
            self.new.visit(proto)
        except TraceError as error:
            raise RewriteError(str(error)) from error
        for name, dims in zip(applied.node.outputs, applied.outs, strict=False):
            if name in self.old.values and not any(map(self.kept.cut, dims or ())):
                continue  # a size; its readers are given what they must read, whatever it is now
            shape = self.new.types.get(name, (0, None))[1]
            if dims is not None and shape is not None and shape != self.kept.shape(dims):
                raise RewriteError(
                    f"{applied.node.op} '{applied.node.name}' would give '{name}' the shape {shape}, "
                    f"where the cut implies {self.kept.shape(dims)}"
                )

    def _mend(self, number: int, applied: Applied, node: Node) -> None:
        row = applied.row
        assert row is not None
        made = any(self.kept.cut(d) for dims in applied.outs for d in dims or ())
        if not made and all(name in self.old.values for name in node.outputs if name):
            self._restore(number, applied)  # the rest computes itself anew
            return
        touched = made or any(self.kept.cut(d) for dims in applied.ins for d in dims or ())
        wanted: dict[int, NDArray[Any]] = {}
        scaled: list[Multiplied] = []
        if touched:
            for name, letter in row.attrs.items():
                dim = applied.letters[letter]
                if self.kept.cut(dim):
                    self.writer.set_attr(number, name, self.kept.size(dim))
            for edit in emit(node, NodeCut(applied, self.kept)):
                if isinstance(edit, SetAttr):
                    self.writer.set_attr(number, edit.name, edit.value)
                elif isinstance(edit, Pick):
                    self._pick(number, edit)
                elif isinstance(edit, Multiplied):
                    scaled.append(edit)
                else:
                    assert isinstance(edit, SetInput)
                    wanted[edit.slot] = edit.array
        wanted |= self._renumbered(number, node)
        known = {
            slot for slot, value in enumerate(node.values) if value is not None and slot not in row.packs
        }
        for slot in sorted(known | wanted.keys()):
            self._mend_input(number, applied, slot, wanted.get(slot))
        for times in scaled:  # in the end: what is multiplied isn't what it was
            self._multiply(number, applied.node.elem(times.slot), times)

    def _renumbered(self, number: int, node: Node) -> dict[int, NDArray[Any]]:
        """Return constants that hold positions on an axis as they count after the cut; what is gone is no position."""
        wanted, positions = {}, self.writer.coupling.positions
        for slot in (slot for slot in range(len(node.inputs)) if (number, slot) in positions):
            dim = positions[number, slot]
            if self.kept.cut(dim):
                kept, value = self.kept.indices(dim), node.value(slot)
                place = np.full(self.writer.coupling.space.sizes[dim], -1, value.dtype)
                place[kept] = np.arange(len(kept))
                moved = place[value]
                for axis, left in self.kept.axes(self.writer.coupling.nodes[number].ins[slot] or ()).items():
                    moved = np.take(moved, left, axis=axis)
                wanted[slot] = moved
        return wanted

    def _multiply(self, number: int, elem: int, edit: Multiplied) -> None:
        """Put a Mul in front of a node.

        A factor that a half float doesn't hold would be wrong for all channels alike, which adds up where rounding of
        single products doesn't: those are made in fp32, and rounded once.
        """
        name = self.writer.protos[number].input[edit.slot]
        dtype = helper.tensor_dtype_to_np_dtype(elem)
        value = np.asarray(edit.factor, dtype)
        wide = dtype.itemsize < 4 and float(value) != edit.factor
        value = np.asarray(edit.factor, np.float32) if wide else value
        factor = self.writer.model.add(f"{name}_factor", value)
        self._weigh(factor, value)
        if wide:
            name = self._insert(number, "Cast", [name], f"{factor}_wide", to=TensorProto.FLOAT)
        result = self._insert(number, "Mul", [name, factor], f"{factor}_times")
        if wide:
            result = self._insert(number, "Cast", [result], f"{factor}_half", to=elem)
        self.writer.set_input(number, edit.slot, result)

    def _insert(self, number: int, op: str, inputs: list[str], result: str, **attributes: Any) -> str:
        """Put a node in front of another one; its name and its output's are the same."""
        node = helper.make_node(op, inputs, [result], name=result, **attributes)
        self.new.visit(node)
        self.writer.before.setdefault(number, []).append(node)
        return result

    def _pick(self, number: int, edit: Pick) -> None:
        """Put a Gather in front of a node; its axis counts from the back, as a batch of one may have been squeezed."""
        name = self.writer.protos[number].input[edit.slot]
        axis = edit.axis - self.writer.coupling.nodes[number].node.rank(edit.slot)
        index = self.writer.model.add(f"{name}_kept", edit.index)
        self._weigh(index, edit.index)
        result = self._insert(number, "Gather", [name, index], f"{index}_taken", axis=axis)
        self.writer.set_input(number, edit.slot, result)

    def _weigh(self, name: str, value: NDArray[Any]) -> None:
        """Have the trace know a new weight."""
        elem = numpy_helper.from_array(value[:0] if value.ndim else value).data_type
        self.new.weights = {**self.new.weights, name: Weight(elem, value.shape)}
        self.new.types[name], self.new.values[name] = (elem, value.shape), value

    def _restore(self, number: int, applied: Applied) -> None:
        """Have arithmetic that isn't linear in a size (``batch * heads // heads``) read what that size was.

        What comes out of it is no fixed multiple of what must come out, for all sizes of the input; so it is put right
        before, not after.
        """
        node, proto = applied.node, self.writer.protos[number]
        moves = Trait.MOVEMENT in node.traits and Trait.REPEATS not in node.traits
        if moves or node.op in _MULTIPLES or (node.op == "Cast" and node.attr("to", 0) in _WHOLE):
            return
        for slot, old in enumerate(node.values):
            have = self.new.values.get(proto.input[slot]) if slot < len(proto.input) else None
            if old is None or have is None or have.shape != old.shape or np.array_equal(have, old):
                continue
            follows = not self._same(node.inputs[slot], old, have != old)
            if follows or (slot == 0 and _vanishes(node, have)):
                self._know(number, slot, self._scaled(number, slot, proto.input[slot], old), old)

    def _mend_input(self, number: int, applied: Applied, slot: int, want: NDArray[Any] | None) -> None:
        old = applied.node.values[slot] if slot < len(applied.node.values) else None
        proto = self.writer.protos[number]
        if slot >= len(proto.input) or not proto.input[slot]:
            assert want is not None
            self._give(number, slot, f"{applied.node.outputs[0]}_{slot}", want)
            return
        name = proto.input[slot]
        if want is None:
            assert old is not None
            axes = self.kept.axes((applied.ins[slot] or ()) if slot < len(applied.ins) else ())
            want = old
            for axis, kept in axes.items():
                want = np.take(want, kept, axis=axis)
        have = self.new.values.get(name)
        if have is not None and have.shape == want.shape and np.array_equal(have, want):
            return
        if have is None and old is None and not applied.node.constant[slot]:
            raise RewriteError(
                f"{applied.node.op} '{applied.node.name}': input {slot} is computed at run time"
            )
        original = applied.node.inputs[slot]
        if self.writer.sole_reader(name):
            self.writer.model.put(name, np.asarray(want, order="C"))
            self.new.values[name] = want
            self.new.types[name] = (self.new.types[name][0], want.shape)
            return
        if self._fixed(original, old):
            self._give(number, slot, f"{original}_pruned", want)
        else:
            self._know(number, slot, self._scaled(number, slot, name, want), want)

    def _give(self, number: int, slot: int, hint: str, want: NDArray[Any]) -> None:
        new = self.writer.model.add(hint, np.asarray(want, order="C"))
        self._weigh(new, want)
        self.writer.set_input(number, slot, new)

    def _know(self, number: int, slot: int, new: str, want: NDArray[Any]) -> None:
        self.new.types[new] = (numpy_helper.from_array(want[:0] if want.ndim else want).data_type, want.shape)
        self.new.values[new] = want
        self.writer.set_input(number, slot, new)

    def _fixed(self, name: str, old: NDArray[Any] | None) -> bool:
        """Whether a value is the same for every size of the dynamic axes."""
        return self._same(name, old, True)

    def _same(self, name: str, old: NDArray[Any] | None, where: Any) -> bool:
        """Whether some entries of a value are the same for every size of the dynamic axes."""
        if self.other is None or name in self.old.weights or old is None:
            return True
        other = self.other.get(name)
        return other is not None and other.shape == old.shape and bool((where <= (other == old)).all())

    def _scaled(self, number: int, slot: int, name: str, want: NDArray[Any]) -> str:
        """Insert ``name * a / b``, for entries that follow the input (batch * heads).

        An entry that became zero is given as it must be, if it is the same for every size of the dynamic axes.
        """
        have, old = self.new.values.get(name), self.writer.coupling.nodes[number].node.values[slot]
        lost = have == 0 if have is not None else np.zeros(0)
        if (
            have is None
            or have.shape != want.shape
            or have.dtype.kind not in "iu"
            or not self._same(self.writer.coupling.nodes[number].node.inputs[slot], old, lost)
        ):
            raise RewriteError(f"the size '{name}' follows the input in a way that cannot be rewritten")
        over = np.array(
            [gcd(int(w), int(h)) or 1 for w, h in zip(want.ravel(), have.ravel(), strict=True)]
        ).reshape(want.shape)
        top = self.writer.model.add(f"{name}_kept", (want // over).astype(have.dtype))
        bottom = self.writer.model.add(f"{name}_of", np.where(lost, 1, have // over).astype(have.dtype))
        product, ratio = f"{top}_product", f"{top}_ratio"
        made = self.writer.before.setdefault(number, [])
        made += [
            helper.make_node("Mul", [name, top], [product], name=product),
            helper.make_node("Div", [product, bottom], [ratio], name=ratio),
        ]
        if not lost.any():
            return ratio
        given = self.writer.model.add(f"{name}_given", np.where(lost, want, 0).astype(have.dtype))
        made.append(helper.make_node("Add", [ratio, given], [f"{top}_sum"], name=f"{top}_sum"))
        return f"{top}_sum"


def _vanishes(node: Node, have: NDArray[Any]) -> bool:
    """Whether a whole division gives a zero, which no factor could put right."""
    by = node.values[1] if node.op == "Div" else None
    return by is not None and have.dtype.kind in "iu" and bool((abs(have) < abs(by)).any())
