"""What errors inside a language model cost at its end, by the squares of gradients.

Loss curves of layers are relative errors, each of the tensor that the layer's output becomes part of, and an allocation
adds them up. But the same relative error isn't the same loss everywhere: one behind the last layer of a decoder costs
four times as much as one in its middle. For errors e_r (C,) in the rows r of a tensor t (rows, C) the divergence of
the next token's distribution from the original's is, to the second order,

    KL = 1/2 sum over r of e_r^T F_r e_r,    F_r = E[g_r g_r^T],    g_r = d(-log p_c)/dt_r    (C,),

with a token c drawn from the original's own distribution at each position. Errors that lie alike in all directions cost

    worth = sum over r of |g_r|^2 / C * var(t)

times their relative size. Where loud rows count less in the regression (`onnxprune.reconstruction.evidence.evened`, by
factors f_r), their errors are so much larger than they seem, and count |g_r|^2 / f_r^2.

References
----------
Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv 1503.05671: F as the
second order of the divergence, and rows apart from directions. LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError
from onnxprune.gradient.build import Wanted
from onnxprune.gradient.reduced import reduced
from onnxprune.gradient.seeds import LOGITS, Seeds
from onnxprune.gradient.tape import Tape
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.vocabulary import says_ids
from onnxprune.journey.run import Run
from onnxprune.options.pruning import Options
from onnxprune.reconstruction.evidence import Spread, positions_of
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.taker import factors_of
from onnxprune.reconstruction.views import channels_last

if TYPE_CHECKING:
    from onnxprune.reconstruction.sequential import Calibration

__all__ = ["Watched", "Steepness", "of_groups", "of_layers", "of_tensors", "priced"]

Array = NDArray[Any]
Key = TypeVar("Key", int, str)

#: Samples whose gradients are taken: sums over all positions of a dozen texts hardly change with more.
FEW = 12


def priced(run: Run[Options], calibration: Calibration, samples: Samples) -> dict[str, float]:
    """Return what errors of a language model's groups cost at its output, by a few samples; empty for other models.

    Parameters
    ----------
    run : Run
        Learns it as a note, or why it can't be told.
    calibration : Calibration
        Whose curves are relative errors.
    samples : Samples
        That fits may see.
    """
    analysis, places = calibration.analysis, calibration.places
    if calibration.measure.curve is None or not says_ids(analysis):
        return {}
    read = {numbers[0] for numbers in places.values() if len(numbers) == 1}
    layers = [site for site in calibration.sites if site.number in read]
    try:
        with run.stage("weigh"):
            worths = of_layers(analysis, layers, samples, run.options.seed, run.progress)
    except CalibrationError as error:
        run.notes.append(f"Errors of all layers weigh the same. {error}")
        return {}
    if worths:
        times = max(worths.values()) / min(worths.values())
        run.notes.append(
            f"By gradients of the output a relative error costs up to {times:.3g} times as much in one layer as in "
            "another, and weighs as much."
        )
    return of_groups(worths, places)


def of_groups(worths: Mapping[Key, float], places: Mapping[str, Sequence[Key]]) -> dict[str, float]:
    """Return what the relative errors of groups cost, one on average (of the logarithms).

    Parameters
    ----------
    worths : mapping
        Layer, by its position or its weight -> what its relative errors cost; empty where nothing is known.
    places : mapping
        Group -> the layers that read it.
    """
    mean = float(np.exp(np.mean(np.log([*worths.values()])))) if worths else 1.0
    known = {name: [worths[n] for n in numbers if n in worths] for name, numbers in places.items()}
    return {name: float(np.mean(each)) / mean if each else 1.0 for name, each in known.items()}


def of_layers(
    analysis: Analysis,
    layers: Iterable[Site],
    samples: Samples,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> dict[int, float]:
    """Return what relative errors of layers cost at the output; those that don't reach it aren't there.

    Parameters
    ----------
    analysis : Analysis
        Of a model that `says_ids`.
    layers : iterable of Site
    samples : Samples
    seed : int
        Of the tokens that are drawn.
    say : callable, optional
        Told of progress.

    Raises
    ------
    CalibrationError
        If an op on the way has no gradient.
    """
    goals = {site.goal[0]: site for site in layers}
    places = {name: Watched(site.view.out_axis, partial(factors_of, site)) for name, site in goals.items()}
    found = of_tensors(analysis, places, samples, seed, say)
    worths = {site.number: found[name].worth for name, site in goals.items()}
    return {number: worth for number, worth in worths.items() if worth > 0}


@dataclass(frozen=True)
class Watched:
    """A tensor whose errors are asked about.

    Attributes
    ----------
    axis : int
        That counts its channels.
    evened : callable
        Rows -> their factors in a regression, or None.
    """

    axis: int
    evened: Callable[[Array], Array | None] = lambda rows: None


@dataclass
class Steepness:
    """What gradients say of a tensor, added up over rows.

    Attributes
    ----------
    spread : Spread
        Of its rows, evened.
    steep : float
        Sum of squares of gradients, each divided by its row's factor.
    loud : float
        Sum of squares of its rows.
    """

    spread: Spread = field(default_factory=Spread)
    steep: float = 0.0
    loud: float = 0.0

    @property
    def channels(self) -> int:
        """Channels of a row."""
        return self.spread.square.size

    @property
    def worth(self) -> float:
        """What a relative error costs that lies alike in all directions."""
        return self.spread.variance * self.steep / self.channels

    def add(self, tensor: Array, gradient: Array, valid: Array | None, place: Watched) -> None:
        """Add a batch."""
        rows, steep = channels_last(tensor, place.axis), channels_last(gradient, place.axis)
        at = positions_of(tensor, len(rows), valid)
        rows, steep = rows[at], steep[at]
        factors = place.evened(rows)
        even = 1.0 if factors is None else factors
        self.spread.add(rows * even, 1, rows, None)
        self.steep += float(np.square(steep / even).sum())
        self.loud += float(np.square(rows).sum())


def of_tensors(
    analysis: Analysis,
    places: Mapping[str, Watched],
    samples: Samples,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> dict[str, Steepness]:
    """Return what errors of tensors cost at the output, see `of_layers`.

    Parameters
    ----------
    analysis : Analysis
    places : mapping
        Tensor -> how it is read.
    samples, seed, say
        As for `of_layers`.

    Raises
    ------
    CalibrationError
        If an op on the way has no gradient.
    """
    few = samples.few(FEW).cut_into(1)
    sums = {name: Steepness() for name in places}

    def beside(tape: Tape, name: Wanted, gradient: str) -> str:
        both = [tape.unsqueeze(value, [0]) for value in (str(name), gradient)]
        return tape.op("Concat", *both, axis=0)

    seeds = Seeds(*LOGITS, 1.0, np.random.default_rng(seed))
    for values, valid in zip(
        reduced(analysis, few, list(places), beside, say=say, seeds=seeds), few.valid, strict=True
    ):
        for name, (tensor, gradient) in values.items():
            sums[str(name)].add(tensor, gradient, valid, places[str(name)])
    return sums
