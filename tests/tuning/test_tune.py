"""The search end to end on tiny nets, with a clock that counts multiply-accumulates."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import Builder

from onnxprune import cli
from onnxprune.api import tune
from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError, NotFaster, UsageError
from onnxprune.latency.apart import Apart
from onnxprune.pruning import on_samples
from onnxprune.tuning import explore, members
from onnxprune.tuning.members import Lever, Members, OutOfTime

FAST = {"recover": "lstsq"}
#: Of members in a report.
KEYS = ("frontier", "others")
BEFORE = {"before": {"p50_ms": 4.0}}


def net(seed: int = 3) -> onnx.ModelProto:
    """Two layers; of the 24 channels between them 12 are copies of the others."""
    b = Builder(seed)
    rng = np.random.default_rng(seed)
    up, bias = rng.standard_normal((12, 12)).astype(np.float32), np.zeros(24, np.float32)
    h = b.op("MatMul", ["x", b.constant("up", np.concatenate([up, 2 * up], axis=1))], "mm")
    h = b.op("Relu", [b.op("Add", [h, b.constant("bias", bias)], "sum")], "relu")
    return b.model({"x": ["N", 12]}, b.linear(h, "head", 24, 5))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import onnxruntime as ort

    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "in.onnx")
    x = np.random.default_rng(0).standard_normal((400, 12)).astype(np.float32)
    y = ort.InferenceSession("in.onnx").run(None, {"x": x})[0].argmax(axis=1)
    np.savez("s.npz", x=x[:200], y=y[:200])
    np.savez("e.npz", x=x[200:], y=y[200:])
    size = Path("in.onnx").stat().st_size

    def race(self: Members, path: Path) -> dict:
        ratio = size / path.stat().st_size
        return {"ratio": ratio, "interval": [ratio * 0.99, ratio * 1.01], **BEFORE}

    def apart(first: Path, second: Path, bench: object) -> Apart:
        ratio = first.stat().st_size / second.stat().st_size
        return Apart([{"ratio": ratio, "interval": [ratio * 0.98, ratio * 1.02]}] * 2)

    monkeypatch.setattr(Members, "race", race)
    monkeypatch.setattr(members, "race_apart", apart)
    monkeypatch.setattr(explore, "levers", lambda aim: [])
    monkeypatch.setattr(explore, "ladders", lambda aim: [explore.Ladder("macs", 1)])
    return tmp_path


def test_the_result_holds_the_floor_and_a_larger_drop_buys_more(place: Path) -> None:
    speed = {}
    for drop in (2.0, 20.0):
        report = tune(
            "in.onnx", "out.onnx", max_drop=drop, calib="s.npz", labels="y", held_out="e.npz", **FAST
        )
        best = report.chosen()
        assert best is not None
        assert best["lost"] <= drop
        assert best["processes"] == 2
        assert Path("out.onnx").read_bytes() == Path(best["path"]).read_bytes()
        speed[drop] = best["speedup"]
        others = [m for m in report.members if m["holds"] and m["speedup"] > best["speedup"]]
        assert others == []
        assert any(not m["holds"] for m in report.members), "the floor was never crossed"
    assert speed[20.0] > speed[2.0] > 1


def test_a_stopped_search_goes_on_to_the_same_frontier(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"max_drop": 5.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz", **FAST}
    whole = tune("in.onnx", "whole.onnx", state="one", **given)
    made, real = [], Members._made

    def stopping(self: Members, member: object) -> dict:
        made.append(member)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(self, member)

    monkeypatch.setattr(Members, "_made", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune("in.onnx", "out.onnx", state="two", **given)
    first = len(made)
    rest = tune("in.onnx", "out.onnx", state="two", **given)
    assert first + len(made[first:]) == len(whole.members) + 1, "one was begun twice, none else"
    plain = [[(m["name"], m["metric"], m["bytes"]) for m in r.members] for r in (whole, rest)]
    assert plain[0] == plain[1]
    assert Path("out.onnx").read_bytes() == Path("whole.onnx").read_bytes()


def test_a_search_that_was_killed_goes_on_to_the_same_frontier(place: Path) -> None:
    """The process itself, killed while it works: nothing half written is taken for a member."""
    line = "tune in.onnx {0}.onnx --max-drop 5 --calib s.npz --labels y --eval e.npz --minimize macs --recover lstsq"
    line += " --state {0} --report {0}.json -q"

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "onnxprune", *line.format(name).split()])

    whole = start("whole")
    for entries in (1, 3):
        process = start("killed")
        while len(list(place.glob("killed/*/macs*.json"))) < entries and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert start("killed").wait() == whole.wait() == 0
    reports = [json.loads(Path(f"{name}.json").read_text(encoding="utf-8")) for name in ("whole", "killed")]
    assert all(m["frontier"] is (key == "frontier") for r in reports for key in KEYS for m in r[key])
    plain = [[(m["name"], m["metric"], m["bytes"]) for key in KEYS for m in r[key]] for r in reports]
    assert plain[0] == plain[1]
    assert len(plain[0]) > 3, "it was killed before it was done"
    assert Path("whole.onnx").read_bytes() == Path("killed.onnx").read_bytes()


def test_a_damaged_member_is_made_again(place: Path) -> None:
    given = {"max_drop": 5.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz", "state": "st", **FAST}
    report = tune("in.onnx", "out.onnx", **given)
    best = report.chosen()
    assert best is not None
    good = Path(best["path"]).read_bytes()
    Path(best["path"]).write_bytes(good[:-7])
    tune("in.onnx", "out.onnx", **given)
    assert Path(best["path"]).read_bytes() == good == Path("out.onnx").read_bytes()


def test_other_samples_are_another_search(place: Path) -> None:
    given = {"max_drop": 5.0, "labels": "y", "held_out": "e.npz", "state": "st", **FAST}
    tune("in.onnx", "out.onnx", calib="s.npz", **given)
    data = dict(np.load("s.npz"))
    np.savez("s.npz", x=data["x"] * 1.5, y=data["y"])
    found = [tune("in.onnx", "out.onnx", calib="s.npz", **given, threads=1).notes for _ in range(2)]
    assert len(list(Path("st").iterdir())) == 2
    said = [any("since these differ: the samples, --threads" in note for note in notes) for notes in found]
    assert said == [True, False]


def test_what_was_best_is_there_whenever_it_is_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, seen = Members.make, []

    def make(self: Members, member: object) -> dict:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(real(self, member))
        return seen[-1]

    monkeypatch.setattr(Members, "make", make)
    line = "tune in.onnx out.onnx --max-drop 20 --calib s.npz --labels y --eval e.npz --recover lstsq -q"
    assert cli.main(line.split()) == 130
    said = capsys.readouterr().err
    (state,) = (str(folder) for folder in Path("out.tune").iterdir())
    assert f"interrupted; {state!r}, 'out.onnx' had been written, whole; the same command goes on" in said
    assert "json" not in said, "of the state's own files nothing is said"
    good = [e for e in seen if e["metric"] >= 80]
    best = min(good, key=lambda e: e["bytes"])
    assert Path("out.onnx").stat().st_size == best["bytes"]


def test_time_that_is_over_keeps_what_is_done(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Members.make

    def make(self: Members, member: object) -> dict:
        if len(self.entries) == 2:
            raise OutOfTime
        return real(self, member)

    monkeypatch.setattr(Members, "make", make)
    given = {"max_drop": 20.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz", **FAST}
    report = tune("in.onnx", "out.onnx", minutes=5.0, **given)
    assert not report.complete
    assert len(report.members) == 2
    assert any("--minutes 5" in note for note in report.notes)


def test_a_trial_that_takes_too_long_is_stopped_and_begun_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No trial was done before, so nobody could know; the next run with the same state does it."""
    real = Members._made

    def made(self: Members, recipe: members.Recipe) -> dict:
        self.deadline.start -= late[0]
        return real(self, recipe)

    monkeypatch.setattr(Members, "_made", made)
    given = {"max_drop": 20.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz", "minutes": 1.0, **FAST}
    late = [61.0]
    with pytest.raises(
        NotFaster, match=r"no other model was done in the time.*goes on, or give more --minutes"
    ):
        tune("in.onnx", "out.onnx", **given)
    assert not list(place.glob("out.tune/*/*.onnx"))
    late[0] = 0.0
    assert tune("in.onnx", "out.onnx", **given).complete


def test_nothing_better_is_said_and_nothing_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Members, "race", lambda self, path: {"ratio": 0.9, "interval": [0.8, 1.1], **BEFORE})
    given = {"max_drop": 20.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz", **FAST}
    with pytest.raises(NotFaster, match=r"faster than the input \(.* loses \S+ at 0.90x"):
        tune("in.onnx", "out.onnx", **given)
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize("target", ["params=0.8", "latency=3.4ms", "macs=0.9+bytes=90%"])
def test_a_target_ends_the_search_with_the_first_that_meets_it(place: Path, target: str) -> None:
    given = {"max_drop": 5.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz", **FAST}
    whole = tune("in.onnx", "whole.onnx", state="st", **given)
    report = tune("in.onnx", "out.onnx", state="other", target=target, **given)
    best = report.chosen()
    assert best is not None
    assert report.complete
    assert best["processes"] == 2, "it is timed in other processes before the search ends"
    assert len(report.members) < len(whole.members)
    whole_best = whole.chosen()
    assert whole_best is not None
    assert best["bytes"] >= whole_best["bytes"], "what was not asked for is left"
    kept = {
        "params": best["parameters"] / report.original["parameters"],
        "bytes": best["bytes"] / report.original["bytes"],
    }
    kept |= {"macs": best["macs"] / report.original["macs"], "latency": 4.0 / best["speedup"] / 3.4}
    limits = {"params=0.8": {"params": 0.8}, "latency=3.4ms": {"latency": 1.05}}
    for kind, most in limits.get(target, {"macs": 0.9, "bytes": 0.9}).items():
        assert kept[kind] <= most


def test_a_target_that_is_too_much_is_refused_with_the_nearest(place: Path) -> None:
    given = {"max_drop": 5.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz", **FAST}
    with pytest.raises(
        NotFaster,
        match=r"meets latency=0\.05 \(.* comes nearest, with latency=0\.\d+; it is .*\.onnx; widths .*: with a tenth",
    ):
        tune("in.onnx", "out.onnx", target="latency=0.05", **given)
    assert not Path("out.onnx").exists()
    with pytest.raises(UsageError, match="one value of each kind"):
        tune("in.onnx", "out.onnx", target="macs=0.5,0.7", **given)


def test_a_metric_of_ones_own_and_the_smallest_file(place: Path) -> None:
    Path("m.py").write_text(
        "import numpy as np, onnxruntime as ort\n"
        "def evaluate(session):\n"
        "    d = np.load('e.npz')\n"
        "    return (session.run(None, {'x': d['x']})[0].argmax(1) == d['y']).mean()\n",
        encoding="utf-8",
    )
    line = "tune in.onnx out.onnx --max-drop 5 --calib s.npz --metric m.py:evaluate --minimize bytes --recover lstsq"
    (place / "s.npz").unlink()
    np.savez("s.npz", x=np.load("e.npz")["x"])
    source = Path("in.onnx").read_bytes()
    for body in ("return 0", "return [1] * 9 + [0]", "import os; os.remove(path)", "open(path, 'w').close()"):
        Path("bad.py").write_text(f"def evaluate(path): {body}\n", encoding="utf-8")
        assert cli.main([*line.replace("m.py", "bad.py").split(), "-q"]) in (2, 8)
    assert Path("in.onnx").read_bytes() == source, "a script gets a copy"
    assert not Path("out.tune").exists(), "nothing was found that another search could go on from"
    assert cli.main([*line.split(), "--report", "r.json", "-q"]) == 0
    report = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert report["metric"]["most"] == 0.05, "a share: five points are 0.05"
    best = next(m for key in KEYS for m in report[key] if m["name"] == report["best"])
    assert best["holds"]
    assert best["bytes"] < report["original"]["bytes"]
    assert cli.main([*line.split(), "--report", "r.html", "-q"]) == 0
    assert "<svg" in Path("r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("judge", [{"metric": "m.py"}, {"held_out": "e.npz"}])
def test_labels_are_for_fits_where_another_judges(
    place: Path, monkeypatch: pytest.MonkeyPatch, judge: dict[str, str]
) -> None:
    """Labelled samples go with a metric, and with any fit."""
    monkeypatch.setattr(explore, "STEPS", 1)
    fitted, real = [], on_samples.finetune

    def finetune(
        analysis: object, original: object, dead: object, samples: Samples, **more: object
    ) -> object:
        fitted.append(samples.labels is not None and samples.count)
        return real(analysis, original, dead, samples, **more)

    monkeypatch.setattr(on_samples, "finetune", finetune)
    Path("m.py").write_text("def evaluate(path): return 0.5", encoding="utf-8")
    report = tune("in.onnx", "out.onnx", max_drop=20, calib="s.npz", labels="y", recover="finetune", **judge)
    assert report.metric["name"] == ("evaluate" if "metric" in judge else "accuracy")
    assert fitted
    assert all(count > 100 for count in fitted)


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"labels": "y", "held_out": "s.npz"}, UsageError, "--eval is what --calib is"),
        (
            {"labels": "y", "metric": "m.py", "held_out": "e.npz"},
            UsageError,
            "--eval goes with --labels alone",
        ),
        ({}, UsageError, "either --metric"),
        ({"labels": "y", "max_drop": 0.1, "held_out": "e.npz"}, CalibrationError, "takes 1000 at least"),
        ({"labels": "y", "max_drop": 100.0, "held_out": "e.npz"}, UsageError, "let all of the metric go"),
        ({"labels": "z", "held_out": "e.npz"}, CalibrationError, "no array 'z'|'y'"),
    ],
)
def test_what_cannot_be_told_is_refused_first(place: Path, more: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        tune("in.onnx", "out.onnx", **{"max_drop": 5.0, "calib": "s.npz", **more}, **FAST)


def test_levers_join_cuts_and_what_is_remembered_is_all_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore, "levers", lambda aim: [Lever("int8", "dynamic")])
    monkeypatch.setattr(explore, "ladders", lambda aim: [explore.Ladder("bytes", 1)])
    monkeypatch.setattr(Lever, "apply", lambda self, source, output, samples: shutil.copy(source, output))
    given = {
        "max_drop": 20.0,
        "calib": "s.npz",
        "labels": "y",
        "held_out": "e.npz",
        "minimize": "bytes",
        **FAST,
    }
    reports = [tune("in.onnx", "out.onnx", state="st", **given) for _ in range(2)]
    names = [{m["name"] for m in report.members} for report in reports]
    assert names[0] == names[1]
    both = {name for name in names[0] if name.endswith("-int8-dynamic")}
    assert both
    assert {name.removesuffix("-int8-dynamic") for name in both} <= names[0]


def test_a_lever_whose_file_does_not_run_is_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantisers write files that onnxruntime then refuses; the search goes on without them."""
    real = Members.race

    def race(self: Members, path: Path) -> dict:
        if "int8" in path.name:
            raise UsageError("The model can't be timed on CPUExecutionProvider.")
        return real(self, path)

    monkeypatch.setattr(Members, "race", race)
    monkeypatch.setattr(explore, "levers", lambda aim: [Lever("int8", "dynamic")])
    monkeypatch.setattr(Lever, "apply", lambda self, source, output, samples: shutil.copy(source, output))
    given = {"max_drop": 20.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz", **FAST}
    report = tune("in.onnx", "out.onnx", **given)
    assert report.refused == {"int8-dynamic": "The model can't be timed on CPUExecutionProvider."}
    assert report.chosen() is not None


@pytest.mark.parametrize(
    ("judge", "count"),
    [({"labels": "y", "held_out": "e.npz"}, 200), ({"metric": "m.py:evaluate"}, 200), ({"labels": "y"}, 180)],
)
def test_levers_see_all_samples_that_nobody_judges_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, judge: dict[str, str], count: int
) -> None:
    seen = []

    def applied(self: Lever, source: Path, output: Path, samples: Samples) -> None:
        seen.append(samples.count)
        onnx.save(onnx.load(source), output)

    monkeypatch.setattr(Lever, "apply", applied)
    monkeypatch.setattr(explore, "levers", lambda aim: [Lever("int8", "static")])
    Path("m.py").write_text("def evaluate(path): return 1.0")
    if "labels" not in judge:
        np.savez("s.npz", x=np.load("s.npz")["x"])
    tune("in.onnx", "out.onnx", max_drop=20.0, calib="s.npz", **judge, **FAST)
    assert set(seen) == {count}


def test_the_best_is_fitted_more_deeply_at_the_end(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "FEWER", 1)
    monkeypatch.setattr(explore, "STEPS", 3)
    given = {"max_drop": 20.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz"}
    report = tune("in.onnx", "out.onnx", **given)
    deep = [m for m in report.members if m["name"].endswith("-by1-distill")]
    assert len(deep) == 1
    share = float(deep[0]["name"].removeprefix("macs").removesuffix("-by1-distill"))
    before = [m for m in report.members if m["name"] != deep[0]["name"]]
    assert {m["name"].partition("-")[2] for m in before} == {"by1-lstsq", "by1"}
    least = min(float(m["name"].partition("-")[0][4:]) for m in before if m["holds"])
    assert share == pytest.approx(explore.CLOSE * least, rel=0.01)
    assert not [m for m in tune("in.onnx", "out.onnx", **given, **FAST).members if "distill" in m["name"]]
