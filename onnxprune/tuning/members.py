"""Members of a frontier: made, judged, timed, and kept as soon as they are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune import registry
from onnxprune.calibration.samples import Samples
from onnxprune.errors import NotFaster, NothingToPrune, OnnxPruneError, UsageError
from onnxprune.files.commit import alone
from onnxprune.graph.size import Size
from onnxprune.journey.output import size_in_bytes, size_of_output
from onnxprune.latency.apart import race_apart
from onnxprune.latency.clock import Bench, race, session_of
from onnxprune.model import Model
from onnxprune.progress import Whole
from onnxprune.runtime.session import Session
from onnxprune.tuning.cuts import Cuts, Width
from onnxprune.tuning.demand import Demand
from onnxprune.tuning.floor import Floor
from onnxprune.tuning.metric import Metric, Score
from onnxprune.tuning.state import State

__all__ = ["Deadline", "Lever", "Recipe", "Members", "OutOfTime", "levers"]

Entry = dict[str, Any]
#: How many times longer a fit may take that there was none of yet.
DEARER = 4.0


class OutOfTime(Exception):
    """Nothing more is begun."""


class _Unfit(OnnxPruneError):
    """What the search chose for one member can't be; others can."""


@dataclass
class Deadline:
    """How long a search may take.

    Attributes
    ----------
    minutes : float or None
    """

    minutes: float | None
    start: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> float:
        """The share of the time that is over; 0 where it has no end."""
        return 0.0 if self.minutes is None else (time.monotonic() - self.start) / (60 * self.minutes)

    def check(self, seconds: float) -> None:
        """Refuse to begin what takes so long.

        Raises
        ------
        OutOfTime
        """
        if self.minutes is not None and time.monotonic() - self.start + seconds > 60 * self.minutes:
            raise OutOfTime

    def bound(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Return what tells of work, and ends it where the time is over: some take longer than anyone could know."""

        def told(text: str) -> None:
            self.check(0.0)
            say(text)

        return told


@dataclass(frozen=True)
class Lever:
    """One setting of one file of `onnxprune.tuning.levers`.

    Attributes
    ----------
    leaf, setting : str
    after : Lever or None
        What is done to a model before.
    """

    leaf: str
    setting: str
    after: Lever | None = None

    @property
    def name(self) -> str:
        """Short, for a file."""
        own = f"{self.leaf}-{self.setting}"
        return own if self.after is None else f"{self.after.name}+{own}"

    @classmethod
    def named(cls, name: str) -> Lever:
        """Return the lever of this name."""
        before, _, own = name.rpartition("+")
        leaf, _, setting = own.partition("-")
        return cls(leaf, setting, cls.named(before) if before else None)

    def with_other(self, other: Lever) -> Lever | None:
        """Return both, one after the other; None where they are of one kind, or nothing can be done after either."""
        first, last = (other, self) if self._ends else (self, other)
        return None if first._ends or first.leaf == last.leaf else Lever(last.leaf, last.setting, first)

    @property
    def dear(self) -> bool:
        """Whether it fits layers."""
        return bool(self._said("DEAR"))

    @property
    def _ends(self) -> bool:
        return bool(self._said("ENDS"))

    def _said(self, what: str) -> object:
        return getattr(registry.load("onnxprune.tuning.levers", self.leaf), what, False)

    def apply(self, source: Path, output: Path, samples: Samples) -> None:
        """Turn one file into another."""
        registry.load("onnxprune.tuning.levers", self.leaf).apply(source, output, self.setting, samples)


def levers(aim: str) -> list[Lever]:
    """Return what could make this less, of levers with a few settings, those that take long last."""
    leaves = sorted(_leaves(aim), key=lambda each: getattr(each[1], "DEAR", False))
    return [Lever(name, one) for name, leaf in leaves for one in getattr(leaf, "SETTINGS", ())]


def graded(aim: str) -> dict[str, float]:
    """Return what could make this less by any share: leaf -> the least of it."""
    return {name: leaf.LEAST for name, leaf in _leaves(aim) if hasattr(leaf, "LEAST")}


def _leaves(aim: str) -> Iterator[tuple[str, Any]]:
    for name in registry.names("onnxprune.tuning.levers"):
        leaf = registry.load("onnxprune.tuning.levers", name)
        if aim in leaf.AIMS:
            yield name, leaf


@dataclass(frozen=True)
class Recipe:
    """What is done to the input.

    Attributes
    ----------
    width : Width or None
    lever : Lever or None
    """

    width: Width | None = None
    lever: Lever | None = None

    @property
    def name(self) -> str:
        """Short, for a file."""
        return "-".join(part.name for part in (self.width, self.lever) if part is not None)

    @property
    def before(self) -> Recipe | None:
        """The member that the lever is applied to; None where that is the input, or there is no lever."""
        if self.lever is None or (self.width is None and self.lever.after is None):
            return None
        return Recipe(self.width, self.lever.after)


@dataclass
class Members:
    """What makes, judges and times members, or remembers them.

    Attributes
    ----------
    source : Path
        The input.
    cuts : Cuts
    samples : callable
        Returns those that fits may see.
    metric : Metric
    floor : Floor
    demand : Demand
        What ends the search.
    bench : Bench
        How models are run to be timed.
    state : State
    deadline : Deadline
    whole : Whole
        Is told what is done.
    better : callable
        Is given each entry that has just been made.
    spent : dict
        What was done to members -> seconds, in this run.
    """

    source: Path
    cuts: Cuts
    samples: Callable[[], Samples]
    metric: Metric
    floor: Floor
    demand: Demand
    bench: Bench
    state: State
    deadline: Deadline
    whole: Whole
    better: Callable[[Entry], None] = lambda entry: None
    entries: dict[str, Entry] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    _seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    _since: tuple[str, float] = ("", 0.0)
    _original: Session | None = None

    def make(self, member: Recipe) -> Entry:
        """Return a member's entry, with what was measured of it, or with ``refused``: why it can't be had.

        Raises
        ------
        OutOfTime
            If it would take longer than there is time.
        """
        name = member.name
        if (before := member.before) is not None:
            self.make(before)  # also where both are remembered: it is a member itself
        entry = self.entries.get(name) or self.state.read(name)
        if entry is None:
            self.deadline.check(self._expected(member))
            start, once = time.monotonic(), self.cuts.once
            self.tell(name, "make")
            with alone():  # what is told of a search that was stopped is its output, not each member
                entry = self._made(member)
            took = time.monotonic() - start - (self.cuts.once - once)
            if "refused" not in entry:
                self._seconds[_effort(member)] = took
            self._turn("")
            entry = self.state.keep(name, {**entry, "seconds": round(took, 3)})
        fresh = name not in self.entries
        self.entries[name] = entry
        if fresh:
            self.better(entry)
        return entry

    def _expected(self, member: Recipe) -> float:
        """Return about how long a member takes, from the last of its kind."""
        cuts = [seconds for (kind, _), seconds in self._seconds.items() if kind == "cut"]
        unknown = 0.0 if member.width is None else DEARER * max(cuts, default=0.0)
        return self._seconds.get(_effort(member), unknown)

    def tell(self, name: str, text: str) -> None:
        """Tell what is done to a member from now on."""
        self._turn(text)
        if name != self.whole.what:
            self.whole.at(self.whole.step + 1, name, self.deadline.done)
        self.whole(text)

    def _turn(self, what: str) -> None:
        """Count the time since the last turn for what was done, and begin with something else."""
        (before, start), self._since = self._since, (what, time.monotonic())
        if before:
            self.spent[before] = self.spent.get(before, 0.0) + self._since[1] - start

    def _made(self, member: Recipe) -> Entry:
        path = self.state.model(member.name)
        what: Entry = {
            "ladder": None if member.width is None else member.width.ladder,
            "share": None if member.width is None else member.width.share,
            "lever": None if member.lever is None else member.lever.name,
        }
        entry: Entry = {"made": True, **what}
        try:
            if member.lever is None:
                assert member.width is not None
                with self._chosen(member):
                    report = self.cuts.make(member.width, path).report
                entry |= _figures(report.after) | {"original": _figures(report.before)}
            else:
                before = {} if (recipe := member.before) is None else self.make(recipe)
                if "refused" in before:
                    return {
                        **what,
                        "made": False,
                        **{k: before[k] for k in ("refused", "none") if k in before},
                    }
                source = self.state.model(before["name"]) if before else self.source
                samples = self.samples()
                with self._chosen(member):
                    member.lever.apply(source, path, samples)
                known = ("macs", "memory", "parameters", "original")
                entry |= {key: before[key] for key in known if member.width is not None}
            return self._measured(entry, member.name, path)
        except (NothingToPrune, NotFaster) as error:
            return {**what, "made": False, "refused": _reason(error), "none": True}
        except UsageError:
            raise
        except OnnxPruneError as error:
            if member.lever is None and not isinstance(error, _Unfit):
                raise
            return {**what, "made": False, "refused": str(error)}

    @contextmanager
    def _chosen(self, member: Recipe) -> Iterator[None]:
        """Take a wrong option for the search's own where a member is made, so that it ends that member alone.

        The user's were read before the search, and by the first cut, which reads some that nothing else does: what is
        wrong there is told.

        Raises
        ------
        _Unfit
        """
        try:
            yield
        except UsageError as error:
            if member.lever is None and not any(e.get("ladder") for e in self.entries.values()):
                raise
            raise _Unfit(str(error)) from error

    def _measured(self, entry: Entry, name: str, path: Path) -> Entry:
        self.tell(name, "time")
        try:
            timing = self.race(path)
        except UsageError as error:  # of a lever's file: the input ran, so what was asked for is right
            raise OnnxPruneError(str(error)) from error
        original = {
            "seconds": timing["before"]["p50_ms"] / 1e3,
            "bytes": size_in_bytes(Model.load(self.source)),
        }
        self.tell(name, self.metric.name)
        score = self.metric.of(path)
        return entry | {
            "original": entry.get("original", {}) | original,
            "bytes": size_of_output(path),
            "speedup": timing["ratio"],
            "speed_interval": timing["interval"],
            "metric": score.value,
            "items": score.items,
        }

    def race(self, path: Path) -> Entry:
        """Time a file against the input, in turns."""
        if self._original is None:
            self._original = session_of(Model.load(self.source), self.bench)
        return race(self._original, session_of(Model.load(path), self.bench), self.bench).to_json()

    def settle(self, entry: Entry) -> Entry:
        """Time a member once more, in several processes; what they say replaces what one said."""
        if "apart" not in entry:
            self.tell(entry["name"], "time in other processes")
            apart = race_apart(self.source, self.state.model(entry["name"]), self.bench)
            entry = entry | {
                "apart": apart.races,
                "speedup": round(apart.ratio, 4),
                "speed_interval": list(apart.interval),
            }
            self._turn("")
            self.entries[entry["name"]] = entry = self.state.keep(entry["name"], entry)
        return entry

    def score(self, entry: Entry) -> Score:
        """Return what the metric said of a member."""
        return Score(entry["metric"], entry["items"])

    def holds(self, entry: Entry) -> bool:
        """Whether a member could be made and loses no more than it may."""
        return "refused" not in entry and self.floor.holds(self.score(entry))

    def good(self, entry: Entry) -> bool:
        """Whether a member holds and meets what the search is to reach."""
        return self.holds(entry) and self.demand.met(entry)


def _reason(error: OnnxPruneError) -> str:
    """Return why a member can't be had, without the option that it was asked by and advice about it."""
    text = str(error).partition("; ask for")[0].rstrip(".")
    return text.partition(" can't be met: ")[2] or text if text.startswith("--target") else text


def _figures(size: Size) -> Entry:
    return {"macs": size.macs, "memory": size.memory, "parameters": size.parameters}


def _effort(member: Recipe) -> tuple[str, str]:
    """Return what tells members apart that take very different times: how layers are fitted, or else the lever."""
    if member.width is not None:
        return "cut", member.width.recover
    return "lever", member.lever.leaf if member.lever is not None else ""
