"""The search for a budget: what is measured differs from what is estimated, and biases take no more than they say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_models import residual

from onnxprune.api import compress
from onnxprune.compression import coder, fitting
from onnxprune.compression.coder import Input, pack
from onnxprune.compression.curves import Choice
from onnxprune.compression.fitting import ADDED, _bias
from onnxprune.compression.search import FAIR, Aims, Attempt, GridSearch
from onnxprune.errors import NothingToPrune
from onnxprune.journey.run import Run
from onnxprune.options.compression import CompressOptions
from onnxprune.reconstruction.least_squares import Fit, Problem, error_of

Grids = dict[str, list[Choice]]


def more(nbytes: float) -> float:
    return 1.01 * nbytes


def stubborn(
    monkeypatch: pytest.MonkeyPatch, finest: int, coarsest: int, taken: Callable[[float], float] = more
) -> GridSearch:
    """Return a search whose files take 1 % more than is estimated, or what else, however often they are measured."""
    grids = [Choice(float(n), 1.0 / n, 1.0, 0.0) for n in range(coarsest, finest + 1, 10)]
    monkeypatch.setattr(GridSearch, "_choices", lambda self: {"w": grids})
    monkeypatch.setattr(GridSearch, "_without_parts", lambda self: 0.0)
    monkeypatch.setattr(GridSearch, "_weights", lambda self, choices, budget: {})
    monkeypatch.setattr(
        GridSearch,
        "_attempt",
        lambda self, chosen: Attempt(self.base, nbytes=round(taken(chosen["w"].nbytes))),
    )
    monkeypatch.setattr(GridSearch, "measured", lambda self, attempt: attempt)
    monkeypatch.setattr(GridSearch, "_corrected", lambda self, choices, chosen, attempt: (choices, 0.0))
    run = Run.open(residual(), CompressOptions(target="bytes=4000B"))
    return GridSearch(run, run.model, [], None, None)


def test_a_budget_that_estimates_miss_each_time_is_met_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = stubborn(monkeypatch, 9000, 1000).within(4000.0)
    assert 0.97 * 4000 < attempt.nbytes <= 4000


@pytest.mark.parametrize("power", [0.3, 0.6, 2.0, 5.0])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.5])
def test_one_is_used_up_where_files_grow_otherwise_than_estimates(
    monkeypatch: pytest.MonkeyPatch, power: float, factor: float
) -> None:
    """Small nets, coarse grids: the finer half of a curve takes more, or less, than the coarser half told."""
    search = stubborn(monkeypatch, 20000, 100, lambda n: factor * 4000 * (n / 4000) ** power)
    scale = [1.0]

    def corrected(
        _: GridSearch, choices: Grids, chosen: dict[str, Choice], attempt: Attempt
    ) -> tuple[Grids, float]:
        scale.append(attempt.nbytes / chosen["w"].nbytes)
        return {"w": [replace(c, nbytes=c.nbytes * scale[-1]) for c in choices["w"]]}, 0.0

    monkeypatch.setattr(GridSearch, "_corrected", corrected)
    attempt = GridSearch._attempt
    monkeypatch.setattr(
        GridSearch,
        "_attempt",
        lambda self, chosen: attempt(
            self, {"w": replace(chosen["w"], nbytes=chosen["w"].nbytes / scale[-1])}
        ),
    )
    assert FAIR * 4000 <= search.within(4000.0).nbytes <= 4000


def test_an_end_that_would_never_move_is_moved_away_from() -> None:
    def taken(aim: float) -> float:
        return 4000 * (aim / 10000) ** 0.1

    aims = Aims(3000.0, 2980.0)
    for aim in (100.0, 10000.0):
        aims.add(aim, taken(aim))
    for _ in range(4):
        aim = aims.next()
        aims.add(aim, taken(aim))
    assert aims.low is not None
    assert 0.97 * 3000 <= aims.low[1] <= 3000


def test_one_that_the_coarsest_grids_miss_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NothingToPrune, match=r"with the coarsest grids .* takes 4,040 bytes"):
        stubborn(monkeypatch, 9000, 4000).within(4000.0)


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_a_bias_is_as_short_as_the_error_of_its_output_lets_it_be(noise: float) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4000, 6)), rng.standard_normal((6, 50))
    y = x @ w + rng.normal(size=50) + noise * rng.standard_normal((4000, 50))
    mx, my = x.mean(axis=0), y.mean(axis=0)
    a, b = x - mx, y - my
    problem = Problem(4000, a.T @ a / 4000, a.T @ b / 4000, (b**2).mean(axis=0), mx, my)
    short, exact = _bias(problem, w), my - mx @ w
    one, other = (error_of(problem, Fit(w, bias)) for bias in (exact, short))
    assert np.all(other >= one)
    assert 0 < other.mean() / one.mean() - 1 < 2 * ADDED
    assert np.all(other / one < 1 + 3 * ADDED + 1e-9)  # at the middle between two steps

    def bits(values: np.ndarray) -> float:
        fraction = np.frexp(values.astype(np.float32))[0]
        return float(np.mean([next(n for n in range(25) if (f * 2.0**n) % 1 == 0) for f in fraction]))

    assert bits(short) < 14 + np.log2(1e-3 / noise) < bits(exact)


def test_a_file_is_coded_in_the_way_that_takes_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short repetitions pay in names, and in steps of a grid they are chance."""
    rng = np.random.default_rng(0)
    names = b"".join(b"n%dq" % (n % 977) + b"abc"[n % 3 :] for n in range(6000))
    steps = rng.choice(5, 20000, p=[0.7, 0.12, 0.1, 0.05, 0.03]).astype(np.uint8).tobytes()
    best = coder._best

    def size(data: bytes, cut: int, way: tuple[bool, bool] | None = None) -> int:
        (tmp_path / "in").write_bytes(data)
        monkeypatch.setattr(coder, "_best", best if way is None else lambda packing, inputs: way)
        pack([Input("m.onnx", tmp_path / "in", (cut,))], tmp_path / "out.zst")
        return (tmp_path / "out.zst").stat().st_size

    ways, liked = ((False, False), (True, False), (True, True)), set()
    for data, cut in (
        (names + steps[:64], len(names)),
        (names[:64] + steps, 64),
        (3 * names[:999] + steps, 2997),
    ):
        sizes = {way: size(data, cut, way) for way in ways}
        assert size(data, cut) == min(sizes.values()) < max(sizes.values())
        liked.add(min(ways, key=lambda way: sizes[way]))
    assert len(liked) > 1


@pytest.mark.parametrize(("dear", "weighed"), [(1e12, True), (1e4, False)])
def test_losses_are_weighed_where_trial_fits_take_minutes_at_most(
    monkeypatch: pytest.MonkeyPatch, dear: float, weighed: bool
) -> None:
    monkeypatch.setattr(fitting, "DEAR", dear)
    x = np.random.default_rng(0).standard_normal((60, 3, 8, 8)).astype(np.float32)
    report = compress(residual(), target="bytes=0.3", to="zst", calib={"x": x}).report
    told = [note for note in report.notes if "by trials a loss counts" in note or "losses of" in note]
    assert len(told) == 1
    assert ("times as much as another" in told[0]) is weighed
    assert ("take too long" in told[0]) is not weighed


def test_a_budget_that_is_not_used_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the finest grid of a weight and the weight as it is there is nothing."""
    for finest, told in (
        (3000, ["24% of the budget are left: nothing that was tried within it uses more"]),
        (9000, []),
    ):
        search = stubborn(monkeypatch, finest, 1000)
        search.within(4000.0)
        assert [note for note in search.run.notes if "of the budget" in note] == told
