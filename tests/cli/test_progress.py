"""Progress: what is said, when, and whether the time left is right."""

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import chain

import onnxprune
from onnxprune import progress
from onnxprune.cli.progress import Plain, showing
from onnxprune.progress import Milestone, StageClock, Whole, read
from onnxprune.report.live import live


def test_layers_are_weighed_by_their_cost() -> None:
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    samples = {"x": np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)}
    told: list[str] = []
    onnxprune.prune(model, ratio=0.5, align=None, calib=samples, progress=told.append)
    for stage in ("calibrate", "fit"):
        steps = [text for text in told if isinstance(text, Milestone) and text.startswith(f"{stage} ")]
        assert [step.split(":")[0] for step in steps] == [f"{stage} {n + 1}/2" for n in range(2)]
        assert steps[0].done == 0
        assert 0.9 < steps[1].done < 1  # a 3x3 convolution on 8 x 8 positions, then a classifier on one


def test_looks_are_counted() -> None:
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    samples = {"x": np.random.default_rng(0).normal(size=(80, 3, 8, 8)).astype(np.float32)}
    told: list[str] = []
    onnxprune.prune(model, target="macs=0.6", align=None, calib=samples, trials=8, progress=told.append)
    steps = [text for text in told if text.startswith("weigh ")]
    looks = int(steps[0].split(":")[0].split("/")[1]) - 2  # a quarter as many fits of whole cuts
    assert 1 <= looks <= 8
    assert [step.split(":")[0] for step in steps] == [f"weigh {n + 1}/{looks + 2}" for n in range(len(steps))]
    assert all(step.endswith(": trial fit") == (n >= looks) for n, step in enumerate(steps))
    assert [read(step).done for step in steps] == [pytest.approx(n / (looks + 2)) for n in range(len(steps))]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0.5, 20), min_size=6, max_size=40), st.floats(0.1, 5))
@settings(deadline=None)
def test_weighed_steps_tell_the_time_that_is_left(costs: list[float], unit: float) -> None:
    """Steps that take what they were said to cost are told right from the first estimate on."""
    watch, now, told = StageClock(), 0.0, 0
    for n, cost in enumerate(costs):
        watch.tell(Milestone.of("fit", f"layer{n}", n, costs), now)
        left = watch.left(now)
        if left is not None:
            told += 1
            assert left == pytest.approx(unit * sum(costs[n:]), rel=1e-6)
            assert watch.left(now + 0.25 * left) == pytest.approx(0.75 * left, rel=1e-6)
        now += unit * cost
    before_last = sum(costs[:-1])
    assert bool(told) or unit * before_last < 1.001 * progress.SOON or before_last < 0.031 * sum(costs)


def test_steps_without_weights_count_alike() -> None:
    """The control: with the cost at the end, a plain count is far too hopeful."""
    costs = [1.0] * 9 + [91.0]
    watch, now = StageClock(), 0.0
    for n, cost in enumerate(costs):
        watch.tell(f"fit {n + 1}/10: layer{n}", now)
        if n == 9:
            assert watch.left(now) == pytest.approx(1.0)  # in truth 91
        now += cost


def test_a_new_stage_starts_its_own_clock() -> None:
    watch = StageClock()
    assert watch.tell("analyse", 0)
    assert watch.left(50) is None
    assert watch.tell("calibrate 1/4: a", 50)
    assert watch.left(60) is None  # nothing is done yet
    assert not watch.tell("calibrate 2/4: b", 60)
    assert watch.left(60) == pytest.approx(30)
    assert watch.tell("calibrate 1/4: a", 61)  # once more from the start
    assert watch.left(70) is None


@pytest.mark.parametrize(
    "text", ["verify", "agreement 0.93", "macs=0.4: 3/0", "fit 5/4: x", "trial 1/2 of it"]
)
def test_other_texts_are_no_steps(text: str) -> None:
    assert read(text) == progress.Seen(text)


def test_a_pipe_hears_little() -> None:
    clock, stream = Clock(), io.StringIO()
    tell = Plain(stream, every=10, clock=clock)
    for n in range(60):
        tell(f"calibrate {n + 1}/60: layer{n}")
        clock.now += 1
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "[10 s] calibrate 11/60: layer10, about 50 s left in this stage"
    short, stream = Clock(), io.StringIO()
    tell = Plain(stream, every=10, clock=short)
    for n in range(90):
        tell(f"calibrate {n + 1}/90: layer{n}")
        short.now += 0.1
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with live(stream) as tell:
        for n in range(3):
            tell(f"fit {n + 1}/3: [bold]layer{n}")  # names aren't markup
    assert "fit 3/3: [bold]layer2" in stream.getvalue()


def test_who_hears_what() -> None:
    stream = io.StringIO()
    with showing(quiet=True, verbose=False, stream=stream) as tell:
        assert tell is None
    with showing(quiet=False, verbose=True, stream=stream) as tell:
        assert tell is not None
        tell("analyse")
    assert stream.getvalue().endswith(" s] analyse\n")
    with showing(quiet=False, verbose=False, stream=stream) as tell:
        assert isinstance(tell, Plain)


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo terminal")
def test_results_stay_on_standard_output(tmp_path: Path) -> None:
    """With the live line on a terminal, a pipe behind standard output gets the table and nothing else."""
    import pty

    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, tmp_path / "m.onnx")
    samples = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=samples)
    ours, theirs = pty.openpty()
    line = ["prune", "m.onnx", "o.onnx", "--ratio", "0.5", "--calib", "c.npz", "--align", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune", *line],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, text=True, check=False,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    drawn = b""
    with contextlib.suppress(OSError):  # how a closed terminal ends
        while chunk := os.read(ours, 4096):
            drawn += chunk
    os.close(ours)
    assert done.returncode == 0, drawn
    assert done.stdout.startswith("             ")
    assert "wrote o.onnx" in done.stdout
    assert "\x1b" not in done.stdout
    assert any(
        stage in drawn for stage in (b"load", b"calibrate", b"fit", b"verify")
    )  # as far as it was slow enough
    assert b"wrote o.onnx" not in drawn


def test_nothing_is_silent_for_long() -> None:
    """What is worked at is said again, also where nothing new is told."""
    clock, stream = Clock(), io.StringIO()
    plain = Plain(stream, every=10, clock=clock)
    plain.beat()
    plain("fit 1/2: conv1")
    clock.now += 9
    plain.beat()
    assert stream.getvalue() == ""
    for _ in range(3):
        clock.now += 10
        plain.beat()
    assert [line.split("]")[1] for line in stream.getvalue().splitlines()] == [" fit 1/2: conv1"] * 3


def test_a_line_is_written_while_a_long_step_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.cli.progress.EVERY", 0.1)
    stream = io.StringIO()
    with showing(quiet=False, verbose=False, stream=stream) as tell:
        assert tell is not None
        tell("fit 1/2: conv1")
        for _ in range(100):
            if stream.getvalue():
                break
            time.sleep(0.1)
    assert "fit 1/2: conv1" in stream.getvalue()
    count = threading.active_count()
    assert not any(thread.name == "beat" for thread in threading.enumerate()), count


def test_a_whole_work_never_goes_back() -> None:
    told: list[str] = []
    whole = Whole(told.append, "tune", 10, what="the input")
    whole("samples")
    for step, done in ((4, 0.0), (5, 0.7), (6, 0.2)):
        whole.at(step, f"m{step}", done)
        whole("fit 2/8: conv")
    assert told[1] == "tune 4/10: m4: fit 2/8: conv"
    assert [read(text).done for text in told] == [0.0, 0.3, 0.7, 0.7]
    assert {read(text).stage for text in told} == {"tune"}
    whole.at(12, "more than were known")
    whole("fit")
    assert told[-1].startswith("tune 12/12: ")
    assert read(told[-1]).done == pytest.approx(11 / 12)
