"""What units are worth: rankings, from weights or from samples, and the model that a decision about them cuts.

`Saliency` is what a journey asks. `FromWeights` is here, `onnxprune.pruning.on_samples.FromSamples` is the other.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune import registry
from onnxprune.allocation.ranking import FLOOR, Ranking
from onnxprune.errors import UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import EXPERTS, Group
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.pruning.decision import Decision, Limit, groups_of
from onnxprune.pruning.report import FitReport
from onnxprune.pruning.weighing import SHARED
from onnxprune.reconstruction.measure import Measure

if TYPE_CHECKING:
    from onnxprune.reconstruction.least_squares import Curve

__all__ = [
    "Candidate",
    "Criterion",
    "FromWeights",
    "Ranking",
    "Saliency",
    "criterion_of",
    "ranked_by_curve",
    "ranked_by_scores",
    "ranked_by_weights",
]

Floats = NDArray[np.float64]
Score = Callable[[Group, Callable[[str], NDArray[np.generic]], np.random.Generator], Floats]


@dataclass(frozen=True)
class Candidate:
    """A cut that can be carried out.

    Attributes
    ----------
    analysis : Analysis
        Of the model that is cut: the original, or one of its shape whose layers no longer need what goes.
    decision : Decision
        What goes; a fit may have chosen other units, as many of each group.
    restored : callable
        Puts back what the analysis of the original folded or rewrote and nobody cut.
    fit : FitReport or None
        How layers were fitted on samples.
    notes : list of str
        Sentences for the report.
    """

    analysis: Analysis
    decision: Decision
    restored: Callable[[Model], Model]
    fit: FitReport | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def asked(self) -> str:
        """The budgets that it meets, as text."""
        return self.decision.target

    @property
    def original(self) -> dict[str, Any] | None:
        """How far it is from the original on samples set aside; None where there are none."""
        return None if self.fit is None else self.fit.original


class Saliency(Protocol):
    """What the units of a model are worth, and how layers make up for those that go."""

    @property
    def analysis(self) -> Analysis:
        """The model that is ranked: the original, or the same in another basis."""

    @property
    def groups(self) -> list[Group]:
        """What may be cut."""

    @property
    def judges(self) -> int:
        """On how many samples that no fit sees candidates are compared with the original."""

    def rankings(self, limit: Limit) -> dict[str, Ranking]:
        """Rank the units of each group.

        Parameters
        ----------
        limit : Limit
            What shall hold in the end: under targets errors of different groups may weigh differently.
        """

    def remeasure(self, decision: Decision) -> None:
        """Rank what is left after a decision on the way to the last."""

    def restart(self) -> None:
        """Rank the original again."""

    def refit(self, decision: Decision) -> Candidate:
        """Return a model whose layers no longer need what goes."""


@dataclass
class FromWeights:
    """Saliency by a criterion that reads weights; no layer is refitted.

    Attributes
    ----------
    run : Run
    analysis : Analysis
    groups : list of Group
    """

    run: Run[Options]
    analysis: Analysis
    groups: list[Group]
    judges: int = 0

    @classmethod
    def open(cls, run: Run[Options], analysis: Analysis) -> FromWeights:
        """Pick the groups that may be cut.

        Raises
        ------
        NothingToPrune
            If there are none.
        """
        return cls(run, analysis, groups_of(analysis, run.options))

    def rankings(self, limit: Limit) -> dict[str, Ranking]:
        """Rank the units of each group; what the criterion couldn't judge becomes a note."""
        notes = self.run.notes
        if limit.targets:
            notes.append("without samples (--calib) what channels are worth is guessed from weights alone")
        if any(g.kind == EXPERTS for g in self.groups):
            notes.append(
                "without samples (--calib) experts are ranked by norms of their weights and the router's"
            )
        with self.run.stage("decide"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rankings = ranked_by_weights(self.analysis.model, self.groups, self.run.options)
        notes += [str(warning.message) for warning in caught]
        return rankings

    def remeasure(self, decision: Decision) -> None:
        """Do nothing: weights stay what they are."""

    def restart(self) -> None:
        """Do nothing: weights stay what they are."""

    def refit(self, decision: Decision) -> Candidate:
        """Return the original."""
        return Candidate(self.analysis, decision, self.analysis.restored)


@dataclass(frozen=True)
class Criterion:
    """One file of `onnxprune.criteria`.

    Attributes
    ----------
    name : str
    score : callable or None
        (group, weights by name, generator) -> float64[units], if it reads weights.
    measure : Measure
        What it asks of samples; empty if it reads weights.
    """

    name: str
    score: Score | None = None
    measure: Measure = field(default_factory=Measure)


def criterion_of(name: str) -> Criterion:
    """Load a criterion; what it reads says which of its functions is asked.

    Raises
    ------
    UsageError
        If there is none of that name, or it doesn't say what it reads.
    """
    leaf = registry.load("onnxprune.criteria", name)
    reads = getattr(leaf, "READS", None)
    if reads == "weights":
        return Criterion(name, score=leaf.score)
    if reads == "moments":
        return Criterion(name, measure=Measure(curve=leaf.curve, swaps=getattr(leaf, "SWAPS", False)))
    if reads == "model":
        return Criterion(name, measure=Measure(scores=leaf.measure))
    raise UsageError(
        f'READS in onnxprune/criteria/{name}.py must be "weights", "moments" or "model"; got {reads!r}.'
    )


def ranked_by_weights(model: Model, groups: Sequence[Group], options: Options) -> dict[str, Ranking]:
    """Rank the units of each group by their weights, with a generator that doesn't depend on the other groups.

    Raises
    ------
    UsageError
        If the criterion needs samples, or doesn't return one number a unit.
    """
    score = criterion_of(options.criterion).score
    if score is None:
        raise UsageError(f"--criterion {options.criterion} needs samples; give them to 'prune' with --calib.")
    scores = {}
    for group in groups:
        rng = np.random.default_rng([options.seed, zlib.crc32(group.name.encode())])
        scores[group.name] = score(group, model.weight, rng)
    return ranked_by_scores(groups, scores)


def ranked_by_scores(groups: Sequence[Group], scores: Mapping[str, Floats]) -> dict[str, Ranking]:
    """Return rankings from scores of weights alone.

    The error of losing some units is a ratio of noise to signal: the share ``s`` of the group's squared scores that
    goes, over the share that stays, ``s / (1 - s)``. It stands in for a loss that nobody measured, so what it says
    about one group against another is rough; with samples errors are measured.

    Raises
    ------
    UsageError
        If scores aren't one number a unit.
    """
    rankings = {}
    for group in groups:
        score = _checked(group, np.asarray(scores[group.name], np.float64))
        order = np.argsort(score, kind="stable").astype(np.int64)
        energy = np.where(np.isfinite(score), score, 0.0)[order] ** 2
        share = np.concatenate([[0.0], np.cumsum(energy)]) / max(float(energy.sum()), 1e-30)
        error = share / np.maximum(1 - share, 1e-12)
        allowed = group.units - max(1, int(np.ceil(FLOOR * group.units)))
        fixed = np.flatnonzero(~np.isfinite(score[order]) & (score[order] > 0))
        error[min(allowed, int(fixed[0]) if fixed.size else allowed) + 1 :] = np.inf
        readers = {m.tensor for m in group.members if m.contracted}
        rankings[group.name] = Ranking(order, error * (SHARED if len(readers) > 1 else 1.0), score)
    return rankings


def _checked(group: Group, score: Floats) -> Floats:
    if score.shape != (group.units,):
        raise UsageError(
            f"The group {group.name!r} has {group.units} units, but scores of shape {score.shape}; "
            "a criterion must return one score a unit."
        )
    if np.isnan(score).any():
        raise UsageError(
            f"Unit {int(np.flatnonzero(np.isnan(score))[0])} of the group {group.name!r} has no number as its "
            "score; a criterion must return numbers, infinity for what must stay."
        )
    return score


def ranked_by_curve(curve: Curve, weight: float = 1.0) -> Ranking:
    """Return a ranking from a loss curve on samples, whose errors weigh so much among those of other groups.

    The score of a unit is the error when it goes as well; counts that the curve doesn't reach cost more than all
    others.
    """
    rise = curve.error[1:].copy()
    last = float(rise[np.isfinite(rise)].max(initial=0.0))
    rise[~np.isfinite(rise)] = 2 * last + 1
    scores = np.empty(len(curve.order))
    # the order decides; the small slope keeps it where the error stays level
    scores[curve.order] = rise + np.arange(len(rise)) * 1e-12 * max(last, 1.0)
    return Ranking(curve.order, curve.error * weight, scores)
