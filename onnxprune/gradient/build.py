"""A model beside which its own backward pass runs: vector-Jacobian products of one output, for any tensors.

The forward nodes that the output needs stay as they are, with the model's opset; the backward nodes follow them in
reverse order, one rule for each op (`onnxprune.gradient.tape.RULES`). Only what lies between a wanted tensor and the
output needs a rule.

References
----------
Linnainmaa, "Taylor expansion of the accumulated rounding error", BIT 1976: reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from onnx import NodeProto, helper

from onnxprune.errors import CalibrationError
from onnxprune.files.protowalk import captured
from onnxprune.gradient import (
    attention,
    elementwise,
    movement,
    places,
    products,
    recurrent,
    reductions,
    windows,
)
from onnxprune.gradient.tape import BLOCKED, RULES, Grads, NoGradient, Tape, float_type
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied
from onnxprune.model import Model
from onnxprune.runtime.binding import real_inputs

__all__ = [
    "SEED", "GradientModel", "Reduce", "backward", "differentiable_output", "finish", "gradient_model", "raise_opset",
]  # fmt: skip

#: The input that takes the gradient of the output.
SEED = "onnxprune/seed"
#: Oldest opset that the backward pass is written in; 7 and 8 are raised to it, see `raise_opset`.
OLDEST = 9
#: Opsets that differ from the one behind them in hardly anything but wider types.
ALIKE = range(13, places.ADDS)
#: A tensor, or (position of a node, slot): that input as this node alone reads it.
Wanted: TypeAlias = str | tuple[int, int]
#: (tape, what was wanted, its gradient) -> what is given out.
Reduce: TypeAlias = Callable[[Tape, Wanted, str], str]
#: Imported for their rules.
_TABLES = (attention, elementwise, movement, places, products, recurrent, reductions, windows)


@dataclass(frozen=True)
class GradientModel:
    """A model with its backward pass.

    Attributes
    ----------
    model : Model
        Its inputs are those of the original and ``seed``; its outputs are ``output`` and the gradients.
    output : str
        The tensor that is differentiated.
    seed : str
        Input of the shape of ``output``: the gradient of the loss with respect to it.
    gradients : dict
        Wanted tensor -> the output that is its gradient, or what it was reduced to. A tensor that isn't here doesn't
        reach ``output``: its gradient is zero.
    """

    model: Model
    output: str
    seed: str
    gradients: dict[Wanted, str]


def differentiable_output(analysis: Analysis) -> str:
    """Return the first output that is of floating point, or else what the first output is computed from.

    The latter is for a graph that ends in an ArgMax.

    Raises
    ------
    CalibrationError
        If there is none.
    """
    for value in analysis.model.proto.graph.output:
        elem = analysis.tracer.types.get(value.name, (0, None))[0] or value.type.tensor_type.elem_type
        if float_type(elem):
            return str(value.name)
    made = {n: a.node for a in analysis.coupling.nodes for n in a.node.outputs}
    node = made.get(analysis.model.proto.graph.output[0].name)
    if node is not None and (node.op in BLOCKED or node.op == "Cast"):
        for name in node.inputs[:1]:
            if float_type(analysis.tracer.types.get(name, (0, None))[0]):
                return name
    raise CalibrationError("The model has no output of 32- or 64-bit floats, so there are no gradients.")


def gradient_model(
    analysis: Analysis,
    wanted: Iterable[Wanted],
    output: str | None = None,
    reduce: Reduce | None = None,
) -> GradientModel:
    """Build the model that computes gradients of one output.

    Parameters
    ----------
    analysis : Analysis
        Of the model.
    wanted : iterable of str or (position, slot)
        Activations, graph inputs or weights; or one input of the node at a position in topological order, whose
        gradient is what flows through that reader alone.
    output : str, optional
        A floating-point tensor; the first such output of the model by default.
    reduce : callable, optional
        (tape, what was wanted, gradient) -> the tensor that is given out in the place of the gradient; written in the
        graph, it spares the copy of large gradients.

    Raises
    ------
    CalibrationError
        If an op on the way has no gradient: the text names it, and says why.
    """
    output = output or differentiable_output(analysis)
    elem = analysis.tracer.types.get(output, (0, None))[0]
    if not float_type(elem):
        raise CalibrationError(
            f"{output!r} isn't a tensor of 32- or 64-bit floats, so there are no gradients."
        )
    model = analysis.model.fork()
    opset = raise_opset(model)
    tape = Tape(analysis, model, opset, np.dtype(helper.tensor_dtype_to_np_dtype(elem)))
    try:
        grads = backward(tape, analysis.coupling.nodes, list(dict.fromkeys(wanted)), {output: SEED})
        seed_rank = len(tape.dims(output))
        if reduce is not None:
            grads = {name: reduce(tape, name, grad) for name, grad in grads.items()}
    except NoGradient as error:
        raise CalibrationError(f"No gradients: {error}; use a criterion that needs none.") from error
    named = {name: f"{SEED}/{i}" for i, name in enumerate(grads)}
    for name, grad in grads.items():
        tape.nodes.append(helper.make_node("Identity", [grad], [named[name]], name=named[name]))
    seed = helper.make_tensor_value_info(SEED, elem, [None] * seed_rank)
    forward = [model.proto.graph.node[i] for i in model.order]
    finish(
        model,
        [*forward, *tape.nodes],
        [*real_inputs(model.proto.graph), seed],
        [output, *named.values()],
    )
    return GradientModel(model, output, SEED, named)


def forward_model(
    analysis: Analysis, wanted: Iterable[str], reduce: Callable[[Tape, str], str]
) -> tuple[Model, dict[str, str]]:
    """Build a model that gives out statistics of activations, which are computed in the graph.

    Parameters
    ----------
    analysis : Analysis
    wanted : iterable of str
    reduce : callable
        (tape, tensor) -> what is given out.

    Returns
    -------
    Model, and dict of tensor -> output
    """
    model = analysis.model.fork()
    tape = Tape(analysis, model, raise_opset(model), np.dtype(np.float32))
    try:
        reduced = {name: reduce(tape, name) for name in dict.fromkeys(wanted)}
    except NoGradient as error:
        raise CalibrationError(f"An activation can't be measured: {error}.") from error
    forward = [model.proto.graph.node[i] for i in model.order]
    finish(model, [*forward, *tape.nodes], real_inputs(model.proto.graph), list(reduced.values()))
    return model, reduced


def finish(
    model: Model, nodes: Sequence[NodeProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[str]
) -> None:
    """Make a model of the nodes that its new outputs need, in order, from its new inputs on.

    Parameters
    ----------
    model : Model
    nodes : sequence of NodeProto
    inputs : sequence of ValueInfoProto
        What makes them is left out; those that are weights no longer are.
    outputs : sequence of str
    """
    graph = model.proto.graph
    known = {v.name for v in inputs}
    nodes = _needed(nodes, outputs, known)
    read = {n for node in nodes for n in (*node.input, *captured(node))} | set(outputs)
    kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in inputs]
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    constants = [n for n in graph.node if n.op_type == "Constant" and n.output[0] in read]
    have = {n.output[0] for n in copies} | known
    copies = [
        NodeProto.FromString(c.SerializeToString()) for c in constants if c.output[0] not in have
    ] + copies
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(copies)
    graph.input.extend(kept)
    graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(outputs))
    model.drop(*(n for n in model.names() if n not in read or n in known))
    model.proto.ir_version = max(model.proto.ir_version, 4)  # from there on weights need not be inputs
    model.refresh()


def _needed(nodes: Sequence[NodeProto], outputs: Sequence[str], given: set[str]) -> list[NodeProto]:
    wanted, needed = set(outputs) - given, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted |= (set(node.input) | (captured(node) if node.attribute else set())) - given
    return needed[::-1]


def raise_opset(model: Model) -> int:
    """Return the opset; 7 and 8 become 9, which differs for three ops only, and 13 to 15 become 16, for one.

    Rules
    -----
    BatchNormalization lost ``spatial``, Upsample's scales became an input, Scan changed: with one of these the model is
    refused. All other changes from 7 to 9 are wider types. From 13 to 16, where what is written to places can be added
    to what is there, RoiAlign got another default, and BatchNormalization other outputs: with these the opset stays.
    """
    entry = next((o for o in model.proto.opset_import if o.domain in ("", "ai.onnx")), None)
    version = entry.version if entry is not None else 1
    if entry is not None and version in ALIKE:
        others = {
            n.op_type
            for n in model.proto.graph.node
            if n.op_type != "BatchNormalization" or len(n.output) > 1
        }
        entry.version = version = version if others & {"RoiAlign", "BatchNormalization"} else ALIKE.stop
    if entry is None or version >= OLDEST:
        return version
    odd = [
        n.op_type
        for n in model.proto.graph.node
        if n.op_type in ("Upsample", "Scan") or any(a.name == "spatial" and a.i == 0 for a in n.attribute)
    ]
    if version < 7 or odd:
        what = f"opset {version}" + (f" with {odd[0]}" if odd else "")
        raise CalibrationError(f"No gradients are written for {what}; convert the model to opset 9 or later.")
    entry.version = OLDEST
    for node in model.proto.graph.node:  # what opset 9 has no name for has been checked above
        for i in reversed(range(len(node.attribute))):
            if node.attribute[i].name == "spatial":
                del node.attribute[i]
    return OLDEST


def backward(
    tape: Tape, nodes: Sequence[Applied], wanted: Sequence[Wanted], seeds: Mapping[str, str],
    stops: list[str] | None = None,
) -> dict[Wanted, str]:  # fmt: skip
    """Write the backward pass.

    Parameters
    ----------
    tape : Tape
    nodes : sequence of Applied
    wanted : sequence of str or (position, slot)
    seeds : mapping
        Tensor -> the gradient of the loss with respect to it, as far as it isn't by way of other nodes.
    stops : list of str, optional
        Takes why gradients don't go through nodes, where they end then; else the first such node is an error.

    Returns
    -------
    dict
        What was wanted -> its gradient; what isn't here has none.

    Raises
    ------
    NoGradient
        If a node has none, and there is nothing to take the reason.
    """
    edges = {w for w in wanted if not isinstance(w, str)}
    follows = {w if isinstance(w, str) else nodes[w[0]].node.inputs[w[1]] for w in wanted}
    through: dict[Wanted, str] = {}
    for applied in nodes:
        inner = captured(applied.proto) if applied.proto.attribute else set()
        if applied.node.op not in BLOCKED and follows & {*applied.node.inputs, *inner}:
            follows |= {n for n in applied.node.outputs if n and _floating(tape, n)}
    grads: dict[str, str] = {name: seed for name, seed in seeds.items() if name in follows}
    for number, applied in reversed(list(enumerate(nodes))):
        node = applied.node
        dy = [grads.get(n, "") for n in node.outputs]
        need = frozenset(i for i, n in enumerate(node.inputs) if n in follows)
        inner = captured(applied.proto) & follows if applied.proto.attribute else set()
        if not any(dy) or not (need or inner) or node.op in BLOCKED:
            continue
        written = len(tape.nodes)
        try:
            found = _apply(tape, applied, dy, need)
        except NoGradient as error:
            if stops is None:
                raise
            del tape.nodes[written:]
            stops.append(str(error))
            continue
        for slot, grad in found.items():
            name = node.inputs[slot]
            if (number, slot) in edges:
                through[number, slot] = grad
            if slot in need:
                grads[name] = tape.op("Add", grads[name], grad) if name in grads else grad
    every: dict[Wanted, str] = dict(through)
    every.update(grads.items())
    return {w: every[w] for w in wanted if w in every}


def _floating(tape: Tape, name: str) -> bool:
    """Whether a tensor may carry a gradient; one of unknown type may."""
    elem = tape.elem(name)
    return elem == 0 or float_type(elem) or elem in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def _apply(tape: Tape, applied: Applied, dy: list[str], need: frozenset[int]) -> Grads:
    node = applied.node
    where = f"{node.op} {node.name!r}"
    rule = RULES.get((node.domain, node.op))
    if rule is None:
        raise NoGradient(f"{where} has no gradient rule")
    try:
        return rule(tape, node, dy, need)
    except NoGradient as error:
        raise NoGradient(f"{where}: {error}") from error
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise NoGradient(f"{where} is malformed ({error})") from error
