"""Bodies that contradict the sizes that a model runs at stay closed.

Exporters write both ways to go on from a length of one, so a branch that isn't taken may fit no sizes of the inputs.
What it holds can't be traced; it stays in its body, and what it reads stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from onnxprune.errors import ModelError
from onnxprune.files.bodies import body_of, is_joint, joint_id
from onnxprune.graph.known import opsets_of, weights_of
from onnxprune.graph.trace import TraceError, Tracer
from onnxprune.model import Model
from onnxprune.ops import Node, Refusal, lookup
from onnxprune.ops.resolve import Misfit, fit
from onnxprune.runtime import binding
from onnxprune.runtime.binding import Shape

__all__ = ["most_open"]


class Traced(Protocol):
    """What is asked of an analysis."""

    inputs: dict[str, Shape]
    tracer: Tracer
    notes: list[str]


Found = TypeVar("Found", bound=Traced)


def most_open(model: Model, analyse: Callable[[Model, bool], Found]) -> Found:
    """Analyse a model with as many of its bodies laid open as agree with each other.

    Parameters
    ----------
    model : Model
        Unfolded, see `Model.unfold`.
    analyse : callable
        Raises ModelError where the shapes of a graph agree under no sizes; asked whether types may be those of a run,
        where inference finds fault with a model that runs.

    Raises
    ------
    ModelError
        If they don't agree with all bodies closed.
    """
    whole = model.fold()
    closed: dict[str, str] = {}
    try:
        analysis = analyse(model, whole is model)
        closed = _wrong(analysis, model) if whole is not model else {}
        if not closed:
            return analysis
    except ModelError:
        if whole is model:
            raise
        analysis = analyse(whole, True)
    while (opened := whole.unfold(closed.keys())) is not whole:
        new = _wrong(analysis, opened)
        if new.keys() <= closed.keys():
            with suppress(ModelError):
                analysis = analyse(opened, True)
            break
        closed |= new
    else:
        analysis = analyse(whole, True)
    analysis.notes += closed.values()
    return analysis


def _wrong(analysis: Traced, opened: Model) -> dict[str, str]:
    """Return which bodies contradict the sizes of an analysis: the number of each joint, and a sentence."""
    graph = opened.proto.graph
    known = analysis.tracer.types
    inputs = {v.name: known[v.name] for v in binding.real_inputs(graph) if v.name in known}
    tracer = Tracer(opsets_of(opened), weights_of(opened), types=inputs, hints=known)
    wrong: dict[str, str] = {}
    for number in opened.order:
        node = graph.node[number]
        try:
            visited = tracer.visit(node)
            if is_joint(node) and node.op_type != "If":
                _same_in_each_step(visited)
        except (TraceError, Misfit) as error:
            own = f"{joint_id(node)}.body" if isinstance(error, Misfit) else body_of(node)
            joint, _, branch = own.partition(".")
            owner = next((n for n in graph.node if joint and is_joint(n, joint)), None)
            if owner is not None:
                wrong[joint] = (
                    f"the {branch.replace('_', ' ')} of {owner.op_type} '{owner.name}' contradicts the sizes of the "
                    f"inputs ({error}): what it reads stays as it is"
                )
    return wrong


def _same_in_each_step(joint: Node) -> None:
    """Raise Misfit where what a Loop or Scan carries has other sizes after a step."""
    row = lookup(joint)
    if not isinstance(row, Refusal) and None not in joint.shapes:
        fit(row, joint, outputs=False)
