"""Fleets: stopped and gone on with, failures beside successes, one at a time in a folder, and any executor."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import chain, residual
from vocabulary_models import language

import onnxprune
from onnxprune.api import fleet
from onnxprune.cli import main
from onnxprune.errors import CalibrationError, ModelError, OutputError, UsageError
from onnxprune.fleet import journey
from onnxprune.fleet.spec import Job
from onnxprune.fleet.work import LOST, apart, work


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two models and one that is none."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    onnx.save(chain(), tmp_path / "in" / "a.onnx")
    onnx.save(residual(), tmp_path / "in" / "deep" / "b.onnx")
    (tmp_path / "in" / "bad.onnx").write_bytes(b"nonsense")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "fleet.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the jobs that are done in this process instead of another."""
    names: list[str] = []

    def here(job: Job) -> dict[str, object]:
        names.append(job.name)
        return work(job)

    monkeypatch.setattr(journey, "apart", here)
    return names


def test_failures_stand_beside_successes_and_nothing_is_done_twice(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = count(monkeypatch)
    line = ["fleet", "in", "out/new", "--target", "macs=0.7,0.5"]
    assert main(line) == 1
    said = capsys.readouterr()
    assert "4 done, 2 failed" in said.out
    assert said.err.endswith(
        "onnxprune: error: 2 of 6 could not be done; out/new/fleet.csv says why, and --retry tries them again.\n"
    )
    table = rows(place / "out/new")
    assert sorted(table) == [f"{n}-macs{t}" for n in ("a", "bad", "deep-b") for t in ("0.5", "0.7")]
    assert table["bad-macs0.5"]["status"] == "failed"
    assert table["bad-macs0.5"]["exit_code"] == "3"
    assert "isn't an ONNX model" in table["bad-macs0.5"]["error"]
    assert not (place / "out/new/bad-macs0.5.onnx").exists()
    for name in ("a-macs0.5", "deep-b-macs0.7"):
        row = table[name]
        assert row["status"] == "done"
        assert float(row["macs_after"]) < 0.75 * float(row["macs_before"])
        assert onnxprune.model.Model.load(place / "out/new" / row["output"]).sha256 == row["sha256"]
        assert json.loads((place / f"out/new/{name}.json").read_text())["sha256"]["output"] == row["sha256"]
    alone = onnxprune.prune("in/a.onnx", "alone.onnx", target=("macs=0.5",))
    assert alone.report.sha256["output"] == table["a-macs0.5"]["sha256"]
    assert len(names) == 6
    assert main(line) == 1
    assert len(names) == 6
    assert main([*line, "--retry"]) == 1
    assert sorted(names[6:]) == ["bad-macs0.5", "bad-macs0.7"]
    assert rows(place / "out/new").keys() == table.keys()


def test_what_has_changed_is_done_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = count(monkeypatch)
    (place / "in/bad.onnx").unlink()

    def again(**fields: object) -> list[str]:
        names.clear()
        assert not fleet("in", "out", **fields).failed
        return sorted(names)

    assert again(ratio=0.5) == ["a", "deep-b"]
    assert again(ratio=0.5) == []
    assert again(ratio=0.25) == ["a", "deep-b"]
    onnx.save(chain(12), place / "in/a.onnx")
    assert again(ratio=0.25) == ["a"]
    (place / "out/a.onnx").write_bytes((place / "in/a.onnx").read_bytes())  # not what was written
    assert again(ratio=0.25) == ["a"]
    (place / "out/deep-b.json").unlink()
    assert again(ratio=0.25) == ["deep-b"]
    spec = place / "f.toml"
    spec.write_text(
        '[options]\nratio = 0.25\ncalib = "s.npz"\nrecover = "lstsq"\n[[model]]\npath = "in/deep/b.onnx"\n'
    )
    names.clear()
    assert fleet(spec, "out").names == ["b"]
    assert sorted(rows(place / "out")) == ["a", "b", "deep-b"]  # rows of others stay
    np.savez(place / "s.npz", x=np.ones((40, 3, 8, 8), np.float32) * np.arange(40)[:, None, None, None])
    fleet(spec, "out")
    fleet(spec, "out")
    assert names == ["b", "b"]


def test_a_spec_says_what_is_made_of_each(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count(monkeypatch)
    (place / "f.toml").write_text(
        '[options]\ntarget = "macs=0.7,0.5"\n[[model]]\npath = "in/a.onnx"\nalign = 4\n'
        '[[model]]\npath = "in/deep/b.onnx"\nname = "fast"\nratio = 0.5\n'
    )
    table = fleet("f.toml", "out", target="macs=0.1")
    assert table.names == ["a-macs0.7", "a-macs0.5", "fast"]
    assert not table.failed
    assert table.rows["fast"]["target"] == "ratio=0.5"
    assert json.loads((place / "out/a-macs0.5.json").read_text())["options"]["align"] == 4


def test_ids_are_listed_beside_the_spec_and_what_is_listed_counts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = count(monkeypatch)
    (place / "spec").mkdir()
    onnx.save(language(head="own"), place / "spec/words.onnx")
    (place / "spec/f.toml").write_text('[[model]]\npath = "words.onnx"\nkeep_tokens = "ids"\n')
    for ids in ("1 2 3", "1 2 3", "1 2 3 4"):
        (place / "spec/ids").write_text(ids)
        assert not fleet("spec/f.toml", "out").failed
    assert names == ["words", "words"]


def test_a_fleet_that_is_killed_goes_on(place: Path) -> None:
    (place / "in/bad.onnx").unlink()
    more = 28  # so many that a test which isn't given the processor for a while still meets it at work
    for n in range(more):
        onnx.save(chain(8 + n), place / "in" / f"c{n}.onnx")
    line = [sys.executable, "-m", "onnxprune", "fleet", "in", "out", "--ratio", "0.5"]
    for stop in (signal.SIGKILL, signal.SIGINT):
        done = subprocess.Popen(line, stderr=subprocess.PIPE, start_new_session=True)
        before = len(rows(place / "out")) if (place / "out/fleet.csv").exists() else 0
        wait(lambda before=before: (place / "out/fleet.csv").exists() and len(rows(place / "out")) > before)
        os.killpg(done.pid, stop)
        assert done.wait(60) in (-stop, 130)
        assert done.stderr is not None
        said = done.stderr.read().decode()
        done.stderr.close()
        assert stop == signal.SIGKILL or "interrupted" in said
    first = {n: r for n, r in rows(place / "out").items() if r["status"] == "done"}
    assert 1 < len(first) < more + 2
    table = fleet("in", "out", ratio=0.5)
    assert len(table.names) == more + 2
    assert not table.failed
    last = rows(place / "out")
    assert {name: last[name] for name in first} == first  # with their times: they weren't done again
    assert not [p for p in (place / "out").iterdir() if p.suffix == ".tmp"]


def wait(for_: object) -> None:
    end = time.monotonic() + 120
    while not for_():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_are_worked_at_side_by_side(place: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    """Two that wait for each other meet where there are two at a time."""
    (place / "in/bad.onnx").unlink()
    barrier, met = threading.Barrier(2), []

    def together(job: Job) -> dict[str, object]:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(30 if jobs == 2 else 0.1)
            met.append(job.name)
        return {"status": "failed", "exit_code": 1, "error": "Not done."}

    monkeypatch.setattr(journey, "apart", together)
    fleet("in", "out", ratio=0.5, jobs=jobs)
    assert len(met) == (2 if jobs == 2 else 0)


def test_two_fleets_do_not_share_a_folder(place: Path) -> None:
    with (
        journey.alone_in(place),
        pytest.raises(
            OutputError, match=r"Another fleet writes into .*; wait for its end, or give another folder"
        ),
    ):
        fleet("in", place, ratio=0.5)
    with journey.alone_in(place):  # it is free again
        pass
    assert not (place / "fleet.csv").exists()
    assert not (place / ".fleet.lock").exists()


def test_a_lock_whose_file_went_meanwhile_is_taken_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has opened the file that another fleet removes at its end would share the folder with the next."""
    lock = journey._lock
    taken: list[int] = []

    def late(handle: int) -> None:
        if not taken:
            (place / ".fleet.lock").unlink()
        taken.append(handle)
        lock(handle)

    monkeypatch.setattr(journey, "_lock", late)
    with journey.alone_in(place):
        assert len(taken) == 2
        assert (place / ".fleet.lock").exists()


class Here(Executor):
    """Does what is submitted at once, and dies at the second."""

    def __init__(self, dies: int = 0) -> None:
        self.dies, self.seen = dies, 0

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.seen += 1
        future: Future[object] = Future()
        if self.seen == self.dies:
            future.set_exception(ConnectionError("the worker\nis gone"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_any_executor_gives_the_same_models(place: Path) -> None:
    made = {}
    for name, executor in (
        ("own", None),
        ("here", Here()),
        ("threads", ThreadPoolExecutor(2)),
        ("processes", ProcessPoolExecutor(2, mp_context=get_context("spawn"))),
    ):
        table = fleet("in", name, ratio=0.5, executor=executor, jobs=2)
        assert [row["name"] for row in table.failed] == ["bad"]
        made[name] = {n: row["sha256"] for n, row in table.rows.items()}
        if executor is not None:
            executor.submit(len, "").result()  # it stays open
            executor.shutdown()
    assert all(each == made["own"] for each in made.values())
    assert len(set(made["own"].values())) == 3


def test_a_worker_that_dies_is_said_and_its_job_is_tried_again(place: Path) -> None:
    table = fleet("in", "out", ratio=0.5, executor=Here(dies=1))
    lost = rows(place / "out")["a"]
    assert lost["status"] == LOST
    assert lost["error"] == (
        "Its worker was lost (ConnectionError: the worker is gone); the same command tries again."
    )
    assert len(table.failed) == 2
    assert [row["name"] for row in fleet("in", "out", ratio=0.5, executor=Here()).failed] == ["bad"]


def test_a_process_that_crashes_is_one_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inference session that takes its process with it."""
    monkeypatch.setattr(journey, "apart", lambda job: apart(job) if job.name == "a" else _crash(job))
    table = fleet("in", "out", ratio=0.5)
    assert table.rows["a"]["status"] == "done"
    assert table.rows["deep-b"]["status"] in (LOST, "failed")
    assert table.rows["deep-b"]["error"]


def _crash(job: Job) -> dict[str, object]:
    from onnxprune.fleet import work as module

    before, module.work = module.work, os._exit
    try:
        return apart(7)  # type: ignore[arg-type]
    finally:
        module.work = before


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("nothing", UsageError, "is no TOML"),
        ("", UsageError, "names no model"),
        ("model = 3", UsageError, "names no model"),
        ("[models]", UsageError, "has 'models' in it"),
        ("[[model]]\nratio = 0.5", UsageError, "Model 1 of .* has no path"),
        ('[[model]]\npath = "in/a.onnx"', UsageError, r"--ratio or --target must say .*\(for .*a.onnx"),
        ('[[model]]\npath = "in/a.onnx"\nratio = 2', UsageError, "--ratio must be at least 0 and below 1"),
        (
            '[[model]]\npath = "in/a.onnx"\nratio = 0.5\nshrink = 1',
            UsageError,
            "'shrink', which is no option",
        ),
        (
            '[[model]]\npath = "in/a.onnx"\nratio = 0.5\nignore = 3',
            UsageError,
            "--ignore must be a text or several",
        ),
        ('[[model]]\npath = "in/a.onnx"\nratio = 0.5\nname = "../a"', UsageError, "is no name of a file"),
        ('[[model]]\npath = "in/a.onnx"\nratio = 0.5\nname = ".."', UsageError, "is no name of a file"),
        ('[[model]]\npath = "in/a.onnx"\nratio = 0.5\nname = "fleet"', UsageError, "would be 'fleet.json'"),
        ('[[model]]\npath = "in/a\\u0000"\nratio = 0.5', UsageError, "is no name of a file"),
        ('[[model]]\npath = "in/a.onnx"\ntarget = 5', UsageError, "must be a text or a list of texts; got 5"),
        ('[[model]]\npath = "in/a.onnx"\ntarget = ["macs=0.5", 3]', UsageError, "or a list of texts"),
        *(
            (
                f'[options]\nratio=0.5\ncalib="{file}"\n[[model]]\npath = "in/a.onnx"',
                CalibrationError,
                rf"'calib' of .*a\.onnx' can't be .*: {why}",
            )
            for file, why in (
                ("none.npz", "there is no such file"),
                ("none.py:load", "there is no such file"),
                ("f.toml/../empty.npz", "there is no such file"),
                ("torn.npz", r"it is no \.npz file, or is truncated"),
                ("hollow", "the folder is empty"),
            )
        ),
        ('[[model]]\npath = "in/a.onnx"\nration = 0.5', UsageError, r"Did you mean 'ratio'\?"),
        (
            "[options]\nratio=0.5\n" + 2 * '[[model]]\npath = "in/a.onnx"\n',
            UsageError,
            "would both be written as",
        ),
    ],
)
def test_a_spec_that_is_none_is_refused(place: Path, spec: str, error: type[Exception], says: str) -> None:
    (place / "f.toml").write_text(spec)
    (place / "torn.npz").write_bytes(b"PK\x03\x04")
    (place / "hollow").mkdir(exist_ok=True)
    with pytest.raises(error, match=says) as caught:
        fleet("f.toml", "out")
    assert "\n" not in str(caught.value)
    assert not (place / "out").exists()


def test_places_that_cannot_be_are_refused(place: Path) -> None:
    with pytest.raises(ModelError, match="can't be read: No such file"):
        fleet("gone.toml", "out", ratio=0.5)
    (place / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no \.onnx file in it"):
        fleet("empty", "out", ratio=0.5)
    with pytest.raises(OutputError, match="'in' is the folder of the models"):
        fleet("in", "in", ratio=0.5)
    with pytest.raises(OutputError, match="can't be made"):
        fleet("in", "s.npz", ratio=0.5)
    (place / "out").mkdir()
    for text, why in {
        "{}": "it says no format",
        "[]": "it says no format",
        '{"format": 1, "rows": 3}': "it has no list of rows",
        '{"format": 1, "rows": [{"name": "a"}]}': "its row 1 has no 'model'",
        '{"format": 1, "rows": [null]}': "its row 1 has no 'name'",
    }.items():
        (place / "out/fleet.json").write_text(text)
        with pytest.raises(OutputError, match=rf"is no table of a fleet \({why}\)"):
            fleet("in", "out", ratio=0.5)
    (place / "shut/.fleet.lock").mkdir(parents=True)
    with pytest.raises(OutputError, match="'shut' can't be written"):
        fleet("in", "shut", ratio=0.5)
    with pytest.raises(UsageError, match="--jobs must be at least 1"):
        fleet("in", "out", ratio=0.5, jobs=0)
    with pytest.raises(UsageError, match="both say how much goes"):
        fleet("in", "out", ratio=0.5, target="macs=0.5")


def test_the_models_of_the_output_are_not_part_of_the_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(monkeypatch)
    assert fleet("in", "in/small", ratio=0.5).names == fleet("in", "in/small", ratio=0.5).names
