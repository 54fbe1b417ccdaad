"""Runs on what a first step made of a model: what was read is still asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxprune.calibration.frontier import in_batches
from onnxprune.calibration.given import Feed
from onnxprune.calibration.inputs import feeds
from onnxprune.calibration.samples import Samples, load_samples
from onnxprune.cut.cuts import TensorCut
from onnxprune.errors import CalibrationError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.interface import interface
from onnxprune.graph.memory import peak_bytes
from onnxprune.graph.size import Size, count_macs, count_parameters
from onnxprune.journey.output import size_in_bytes
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.options.target import Target
from onnxprune.pruning.budgets import Budgets
from onnxprune.reconstruction.aim import Aim
from onnxprune.runtime.binding import Shape, real_inputs
from onnxprune.runtime.session import provider_of

__all__ = ["Reduced", "extra_of", "feeds_of", "of_source", "read_of", "size_of"]


@dataclass(kw_only=True)
class Reduced(Run[Options]):
    """A run on a model of which something has gone.

    Attributes
    ----------
    original : Model
        What was read.
    whole : Analysis
        Of the original.
    before : Size
        Of the original.
    law1 : dict or None
        The proof of the first step.
    cuts : list of TensorCut
        Of the original's weights.
    checks : list of str
        That were done.
    faster : float
        How many times as fast as the original the model is.
    aim : Aim or None
        What layers are fitted to, where that isn't what they give in the model.
    """

    original: Model
    whole: Analysis
    before: Size
    cuts: list[TensorCut] = field(default_factory=list)
    law1: dict[str, Any] | None = None
    checks: list[str] = field(default_factory=list)
    faster: float = 1.0
    aim: Aim | None = None

    @property
    def source(self) -> Model:
        """What was read."""
        return self.original

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the model's inputs, as the original was analysed."""
        own = _inputs(self.model)
        return {name: shape for name, shape in self.whole.inputs.items() if name in own}

    @property
    def teacher(self) -> Model:
        """What results are compared with on samples: what was read, where that takes the same."""
        return self.model if self.aim is None else self.original


def read_of(run: Run[Options], analysis: Analysis) -> Analysis:
    """Return what samples are for: a run's model, or what was read where some of its inputs are gone by now."""
    if isinstance(run, Reduced) and _inputs(run.model) < _inputs(run.original):
        return run.whole
    return analysis


def extra_of(run: Run[Options], analysis: Analysis) -> Samples | None:
    """Return the samples on which layers are fitted together, but which neither choose nor judge; None without such.

    Raises
    ------
    CalibrationError
        If they can't be read, or don't fit the model.
    """
    options, whole = run.options, read_of(run, analysis)
    if options.extra_samples is None:
        return None
    provider = provider_of(options.calib_provider, "--calib-provider")
    graph = interface(whole)
    try:
        samples = load_samples(graph, options.extra_samples, seed=options.seed, types=whole.inputs)
    except CalibrationError as error:
        raise CalibrationError(f"--extra-samples: {error}") from error
    return in_batches(whole, dataclasses.replace(samples, provider=provider))


def feeds_of(run: Run[Options]) -> list[Feed]:
    """Return the inputs that the user gives, those that a run's model takes.

    Raises
    ------
    CalibrationError
        If they don't fit what was read.
    """
    own, model = _inputs(run.model), run.model
    if isinstance(run, Reduced) and own < _inputs(run.original):
        model = run.original
    given = feeds(model.proto.graph, run.options.inputs)
    return [{name: value for name, value in feed.items() if name in own} for feed in given]


def _inputs(model: Model) -> set[str]:
    return {value.name for value in real_inputs(model.proto.graph)}


def size_of(model: Model, analysis: Analysis) -> Size:
    """Return the size of a model that was analysed; bytes are those of its files, which a report asks for itself."""
    return Size(count_parameters(model), count_macs(analysis.coupling), memory=peak_bytes(analysis))


def of_source(run: Run[Options], targets: Sequence[Target], budgets: Budgets) -> tuple[Target, ...]:
    """Return targets for the model that a run works on, where their shares are of what was read."""
    if not isinstance(run, Reduced):
        return tuple(targets)
    original = Budgets(run.whole, [], 1, size_in_bytes(run.original))

    def share(target: Target) -> Target:
        if not target.relative:
            return target
        if target.kind == "latency":
            return dataclasses.replace(target, value=min(target.value * run.faster, 1.0))
        value = target.value * original.dense(target.kind) / budgets.dense(target.kind)
        return dataclasses.replace(target, value=min(value, 1.0))

    return tuple(share(target) for target in targets)
