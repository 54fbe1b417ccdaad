"""Law 2 through the whole engine: a small graph with all of its inputs and outputs open, cut, run and compared.

`onnxprune.testing.op_law` checks a row by itself. Here the coupling, the solver, the masked twin and the rewriter
take part as they do for a whole model: the inputs of a node become weights, so that nothing is locked but what the
rows lock; random closed sets of units are cut; and the pruned graph must give what is left of the masked original's
outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.cut.rewrite import Kept, rewrite
from onnxprune.graph.analysis import Analysis, _couple, _tracer, weights_of
from onnxprune.graph.groups import Grouping, check_closed
from onnxprune.graph.sizes import Sizes
from onnxprune.graph.space import Solution, Space, solve
from onnxprune.graph.trace import Weight, is_small
from onnxprune.model import Model
from onnxprune.proof.twin import twin

Array = NDArray[Any]
Indices = NDArray[np.int64]
Masks = dict[int, NDArray[np.bool_]]
Op = tuple[str, str]

#: Ops that only move elements: nothing may change, not even the last bit.
MOVEMENT = {
    "Cast", "Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "Pad", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
}  # fmt: skip
#: Relative tolerance of float results: sums are taken in another order after a cut.
RTOL = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-5, np.dtype(np.float16): 5e-3}
RTOL_OTHER = 3e-2  # bfloat16, float8
#: Inputs of these ops are sizes and bounds, known from the first on.
SIZES = frozenset({"ConstantOfShape", "Range", "HannWindow", "HammingWindow", "BlackmanWindow"})


class CannotRunError(Exception):
    """Neither onnxruntime nor onnx's reference evaluator runs the original."""


@dataclass
class Outcome:
    """What was found: cuts compared, violations, ops with a row, ops that a compared cut went through, refusals."""

    cuts: int = 0
    violations: list[str] = field(default_factory=list)
    rows: set[Op] = field(default_factory=set)
    exercised: set[Op] = field(default_factory=set)
    refused: dict[Op, str] = field(default_factory=dict)
    reference: int = 0  # cuts that onnx's reference evaluator ran

    def add(self, other: Outcome) -> None:
        self.cuts += other.cuts
        self.violations += other.violations
        self.rows |= other.rows
        self.exercised |= other.exercised
        self.refused |= other.refused
        self.reference += other.reference


def law(
    op: NodeProto | ModelProto,
    inputs: Mapping[str, Array | TensorProto],
    *,
    known: Collection[str] | None = None,
    opset: int = 21,
    cuts: int = 12,
    seed: int = 0,
) -> Outcome:
    """Check a node or a small model.

    ``known`` names the inputs whose values the rules may see; by default none, and then all that look like sizes or
    indices. ``cuts`` is the most to try with each choice.
    """
    proto = closed(op, inputs, opset)
    outcome = Outcome()
    for names in variants(proto) if known is None else [set(known)]:
        outcome.add(_Law(proto, names).check(cuts, np.random.default_rng(seed)))
    return outcome


def closed(op: NodeProto | ModelProto, inputs: Mapping[str, Array | TensorProto], opset: int) -> ModelProto:
    """Return a model without inputs: all are initializers, so that the engine slices them like weights."""
    if isinstance(op, NodeProto):
        graph = helper.make_graph([op], "op", [], [onnx.ValueInfoProto(name=n) for n in op.output if n])
        opsets = [helper.make_opsetid("", opset)]
        opsets += [helper.make_opsetid(op.domain, 1)] * (op.domain not in ("", "ai.onnx"))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    else:
        model = ModelProto.FromString(op.SerializeToString())
        model.ir_version = max(model.ir_version, 4)  # has initializers that are no inputs
        outputs = [
            onnx.ValueInfoProto(name=v.name) for v in model.graph.output
        ]  # their shapes are about to change
        del model.graph.output[:], model.graph.value_info[:], model.graph.input[:]
        model.graph.output.extend(outputs)
    own = {t.name for t in model.graph.initializer}
    for name, value in inputs.items():
        if name and name not in own:
            made = (
                value
                if isinstance(value, TensorProto)
                else numpy_helper.from_array(np.asarray(value, order="C"))
            )
            model.graph.initializer.add().CopyFrom(made)
            model.graph.initializer[-1].name = name
    return model


def variants(proto: ModelProto) -> list[set[str]]:
    """Return choices of inputs whose values the rules may see: none, and those that look like sizes and indices."""
    first = {n.input[0] for n in proto.graph.node if n.input and n.op_type not in SIZES}
    small = {
        t.name for t in proto.graph.initializer if t.name not in first and is_small(t.data_type, tuple(t.dims))
    }  # fmt: skip
    return [set(), small] if small else [set()]


class _Law:
    """One closed model under one choice of known inputs."""

    def __init__(self, proto: ModelProto, known: Collection[str]) -> None:
        self.model = Model.load(proto)
        inputs = {t.name for t in proto.graph.initializer}
        weights = {
            name: weight if name in known or name not in inputs else Weight(weight.elem, weight.shape)
            for name, weight in weights_of(self.model).items()
        }
        self.graph = self.model.proto.graph
        nodes = [self.graph.node[i] for i in self.model.order]
        tracer = _tracer(self.model, weights, {}, {})
        # no input, no output: none is locked
        self.coupling, tracer = _couple(self.model, tracer, nodes, {}, [])
        self.analysis = Analysis(
            self.model, tracer, self.coupling, Grouping(self.coupling, ()), {}, Sizes(tracer)
        )
        self.title = ", ".join(n.op_type for n in self.graph.node[:3])

    def check(self, count: int, rng: np.random.Generator) -> Outcome:
        found = Outcome()
        for applied in self.coupling.nodes:
            op = (applied.node.domain, applied.node.op)
            if applied.row is not None:
                found.rows.add(op)
            elif applied.reason:
                found.refused[op] = applied.reason
        sets = list(cut_sets(self.coupling.space, count, rng)) if found.rows else []
        runner = Runner(self.model) if sets else None
        for dead in sets:
            assert runner is not None
            self.one(dead, runner, found)
        return found

    def one(self, dead: Masks, runner: Runner, found: Outcome) -> None:
        kept = Kept(self.coupling, dead)
        cut = f"{self.title}: the cut {self.say(kept)}"
        found.cuts += 1
        try:
            check_closed(self.coupling.space, dead)
            masked = twin(self.analysis, dead)
            pruned = rewrite(self.model, self.coupling, self.analysis.tracer, dead).model
        except (ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
            found.violations.append(f"{cut} can't be written: {error!r}")
            return
        want, runner = runner.masked(masked)
        found.reference += runner.name == "reference"
        try:
            have = runner.run(pruned)
        except Exception as error:
            found.violations.append(f"{cut} doesn't run: {' '.join(str(error).split())[:300]}")
            return
        exact = all(n.op_type in MOVEMENT for n in self.graph.node)
        compared = False
        for value, full, small in zip(self.graph.output, want, have, strict=True):
            dims = self.coupling.dims.get(value.name)
            if dims is None or value.name in self.analysis.tracer.values:
                continue  # a reader freezes what the row doesn't describe, and is mended where values are known
            compared = True
            sizes = tuple(self.coupling.space.sizes[d] for d in dims)
            if full.shape == sizes:
                for axis, index in kept.axes(dims).items():
                    full = np.take(full, index, axis=axis)
                fault = difference(full, small, exact)
            else:
                fault = f"the row says {list(sizes)}, and it is {list(full.shape)}"
            if fault:
                found.violations.append(f"{cut}: '{value.name}': {fault}")
        if not compared:
            found.cuts -= 1
            return
        for applied in self.coupling.nodes:
            dims_of = (*applied.ins, *applied.outs)
            if applied.row is not None and any(kept.cut(d) for dims in dims_of for d in dims or ()):
                found.exercised.add((applied.node.domain, applied.node.op))

    def say(self, kept: Kept) -> str:
        gone = [
            f"{i.tensor}[axis {axis}] - {np.flatnonzero(kept.dead[kept.root(dim)]).tolist()}"
            for i in self.coupling.instances for axis, dim in enumerate(i.dims) if kept.cut(dim)
        ]  # fmt: skip
        return "{" + ", ".join(gone) + "}"


def cut_sets(space: Space, count: int, rng: np.random.Generator) -> Iterator[Masks]:
    """Yield sets of dead elements: random shares and single units, of both families and of their union."""
    solutions = [solve(space), solve(space, inner_first=True)]
    if not solutions[0].ambiguous:
        del solutions[1]
    sets: list[list[Indices]] = []
    for n, solution in enumerate(solutions):
        units = solution.inexact.size
        none = [np.zeros(0, np.int64)] * len(solutions)
        shares = [np.flatnonzero(rng.random(units) < share) for share in (0.5, 0.3, 0.7)]
        singles = [np.array([u], np.int64) for u in rng.permutation(units)[:count]]
        sets += [[*none[:n], chosen, *none[n + 1 :]] for chosen in shares + singles]
    order = (
        rng.permutation(np.arange(1, len(sets))).tolist() if len(sets) > count else list(range(1, len(sets)))
    )
    sets = [sets[0], *(sets[i] for i in order)]
    if len(solutions) == 2:
        sets.insert(0, [np.flatnonzero(rng.random(s.inexact.size) < 0.3) for s in solutions])
    seen: set[bytes] = set()
    for chosen in sets:
        dead = spared(space, solutions, chosen)
        key = b"".join(root.to_bytes(4, "little") + dead[root].tobytes() for root in sorted(dead))
        if dead and key not in seen and len(seen) < count:
            seen.add(key)
            yield dead


def spared(space: Space, solutions: Sequence[Solution], chosen: Sequence[Indices]) -> Masks:
    """Return what dies with these units, after units are put back until no axis is empty."""
    chosen = list(chosen)
    while True:
        dead: Masks = {}
        for solution, units in zip(solutions, chosen, strict=True):
            for root in solution.start:
                mask = np.isin(solution.units_of(root, space.sizes[root]), units)
                if mask.any():
                    dead[root] = dead.get(root, np.zeros_like(mask)) | mask
        empty = next((root for root, mask in dead.items() if mask.all()), None)
        if empty is None:
            return dead
        for n, solution in enumerate(solutions):
            on_axis = np.flatnonzero(np.isin(chosen[n], solution.units_of(empty, space.sizes[empty])))
            if on_axis.size:
                chosen[n] = np.delete(chosen[n], on_axis[0])
                break


def difference(want: Array, have: Array, exact: bool = False) -> str:
    """Say how two results differ; empty where they agree."""
    if want.shape != have.shape or want.dtype != have.dtype:
        return f"{have.dtype}{list(have.shape)} where {want.dtype}{list(want.shape)} is left"
    if want.size == 0 or np.array_equal(want, have):
        return ""
    if exact or want.dtype.kind in "iubOUST":
        same = (want == have) | ((want != want) & (have != have))
        return "" if np.all(same) else f"{int((~same).sum())} of {want.size} elements differ"
    kind = np.complex128 if want.dtype.kind == "c" else np.float64
    rtol, a, b = RTOL.get(want.dtype, RTOL_OTHER), want.astype(kind), have.astype(kind)
    finite = np.abs(a[np.isfinite(a)])
    scale = float(finite.max()) if finite.size else 0.0
    close = np.isclose(b, a, rtol=rtol, atol=rtol * scale, equal_nan=True)
    if close.all():
        return ""
    with np.errstate(invalid="ignore"):
        worst = float(np.nanmax(np.abs(a - b)))
    return f"{int((~close).sum())} of {want.size} elements differ, by up to {worst:.3g} of {scale:.3g}"


class Runner:
    """Runs closed models in onnxruntime, or in onnx's reference evaluator where it lacks an op or a type."""

    def __init__(self, model: Model, names: Sequence[str] = ("onnxruntime", "reference")) -> None:
        self.model, self.name = model, ""
        errors = []
        for name in names:
            self.name = name
            try:
                if all(isinstance(x, np.ndarray) for x in self.run(model)):
                    return
                errors.append(f"{name}: outputs that are no tensors")
            except Exception as error:
                errors.append(f"{name}: {' '.join(str(error).split())[:200]}")
        raise CannotRunError("; ".join(errors))

    def run(self, model: Model) -> list[Array]:
        proto = model.to_proto()
        if self.name == "onnxruntime":
            return _onnxruntime(proto)
        from onnx.reference import ReferenceEvaluator

        with np.errstate(all="ignore"):
            return [np.asarray(x) if np.isscalar(x) else x for x in ReferenceEvaluator(proto).run(None, {})]

    def masked(self, model: Model) -> tuple[list[Array], Runner]:
        """Run the masked twin: its masks may be of types that onnxruntime doesn't multiply."""
        try:
            return self.run(model), self
        except Exception:
            if self.name == "reference":
                raise
            runner = Runner(self.model, ["reference"])
            return runner.run(model), runner


def _onnxruntime(proto: ModelProto) -> list[Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {}))
