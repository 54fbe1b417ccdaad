"""Cuts that hold a floor, such as an agreement with the original on samples that no fit has seen.

Without a budget the largest such cut is searched. With one both must hold, or it is refused with what was found on the
way: which smaller cuts would hold the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Protocol, TypeVar

from onnxprune.calibration.samples import ASIDE
from onnxprune.errors import CalibrationError, FloorMissed, NothingToPrune
from onnxprune.journey.run import Run
from onnxprune.options.pruning import Options
from onnxprune.options.target import Target
from onnxprune.pruning.aimed import fitted
from onnxprune.pruning.decision import Limit, decide
from onnxprune.pruning.saliency import Candidate, Saliency
from onnxprune.pruning.schedule import decide_in_steps

__all__ = ["Floors", "largest", "meeting_floors", "within"]

#: Trials of a search for the largest cut, and of one for cuts less deep than one that doesn't hold.
TRIALS, FRONTIER = 6, 4
#: Share of the MACs from which a search begins.
LEAST = 0.1


class Judged(Protocol):
    """A cut, and how far it is from the original on samples set aside."""

    @property
    def asked(self) -> str:
        """Its budgets, as text."""

    @property
    def original(self) -> dict[str, Any] | None:
        """How far it is from the original."""


Trial = TypeVar("Trial", bound=Judged)
Fit = Callable[[tuple[Target, ...]], Trial]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Floors:
    """What must hold on samples set aside.

    Attributes
    ----------
    agreement : float or None
        Share of samples, at least, whose first class is the original's.
    drop : float or None
        Points of accuracy, at most, that are lost.
    """

    agreement: float | None
    drop: float | None

    def __bool__(self) -> bool:
        """Whether anything must hold."""
        return self.agreement is not None or self.drop is not None

    @property
    def text(self) -> str:
        """As they are asked for."""
        both = (("--min-agreement", self.agreement), ("--max-drop", self.drop))
        return " and ".join(f"{name} {value:g}" for name, value in both if value is not None)

    def resolvable(self, items: int) -> None:
        """Refuse floors that one sample more or less decides.

        Raises
        ------
        CalibrationError
            If a single sample counts more than may be lost; the sentence says how many are needed.
        """
        shares = [1 - self.agreement] if self.agreement is not None else []
        shares += [self.drop / 100] if self.drop is not None else []
        needed = max((ceil(1 / share - 1e-9) for share in shares if share > 0), default=0)
        if items < needed:
            raise CalibrationError(
                f"{self.text} can't be told on {items} samples set aside, of which one counts {1 / items:.1%}: it "
                f"takes {needed} at least, so give {ceil(needed / ASIDE)} samples, or a looser floor."
            )

    def judge(self, original: dict[str, Any] | None) -> tuple[bool, str]:
        """Return whether they hold for a cut, and its figures.

        Raises
        ------
        CalibrationError
            If the model gives no classes.
        """
        figures, holds, text = original or {}, True, []
        if self.agreement is not None:
            if "agreement" not in figures:
                raise CalibrationError(
                    "--min-agreement needs an output with a row of classes for each sample."
                )
            holds &= figures["agreement"] >= self.agreement
            text.append(f"agreement {figures['agreement']:.3f}")
        if self.drop is not None:
            if "accuracy" not in figures:
                raise CalibrationError("--max-drop needs an output with a row of classes for each sample.")
            drop = figures["accuracy"]["before"] - figures["accuracy"]["after"]
            holds &= drop <= self.drop
            text.append(f"accuracy {-drop:+.2f}")
        return bool(holds), ", ".join(text)


def within(run: Run[Options], saliency: Saliency, limit: Limit, floors: Floors) -> Candidate:
    """Return a cut that holds floors and meets its targets; the largest that holds where there are none.

    Raises
    ------
    CalibrationError
        If there are no samples to judge it by.
    FloorMissed
        If there is no such cut.
    """
    if not saliency.judges:
        raise CalibrationError(
            f"{floors.text} is judged on samples that no fit sees; give more samples (at least 20)."
        )

    floors.resolvable(saliency.judges)

    def fit(targets: tuple[Target, ...]) -> Candidate:
        asked = replace(limit, targets=targets)
        return fitted(run, saliency, asked, decide(run, saliency.groups, saliency.rankings(asked), asked))

    if not limit.targets:
        return largest(fit, floors, run.progress)
    decision = decide_in_steps(run, saliency, limit)
    saliency.restart()  # steps on the way to the target are none to less
    first = fitted(run, saliency, limit, decision)
    return meeting_floors(first, fit, floors, limit.budgets.shares(limit.targets), run.progress)


def largest(fit: Fit[Trial], floors: Floors, say: Say | None = None) -> Trial:
    """Return the largest cut that holds, by bisection on the share of MACs that stays.

    Parameters
    ----------
    fit : callable
        Targets -> a cut that meets them.
    floors : Floors
    say : callable, optional
        Told of each trial.

    Raises
    ------
    FloorMissed
        If none holds.
    """
    low, high = LEAST, 1.0
    best: Trial | None = None
    seen: list[str] = []
    for _ in range(TRIALS):
        share = (low + high) / 2
        try:
            trial = fit((_left("macs", share),))
        except NothingToPrune:
            low = share
            continue
        holds, text = floors.judge(trial.original)
        seen.append(f"{trial.asked}: {text}")
        if say:
            say(f"{seen[-1]}: {'holds' if holds else 'too much'}")
        if holds:
            best, high = trial, share
        else:
            low = share
    if best is None:
        raise FloorMissed(f"No cut that was tried holds what was asked ({'; '.join(seen)}).")
    return best


def meeting_floors(
    first: Trial, fit: Fit[Trial], floors: Floors, shares: Sequence[Target], say: Say | None = None
) -> Trial:
    """Return a cut that meets its targets if it holds the floors, too.

    Parameters
    ----------
    first : Trial
        The cut.
    fit : callable
        Targets -> a cut that meets them.
    floors : Floors
    shares : sequence of Target
        What the cut leaves of the original, as shares.
    say : callable, optional
        Told of each trial.

    Raises
    ------
    FloorMissed
        If it doesn't; the sentence says which cuts were tried instead, and what they hold.
    """
    holds, text = floors.judge(first.original)
    if holds:
        return first
    seen, best, low, high = [f"{first.asked} gives {text}"], "", 0.0, 1.0
    for _ in range(FRONTIER):  # of the way to the target: low holds, high doesn't
        far = (low + high) / 2
        asked = tuple(_left(t.kind, t.value**far) for t in shares)
        try:
            trial = fit(asked)
        except NothingToPrune:  # so little that no step of widths is that small
            low = far
            continue
        holds, text = floors.judge(trial.original)
        seen.append(f"{trial.asked} gives {text}")
        if say:
            say(f"{trial.asked}: {text}: {'holds' if holds else 'too much'}")
        if holds:
            best, low = trial.asked, far
        else:
            high = far
    advice = (
        f"--target {best} holds: ask for that, or for a looser floor" if best else "ask for a looser floor"
    )
    raise FloorMissed(
        f"No cut was found that holds both --target {first.asked} and {floors.text} ({'; '.join(seen)}); {advice}."
    )


def _left(kind: str, share: float) -> Target:
    """Return a budget of a share, rounded as it is told."""
    rounded = float(f"{min(share, 1.0):.4g}")
    return Target(kind, rounded, True, f"{kind}={rounded:g}")
