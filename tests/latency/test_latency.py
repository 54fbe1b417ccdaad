"""Latency: clocks, staircases, the cache, and results that are never slower."""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from budgets.test_budgets import wide
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxprune
from onnxprune.allocation.costs import Losses, Setting
from onnxprune.cli import main
from onnxprune.errors import NotFaster, NothingToPrune, UsageError
from onnxprune.files import cache
from onnxprune.files.commit import together
from onnxprune.graph.analysis import analyse
from onnxprune.latency import predict
from onnxprune.latency.apart import race_apart
from onnxprune.latency.clock import Race, bench_of, interval, race_of
from onnxprune.latency.profile import Timed, _number, blame
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.options.target import Target
from onnxprune.pruning import speed
from onnxprune.pruning.approach import ROUNDS, until_met
from onnxprune.pruning.speed import finer_steps, first_faster, steps_of
from onnxprune.registry import load
from onnxprune.runtime.session import provider_of


class Clock:
    """A clock that only stands where work is done."""

    def __init__(self, seed: int = 0, noise: float = 0.05) -> None:
        self.now, self.rng, self.noise = 0.0, np.random.default_rng(seed), noise

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            slow = 20.0 if self.rng.random() < 0.1 else 1.0  # another program got the processor
            self.now += seconds * slow * self.rng.lognormal(0, self.noise)

        return run


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("speedup", [0.7, 1.0, 1.3, 3.0])
def test_a_race_finds_the_ratio_through_disturbances(speedup: float) -> None:
    clock = Clock()
    found = race_of(clock.work(0.01), clock.work(0.01 / speedup), seconds=2.0, precise=0.01, clock=clock)
    assert found.ratio == pytest.approx(speedup, rel=0.03)
    assert found.low <= found.ratio <= found.high
    assert found.faster == (speedup > 1.1)


def test_intervals_cover() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for n in range(100):
        low, high = interval(rng.lognormal(np.log(1.5), 0.2, 31), seed=n, draws=300)
        hits += low <= 1.5 <= high
    assert 85 <= hits <= 100
    assert interval(np.full(20, 2.0)) == (2.0, 2.0)


def test_the_cache_survives_what_is_broken(tmp_path: Path) -> None:
    facts = {"machine": "m", "n": 1}
    assert cache.read("latency", facts) is None
    cache.write("latency", facts, [1.5, {"a": 2}])
    assert cache.read("latency", facts) == [1.5, {"a": 2}]
    assert cache.read("latency", {**facts, "n": 2}) is None
    (path,) = (tmp_path / "cache" / "latency").iterdir()
    for text in ("", "{", "[]", '{"facts": {}, "value": 1}', "\x00" * 10, "[" * 100_000):
        path.write_text(text)
        assert cache.read("latency", facts) is None
    path.unlink()
    path.mkdir()
    assert cache.read("latency", facts) is None
    cache.write("latency", facts, 1)  # can't be, and does no harm


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_weights_are_never_negative_and_fit_what_can_be_fitted(seed: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.uniform(0.1, 5, (12, columns))
    weights = rng.uniform(0.2, 2, columns)
    assert predict.nonnegative(table, table @ weights) == pytest.approx(weights, rel=0.2)
    found = predict.nonnegative(table, rng.uniform(0, 1, 12))
    assert (found >= 0).all()
    assert not predict.nonnegative(table, np.zeros(12)).any()


def test_kernels_are_blamed_on_their_nodes() -> None:
    analysis = analyse(Model.load(wide()))
    makers = blame(analysis.coupling)
    ops = [a.node.op for a in analysis.coupling.nodes]
    assert ops[makers["g"]] == "Conv"  # its Relu is fused
    assert makers["d"] == ops.index("Relu")  # a Relu on a concatenation stands alone
    assert _number("g_nchwc", makers) == makers["f"] == makers["g"]
    assert _number("g_nchwc_token_7", makers) == makers["g"]
    assert _number("@3@x_nchwc", makers) == 3
    assert _number("ReorderInput", makers) is None
    assert _number("@-1@new", makers) is None


def staircase(analysis: object, states: list[dict[str, int]], step: int = 8) -> list[Timed]:
    """Invent times: each convolution costs its blocks, and the profiler something at each node."""
    found = []
    sizes = analysis.coupling.space.sizes  # type: ignore[attr-defined]
    groups = list(analysis.grouping.groups)  # type: ignore[attr-defined]
    for state in states:
        lengths = predict._lengths(analysis, groups, state)  # type: ignore[arg-type]
        nodes = {}
        for n, applied in enumerate(analysis.coupling.nodes):  # type: ignore[attr-defined]
            for dims in applied.macs:
                roots = [analysis.coupling.space.find(d) for d in dims]  # type: ignore[attr-defined]
                left = [
                    -(-lengths.get(r, sizes[r]) // step) * step if r in lengths else sizes[r] for r in roots
                ]
                nodes[n] = 2e-6 + 1e-9 * float(np.prod(left))
        found.append(Timed(0.9 * sum(nodes.values()) + 2e-5, nodes, 1e-6))
    return found


def test_a_staircase_is_found_again_at_other_widths() -> None:
    analysis = analyse(Model.load(wide(64, 96)))
    groups = list(analysis.grouping.groups)
    states = predict.widths(groups, 8, 0)
    assert states[0] == {}
    assert len({json.dumps(s, sort_keys=True) for s in states}) >= 6
    found = predict.fitted(analysis, groups, states, staircase(analysis, states), 8)
    assert np.abs(found.errors).max() < 0.01
    fresh = predict.widths(groups, 4, 5)
    sizes = analysis.coupling.space.sizes
    for state, timed in zip(fresh, staircase(analysis, fresh), strict=True):
        lengths = predict._lengths(analysis, groups, state)
        assert found.latency(lambda d, at=lengths: at.get(d, sizes[d])) == pytest.approx(
            timed.whole, rel=0.03
        )
    setting = Setting(analysis, Losses(analysis.grouping), 0, lambda: found)
    (costs,) = load("onnxprune.budgets", "latency").costs(setting)
    for state in fresh:
        lengths = predict._lengths(analysis, groups, state)
        expected = found.latency(lambda d, at=lengths: at.get(d, sizes[d]))
        assert costs.total(state) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("step", [8, 16])
def test_widths_that_are_measured_stand_on_steps(step: int) -> None:
    groups = list(analyse(Model.load(wide(64, 96))).grouping.groups)
    states = predict.widths(groups, step, 0)
    left = [
        int(extent.per_unit[state.get(g.name, 0) :].sum())
        for state in states
        for g in groups
        for extent in g.extents
    ]
    assert len(set(left)) > 4
    assert all(width % step == 0 for width in left)


def test_a_model_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(wide(64, 96))
    analysis = analyse(model)
    groups = list(analysis.grouping.groups)
    bench = bench_of(model, analysis, "cpu", None, 1)
    monkeypatch.setattr("onnxprune.latency.profile.ROUNDS", 6)
    first = predict.measure(model, analysis, groups, 8, bench, model.sha256)
    assert first.latency(lambda d: analysis.coupling.space.sizes[d]) > 0
    assert sum(1 for n in first.nodes if analysis.coupling.nodes[n].macs) >= 5
    monkeypatch.setattr(predict, "profile", lambda *_: pytest.fail("measured again"))
    again = predict.measure(model, analysis, groups, 8, bench, model.sha256)
    assert again.errors == first.errors
    with pytest.raises(pytest.fail.Exception):
        predict.measure(model, analysis, groups, 8, bench, "another model")


def test_a_bench_says_what_does_not_fit() -> None:
    model = Model.load(wide())
    analysis = analyse(model)
    with pytest.raises(UsageError, match="fixed first axis of 2"):
        bench_of(model, analysis, "cpu", 4, 1)
    with pytest.raises(UsageError, match=r"'abacus' isn't in this onnxruntime; it has .*cpu"):
        provider_of("abacus")
    assert provider_of("CPUExecutionProvider") == provider_of("cpu") == "CPUExecutionProvider"
    dynamic = wide()
    dynamic.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    for value in dynamic.graph.output:
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    free = Model.load(dynamic)
    bench = bench_of(free, analyse(free), "cpu", 3, 1)
    assert bench.feeds["x"].shape[0] == 3


def fake(ratio: float) -> Race:
    times = np.full(20, 1.0)
    return Race(times, times / ratio, 1 / ratio, ratio, ratio * 0.99, ratio * 1.01)


class Fake:
    """A speed whose races are invented: units that go -> ratio."""

    def __init__(self, ratio: Callable[[int], float]) -> None:
        self.ratio, self.tried, self.options = ratio, list[int](), Options(ratio=0.5)

    def try_cut(self, removed: dict[str, np.ndarray]) -> Race:
        self.tried.append(sum(map(len, removed.values())))
        return fake(self.ratio(self.tried[-1]))

    def confirm(self, removed: dict[str, np.ndarray]) -> float | None:
        return None

    too_slow = speed.Speed.too_slow
    bench = SimpleNamespace(provider="CPU")


@settings(max_examples=80, deadline=None)
@given(st.floats(0.25, 0.9), st.floats(0.6, 1.6), st.floats(-0.3, 0.3))
def test_a_latency_is_settled_within_five_percent(asked: float, bias: float, bend: float) -> None:
    """Whatever a smooth error of the prediction: the measured share ends within the target."""

    def ratio(gone: int) -> float:
        left = 1 - gone / 1000
        return 1 / max(left * bias ** (1 - left) * (1 + bend * (1 - left)), 0.02)

    def choose(step: int, factor: float) -> dict[str, np.ndarray]:
        gone = round(1000 * (1 - asked * factor))
        if gone > 990:
            raise NothingToPrune("too much")
        return {"g": np.arange(max(gone, 1))}

    judge = Fake(ratio)
    target = Target("latency", asked, True, f"latency={asked}")
    _, removed = until_met(judge, target, choose)  # type: ignore[arg-type]
    share = 1 / ratio(len(removed["g"])) / asked
    assert 0.9 <= share <= 1.05
    assert len(judge.tried) <= ROUNDS


def test_a_latency_out_of_reach_says_how_near_it_got() -> None:
    judge = Fake(lambda gone: 1.5)
    choices = itertools.count(1)
    with pytest.raises(
        NothingToPrune, match=r"latency=0\.5 wasn't met: .* took 1\.33 times as long as asked"
    ):
        until_met(
            judge, Target("latency", 0.5, True, "latency=0.5"), lambda s, f: {"g": np.arange(next(choices))}
        )  # type: ignore[arg-type]


def test_a_cut_within_its_target_that_is_slower_than_the_input_is_refused() -> None:
    """A target in seconds may be longer than the input takes."""
    target = Target("latency", 1.1, True, "latency=1.1")

    def choose(step: int, factor: float) -> dict[str, np.ndarray]:
        return {"g": np.arange(max(round(100 * factor), 1))}

    with pytest.raises(NotFaster, match=r"runs 0\.950 times as fast"):
        until_met(Fake(lambda gone: 0.95), target, choose)  # type: ignore[arg-type]
    assert len(until_met(Fake(lambda gone: 1.05), target, choose)[1]["g"]) > 0  # type: ignore[arg-type]


def test_a_finer_step_is_tried_where_a_coarse_one_cannot_come_near() -> None:
    """On 16 a half goes too far and nothing else can go; on 4 it lands."""
    tried: list[int] = []

    def choose(step: int, factor: float) -> dict[str, np.ndarray]:
        tried.append(step)
        gone = round(1000 * (1 - 0.5 * factor))
        return {"g": np.arange(max(640 if step == 16 else gone // step * step, 1))}

    judge = Fake(lambda gone: 1 / (1 - gone / 1000))
    target = Target("latency", 0.5, True, "latency=0.5")
    step, removed = until_met(judge, target, choose, [16, 4, 1])  # type: ignore[arg-type]
    assert (step, set(tried)) == (4, {16, 4})
    assert 0.95 <= (1 - len(removed["g"]) / 1000) / 0.5 <= 1.0
    step, removed = until_met(judge, target, choose, [16])  # type: ignore[arg-type]
    assert (step, len(removed["g"])) == (16, 640), "with one step the best that meets it"


def test_what_other_processes_measure_decides() -> None:
    """This process sees every cut a fifth faster than the others do."""

    class Biased(Fake):
        def confirm(self, removed: dict[str, np.ndarray]) -> float:
            return self.ratio(len(removed["g"])) / 1.2

    judge = Biased(lambda gone: 1.2 / (1 - gone / 1000))
    target = Target("latency", 0.5, True, "latency=0.5")
    _, removed = until_met(judge, target, lambda s, f: {"g": np.arange(max(round(1000 * (1 - 0.5 * f)), 1))})  # type: ignore[arg-type]
    assert 0.95 <= (1 - len(removed["g"]) / 1000) / 0.5 <= 1.05


def test_other_processes_read_what_waits_to_be_written_with_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut that they time is a file at once, though within `together` files wait for each other."""

    def raced(first: Path, second: Path, bench: object) -> SimpleNamespace:
        assert all(onnx.load(path).graph.node for path in (first, second))
        return SimpleNamespace(ratio=2.0, interval=(1.9, 2.1), races=[1, 2])

    monkeypatch.setattr(speed, "race_apart", raced)
    model = Model.load(wide())
    analysis = analyse(model)
    clock = speed.Speed(model, analysis, Options(ratio=0.5))
    with together():
        assert clock.confirm({}) == 2.0


def test_other_processes_time_what_a_first_step_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(wide(), tmp_path / "in.onnx")
    model = Model.load(tmp_path / "in.onnx").fork()
    model.proto.graph.node[0].doc_string = "changed"
    raced: list[str] = []

    def race(first: Path, second: Path, bench: object) -> SimpleNamespace:
        raced.append(onnx.load(first).graph.node[0].doc_string)
        return SimpleNamespace(ratio=2.0, interval=(1.9, 2.1), races=[1, 2])

    monkeypatch.setattr(speed, "race_apart", race)
    speed.Speed(model, analyse(model), Options(ratio=0.5)).confirm({})
    assert raced == ["changed"]


def test_the_machines_own_step_is_walked_down_and_an_asked_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert finer_steps(16) == [16]
    for own, steps in ((16, [16, 8, 4, 1]), (8, [8, 4, 1])):
        monkeypatch.setattr("onnxprune.options.widths.align_step", lambda own=own: own)
        assert finer_steps("auto") == steps


def test_wider_multiples_are_tried_until_one_is_faster() -> None:
    steps: list[int] = []

    def choose(step: int) -> dict[str, np.ndarray]:
        steps.append(step)
        return {"g": np.arange(10 * len(steps))}

    options = Options(ratio=0.5, align=2)
    judge = Fake(lambda gone: 1.2 if gone >= 20 else 0.8)
    step, removed = first_faster(judge, options, choose)  # type: ignore[arg-type]
    assert len(removed["g"]) == 20
    assert steps == steps_of(options)[:2]
    assert step == steps[-1]
    with pytest.raises(NotFaster, match=r"runs 0\.900 times as fast"):
        first_faster(Fake(lambda gone: 0.9), options, choose)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [[], ["--target", "latency=0.7"], ["--target", "macs=0.7"]])
def test_a_slower_result_is_never_written(
    target: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(wide(64, 96), path)
    monkeypatch.setattr("onnxprune.latency.profile.ROUNDS", 5)
    races = iter([fake(1 / 0.69)] if target and "latency" in target[1] else [fake(1.3)])
    monkeypatch.setattr(speed.Speed, "race", lambda *_: next(races, fake(0.95)))
    monkeypatch.setattr(speed.Speed, "confirm", lambda *_: None)
    asked = target or ["--ratio", "0.5"]
    assert main(["prune", str(path), str(out), *asked, "--check-speed", "--threads", "1"]) == 9
    assert not out.exists()
    assert "times as fast as the input" in capsys.readouterr().err


def test_a_latency_target_through_the_front_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.latency.profile.ROUNDS", 6)
    monkeypatch.setattr("onnxprune.latency.clock.SECONDS", 0.3)
    monkeypatch.setattr("onnxprune.pruning.speed.SECONDS", 0.3)
    monkeypatch.setattr("onnxprune.pruning.speed.race_apart", partial(race_apart, processes=1, seconds=0.3))
    model = wide(128, 128)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 24
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 24
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    for _ in range(2):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 24
    report = onnxprune.prune(model, target=("latency=0.6",), threads=1).report
    assert report.latency is not None
    assert report.latency["ratio"] > 1.1
    low, high = report.latency["interval"]
    assert low <= report.latency["ratio"] <= high
    (line,) = report.targets
    assert line["target"] == "latency=0.6"
    assert set(report.latency["before"]) == {"p50_ms", "p95_ms"}
    assert any("times as fast" in text for text in report.lines())
