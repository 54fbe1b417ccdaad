"""A part of a model with the gradients of how far its activations are from given ones, for descent on its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.errors import CalibrationError
from onnxprune.gradient.build import backward, finish, raise_opset
from onnxprune.gradient.tape import NoGradient, Tape
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model

__all__ = ["Classes", "LossModel", "Variation", "loss_model", "part_model", "weighed"]

#: Squares that are smaller than this beside larger ones are what rounding leaves of nothing: of sums, and of tensors.
SUMS, TENSORS = 1e-9, 1e-12
LOSS, VALID = "onnxprune/loss", "onnxprune/valid"


@dataclass(frozen=True)
class LossModel:
    """A part of a model, its loss and its gradients.

    Attributes
    ----------
    model, forward : Model
        With the gradients, and without. Their inputs are the activations and weights that they were built for,
        ``targets`` and, where any goal is masked, ``valid``.
    targets : dict
        Goal -> the input that it shall be near to.
    valid : str
        The input that is 1 where an error counts and 0 where it doesn't; empty if there is none.
    loss : str
        The output that is the loss.
    gradients : dict
        Weight -> the output that is the gradient of half of the loss; a weight that doesn't reach a goal isn't here.
    stop : str
        Where gradients end on the way, and why; empty where they don't. What lies behind follows nearer goals alone.
    settle : callable
        Weights -> what becomes of them in the file; losses and gradients are taken there.
    """

    model: Model
    forward: Model
    targets: dict[str, str]
    valid: str
    loss: str
    gradients: dict[str, str]
    stop: str = ""
    settle: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]] = dict


@dataclass(frozen=True)
class Classes:
    """Where the classes of an activation lie, and what their divergence is multiplied by."""

    axis: int
    factor: float


@dataclass(frozen=True)
class Variation:
    """What a goal's values are like: how far they lie from their mean and from zero, squared, and how many there are.

    All three for one sample.
    """

    variance: float
    square: float
    entries: float


def weighed(spreads: Mapping[str, Variation]) -> dict[str, float]:
    """Return what the squared distance of each goal is multiplied by, so that their sum is relative, for each sample.

    Goals that never vary but for rounding aren't there, such as the mean of what a norm has centred.
    """
    most = max(
        (s.square / s.entries for s in spreads.values() if s.entries and isfinite(s.square)), default=0.0
    )
    real = {
        name: s.variance
        for name, s in spreads.items()
        if isfinite(s.variance) and s.variance > SUMS * s.square and s.square > TENSORS * most * s.entries
    }
    return {name: 1 / (variance * len(real)) for name, variance in real.items()}


def loss_model(
    analysis: Analysis,
    given: Sequence[str],
    weights: Sequence[str],
    goals: Mapping[str, float],
    *,
    masked: Collection[str] = (),
    classes: Mapping[str, Classes] | None = None,
) -> LossModel:
    """Build the model that computes a loss of activations beside their targets, and its gradients by weights.

    The loss is ``sum(factor * (goal - target)^2)`` over all goals, and for each tensor of classes, whose entries ``z``
    and targets ``t`` along an axis are logarithms of odds, ``factor * KL(softmax(t) || softmax(z))``.

    Parameters
    ----------
    analysis : Analysis
    given : sequence of str
        Activations from which it starts.
    weights : sequence of str
        They become inputs.
    goals : mapping
        Activation -> factor of its squared distance.
    masked : collection of str
        Goals whose errors are multiplied by a mask [batch, sequence, 1] first.
    classes : mapping, optional
        Activation -> where its classes lie; it may be a goal as well.

    Raises
    ------
    CalibrationError
        If nothing has a gradient, since an op on the way has none.
    """
    model = analysis.model.fork()
    opset = raise_opset(model)
    forward = [model.proto.graph.node[i] for i in model.order]
    classes = classes or {}
    every = list(dict.fromkeys((*goals, *classes)))
    elem = analysis.tracer.types[every[0]][0]
    model.drop(*weights)  # so that the backward pass reads them as they come in
    tape = Tape(analysis, model, opset, np.dtype(helper.tensor_dtype_to_np_dtype(elem)))
    targets = {goal: f"onnxprune/target/{n}" for n, goal in enumerate(every)}
    stops: list[str] = []
    try:
        seeds: dict[str, str] = {}
        losses = []
        for goal, factor in goals.items():
            off = tape.op("Sub", goal, targets[goal])
            off = tape.mul(off, VALID) if goal in masked else off
            seeds[goal] = tape.scaled(off, factor)
            losses.append(_total(tape, goal, tape.mul(off, seeds[goal])))
        for goal, where in classes.items():
            seed, each = _divergence(tape, goal, targets[goal], where)
            seeds[goal] = tape.op("Add", seeds[goal], seed) if goal in seeds else seed
            losses.append(_total(tape, goal, each))
        gradients = backward(tape, analysis.coupling.nodes, list(weights), seeds, stops)
    except NoGradient as error:
        raise CalibrationError(f"no gradients: {error}") from error
    if stops and not gradients:
        raise CalibrationError(f"no gradients: {stops[0]}")
    grads = {str(weight): grad for weight, grad in gradients.items()}
    named = {weight: f"onnxprune/gradient_of/{n}" for n, weight in enumerate(grads)}
    grads = {named[weight]: grad for weight, grad in grads.items()}
    grads[LOSS] = losses[0] if len(losses) == 1 else tape.op("Sum", *losses)
    tape.nodes += [helper.make_node("Identity", [grad], [name], name=name) for name, grad in grads.items()]
    inputs = [_input(analysis, name) for name in (*given, *weights)]
    inputs += [_input(analysis, goal, name) for goal, name in targets.items()]
    if masked:
        inputs.append(helper.make_tensor_value_info(VALID, elem, [None, None, 1]))
    alone = model.fork()
    finish(alone, [*forward, *tape.nodes], inputs, [LOSS])
    finish(model, [*forward, *tape.nodes], inputs, list(grads))
    return LossModel(model, alone, targets, VALID if masked else "", LOSS, named, stops[0] if stops else "")


def _total(tape: Tape, like: str, value: str) -> str:
    return tape.reduce("ReduceSum", value, range(len(tape.dims(like))), keep=False)


def _divergence(tape: Tape, goal: str, target: str, where: Classes) -> tuple[str, str]:
    """Write half of the gradient of a divergence, and the divergence class by class."""
    p, log_p = _softmax(tape, goal, where.axis)
    q, log_q = _softmax(tape, target, where.axis)
    seed = tape.scaled(tape.op("Sub", p, q), where.factor / 2)
    return seed, tape.scaled(tape.mul(q, tape.op("Sub", log_q, log_p)), where.factor)


def _softmax(tape: Tape, value: str, axis: int) -> tuple[str, str]:
    """Write probabilities and their logarithms: before opset 13 Softmax runs over all axes from one on."""
    low = tape.op("Sub", value, tape.reduce("ReduceMax", value, [axis]))
    odds = tape.op("Exp", low)
    total = tape.reduce("ReduceSum", odds, [axis])
    return tape.op("Div", odds, total), tape.op("Sub", low, tape.op("Log", total))


def part_model(analysis: Analysis, given: Sequence[str], wanted: Sequence[str]) -> Model:
    """Build the part of a model that computes activations from others.

    Parameters
    ----------
    analysis : Analysis
    given, wanted : sequence of str
    """
    model = analysis.model.fork()
    forward = [model.proto.graph.node[i] for i in model.order]
    outputs = [name for name in wanted if name not in given]
    finish(model, forward, [_input(analysis, name) for name in given], outputs)
    return model


def _input(analysis: Analysis, tensor: str, name: str = "") -> onnx.ValueInfoProto:
    elem, shape = analysis.tracer.types[tensor]
    fixed = tensor in analysis.model
    return helper.make_tensor_value_info(name or tensor, elem, shape if fixed else [None] * len(shape or ()))
