"""The search: for each combination of levers the narrowest model that still holds the floor, by bisection.

What is lost grows, but for noise, as less of the model stays, so the share at which it becomes too much is looked for
on a logarithmic scale. Each step is a model that was fitted, judged and timed; nothing is predicted. The steps depend
only on what came of those before, so a search that was stopped goes the same way again, over what it remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import comb, inf, log

from onnxprune.allocation.alignment import FLOOR
from onnxprune.pruning.speed import finer_steps
from onnxprune.tuning.cuts import Width
from onnxprune.tuning.members import Entry, Lever, Members, Recipe, graded, levers

__all__ = ["Explorer", "Ladder", "best_of", "is_doubtful", "ladders", "least_of", "most"]

#: Least share of a budget that is tried, the first share, steps of one bisection, and shares that are near enough.
LEAST, FIRST, STEPS, NEAR = 0.04, 0.5, 6, 1.07
#: The same where it is known about where the share is: by how much it is moved, and the steps.
CLOSE, FEWER = 0.8, 4
#: The share that is tried where nothing held with a quicker fit.
ALMOST = 0.9
#: The share at which ladders are compared, which the first bisection comes to as well; and what counts as no loss, as a
#: share of what may be lost.
PROBED, LITTLE = 0.707, 0.2
#: The share of the aim that a lever leaves by itself, at most, to be used beside all that is tried first.
LEADING = 0.8
#: What leaves so many times the least leaves about as much.
ALIKE = 1.01
#: The most that comparing ladders may take of all the time there is; else the first is followed, and others after it.
COMPARED = 0.25


@dataclass(frozen=True)
class Ladder:
    """A way to be narrow.

    Attributes
    ----------
    kind : str
        The budget that is shared among the groups.
    align : int or str
        Of widths.
    recover : str
        How layers are fitted, where it isn't as the options say.
    """

    kind: str
    align: int | str
    recover: str = ""

    def at(self, share: float) -> Width:
        """Return a width."""
        return Width(self.kind, float(f"{share:.3g}"), self.align, self.recover)


def ladders(aim: str) -> list[Ladder]:
    """Return the ways to be narrow for an aim, the most promising first."""
    if aim != "latency":
        return [Ladder(aim, 1)]
    return [*(Ladder("macs", step) for step in finer_steps("auto", FLOOR)), Ladder("latency", "auto")]


@dataclass
class Explorer:
    """One search.

    Attributes
    ----------
    members : Members
    aim : str
        What is made least.
    refused : dict
        Lever -> why it is of no use here.
    quick : str
        How layers are fitted while ways to be narrow are looked for; as the options say where it is empty.
    deeper : sequence of str
        How layers are fitted after that, each time from where the best ended; empty for as the options say.
    """

    members: Members
    aim: str
    refused: dict[str, str] = field(default_factory=dict)
    quick: str = ""
    deeper: Sequence[str] = ()

    def all(self) -> None:
        """Try what there is: levers that cost little, widths, then the rest alone and together.

        Raises
        ------
        OutOfTime
            Where the time is over; what was done is kept.
        Reached
            Where a member is all that was asked for.
        """
        quick, dear = ([lever for lever in levers(self.aim) if lever.dear is dear] for dear in (False, True))
        useful, leasts = [lever for lever in quick if self.alone(lever)], graded(self.aim)
        ways = [replace(ladder, recover=self.quick) for ladder in ladders(self.aim)]
        base = self.leading(useful)
        first, *others = self.by_promise(ways, base)
        half = Recipe(first.at(self.members.demand.share or FIRST), base)
        late = bool(leasts) and not self.members.holds(self.members.make(half))  # widths won't win much
        share = None if late else self.narrowest(first, base)
        near = min(self._lefts(useful).values(), default=None)
        shares = {leaf: self.coarsest(leaf, least, near=near) for leaf, least in leasts.items()}
        share = self.narrowest(first, base) if late else share
        useful += [lever for lever in dear if self.alone(lever)]
        self.members.whole.steps = len(levers(self.aim)) + _steps(useful, self.aim)
        for lever in [None, *useful]:
            if lever != base:
                self.narrowest(first, lever, share)
        for both in self.joined(useful):
            self.narrowest(first, both, share)
        for leaf, coarse in shares.items():  # half of the way with widths, the rest with what goes by shares
            if share and coarse:
                self.coarsest(leaf, leasts[leaf], first.at(share**0.5), coarse)
        for recover in self.deeper[:1]:
            self.deepen([first, *others], recover)
        best = best_of(self.members, self.aim)
        fit = self.deeper[0] if self.deeper else self.quick  # as the best is, or others couldn't come near it
        for ladder in others:
            self.narrowest(
                replace(ladder, recover=fit), self._lever_of(best), self._near(ladder, best) or share
            )
        for recover in self.deeper[1:]:
            self.deepen([first, *others], recover)

    def deepen(self, ways: Sequence[Ladder], recover: str) -> None:
        """Follow the best once more with layers fitted another way, which is dear, so nothing else is."""
        best = best_of(self.members, self.aim)
        ladder, near = ways[0], ALMOST  # where nothing narrower than the input holds as it was fitted so far
        if best is not None and best["ladder"]:
            same = [replace(one, recover=fit) for one in ways for fit in {self.quick, *self.deeper}]
            ladder = next(one for one in same if one.at(1.0).ladder == best["ladder"])
            near = CLOSE * best["share"]
        self.narrowest(replace(ladder, recover=recover), self._lever_of(best), near)

    def _near(self, ladder: Ladder, best: Entry | None) -> float | None:
        """Return the share of another ladder that is as narrow as the best; None where that isn't narrow."""
        narrow: float | None = best["share"] if best is not None else None
        if best is None or not narrow or ladder.kind != "latency":
            return narrow
        lever = self._lever_of(best)
        alone = self.members.make(Recipe(None, lever)).get("speedup", 1.0) if lever else 1.0
        return min(float(alone / best["speedup"]), ALMOST)

    def _lever_of(self, entry: Entry | None) -> Lever | None:
        """Return the lever that a member has beside its width."""
        return Lever.named(entry["lever"]) if entry and entry["lever"] else None

    def alone(self, lever: Lever) -> bool:
        """Try a lever on the whole model; return whether it is of any use."""
        entry = self.members.make(Recipe(None, lever))
        if self.aim == "latency" and is_doubtful(entry):
            entry = self.members.settle(entry)
        if "refused" in entry:
            self.refused[lever.name] = entry["refused"]
        elif self.aim == "latency" and entry["speed_interval"][0] <= 1:
            low, high = entry["speed_interval"]
            self.refused[lever.name] = (
                f"{entry['speedup']:.2f} times as fast as the input here ({low:.2f} to {high:.2f})"
            )
        elif not self.members.holds(entry):
            lost = self.members.floor.lost(self.members.score(entry))
            self.refused[lever.name] = f"loses {lost:.4g} of the metric by itself"
        return lever.name not in self.refused

    def _lefts(self, useful: Sequence[Lever]) -> dict[Lever, float]:
        """Return the share of the aim that each lever leaves by itself."""
        return {lever: _left(self.members.make(Recipe(None, lever)), self.aim) for lever in useful}

    def leading(self, useful: Sequence[Lever]) -> Lever | None:
        """Return the lever that by itself wins so much of the aim that all else is best looked for beside it."""
        made = {lever: self.members.make(Recipe(None, lever)) for lever in useful}
        best = least_of(list(made.values()), self.aim)
        base = next((lever for lever, entry in made.items() if entry is best), None)
        return base if best is not None and _left(best, self.aim) < LEADING else None

    def joined(self, useful: Sequence[Lever]) -> list[Lever]:
        """Try the best of each kind of levers together; return what of it is of use, and better than either."""
        best: dict[str, tuple[float, Lever]] = {}
        for lever in useful:
            left = _left(self.members.make(Recipe(None, lever)), self.aim)
            if left < best.get(lever.leaf, (inf, lever))[0]:
                best[lever.leaf] = left, lever
        found = []
        for (left, one), (other_left, other) in combinations(best.values(), 2):
            both = one.with_other(other)
            if both is not None and self.alone(both):
                made = self.members.make(Recipe(None, both))
                if _left(made, self.aim) < min(left, other_left):
                    found.append(both)
        return found

    def by_promise(self, several: list[Ladder], lever: Lever | None = None) -> list[Ladder]:
        """Return the ladders, the one first whose model at the same share pays most in speed for what it loses.

        Where one such model takes too long to make all of them, they stay as they are.
        """
        if len(several) < 2:
            return several
        share, minutes = self.members.demand.share or PROBED, self.members.deadline.minutes
        seconds = self.members.make(Recipe(several[0].at(share))).get("seconds", 0.0)
        if minutes is not None and seconds * (len(several) - 1) > COMPARED * 60 * minutes:
            return several

        def pays(ladder: Ladder) -> float:
            entry = self.members.make(Recipe(ladder.at(share), lever))
            if "refused" in entry:
                return -inf
            floor = self.members.floor
            lost = max(floor.lost(self.members.score(entry)), LITTLE * max(floor.most, 1e-12))
            return log(entry["speedup"]) / lost

        return sorted(several, key=pays, reverse=True)

    def narrowest(self, ladder: Ladder, lever: Lever | None, near: float | None = None) -> float | None:
        """Look for the least share that holds; None where none does.

        Parameters
        ----------
        ladder : Ladder
        lever : Lever or None
        near : float, optional
            A share that is thought to be near it; none that leaves all, or more, as where a lever makes files larger.
        """
        return self._bisect(lambda share: Recipe(ladder.at(share), lever), LEAST, near)

    def coarsest(
        self, leaf: str, least: float, width: Width | None = None, near: float | None = None
    ) -> float | None:
        """Look for the least share of a lever that holds, by itself or beside a width; None where none does."""
        return self._bisect(lambda share: Recipe(width, Lever(leaf, f"{share:.3g}")), least, near)

    def _bisect(self, recipe: Callable[[float], Recipe], least: float, near: float | None) -> float | None:
        near = near if near is not None and near < 1 else None
        low, high, share = least, 1.0, near or max(self.members.demand.share or FIRST, least)
        factor, steps = (CLOSE, FEWER) if near else (FIRST, STEPS)
        for _ in range(steps):
            entry = self.members.make(recipe(share))
            if self.members.holds(entry) or (
                entry.get("none") and share > FIRST
            ):  # so little that no unit has to go
                high = share
            else:
                low = share
            if high / low < NEAR:
                break
            if low == least:
                share = max(high * factor, least)
            elif high == 1.0:
                share = min(low / factor, low**0.5)
            else:
                share = (low * high) ** 0.5
        return high if high < 1 else None


def most(aim: str) -> int:
    """Return how many members there may be."""
    return len(levers(aim)) + _steps(levers(aim), aim)


def _steps(useful: Sequence[Lever], aim: str) -> int:
    """Return the most steps of all bisections, what comes before them and the last look."""
    shared = len(graded(aim)) * (STEPS + FEWER)
    joined = comb(len({lever.leaf for lever in useful}), 2) * (1 + FEWER)
    ways = len(ladders(aim))
    return 1 + ways + STEPS + 2 * FEWER + FEWER * (len(useful) + ways - 1) + joined + shared


def value_of(entry: Entry, aim: str) -> float:
    """Return what is made least, of one member."""
    return 1 / float(entry["speedup"]) if aim == "latency" else float(entry.get(aim) or float("inf"))


def least_of(entries: Sequence[Entry], aim: str) -> Entry | None:
    """Return the member that leaves least of what is made least; of those that leave about as much, the fastest."""
    least = min((value_of(entry, aim) for entry in entries), default=inf)
    alike = [entry for entry in entries if value_of(entry, aim) <= ALIKE * least]
    return max(alike, key=lambda entry: float(entry["speedup"]), default=None)


def _left(entry: Entry, aim: str) -> float:
    """Return the share of what is made least that one member leaves."""
    whole = 1.0 if aim == "latency" else entry["original"].get(aim)
    return value_of(entry, aim) / whole if whole else inf


def is_doubtful(entry: Entry) -> bool:
    """Whether one race alone leaves open if a member is faster than the input: others in other processes may tell."""
    return (
        "refused" not in entry and "apart" not in entry and entry["speed_interval"][0] <= 1 < entry["speedup"]
    )


def best_of(members: Members, aim: str, *, settled: bool = False) -> Entry | None:
    """Return the best member so far that holds the floor and meets what is asked for; for latency, one that is faster
    beyond doubt. ``settled``: of those that were timed in several processes.
    """
    good = [e for e in members.entries.values() if members.good(e) and (not settled or "apart" in e)]
    if aim == "latency":
        good = [e for e in good if e["speed_interval"][0] > 1]
    return least_of(good, aim)
