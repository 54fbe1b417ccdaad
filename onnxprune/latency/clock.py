"""Timing on the user's own provider, batch and threads: two models in turns, with an interval on their ratio.

Absolute times of a shared machine drift; the ratio of two runs a moment apart drifts less. So models take turns (A B,
B A, A B, ...), each turn gives one ratio, and the median of the ratios gets a bootstrap interval (Efron, Annals of
Statistics 1979). With one thread on the CPU a run is compared by the time that its thread was on a processor, which
other programs hardly disturb and which is the wall clock's where there are none; else by the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.runtime.binding import declared, real_inputs
from onnxprune.runtime.inputs import NoValues, random_inputs
from onnxprune.runtime.session import CPU, Feeds, RunError, Session, Unloadable, open_session, provider_of

__all__ = ["Bench", "Race", "bench_of", "interval", "race", "runs_of", "timed_turn"]

Floats = NDArray[np.float64]

#: Seconds that a turn of one model lasts at least, and that a race may take.
TURN, SECONDS = 2e-3, 4.0
#: Half of the interval, as a share of the ratio, at which a race ends.
PRECISE = 0.01
FEWEST, MOST = 15, 600


@dataclass(frozen=True)
class Bench:
    """How models are run.

    Attributes
    ----------
    provider : str
        onnxruntime's name of an execution provider.
    threads : int or None
        Within an op; onnxruntime's default otherwise.
    feeds : mapping
        Input -> array.
    """

    provider: str
    threads: int | None
    feeds: Feeds

    @property
    def clock(self) -> Callable[[], float]:
        """What runs are compared by, in seconds."""
        alone = self.threads == 1 and self.provider == CPU
        fine = time.get_clock_info("thread_time").resolution < 1e-6
        return time.thread_time if alone and fine else time.perf_counter

    def runs(self, session: Session) -> Callable[[], object]:
        """Return a run of a model: of an input that it takes less of than is there, it gets the first channels."""
        feeds = {n: _first(a, session.shapes[n]) for n, a in self.feeds.items() if n in session.shapes}
        return lambda: session.run(feeds)

    def open(self, model: Model | onnx.ModelProto, profile: str | None = None) -> Session:
        """Open a session as a user would: optimised, with repacked weights.

        Raises
        ------
        RunError
            If onnxruntime doesn't take the model.
        """
        return open_session(
            model, (), self.threads, self.provider, prepack=True, optimise=True, profile=profile, mode="timed"
        )


def bench_of(
    model: Model, analysis: Analysis, provider: str, batch: int | None, threads: int | None, seed: int = 0
) -> Bench:
    """Return a bench with random inputs.

    Parameters
    ----------
    model : Model
    analysis : Analysis
        Says the input shapes.
    provider : str
        Such as ``"cpu"``.
    batch : int or None
        Size of the first axis of every input, where it is dynamic.
    threads : int or None
    seed : int

    Raises
    ------
    UsageError
        If there is no such provider, the model has a fixed batch of another size, or no values can be drawn for an
        input.
    """
    shapes = dict(analysis.inputs)
    named: set[str] = set()
    for value in real_inputs(model.proto.graph) if batch is not None else ():
        axes, shape = declared(value), shapes.get(value.name, ())
        if not axes or not shape:
            continue
        if isinstance(axes[0], int) and axes[0] != batch:
            raise UsageError(
                f"--batch {batch}: the input {value.name!r} has a fixed first axis of {axes[0]}; leave --batch out, or "
                "export the model with a dynamic batch."
            )
        shapes[value.name] = (int(batch or 1), *shape[1:])
        named |= {axis for axis in axes[:1] if isinstance(axis, str)}
    for value in real_inputs(model.proto.graph) if named else ():  # an axis of one name has one size
        axes, shape = declared(value) or (), shapes.get(value.name, ())
        sizes = [int(batch or 1) if a in named else s for a, s in zip(axes, shape, strict=False)]
        shapes[value.name] = tuple(sizes) if axes else shape
    try:
        feeds = random_inputs(model, shapes, np.random.default_rng(seed), sizes=analysis.tracer.types)
    except NoValues as error:
        raise UsageError(
            f"The model can't be timed: {error}; leave out --check-speed and targets of latency."
        ) from error
    return Bench(provider_of(provider), threads, feeds)


@dataclass(frozen=True)
class Race:
    """Two models, timed in turns.

    Attributes
    ----------
    before, after : float64[turns]
        Seconds of one run, the first model's and the second's, by the wall clock.
    seconds : float
        Median time of the second by the clock that the ratio is taken with.
    ratio : float
        Median of before / after: the speed-up.
    low, high : float
        Its interval at 95 %.
    """

    before: Floats
    after: Floats
    seconds: float
    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether the second is faster, beyond doubt."""
        return self.low > 1.0

    def to_json(self) -> dict[str, Any]:
        """Return figures for the report, times in milliseconds."""

        def both(times: Floats) -> dict[str, float]:
            return {f"p{q}_ms": round(1e3 * float(np.quantile(times, q / 100)), 6) for q in (50, 95)}

        return {
            "before": both(self.before),
            "after": both(self.after),
            "ratio": round(self.ratio, 4),
            "interval": [round(self.low, 4), round(self.high, 4)],
            "turns": len(self.before),
        }


def interval(ratios: Floats, *, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a median."""
    rng = np.random.default_rng(seed)
    medians = np.median(ratios[rng.integers(0, len(ratios), (draws, len(ratios)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def race(
    first: Session, second: Session, bench: Bench, *, seconds: float = SECONDS, precise: float = PRECISE
) -> Race:
    """Time two models in turns until the ratio is precise, or time is up.

    Parameters
    ----------
    first, second : Session
    bench : Bench
    seconds : float
        That the race may take, but for its least number of turns.
    precise : float
        Half of the interval, as a share of the ratio, that is enough.
    """
    return race_of(
        bench.runs(first),
        bench.runs(second),
        seconds=seconds,
        precise=precise,
        clock=bench.clock,
    )


def race_of(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    seconds: float,
    precise: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Time two functions in turns; see `race`."""
    both = (first, second)
    runs = [runs_of(function, clock) for function in both]
    times: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    start = time.perf_counter()
    while True:
        for which in (0, 1) if len(times[0]) % 2 == 0 else (1, 0):
            times[which].append(timed_turn(both[which], runs[which], clock))
        turns = len(times[0])
        enough = turns >= FEWEST and (time.perf_counter() - start > seconds or turns >= MOST)
        if enough or (turns >= FEWEST and turns % 10 == 5):
            before, after = np.array(times[0]), np.array(times[1])
            ratios = before[:, 1] / after[:, 1]
            low, high = interval(ratios)
            ratio = float(np.median(ratios))
            if enough or (high - low) / 2 <= precise * ratio:
                return Race(before[:, 0], after[:, 0], float(np.median(after[:, 1])), ratio, low, high)


def runs_of(function: Callable[[], object], clock: Callable[[], float]) -> int:
    """Warm up, and return how many runs make a turn."""
    function()
    once = max(min(timed_turn(function, 1, clock)[1] for _ in range(2)), 1e-7)
    return max(1, min(200, round(TURN / once)))


def timed_turn(function: Callable[[], object], runs: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of a run, by the wall clock and by another."""
    start, began = time.perf_counter(), clock()
    for _ in range(runs):
        function()
    return (time.perf_counter() - start) / runs, max((clock() - began) / runs, 1e-9)


def _first(array: Any, shape: Sequence[object]) -> Any:
    sizes = [slice(n if isinstance(n, int) else None) for n in shape]
    return np.ascontiguousarray(array[tuple(sizes)]) if len(sizes) == np.ndim(array) > 0 else array


def session_of(model: Model, bench: Bench) -> Session:
    """Open and run a model once.

    Raises
    ------
    UsageError
        If it can't be run there.
    """
    try:
        session = bench.open(model)
        bench.runs(session)()
    except Unloadable as error:
        raise UsageError(
            f"The model can't be timed on {bench.provider}, where onnxruntime doesn't load it ({error}); "
            f"{Unloadable.advice}: give a --provider that has kernels for it, or time it where it runs."
        ) from error
    except RunError as error:
        raise UsageError(
            f"The model can't be timed on {bench.provider} ({error}); give --input-shape, or another --provider."
        ) from error
    return session
