"""Which members a search tries, over members that are made up."""

from types import SimpleNamespace

import numpy as np
import pytest

from onnxprune.tuning import explore, journey, members
from onnxprune.tuning.demand import Demand
from onnxprune.tuning.floor import Floor
from onnxprune.tuning.metric import Score
from onnxprune.tuning.report import on_frontier


def test_the_ladder_that_pays_most_goes_first() -> None:
    """At the same share one loses less for its speed; one that can't be had is the last."""
    made = {
        "macs0.707": {"speedup": 1.2, "metric": 90.0, "items": None},
        "macs0.707-by8": {"speedup": 1.3, "metric": 99.0, "items": None},
        "latency0.707": {"refused": "too far"},
    }
    floor = Floor(Score(100.0), 1.0)
    fake = SimpleNamespace(
        make=lambda recipe: made[recipe.name],
        floor=floor,
        demand=Demand(),
        deadline=members.Deadline(None),
        score=lambda e: Score(e["metric"], e["items"]),
    )
    explorer = explore.Explorer(fake, "latency")  # type: ignore[arg-type]
    several = [explore.Ladder("latency", "auto"), explore.Ladder("macs", "auto"), explore.Ladder("macs", 8)]
    assert [ladder.at(0.5).name for ladder in explorer.by_promise(several)] == [
        "macs0.5-by8",
        "macs0.5",
        "latency0.5",
    ]


@pytest.mark.parametrize(("seconds", "compared"), [(60.0, 3), (90.0, 1)])
def test_ladders_are_not_compared_where_that_takes_most_of_the_time(seconds: float, compared: int) -> None:
    """Two others in a search of ten minutes: they may take two and a half."""
    made = []

    def make(recipe: members.Recipe) -> dict:
        made.append(recipe.name)
        return {"speedup": len(made), "metric": 100.0, "items": None, "seconds": seconds}

    fake = SimpleNamespace(
        make=make, floor=Floor(Score(100.0), 1.0), demand=Demand(), deadline=members.Deadline(10.0),
        score=lambda e: Score(e["metric"], e["items"]),
    )  # fmt: skip
    several = [explore.Ladder("macs", step) for step in ("auto", 8, 1)]
    order = explore.Explorer(fake, "latency").by_promise(several)  # type: ignore[arg-type]
    assert len(set(made)) == compared
    assert order == (several[::-1] if compared > 1 else several)


class Fits:
    """Members whose loss depends on the share and on how they were fitted."""

    def __init__(self, loss: dict[str, float], levers: dict[str, tuple[float, float]] | None = None) -> None:
        self.levers = levers or {}
        self.loss, self.floor, self.demand, self.entries = loss, Floor(Score(100.0), 1.0), Demand(), {}
        self.whole, self.deadline = SimpleNamespace(steps=0), members.Deadline(None)

    def make(self, recipe: members.Recipe) -> dict:
        width, lever = recipe.width, recipe.lever
        factor, less = 1.0, 0.0
        for one in lever.name.split("+") if lever else ():
            factor, less = factor * self.levers[one][0], less + self.levers[one][1]
        lost = self.loss[width.recover] * (1 - width.share) if width else 0.0
        speed = factor / (width.share if width else 1.0)
        self.entries[recipe.name] = entry = {
            "ladder": width and width.ladder, "share": width and width.share, "lever": lever and lever.name,
            "items": None, "metric": 100 - lost - less, "speedup": speed,
            "speed_interval": [0.99 * speed, 1.01 * speed],
        }  # fmt: skip
        return entry

    def score(self, entry: dict) -> Score:
        return Score(entry["metric"], None)

    def holds(self, entry: dict) -> bool:
        return self.floor.holds(self.score(entry))

    good = holds


@pytest.mark.parametrize("loss", [{"lstsq": 4, "": 3, "distill": 2}, {"lstsq": 900, "": 8, "distill": 7}])
def test_dear_fits_begin_where_cheap_ones_ended(monkeypatch: pytest.MonkeyPatch, loss: dict) -> None:
    """Most members are fitted quickly; the best is of the deepest fit, as narrow as that one may be."""
    monkeypatch.setattr(explore, "levers", lambda aim: [])
    fits = Fits(loss)
    explorer = explore.Explorer(fits, "latency", quick="lstsq", deeper=("", "distill"))  # type: ignore[arg-type]
    explorer.all()
    best = explore.best_of(fits, "latency")  # type: ignore[arg-type]
    assert best is not None
    assert best["ladder"].endswith("-distill")
    least = 1 - 1 / loss["distill"]
    assert least <= best["share"] < 1.2 * least
    fits_in_turn = [entry["ladder"].rpartition("-")[2] for entry in fits.entries.values()]
    order = list(dict.fromkeys("quick" if fit == "lstsq" else fit for fit in fits_in_turn))
    assert order[0] == "quick"
    assert order[-1] == "distill"
    assert fits_in_turn.count("distill") <= explore.FEWER
    assert len(fits_in_turn) <= explore.most("latency")


@pytest.mark.parametrize(
    ("factor", "leads"), [(2.0, True), (1.1, False)], ids=["doubles the speed", "wins little"]
)
def test_what_wins_most_by_itself_is_beside_all_that_is_tried_first(
    monkeypatch: pytest.MonkeyPatch, factor: float, leads: bool
) -> None:
    both = [members.Lever("int8", "dynamic"), members.Lever("int8", "static")]
    monkeypatch.setattr(explore, "levers", lambda aim: both)
    fits = Fits({"lstsq": 4, "": 3}, {"int8-static": (factor, 0.3), "int8-dynamic": (0.5, 0.0)})
    explorer = explore.Explorer(fits, "latency", quick="lstsq", deeper=("",))  # type: ignore[arg-type]
    explorer.all()
    narrow = [entry["lever"] for entry in fits.entries.values() if entry["share"] is not None]
    tried = narrow[1 : explore.STEPS]  # the first tells how long a cut takes
    assert tried == ["int8-static" if leads else None] * len(tried)
    best = explore.best_of(fits, "latency")  # type: ignore[arg-type]
    assert best is not None
    assert best["lever"] == ("int8-static" if leads else None)
    assert best["speedup"] > 1.2 * factor
    assert {None, "int8-static"} <= set(narrow), "both with it and without"
    by_time = [e["share"] for e in fits.entries.values() if e["share"] and e["ladder"].startswith("latency")]
    assert by_time[1] == pytest.approx(best["share"], abs=0.05), (
        "what the lever won isn't taken for narrowness"
    )
    assert "int8-dynamic" in explorer.refused


@pytest.mark.parametrize(("lost", "beside"), [(0.2, True), (0.6, False)])
def test_the_best_of_each_kind_of_levers_go_together(
    monkeypatch: pytest.MonkeyPatch, lost: float, beside: bool
) -> None:
    """Fewer branches first, integers last, and widths beside both where they hold together."""
    several = [
        members.Lever(*pair) for pair in (("depth", "eighth"), ("depth", "quarter"), ("int8", "static"))
    ]
    monkeypatch.setattr(explore, "levers", lambda aim: several)
    gains = {"int8-static": (2.0, 0.3), "depth-eighth": (1.1, lost), "depth-quarter": (1.3, 1.5)}
    fits = Fits({"lstsq": 4, "": 3}, gains)
    explorer = explore.Explorer(fits, "latency", quick="lstsq", deeper=("",))  # type: ignore[arg-type]
    explorer.all()
    both = "depth-eighth+int8-static"
    assert [name for name in fits.entries if name.startswith("depth") and "+" in name] == [both]
    best = explore.best_of(fits, "latency")  # type: ignore[arg-type]
    assert best is not None
    assert best["lever"] == (both if beside else "int8-static")
    assert any(e["lever"] == both and e["share"] for e in fits.entries.values())
    assert len(fits.entries) <= explore.most("latency")


def test_levers_that_end_come_last() -> None:
    int8, depth = members.Lever("int8", "static"), members.Lever("depth", "eighth")
    for one, other in ((int8, depth), (depth, int8)):
        both = one.with_other(other)
        assert both is not None
        assert both.name == "depth-eighth+int8-static"
        assert members.Lever.named(both.name) == both
        assert members.Recipe(None, both).before == members.Recipe(None, depth)
    assert int8.with_other(members.Lever("int8", "layers")) is None
    assert int8.with_other(members.Lever("grids", "0.5")) is None
    assert depth.with_other(members.Lever("depth", "quarter")) is None


@pytest.mark.parametrize(("sure", "refused"), [(1.3, False), (0.9, True)])
def test_what_one_race_leaves_open_is_timed_in_other_processes(sure: float, refused: bool) -> None:
    """A race beside other work: 1.44 times as fast, between .8 and 2."""
    timed = []

    class Open(Fits):
        def make(self, recipe: members.Recipe) -> dict:
            entry = super().make(recipe) | {"name": "lever", "speed_interval": [0.8, 2.0]}
            self.entries = {"lever": entry}
            return entry

        def settle(self, entry: dict) -> dict:
            timed.append(entry["name"])
            told = {"apart": [1], "speedup": sure, "speed_interval": [sure - 0.1, sure + 0.1]}
            self.entries["lever"] = entry | told
            return self.entries["lever"]

    lever = members.Lever("int8", "dynamic")
    fits = Open({}, {lever.name: (1.44, 0.0)})
    explorer = explore.Explorer(fits, "latency")  # type: ignore[arg-type]
    assert explorer.alone(lever) is not refused
    assert timed == ["lever"]
    assert ("0.90 times as fast as the input here (0.80 to 1.00)" in explorer.refused.values()) is refused
    assert journey._settled(fits, "latency") == (None if refused else fits.entries["lever"])  # type: ignore[arg-type]
    assert timed == ["lever"], "once is enough"

    fresh = Open({}, {lever.name: (1.44, 0.0)})
    fresh.make(members.Recipe(None, lever))
    best = journey._settled(fresh, "latency")  # type: ignore[arg-type]
    assert (best is None) is refused
    assert timed == ["lever", "lever"]


def test_once_the_time_is_over_few_members_are_timed_in_other_processes() -> None:
    """Each is slower there than one race said, so that the next one seems the best."""
    timed = []

    class Over(Fits):
        def settle(self, entry: dict) -> dict:
            timed.append(entry["name"])
            told = {"apart": [1], "speedup": 1.2, "speed_interval": [1.1, 1.3]}
            self.entries[entry["name"]] = entry | told
            return self.entries[entry["name"]]

    fits = Over({}, {})
    fits.deadline = members.Deadline(1.0, start=-1e9)
    for n in range(9):
        speeds = {"speedup": 2 + n / 10, "speed_interval": [1.9, 3.1]}
        fits.entries[f"m{n}"] = {"name": f"m{n}", "metric": 100.0, "items": None, **speeds}
    found = journey._settled(fits, "latency")  # type: ignore[arg-type]
    assert found is not None
    assert "apart" in found
    assert timed == ["m8", "m7"]


def test_what_goes_by_shares_is_bisected_by_itself_and_beside_half_of_the_widths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes fall with both; at half of its way each loses a quarter of what it does at the end."""
    monkeypatch.setattr(explore, "levers", lambda aim: [])
    monkeypatch.setattr(explore, "graded", lambda aim: {"grids": 0.1})

    class Bytes(Fits):
        def make(self, recipe: members.Recipe) -> dict:
            share, grid = (recipe.width.share if recipe.width else 1.0), 1.0
            if recipe.lever is not None:
                grid = float(recipe.lever.setting)
            lost = np.log(share) ** 2 / np.log(0.5) ** 2 + np.log(grid) ** 2 / np.log(0.25) ** 2
            self.entries[recipe.name] = entry = {
                "name": recipe.name, "lever": recipe.lever and recipe.lever.name, "share": share, "items": None,
                "ladder": recipe.width and recipe.width.ladder, "metric": 100 - lost, "bytes": 1000 * share * grid,
                "speedup": 1.0,
            }  # fmt: skip
            return entry

    fits = Bytes({})
    explorer = explore.Explorer(fits, "bytes", quick="lstsq", deeper=("",))  # type: ignore[arg-type]
    explorer.all()
    alone = min(e["bytes"] for e in fits.entries.values() if e["ladder"] is None and fits.holds(e))
    assert 250 <= alone < 270
    best = explore.best_of(fits, "bytes")  # type: ignore[arg-type]
    assert best is not None
    assert best["lever"].startswith("grids-0.")
    assert best["ladder"]
    assert best["bytes"] < 0.9 * alone  # the least there is takes 212, alone 250
    assert len(fits.entries) <= explore.most("bytes")


@pytest.mark.parametrize(("left", "first"), [(1.18, explore.FIRST), (0.3, 0.3)])
def test_a_lever_that_makes_files_larger_is_no_neighbourhood(
    monkeypatch: pytest.MonkeyPatch, left: float, first: float
) -> None:
    """A share begins where the best lever ends; where that is beyond the whole it begins as if there were none."""
    monkeypatch.setattr(explore, "levers", lambda aim: [members.Lever("int8", "dynamic")])
    monkeypatch.setattr(explore, "graded", lambda aim: {"grids": 0.1})
    shares = []

    class Bytes(Fits):
        def make(self, recipe: members.Recipe) -> dict:
            left_by = 1.0 if recipe.lever is None else left
            if recipe.lever is not None and recipe.lever.leaf == "grids":
                shares.append(left_by := float(recipe.lever.setting))
            share = recipe.width.share if recipe.width else 1.0
            self.entries[recipe.name] = entry = {
                "name": recipe.name, "lever": recipe.lever and recipe.lever.name, "share": share, "items": None,
                "ladder": recipe.width and recipe.width.ladder, "metric": 100 - (1 - min(share * left_by, 1)),
                "bytes": 1000 * share * left_by, "original": {"bytes": 1000}, "speedup": 1.0,
            }  # fmt: skip
            return entry

    explore.Explorer(Bytes({}), "bytes", quick="lstsq", deeper=("",)).all()  # type: ignore[arg-type]
    assert shares[0] == first
    assert max(shares) < 1


def test_the_frontier_is_what_nothing_beats() -> None:
    lines = [
        {"lost": 0.0, "speedup": 1.0},
        {"lost": 1.0, "speedup": 2.0},
        {"lost": 1.5, "speedup": 1.9},
        {"lost": 2.0, "speedup": 3.0},
    ]
    assert on_frontier(lines, "speedup") == [True, True, False, True]
    sizes = [{"lost": 0.0, "bytes": 10}, {"lost": 1.0, "bytes": 12}, {"lost": 1.0, "bytes": 5}]
    assert on_frontier(sizes, "bytes") == [True, False, True]
