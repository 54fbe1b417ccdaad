"""Never slower: cuts are timed against the input before they are carried out, and once more before they are saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import granularity
from onnxprune.cut.put_back import Removed
from onnxprune.errors import NotFaster, NothingToPrune
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.journey.run import Run
from onnxprune.latency.clock import SECONDS, Bench, Race, bench_of, race, session_of
from onnxprune.latency.predict import Predictor, measure
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.options.target import WITHIN, Target
from onnxprune.options.widths import align_step, step_of
from onnxprune.runtime.session import Session

__all__ = ["Speed", "first_faster", "speed_of", "steps_of", "until_met"]

#: Allocations until the measured latency is the one that was asked for, and the share of it that is near enough.
ROUNDS, NEAR = 6, 0.95
#: What a miss of the target is brought to: a little below the target.
AIM = 0.985


@dataclass
class Speed:
    """A model that others are timed against.

    Attributes
    ----------
    model : Model
    analysis : Analysis
    options : Options
    tell : callable
        Is told what is done.
    races : list of dict
        What was tried.
    """

    model: Model
    analysis: Analysis
    options: Options
    tell: Callable[[str], None] = lambda text: None
    races: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def bench(self) -> Bench:
        """How models are run."""
        o = self.options
        return bench_of(self.model, self.analysis, o.provider, o.batch, o.threads, o.seed)

    @cached_property
    def original(self) -> Session:
        """The input's session."""
        return session_of(self.model, self.bench)

    def predictor(self, groups: Sequence[Group]) -> Predictor:
        """Measure the model at a few widths, or remember what was measured."""
        self.tell("measure latency at a few widths")
        session_of(self.model, self.bench)
        step = max(align_step(), step_of(self.options.align))
        return measure(self.analysis.model, self.analysis, groups, step, self.bench, self.model.sha256)

    def race(self, pruned: Model) -> Race:
        """Time a model against the input; longer where it isn't clear which is faster."""
        session = session_of(pruned, self.bench)
        timing = race(self.original, session, self.bench)
        if timing.low <= 1.0 <= timing.high:
            timing = race(self.original, session, self.bench, seconds=3 * SECONDS, precise=0.002)
        return timing

    def try_cut(self, removed: Removed) -> Race:
        """Time the input with these units gone."""
        timing = self.race(granularity.load().cut(self.analysis, removed).model)
        self.races.append(
            {"ratio": round(timing.ratio, 4), "interval": [round(timing.low, 4), round(timing.high, 4)]}
        )
        self.tell(f"timed: {timing.ratio:.3f}x as fast as the input ({timing.low:.3f} to {timing.high:.3f})")
        return timing

    def again(self) -> Speed:
        """Return the same clock for another result: what was measured stays, what was tried is its own."""
        speed = copy.copy(self)
        speed.races = []
        return speed

    def last(self, pruned: Model) -> dict[str, Any]:
        """Time the result, and return the figures for the report.

        Raises
        ------
        NotFaster
            If it isn't faster.
        """
        self.tell("time the result")
        timing = self.race(pruned)
        if not timing.faster:
            raise NotFaster(self.too_slow(timing))
        feeds = self.bench.feeds
        return timing.to_json() | {
            "provider": self.bench.provider,
            "threads": self.bench.threads,
            "shapes": {name: list(np.shape(a)) for name, a in feeds.items()},
            "seconds": timing.seconds,
            "tried": self.races,
        }

    def too_slow(self, timing: Race) -> str:
        """Say that a result isn't faster than the input."""
        return (
            f"The result is sound, but runs {timing.ratio:.3f} times as fast as the input ({timing.low:.3f} to "
            f"{timing.high:.3f}) on {self.bench.provider}, so nothing was written; cut more, or cut on wider multiples "
            "with --align."
        )


def steps_of(options: Options) -> list[int]:
    """Return the alignments to try, the asked one first."""
    first = step_of(options.align)
    step = max(first, align_step())
    return list(dict.fromkeys([first, step, 2 * step, 4 * step]))[:3]


def speed_of(run: Run[Options], analysis: Analysis) -> Speed | None:
    """Return what times results, None where nothing is to be timed."""
    return Speed(run.model, analysis, run.options, run.say) if run.options.timed else None


def first_faster(
    speed: Speed, options: Options, choose: Callable[[int], dict[str, NDArray[np.int64]]]
) -> tuple[int, dict[str, NDArray[np.int64]]]:
    """Return the first choice that makes the model faster, on wider and wider multiples.

    Parameters
    ----------
    speed : Speed
    options : Options
    choose : callable
        Step of widths -> units that go.

    Returns
    -------
    int
        The step.
    dict
        Group -> units that go.

    Raises
    ------
    NotFaster
        If none does.
    """
    last: Race | None = None
    for step in steps_of(options):
        try:
            removed = choose(step)
        except NothingToPrune:
            if last is None:
                raise
            continue
        last = speed.try_cut(removed)
        if last.faster:
            return step, removed
    assert last is not None
    raise NotFaster(speed.too_slow(last))


def until_met(
    speed: Speed, target: Target, choose: Callable[[float], dict[str, NDArray[np.int64]]]
) -> dict[str, NDArray[np.int64]]:
    """Choose until the measured latency is the asked one.

    Parameters
    ----------
    speed : Speed
    target : Target
        A latency.
    choose : callable
        Factor on the predicted budget -> units that go.

    Raises
    ------
    NothingToPrune
        If every choice stays above the target; the sentence says how near it got.
    """
    factor = 1.0
    tries: list[tuple[float, float, dict[str, NDArray[np.int64]], Race]] = []
    seen: set[bytes] = set()
    for _ in range(ROUNDS):
        try:
            removed = choose(factor)
        except NothingToPrune:
            if not tries:
                raise
            break
        mark = repr(sorted((n, len(u)) for n, u in removed.items())).encode()
        if mark in seen:
            break
        seen.add(mark)
        timing = speed.try_cut(removed)
        share = 1 / timing.ratio / target.value if target.relative else timing.seconds / target.value
        tries.append((factor, share, removed, timing))
        if NEAR <= share <= 1.0:
            break
        factor = _next([t[:2] for t in tries])
    within = [t for t in tries if t[1] <= 1.0] or [t for t in tries if t[1] <= WITHIN]
    if not within:
        share = min(t[1] for t in tries)
        raise NothingToPrune(
            f"--target {target.text} wasn't met: the fastest of {len(tries)} cuts took {share:.2f} times as long as "
            "asked; ask for less."
        )
    _, _, removed, timing = max(within, key=lambda t: t[1])
    if not timing.faster:
        raise NotFaster(speed.too_slow(timing))
    return removed


def _next(tries: Sequence[tuple[float, float]]) -> float:
    """Return the next factor on the budget, from factors and the latencies that they gave, as shares of the target."""
    above = min((t for t in tries if t[1] > 1), key=lambda t: t[1], default=None)
    below = max((t for t in tries if t[1] <= 1), key=lambda t: t[1], default=None)
    if above is None or below is None or above[0] <= below[0]:
        return tries[-1][0] * AIM / tries[-1][1]
    (f0, s0), (f1, s1) = below, above
    where = np.log(AIM / s0) / np.log(s1 / s0)
    return float(f0 * (f1 / f0) ** np.clip(where, 0.15, 0.85))
