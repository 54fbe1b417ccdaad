"""A metric is the user's own code: whatever it does, the answer is a number or one sentence."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import convs

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.tuning.floor import Floor, lost_between
from onnxprune.tuning.metric import Score, answer, script_of

SCRIPT = """
import sys, os, time
import numpy as np

def number(path): return 0.5
def zero_d(path): return np.array(0.25, np.float32)
def items(path): print("noise"); return [1.0, 0.0, 1.0, 1.0]
def of_session(session): return len(session.get_inputs())
def of_path(model): return os.path.getsize(model)
def raising(path): raise ValueError("no data\\nat all")
def of_other_name(model): return model.run(None, {})
def of_array(path): return np.ones(3).score
def nothing(path): pass
def nan(path): return float("nan")
def matrix(path): return np.ones((2, 3))
def text(path): return "0.9"
def texts(path): return ["0.9", "0.8"]
def flag(path): return True
def numpy_flag(path): return np.bool_(True)
def complex_one(path): return 0.5 + 1j
def complex_items(path): return [0.5, 1j]
def right(path): return np.array([True, False, True, True])
def crashing(path): os.kill(os.getpid(), 11)
def told(path): print("what I see"); raise ValueError("no data")
def leaving(path): sys.exit(3)
def dying(path): os._exit(0)
def slow(path): time.sleep(60)
def large(path): return float(np.ones(110_000_000).mean())
def deleting(path): os.remove(path); return 0.5
def rewriting(path): open(path, "ab").write(b"x"); return 0.5
def several(path): return 0.9, 30
def one_by_one(path): yield from (1.0, 0.0, 1.0, 1.0)
class Judge:
    def __call__(self, session): return len(session.get_inputs())
judge = Judge()
constant = 3
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "score.py"
    path.write_text(SCRIPT, encoding="utf-8")
    onnx.save(convs(), tmp_path / "m.onnx")
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [("number", 0.5), ("zero_d", 0.25), ("items", [1, 0, 1, 1]), ("of_session", 1),
     ("one_by_one", [1, 0, 1, 1]), ("right", [1, 0, 1, 1]), ("judge", 1), ("Judge", 1)],
)  # fmt: skip
def test_a_number_comes_back(script: Path, name: str, value: object) -> None:
    assert answer(str(script), name, str(script.with_name("m.onnx"))) == ("number", value)


def test_what_it_prints_is_told_where_all_is(
    script: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """With -v rooms are heard, and so is what a metric prints; standard output is no place for it."""
    model = script.with_name("m.onnx")
    score = script_of(f"{script}:items", None).of(model)
    assert (score.value, score.items) == (0.75, [1, 0, 1, 1])
    with pytest.raises(UsageError, match="fails with ValueError: no data; -v shows what it prints"):
        script_of(f"{script}:told", None).of(model)
    assert not caplog.messages
    caplog.set_level("INFO", "onnxprune")
    script_of(f"{script}:items", None).of(model)
    with pytest.raises(UsageError, match=r"no data\.$"):
        script_of(f"{script}:told", None).of(model)
    assert [r.getMessage() for r in caplog.records if r.name == "onnxprune.tuning"] == ["noise", "what I see"]
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="there is a wall on Linux only")
def test_a_metric_that_crashes_is_no_fault_of_the_model(script: Path) -> None:
    with pytest.raises(
        UsageError, match=r"crashing ends its process .* \(SIGSEGV\); it is not the model's work"
    ):
        script_of(f"{script}:crashing", None).of(script.with_name("m.onnx"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits hold on Linux")
def test_what_a_script_holds_is_its_own(script: Path) -> None:
    """Data and libraries of a metric take more than a small model; 880 MB here."""
    assert script_of(f"{script}:large", None).of(script.with_name("m.onnx")).value == 1.0


def test_a_path_is_given_where_no_session_is_asked_for(script: Path) -> None:
    model = script.with_name("m.onnx")
    assert answer(str(script), "of_path", str(model)) == ("number", model.stat().st_size)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raising", "fails with ValueError: no data at all"),
        ("of_array", "fails with AttributeError: 'numpy.ndarray' object has no attribute 'score'"),
        ("of_other_name", "a parameter named session is given onnxruntime's session"),
        ("dying", "ends its process before it returns"),
        ("slow", "takes longer than 2 s"),
        ("deleting", "changes or removes the file that it is given"),
        ("rewriting", "changes or removes the file that it is given"),
    ],
)
def test_anything_else_is_a_sentence(script: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        script_of(f"{script}:{name}", 2.0 if name == "slow" else None).of(script.with_name("m.onnx"))
    text = str(caught.value)
    assert said in text
    assert "\n" not in text
    assert ("parameter named session" in text) == (name == "of_other_name")
    assert text.startswith(f"--metric {script}:{name} ")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "returns nothing"),
        ("nan", "returns NaN"),
        ("several", "returns a tuple; it must return the one number"),
        ("matrix", "returns an array of shape [2, 3]"),
        ("text", "returns '0.9', a str; it must return a real number"),
        ("texts", "returns ['0.9', '0.8'], a list; it must"),
        ("flag", "returns True, a bool; it must return a real number"),
        ("numpy_flag", "it must return a real number"),
        ("complex_one", "returns (0.5+1j), a complex; it must return a real number"),
        ("complex_items", "a list; it must return a real number"),
        ("leaving", "ends its process (sys.exit(3))"),
        ("absent", "has no absent()"),
        ("constant", "has no constant()"),
    ],
)
def test_what_is_no_number_is_said(script: Path, name: str, said: str) -> None:
    kind, text = answer(str(script), name, str(script.with_name("m.onnx")))
    assert kind == "fault"
    assert said in text


def test_a_script_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "here.py").touch()
    for text in ("module:evaluate", str(tmp_path), f"{tmp_path / 'here.py'}:"):
        with pytest.raises(UsageError, match=r"script\.py:evaluate"):
            script_of(text, None)
    with pytest.raises(UsageError, match=r"'nowhere/absent\.py', but there is no such file"):
        script_of("nowhere/absent.py:evaluate", None)


def test_a_point_of_a_share_is_a_hundredth_and_else_one() -> None:
    assert Floor.of(Score(0.9), 1.0, share=True, lower=False).most == 0.01
    assert Floor.of(Score(90.0), 1.0, share=True, lower=False).most == 1.0
    assert Floor.of(Score(90.0), 1.0, share=False, lower=False).most == 1.0
    with pytest.raises(UsageError, match="let all of the metric go"):
        Floor.of(Score(1.5), 2.0, share=True, lower=False)


def test_a_metric_below_zero_may_lose_more_than_it_is() -> None:
    """Such as a likelihood's logarithm, which has no end where all of it would be gone."""
    floor = Floor.of(Score(-3.0), 4.0, share=True, lower=False)
    assert floor.holds(Score(-7.0))
    assert not floor.holds(Score(-7.1))


def test_an_input_that_is_never_right_is_refused_for_what_it_is() -> None:
    with pytest.raises(UsageError, match="own metric is 0, so there is nothing to keep"):
        Floor.of(Score(0.0), 1.0, share=False, lower=False)
    assert Floor.of(Score(0.0), 1.0, share=False, lower=True).most == 1.0


def test_lower_may_be_better() -> None:
    up, down = (Floor(Score(10.0), 1.0, lower) for lower in (False, True))
    assert [up.holds(Score(v)) for v in (9.0, 8.9, 12.0)] == [True, False, True]
    assert [down.holds(Score(v)) for v in (11.0, 11.1, 8.0)] == [True, False, True]
    assert (up.lost(Score(9.0)), down.lost(Score(9.0))) == (1.0, -1.0)


@pytest.mark.parametrize("lower", [False, True])
def test_an_interval_covers_what_is_lost_and_is_paired(lower: bool) -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(5, 10, 400)  # items differ far more than models do
    after = before + (0.5 if lower else -0.5) + rng.normal(0, 0.1, 400)
    floor = Floor(Score(float(before.mean()), before.tolist()), 1.0, lower)
    interval = floor.interval(Score(float(after.mean()), after.tolist()))
    assert interval is not None
    low, high = interval
    assert 0.4 < low < 0.5 < high < 0.6
    assert floor.interval(Score(1.0)) is None


def test_right_and_wrong_of_few_items_says_little_even_where_none_is_lost() -> None:
    hits = np.full(20, 100.0)
    low, high = lost_between(hits, hits)
    assert low < -2 < 2 < high
    low, high = lost_between(np.full(20000, 100.0), np.full(20000, 100.0))
    assert -0.1 < low < high < 0.1


def test_a_floor_that_one_item_decides_is_refused_with_how_many_it_takes() -> None:
    items = [100.0] * 45 + [0.0] * 5
    with pytest.raises(CalibrationError, match=r"50 items.*takes 100 at least"):
        Floor.of(Score(90.0, items), 1.0, share=False, lower=False).resolvable()
    with pytest.raises(CalibrationError, match="at least; let the script judge more items, or a larger"):
        Floor.of(Score(90.0, items), 1.0, share=False, lower=False).resolvable(
            "let the script judge more items"
        )
    Floor.of(Score(90.0, items * 2), 1.0, share=False, lower=False).resolvable()
    with pytest.raises(CalibrationError, match="takes 100 at least"):
        Floor.of(Score(0.9, [i / 100 for i in items]), 1.0, share=True, lower=False).resolvable()
