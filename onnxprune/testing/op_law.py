"""The kit that an op's author runs: law 2, cutting commutes with the op.

For one node with concrete inputs, every letter of its row that isn't locked is cut, in one and in several
indices, in all operands at once. Then ``op(take(x)) == take(op(x))`` must hold; where a letter is contracted,
``x`` is zeroed at the cut indices on the right, for that is what a cut of it means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from onnxprune.ops import PACKED, ZEROED, Multiplied, Node, Pick, Refusal, Row, SetAttr, emit, lookup
from onnxprune.ops.notation import Axis, Letter, Product, Sum, letters_of
from onnxprune.ops.packed import repack
from onnxprune.ops.resolve import FittedRow, Misfit, fit
from onnxprune.testing.node import differ, node_of, run_node

__all__ = ["Verdict", "check_op", "check_row"]

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Dead = Mapping[str, Mask]


@dataclass
class Verdict:
    """What a check of one node found.

    Attributes
    ----------
    op : "domain::type", "ai.onnx" for ONNX's own.
    row : the row's text, empty where it is refused.
    reason : why the row was refused, or the node can't be run.
    cuts : number of cuts that were compared.
    violations : one line for each cut that broke the law.
    """

    op: str
    row: str = ""
    reason: str = ""
    cuts: int = 0
    violations: list[str] = field(default_factory=list)


def check_row(
    op: NodeProto | ModelProto, inputs: Mapping[str, Array], opsets: Mapping[str, int] | None = None
) -> list[str]:
    """Check the rows of a node, or of every node of a small model, and say what is wrong.

    Parameters
    ----------
    op : NodeProto or ModelProto
    inputs : mapping
        Name -> array. Random and distinct values make a strong test; constant ones hide faults.
    opsets : mapping, optional
        Domain -> version, for a node; by default ONNX 21, and 1 for the node's own domain.

    Returns
    -------
    list of str
        The violations, with and without values that the rules may see; empty where law 2 holds. That nothing could
        be cut is a violation too: nothing was tested then.

    Examples
    --------
    >>> node = onnx.helper.make_node("Concat", ["a", "b"], ["c"], axis=1)
    >>> check_row(node, {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((2, 4))})
    []
    """
    if isinstance(op, NodeProto):
        nodes, opsets = [op], dict(opsets or {"": 21, op.domain: 21 if op.domain in ("", "ai.onnx") else 1})
    else:
        nodes, opsets = list(op.graph.node), {o.domain: o.version for o in op.opset_import}
    values: dict[str, Array | None] = {"": None, **inputs}
    if isinstance(op, ModelProto):
        values |= {t.name: onnx.numpy_helper.to_array(t) for t in op.graph.initializer}
    verdicts: list[Verdict] = []
    for node in nodes:
        arrays = [values[name] for name in node.input]
        verdicts += [check_op(node, arrays, opsets, known=known) for known in (False, True)]
        if len(nodes) > 1:
            results = run_node(node, arrays, opsets)
            values |= zip([name for name in node.output if name], results, strict=True)
    violations = [f"{v.op}: {violation}" for v in verdicts for violation in v.violations]
    if violations or any(v.cuts for v in verdicts):
        return violations
    why = (
        "; ".join(dict.fromkeys(v.reason for v in verdicts if v.reason))
        or "all axes are locked, or have length 1"
    )
    return [f"nothing could be cut: {why}"]


def check_op(
    proto: NodeProto,
    inputs: Sequence[Array | None],
    opsets: Mapping[str, int],
    *,
    rng: np.random.Generator | None = None,
    known: bool = True,
    row: Row | None = None,
) -> Verdict:
    """Check law 2 on one node.

    Parameters
    ----------
    proto : NodeProto
    inputs : arrays
        One for each input of the node; None where it is absent.
    opsets : mapping
        Domain -> version.
    rng : Generator, optional
        Chooses the indices that are cut.
    known : bool
        Whether the rule may see values, as it sees those of constants.
    row : Row, optional
        Instead of the table's.

    Returns
    -------
    Verdict

    Examples
    --------
    >>> node = onnx.helper.make_node("Relu", ["x"], ["y"])
    >>> check_op(node, [np.ones((2, 3), np.float32)], {"": 18}).violations
    []
    """
    verdict = Verdict(f"{proto.domain or 'ai.onnx'}::{proto.op_type}")
    reference = False
    try:
        results = run_node(proto, inputs, opsets)
    except Exception:  # onnxruntime's errors are of many classes, and here they all mean that it lacks the op
        reference = True
        try:
            results = run_node(proto, inputs, opsets, reference)
        except Exception as error:
            verdict.reason = f"can't be run: {error}".splitlines()[0]
            return verdict
    if not all(isinstance(result, np.ndarray) for result in results):
        verdict.reason = "its outputs are no tensors"
        return verdict
    rest = iter(results)
    outputs = [next(rest) if name else None for name in proto.output]
    node = node_of(proto, inputs, outputs, opsets.get(proto.domain, 1), known)
    described = row or lookup(node)
    if isinstance(described, Refusal):
        verdict.reason = described.reason
        return verdict
    verdict.row = described.text
    try:
        fitted = fit(described, node)
    except Misfit as error:
        verdict.violations.append(f"the row {described.text} doesn't fit: {error}")
        return verdict
    law = _CutNode(proto, node, described, fitted, inputs, outputs, opsets, reference)
    for dead in _cuts(described, fitted, rng or np.random.default_rng(0)):
        for choice in law.choices(dead):
            verdict.cuts += 1
            try:
                wrong = law.check(dead, choice)
            except (ValueError, IndexError, KeyError, TypeError) as error:
                wrong = f"the row can't be applied: {error}"
            if wrong:
                cut = {name: np.flatnonzero(mask).tolist() for name, mask in dead.items() if mask.any()}
                verdict.violations.append(f"{described.text}: cut {cut}: {wrong}")
    return verdict


def _all_leaves(fitted: FittedRow) -> Iterator[Letter]:
    for axes in (*fitted.ins, *fitted.outs):
        yield from letters_of(*axes or ())


def _cuts(row: Row, fitted: FittedRow, rng: np.random.Generator) -> Iterator[Dead]:
    """Yield what to cut: one index of each free letter, and several where there are as many."""
    locked = {leaf.name for leaf in _all_leaves(fitted) if leaf.lock}
    for name in sorted({leaf.name for leaf in _all_leaves(fitted)} - locked):
        size = fitted.sizes[name]
        counts = {1, size // 2} if size > 1 else set()
        for count in sorted(counts):
            dead = _closure(row, fitted, name, rng.choice(size, count, replace=False))
            if dead is not None:
                yield dead


def _closure(row: Row, fitted: FittedRow, name: str, index: Array) -> Dead | None:
    """Return what must go with some indices of a letter, along the maps; None where the cut isn't allowed."""
    dead = {
        letter: np.zeros(fitted.sizes[letter], np.bool_)
        for letter in {leaf.name for leaf in _all_leaves(fitted)}
    }
    dead[name][index] = True
    for _ in range(2):
        for letter, mapped in row.maps.items():
            if letter in dead and mapped.source in dead:
                has = mapped.index >= 0
                dead[mapped.source][mapped.index[has & dead[letter]]] = True
                dead[letter][has] |= dead[mapped.source][mapped.index[has]]
    whole = any(mask.all() for mask in dead.values() if len(mask))
    pinned = any(dead[letter][index].any() for letter, index in row.pinned.items() if letter in dead)
    return None if whole or pinned else dead


def _mask(axis: Axis, dead: Dead) -> Mask:
    """Return which positions of an axis go."""
    if isinstance(axis, Letter):
        return dead[axis.name]
    if isinstance(axis, Product):
        alive = [~_mask(factor, dead) for factor in axis.factors]
        whole: Mask = ~reduce(lambda a, b: np.logical_and.outer(a, b).reshape(-1), alive)
        return whole
    if isinstance(axis, Sum):
        return np.concatenate([_mask(part, dead) for part in axis.parts])
    return np.zeros(1, np.bool_)


@dataclass
class _CutNode:
    """One node, its row, its inputs and what it computes from them. An emitter's `Cut`, too."""

    proto: NodeProto
    node: Node
    row: Row
    fitted: FittedRow
    inputs: Sequence[Array | None]
    outputs: Sequence[Array | None]
    opsets: Mapping[str, int]
    reference: bool
    dead: Dead = field(default_factory=dict)

    def kept(self, slot: int, axis: int) -> NDArray[np.int64]:
        return self._kept(self.fitted.ins, self.node.shapes, slot, axis)

    def kept_out(self, slot: int, axis: int) -> NDArray[np.int64]:
        return self._kept(self.fitted.outs, self.node.out_shapes, slot, axis)

    def new_shape(self, slot: int) -> tuple[int, ...]:
        return tuple(len(self.kept(slot, axis)) for axis in range(self.node.rank(slot)))

    def new_out_shape(self, slot: int) -> tuple[int, ...]:
        return tuple(len(self.kept_out(slot, axis)) for axis in range(len(self.node.out_shape(slot))))

    def _kept(
        self,
        sides: Sequence[tuple[Axis, ...] | None],
        shapes: Sequence[tuple[int, ...] | None],
        slot: int,
        axis: int,
    ) -> NDArray[np.int64]:
        axes = sides[slot] if slot < len(sides) else None
        if axes is None:
            return np.arange((shapes[slot] or ())[axis])
        return np.flatnonzero(~_mask(axes[axis], self.dead))

    def choices(self, dead: Dead) -> list[tuple[tuple[int, int], ...]]:
        """Return where to zero contracted letters: every bias (or range), and either factor of a product of two."""
        out = {leaf.name for axes in self.fitted.outs for axis in axes or () for leaf in letters_of(axis)}
        operands = [
            (slot, at)
            for slot, axes in enumerate(self.fitted.ins)
            for at, axis in enumerate(axes or ())
            if any(
                dead[leaf.name].any() and (leaf.contract or leaf.name not in out) for leaf in letters_of(axis)
            )
        ]
        roles = self.row.roles
        operands = [
            operand for operand in operands if operand[0] >= len(roles) or roles[operand[0]] != PACKED
        ]
        biases = tuple(
            operand for operand in operands if operand[0] < len(roles) and roles[operand[0]] in ZEROED
        )
        factors = [operand for operand in operands if operand not in biases]
        if not factors:
            return [biases]
        either = factors if len(factors) == 2 and factors[0][0] != factors[1][0] else factors[:1]
        return [(*biases, factor) for factor in either]

    def check(self, dead: Dead, operands: tuple[tuple[int, int], ...]) -> str:
        """Return what is wrong with one cut, or nothing."""
        self.dead = dead
        whole = self.outputs
        if operands:
            masked = [self._zeroed(slot, array, operands) for slot, array in enumerate(self.inputs)]
            results = iter(run_node(self.proto, masked, self.opsets, self.reference))
            whole = [next(results) if name else None for name in self.proto.output]
        wanted = [
            None if array is None else self._take(array, self.fitted.outs, slot)
            for slot, array in enumerate(whole)
        ]
        proto, inputs = self._pruned()
        try:
            results = iter(run_node(proto, inputs, self.opsets, self.reference))
        except Exception as error:
            return f"the pruned node fails: {str(error).splitlines()[0]}"
        for slot, name in enumerate(proto.output):
            if name:
                wrong = differ(next(results), wanted[slot], "quant" in self.row.roles)
                if wrong:
                    return f"output {slot}: {wrong}"
        return ""

    def _take(self, array: Array, sides: Sequence[tuple[Axis, ...] | None], slot: int) -> Array:
        axes = sides[slot] if slot < len(sides) else None
        for at, axis in enumerate(axes or ()):
            array = np.compress(~_mask(axis, self.dead), array, axis=at)
        return array

    def _zeroed(self, slot: int, array: Array | None, operands: tuple[tuple[int, int], ...]) -> Array | None:
        axes = self.fitted.ins[slot] if slot < len(self.fitted.ins) else None
        for at in [at for number, at in operands if number == slot]:
            assert array is not None
            assert axes is not None
            shape = [-1 if i == at else 1 for i in range(array.ndim)]
            array = np.where(
                _mask(axes[at], self.dead).reshape(shape), self._zero(slot, array), array
            ).astype(array.dtype)
        return array

    def _zero(self, slot: int, array: Array) -> Array:
        """Return what is zero for an operand: zero, or its zero point, in a shape that broadcasts to it."""
        at = self.row.zeros.get(slot, -1)
        point = self.inputs[at] if 0 <= at < len(self.inputs) else None
        if point is None:
            return np.zeros((), array.dtype)
        if point.size == 1 or point.ndim == array.ndim:
            return point.reshape(()) if point.size == 1 else point
        own, axes = self.fitted.ins[at], self.fitted.ins[slot]
        assert own is not None
        assert axes is not None
        return point.reshape([-1 if axis == own[0] else 1 for axis in axes])

    def _pruned(self) -> tuple[NodeProto, list[Array | None]]:
        proto = NodeProto.FromString(self.proto.SerializeToString())
        inputs = [
            None if array is None else self._take(array, self.fitted.ins, slot)
            for slot, array in enumerate(self.inputs)
        ]
        for slot, (letter, bits) in self.row.packs.items():
            gone = self.dead[letter]
            inputs[slot] = repack(np.asarray(inputs[slot]), bits, gone.size, np.flatnonzero(~gone))
        for slot, name in enumerate(proto.input):  # one tensor in two slots may be cut differently
            proto.input[slot] = f"{name}@{slot}" if name else ""
        attrs: dict[str, Any] = {
            name: int((~self.dead[letter]).sum())
            for name, letter in self.row.attrs.items()
            if self.dead[letter].any()
        }
        for edit in emit(self.node, self):
            if isinstance(edit, SetAttr):
                attrs[edit.name] = edit.value
                continue
            if isinstance(edit, Pick):
                inputs[edit.slot] = np.take(inputs[edit.slot], edit.index, edit.axis)  # type: ignore[arg-type]
                continue
            if isinstance(edit, Multiplied):
                scaled = np.asarray(inputs[edit.slot])
                inputs[edit.slot] = scaled * np.asarray(edit.factor, scaled.dtype)
                continue
            while len(proto.input) <= edit.slot:
                proto.input.append("")
                inputs.append(None)
            proto.input[edit.slot] = proto.input[edit.slot] or f"new@{edit.slot}"
            inputs[edit.slot] = edit.array
        for name, value in attrs.items():
            for old in [attr for attr in proto.attribute if attr.name == name]:
                proto.attribute.remove(old)
            if value is not None:
                proto.attribute.append(helper.make_attribute(name, value))
        return proto, inputs
