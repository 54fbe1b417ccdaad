"""Cuts that come nearer and nearer to a latency: chosen by what is predicted, timed, and chosen again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.ranking import Ranking
from onnxprune.cut.put_back import Removed
from onnxprune.errors import NotFaster, NothingToPrune
from onnxprune.latency.clock import Race
from onnxprune.options.target import WITHIN, Target
from onnxprune.pruning.budgets import Budgets
from onnxprune.pruning.speed import Speed, share_of

__all__ = ["chosen", "until_met"]

#: Allocations until the measured latency is the one that was asked for, and the share of it that is near enough.
ROUNDS, NEAR = 6, 0.95
#: How often a cut that is near may turn out, in other processes, not to be.
CONFIRMED = 3
#: What a miss of the target is brought to: a little below the target.
AIM = 0.985


def chosen(
    budgets: Budgets, rankings: Mapping[str, Ranking], targets: tuple[Target, ...], tighter: float
) -> dict[str, NDArray[np.int64]]:
    """Choose under targets; where the predicted latency doesn't fall so far, MACs stand in for it.

    Widths below a step of the kernels aren't predicted, and a small model's time may be none of its layers': what was
    chosen is timed in any case.
    """
    try:
        return budgets.choose(rankings, targets, {"latency": tighter})
    except NothingToPrune:
        if not any(t.kind == "latency" and t.relative for t in targets):
            raise
        stand_in = tuple(
            replace(t, kind="macs", value=min(t.value * tighter, 1.0)) if t.kind == "latency" else t
            for t in targets
        )
        try:
            return budgets.choose(rankings, stand_in)
        except NothingToPrune:
            pass
        raise


@dataclass(frozen=True)
class _Try:
    """A cut that was timed: on which step of widths, with which factor on the budget, and its share of the target."""

    step: int
    factor: float
    share: float
    removed: Removed
    timing: Race


@dataclass
class _Approach:
    """Cuts that come nearer and nearer to a latency.

    Attributes
    ----------
    speed : Speed
    target : Target
    choose : callable
        Step of widths and factor on the predicted budget -> units that go.
    tries : list
        What was timed.
    bias : float
        What other processes say of a share, over what this one does.
    """

    speed: Speed
    target: Target
    choose: Callable[[int, float], dict[str, NDArray[np.int64]]]
    tries: list[_Try] = field(default_factory=list)
    bias: float = 1.0
    _seen: set[str] = field(default_factory=set)

    def share(self, one: _Try) -> float:
        """Return the latency of a try, as a share of the target."""
        return one.share * self.bias

    def at(self, step: int) -> None:
        """Try cuts on a step until one is near, or none is new.

        Raises
        ------
        NothingToPrune
            If the prediction says that nothing on this step comes near.
        """
        for _ in range(ROUNDS):
            here = [one for one in self.tries if one.step == step]
            if any(NEAR <= self.share(one) <= 1.0 for one in here):
                return
            factor = _next([(one.factor, self.share(one)) for one in here]) if here else 1.0
            try:
                removed = self.choose(step, factor)
            except NothingToPrune:
                if not here:
                    raise
                return
            mark = repr(sorted((name, units.tolist()) for name, units in removed.items()))
            if mark in self._seen:
                return
            self._seen.add(mark)
            timing = self.speed.try_cut(removed)
            self.tries.append(_Try(step, factor, share_of(timing, self.target), removed, timing))

    def near(self) -> _Try | None:
        """Return the try that is nearest to the target, if one is near; the slower of two, which loses less."""
        near = [one for one in self.tries if NEAR <= self.share(one) <= WITHIN]
        return max((o for o in near if self.share(o) <= 1), key=self.share, default=None) or min(
            near, key=self.share, default=None
        )

    def confirmed(self, one: _Try) -> bool:
        """Time a try in other processes; where they say otherwise, all shares are corrected by that."""
        ratio = self.speed.confirm(one.removed) if self.target.relative else None
        if ratio is None:
            return True
        share = 1 / ratio / self.target.value
        self.bias = share / one.share
        return NEAR <= share <= WITHIN


def until_met(
    speed: Speed,
    target: Target,
    choose: Callable[[int, float], dict[str, NDArray[np.int64]]],
    steps: Sequence[int] = (1,),
    most: Callable[[int], dict[str, NDArray[np.int64]]] | None = None,
) -> tuple[int, dict[str, NDArray[np.int64]]]:
    """Choose until the measured latency is the asked one, on finer and finer steps of widths.

    Parameters
    ----------
    speed : Speed
    target : Target
        A latency.
    choose : callable
        Step of widths and factor on the predicted budget -> units that go.
    steps : sequence of int
        The coarsest first; a finer one is tried where none before came near.
    most : callable, optional
        Step of widths -> the most that may go: where even that is too slow beyond doubt no finer steps are tried.

    Returns
    -------
    int
        The step.
    dict
        Group -> units that go.

    Raises
    ------
    NothingToPrune
        If every choice stays above the target; the sentence says how near it got.
    NotFaster
        If what meets it isn't faster than the input.
    """
    way, failure = _Approach(speed, target, choose), None
    for step in steps:
        if most is not None and step != steps[0] and all(way.share(one) > 1 for one in way.tries):
            _reachable(speed, target, most(steps[-1]))
            most = None
        for _ in range(CONFIRMED):
            try:
                way.at(step)
            except NothingToPrune as error:
                failure = error
                break
            best = way.near()
            if best is None:
                break
            if way.confirmed(best):
                return best.step, _faster(speed, best)
    if not way.tries:
        assert failure is not None
        raise failure
    within = [one for one in way.tries if way.share(one) <= 1.0] or [
        one for one in way.tries if way.share(one) <= WITHIN
    ]
    if not within:
        share = min(way.share(one) for one in way.tries)
        raise NothingToPrune(
            f"--target {target.text} wasn't met: the fastest of {len(way.tries)} cuts took {share:.2f} times as "
            "long as asked; ask for less."
        )
    best = max(within, key=way.share)
    return best.step, _faster(speed, best)


def _reachable(speed: Speed, target: Target, most: Removed) -> None:
    """Refuse a target that is missed where all goes that may.

    Raises
    ------
    NothingToPrune
        If the whole interval of the measured latency is beyond it.
    """
    timing = speed.try_cut(most)
    share = share_of(timing, target)
    if share * timing.ratio / timing.high > WITHIN:
        raise NothingToPrune(
            f"--target {target.text} can't be met: with a tenth of every group that can be ranked the model takes "
            f"{share:.2f} times as long as asked, {1 / timing.ratio:.0%} of the input's time; ask for less."
        )


def _faster(speed: Speed, one: _Try) -> dict[str, NDArray[np.int64]]:
    if not one.timing.faster:
        raise NotFaster(speed.too_slow(one.timing))
    return dict(one.removed)


def _next(tries: Sequence[tuple[float, float]]) -> float:
    """Return the next factor on the budget, from factors and the latencies that they gave, as shares of the target."""
    above = min((t for t in tries if t[1] > 1), key=lambda t: t[1], default=None)
    below = max((t for t in tries if t[1] <= 1), key=lambda t: t[1], default=None)
    if above is None or below is None or above[0] <= below[0]:
        return tries[-1][0] * AIM / tries[-1][1]
    (f0, s0), (f1, s1) = below, above
    where = np.log(AIM / s0) / np.log(s1 / s0)
    return float(f0 * (f1 / f0) ** np.clip(where, 0.15, 0.85))
