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
from onnxprune.files.commit import alone
from onnxprune.files.holding import scratch
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.journey.run import Run
from onnxprune.latency.apart import race_apart
from onnxprune.latency.clock import SECONDS, Bench, Race, bench_of, race, session_of
from onnxprune.latency.predict import Predictor, measure
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.options.target import WITHIN, Target
from onnxprune.options.widths import align_step, step_of
from onnxprune.pruning.targets import parse_target
from onnxprune.runtime.session import Session

__all__ = ["Speed", "finer_steps", "first_faster", "share_of", "speed_of", "steps_of"]


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
    _predictor: Predictor | None = None

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
        if self._predictor is not None:
            return self._predictor
        self.tell("measure latency at a few widths")
        session_of(self.model, self.bench)
        step = max(align_step(), step_of(self.options.align))
        sha256 = self.model.sha256
        self._predictor = measure(self.analysis.model, self.analysis, groups, step, self.bench, sha256)
        return self._predictor

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

    def confirm(self, removed: Removed) -> float | None:
        """Return the speed-up with these units gone as other processes measure it."""
        self.tell("time in other processes")
        with scratch() as place, alone():  # to be read at once, whatever else is being written
            before, after = self.model.path, place / "cut.onnx"
            if before is None or self.model.edited:  # what a first step made of a file still knows its path
                before = place / "input.onnx"
                self.model.save(before)
            granularity.load().cut(self.analysis, removed).model.save(after)
            apart = race_apart(before, after, self.bench)
        low, high = apart.interval
        ratio = round(apart.ratio, 4)
        self.races.append({"ratio": ratio, "interval": [low, high], "processes": len(apart.races)})
        return apart.ratio

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
        asked = parse_target("+".join(self.options.target)) if self.options.target else ()
        missed = any(t.kind == "latency" and share_of(timing, t) > WITHIN for t in asked)
        if timing.faster and missed:  # by noise, perhaps
            session = session_of(pruned, self.bench)
            timing = race(self.original, session, self.bench, seconds=3 * SECONDS, precise=0.002)
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


def finer_steps(align: str | int | None, least: int = 1) -> list[int]:
    """Return the steps of widths to try: finer ones after the machine's own, unless one is asked for.

    Parameters
    ----------
    align : str or int or None
        As asked for.
    least : int
        The finest.

    Examples
    --------
    >>> finer_steps(6)
    [6]
    """
    first = step_of(align)
    return [first, *(s for s in (8, 4, 1) if least <= s < first)] if align == "auto" else [first]


def share_of(timing: Race, target: Target) -> float:
    """Return a cut's latency as a share of a target."""
    return 1 / timing.ratio / target.value if target.relative else timing.seconds / target.value
