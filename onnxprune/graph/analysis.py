"""Everything that is known of a model before a decision: shapes, couplings, groups."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod
from typing import Any, Literal

from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.errors import ModelError
from onnxprune.graph.agree import walk
from onnxprune.graph.apart import apart, together
from onnxprune.graph.averages import Averages, minuends
from onnxprune.graph.belongings import numbers_of, packed_in
from onnxprune.graph.computed import Finder
from onnxprune.graph.contradictions import most_open
from onnxprune.graph.coupling import Applied, Coupling, couple
from onnxprune.graph.feasible import Feasible
from onnxprune.graph.foldable import frozen_ends, helps, summed_ends, weight_ends
from onnxprune.graph.folding import Folded, fold, restored
from onnxprune.graph.groups import Frozen, Grouping, group
from onnxprune.graph.input_sizes import allow_inputs
from onnxprune.graph.known import opsets_of, weights_of
from onnxprune.graph.openings import NONE, Openings, openings
from onnxprune.graph.origins import Origins
from onnxprune.graph.per_sample import count_one
from onnxprune.graph.reasons import carried
from onnxprune.graph.size_locks import follow
from onnxprune.graph.sizes import Sizes
from onnxprune.graph.trace import TraceError, Tracer, Unsound, Weight
from onnxprune.model import Model
from onnxprune.ops import Node
from onnxprune.runtime import binding
from onnxprune.runtime.binding import Shape, Typed
from onnxprune.wall import board as wall

_log = logging.getLogger("onnxprune.graph")


@dataclass
class Analysis:
    """A model, traced and grouped.

    Attributes
    ----------
    model : Model
    tracer : Tracer
        Shapes and small values under ``inputs``.
    coupling : Coupling
    grouping : Grouping
    inputs : dict
        The shapes that the inputs were bound to.
    sizes : Sizes
        Which lengths and values follow the sizes of dynamic axes.
    given : dict
        Those of them that the user said.
    folded : Folded or None
        Where weights were folded: ``model`` is then not the one that was to be analysed.
    copies : dict
        Nodes that ``model`` has more than that one: what each gives -> the tensor that it is (`onnxprune.graph.apart`).
    refusals : dict
        Shapes of the inputs, sorted by name, that the model can't be run at, and why: those that were tried.
    notes : list of str
        What is to be said of the sizes.
    runs : callable or None
        Says why the model can't be run on inputs of these shapes, if so.
    undo : callable or None
        Puts back, in a model made from ``model``, what was rewritten without loss before, and of no use.
    origins : Origins
        What to call what was rewritten.
    """

    model: Model
    tracer: Tracer
    coupling: Coupling
    grouping: Grouping
    inputs: dict[str, Shape]
    sizes: Sizes
    given: dict[str, Shape] = field(default_factory=dict)
    refusals: dict[tuple[tuple[str, Shape], ...], str] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)
    folded: Folded | None = None
    copies: dict[str, str] = field(default_factory=dict, repr=False)
    runs: Callable[[Mapping[str, Shape]], str] | None = field(default=None, repr=False)
    undo: Callable[[Model], Model] | None = field(default=None, repr=False)
    origins: Origins = field(default_factory=Origins, repr=False)
    _other: list[Tracer | None] = field(default_factory=list, repr=False)
    _said: bool = False  # whether `vary` was called

    @property
    def types(self) -> dict[str, int]:
        """Tensor -> its element type."""
        return {name: typed[0] for name, typed in self.tracer.types.items()}

    @property
    def frozen(self) -> list[Frozen]:
        """Axes of weights that can't be cut, and why, as the model that was given has them."""
        return self.origins.frozen(self.grouping.frozen)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Weight -> how many parameters each of its elements is (`onnxprune.graph.belongings.numbers_of`)."""
        packed = packed_in(self.model.proto.graph.node)
        return {n: numbers_of(weight.elem, packed.get(n, 8)) for n, weight in self.tracer.weights.items()}

    def restored(self, result: Model) -> Model:
        """Return a model made from this one with what was folded or rewritten put back where it is unchanged."""
        result = together(result if self.folded is None else restored(result, self.folded), self.copies)
        return result if self.undo is None else self.undo(result)

    def other_values(self) -> Mapping[str, NDArray[Any]] | None:
        """Values of small tensors as other sizes may have them: what varies is another number; None: nothing does.

        Derived (`onnxprune.graph.sizes`), but where `vary` said under which sizes the model is used.
        """
        if not self._said:
            return self.sizes.elsewhere()
        other = self.other_trace()
        return None if other is None else other.values

    def other_trace(self) -> Tracer | None:
        """Trace under another binding of the dynamic axes, None where there is none that fits."""
        if not self._other:
            self._other.append(self._trace_otherwise())
        return self._other[0]

    def vary(self, inputs: dict[str, Shape] | None) -> None:
        """Take these inputs as the other binding, instead of a guess; None: all axes are as good as fixed.

        Raises
        ------
        TraceError
            If the shapes of the graph don't agree under them.
        """
        self._other[:] = [None if inputs is None else self.trace(inputs)]
        self._said = True

    def _trace_otherwise(self) -> Tracer | None:
        graph = self.model.proto.graph
        if not binding.is_dynamic(graph, {}):
            return None
        for inputs in binding.others(graph, self.given):
            if inputs != self.inputs and (tracer := self.traced(inputs)) is not None:
                return tracer
        return self._trace_partly()

    def _trace_partly(self) -> Tracer | None:
        """Trace with other sizes of those axes that take any, where the model has baked the others."""
        axes = binding.Axes.of(self.model.proto.graph, self.inputs)
        last: Tracer | None = None
        sizes = dict(axes.sizes)
        for axis, size in axes.sizes.items():
            for value in (size + 1, 2 * size, size // 2):
                shapes = axes.shapes({**sizes, axis: value}) if value else None
                if shapes is not None and (tracer := self.traced(shapes)) is not None:
                    last, sizes[axis] = tracer, value
                    break
        return last

    def traced(self, inputs: dict[str, Shape]) -> Tracer | None:
        """Trace under these shapes; None where the model can't be run on them."""
        tracer = _tracer(self.model, self.tracer.weights, inputs, {}, self.tracer.inferred)
        nodes = [applied.proto for applied in self.coupling.nodes]
        refused = {n for n, applied in enumerate(self.coupling.nodes) if applied.row is None}
        return tracer if walk(tracer, nodes, refused).whole else None

    def trace(self, inputs: dict[str, Shape]) -> Tracer:
        """Trace under these shapes of the inputs.

        Raises
        ------
        TraceError
            If the shapes of the graph don't agree under them.
        """
        tracer = _tracer(self.model, self.tracer.weights, inputs, {}, self.tracer.inferred)
        for applied in self.coupling.nodes:
            tracer.visit(applied.proto)
        return tracer


def analyse(
    model: Model,
    *,
    input_shapes: Mapping[str, Shape] | None = None,
    allow_inexact: bool = False,
    keep_blocks: bool = True,
    runs: Callable[[Mapping[str, Shape]], str] | None = None,
    folds: Literal["", "needed", "weights"] = "",
    open_io: Sequence[str] = (),
) -> Analysis:
    """Trace a model, apply the rows, and find its dependency groups.

    Parameters
    ----------
    model : Model
    input_shapes : mapping, optional
        Input -> shape, for dynamic axes that no guess fits.
    allow_inexact : bool
        Open axes that an average runs over.
    keep_blocks : bool
        See `onnxprune.graph.groups.group`.
    runs : callable, optional
        Says why the model can't be run on inputs of these shapes, if so; asked where shapes alone don't tell
        (`onnxprune.runtime.inputs.Trial`).
    folds : str
        Which weights that the graph computes are folded first, so that the analysis is of another model
        (``Analysis.folded``): those with axes that can be cut only then ("needed"), those and all that layers read as
        weights ("weights"), or none.
    open_io : sequence of str
        Regular expressions: inputs and outputs that may shrink, see `onnxprune.graph.openings`.

    Raises
    ------
    UsageError
        If an input shape contradicts the model, or an expression of ``open_io`` matches nothing.
    ModelError
        If the shapes of the graph don't agree under any binding that was tried.
    """
    given = dict(input_shapes or {})
    binding.check_given(model.proto.graph, given)
    opened = openings(model.proto.graph, open_io)
    wall.grow(nodes=len(model.proto.graph.node))
    with _no_collection(), wall.stage("Looking for what can be cut"):
        again = partial(
            _analyse,
            given=given,
            runs=runs,
            opened=opened,
            allow_inexact=allow_inexact,
            keep_blocks=keep_blocks,
        )
        model, copies = apart(model) if folds else (model, {})
        analysis = most_open(model, lambda opened, by_run: again(opened, by_run=by_run))
        if folds:
            analysis = _with_folds(analysis, again, folds == "weights")
        analysis.copies = copies
        _log.info("%d nodes, %d groups", len(model.proto.graph.node), len(analysis.grouping.groups))
        return analysis


def _with_folds(analysis: Analysis, analyse_again: Callable[[Model], Analysis], weights: bool) -> Analysis:
    """Return the analysis of a model in which computed weights are folded where that helps; else the same."""
    finder = Finder(analysis.model, analysis.tracer)
    always = set(summed_ends(finder, analysis.grouping))
    always |= set(weight_ends(finder, analysis.coupling)) if weights else set()
    frozen = set(frozen_ends(finder, analysis.grouping))
    names = [n for n in finder.ends() if n in always or n in frozen]
    while names:
        folded = fold(analysis.model, finder, names)
        if not folded.tensors:
            break
        again = analyse_again(folded.model)
        groupings = analysis.grouping, again.grouping
        helped = [n for n in names if n in folded.tensors and (n in always or helps(n, folded, *groupings))]
        if helped == names:
            again.folded, again.coupling.aliases = folded, folded.aliases
            return again
        names = helped
    return analysis


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from walking millions of small objects that all stay alive anyway."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _analyse(
    model: Model, given: dict[str, Shape], runs: Callable[[Mapping[str, Shape]], str] | None, *,
    opened: Openings, allow_inexact: bool, keep_blocks: bool, by_run: bool = True,
) -> Analysis:  # fmt: skip
    graph = model.proto.graph
    weights = weights_of(model)
    nodes, outputs = [graph.node[i] for i in model.order], [v.name for v in graph.output]
    failure: TraceError | None = None
    allow_inputs(graph, next(binding.bindings(graph, given)))
    known: dict[Any, list[Typed]] = {}
    fitting = Feasible(graph, nodes, lambda inputs: _tracer(model, weights, inputs, {}, known), given)
    for strict in (
        (True, False) if by_run else (True,)
    ):  # what a run says counts where inference is wrong about a model
        for inputs in fitting.taken(runs) if strict else binding.bindings(graph, given):
            allow_inputs(graph, inputs)
            tracer, visited = (
                fitting.trace(inputs) if strict else (_measured(model, weights, nodes, inputs), None)
            )
            if tracer is None:
                continue
            try:
                coupling, tracer = _couple(model, tracer, nodes, inputs, outputs, opened, visited)
            except TraceError as error:
                failure = failure or error
                continue
            sizes = Sizes(tracer)
            declared = {v.name: binding.declared(v) for v in binding.real_inputs(graph)}
            flat = follow(coupling, sizes, declared)
            longer = fitting.longer(inputs, flat, runs) if strict else inputs
            with suppress(TraceError, ModelError):  # where they ask for too much, the shorter ones do
                if longer != inputs:
                    allow_inputs(graph, longer)
                    known_to_fit, visited = fitting.trace(longer)
                    coupling, tracer = _couple(model, known_to_fit, nodes, longer, outputs, opened, visited)
                    inputs, sizes = longer, Sizes(tracer)
                    follow(coupling, sizes, declared)
            wall.grow(values=sum(prod(shape) for _, shape in tracer.types.values() if shape is not None))
            count_one(graph, coupling, sizes, inputs)
            elements = {name: weight.elem for name, weight in weights.items()}
            grouping = group(coupling, elements, allow_inexact=allow_inexact, keep_blocks=keep_blocks)
            said = fitting.notes(inputs) + carried(graph, coupling)
            return Analysis(model, tracer, coupling, grouping, inputs, sizes, given, notes=said, runs=runs)
        failure = failure or (fitting.failure.error if fitting.failure is not None else None)
        if isinstance(failure, Unsound):
            raise ModelError(str(failure))
    from onnxprune.runtime.inputs import verdict

    first = next(binding.bindings(graph, given))
    example = binding.option(first, graph)
    how = f", as in '{example}', at sizes that it runs at" if example else ""
    raise ModelError(
        f"The shapes of the graph do not agree ({failure}), {verdict(model, first)}: give the shapes of its inputs "
        f"with --input-shape{how}, or repair the model."
    )


def _couple(
    model: Model, tracer: Tracer, nodes: list[NodeProto], inputs: Mapping[str, Shape], outputs: Sequence[str],
    opened: Openings = NONE, visited: Sequence[Node] | None = None,
) -> tuple[Coupling, Tracer]:  # fmt: skip
    """Couple the graph; where inference leaves shapes open, take them from one run, or from what the model declares.

    Returns the tracer that knows them, too.
    """
    visited = visited or [tracer.visit(proto) for proto in nodes]
    applied = [Applied(*pair) for pair in zip(visited, nodes, strict=True)]
    coupling = couple(tracer, applied, inputs, outputs, opened)
    unknown = [
        n for a in coupling.nodes for n in a.node.outputs if n and tracer.types.get(n, (0, None))[1] is None
    ]
    if not unknown or tracer.measured:
        return coupling, tracer
    from onnxprune.graph.probe import declared_types, probe_types

    hints = {**declared_types(model, inputs, unknown), **probe_types(model, inputs, unknown)}
    if not hints:
        return coupling, tracer
    again = _tracer(model, tracer.weights, inputs, hints)
    applied = [Applied(again.visit(proto), proto) for proto in nodes]
    return couple(again, applied, inputs, outputs, opened), again


def _measured(
    model: Model, weights: Mapping[str, Weight], nodes: list[NodeProto], inputs: Mapping[str, Shape]
) -> Tracer | None:
    """Return a trace whose types are those of a run, for a model that only inference finds fault with; else None."""
    from onnxprune.graph.probe import probe_types

    types = probe_types(model, inputs, [n for node in nodes for n in node.output if n and n not in weights])
    if not types:
        return None
    tracer = _tracer(model, weights, inputs, types)
    tracer.measured = True
    return tracer


def _tracer(
    model: Model, weights: Mapping[str, Weight], inputs: Mapping[str, Shape], hints: Mapping[str, Typed],
    inferred: dict[Any, list[Typed]] | None = None,
) -> Tracer:  # fmt: skip
    types: dict[str, Typed] = {}
    for value in binding.real_inputs(model.proto.graph):
        if value.name in inputs and value.type.HasField("tensor_type"):
            types[value.name] = (value.type.tensor_type.elem_type, inputs[value.name])
    averages, shared = Averages(minuends(model.proto.graph.node)), {} if inferred is None else inferred
    return Tracer(opsets_of(model), weights, types=types, hints=hints, inferred=shared, averages=averages)
