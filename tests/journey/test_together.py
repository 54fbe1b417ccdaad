"""Many processes on one output, signals, and what belongs together."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from two_layers import W, contents, embedded, halve, loads_halved, two_layers

from onnxprune.errors import OnnxPruneError, OutputError
from onnxprune.files import holding
from onnxprune.files.commit import alone, sweep, together, write_text, written
from onnxprune.files.holding import temporary
from onnxprune.model import Model

MANY = 10


def tidy(folder: Path) -> None:
    assert [name for name in contents(folder) if "/." in f"/{name}"] == []


def valued(source: Path, value: int) -> Model:
    model = Model.load(source).fork()
    model.put("w", np.full_like(W, value))
    model.put("v", np.full_like(W, value))
    return model


def uniform(path: Path) -> None:
    """All weights are from one writer."""
    model = Model.load(path)
    assert len({float(x) for name in ("w", "v") for x in np.unique(model.weight(name))}) == 1


@pytest.mark.parametrize("over", [False, True])
def test_ten_at_once_on_one_output(tmp_path: Path, over: bool) -> None:
    source, out = two_layers(tmp_path / "in"), tmp_path / "out.onnx"
    if over:
        valued(source, -1).save(out)
    models = [valued(source, n) for n in range(MANY)]
    start = threading.Barrier(MANY)

    def save(model: Model) -> None:
        start.wait()
        model.save(out)

    with ThreadPoolExecutor(MANY) as pool:
        list(pool.map(save, models))
    uniform(out)
    assert sorted(contents(tmp_path)) == ["in/model.onnx", "in/model.onnx.data", "out.onnx", "out.onnx.data"]


def test_ten_at_once_in_place(tmp_path: Path) -> None:
    source = two_layers(tmp_path)
    models = [valued(source, n) for n in range(MANY)]
    start = threading.Barrier(MANY)

    def save(model: Model) -> str:
        start.wait()
        try:
            model.save(source, in_place=True)
        except OnnxPruneError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(MANY) as pool:
        said = list(pool.map(save, models))
    assert said.count("") == 1  # who comes second has read what is no more
    assert all(
        "has been changed or removed by another program since it was read" in text for text in said if text
    )
    uniform(source)
    assert sorted(contents(tmp_path)) == ["model.onnx", "model.onnx.data"]


SCRIPT = """
import sys, numpy as np
from onnxprune.model import Model
from onnxprune.errors import OnnxPruneError
try:
    model = Model.load(sys.argv[1]).fork()
    for name in "wv":
        model.put(name, np.full((32, 32), int(sys.argv[3]), np.float32))
    model.save(sys.argv[2], in_place=True)
except OnnxPruneError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.parametrize("in_place", [False, True])
def test_ten_processes_on_one_output(tmp_path: Path, in_place: bool) -> None:
    source = two_layers(tmp_path)
    out = source if in_place else tmp_path / "out.onnx"
    commands = [[sys.executable, "-c", SCRIPT, str(source), str(out), str(n)] for n in range(MANY)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0 or said.startswith("refused: "), said
        assert len(said.splitlines()) <= 1
    assert 0 in {process.returncode for process in running}
    uniform(out)
    tidy(tmp_path)
    assert len(contents(tmp_path)) == (2 if in_place else 4)


def test_in_place_twice_from_one_model(tmp_path: Path) -> None:
    source = two_layers(tmp_path)
    model = Model.load(source)
    for value in (1, 2):
        model.put("w", np.full_like(W, value))
        model.fork().save(source, in_place=True)
    assert np.all(Model.load(source).weight("w") == 2)
    assert sorted(contents(tmp_path)) == ["model.onnx", "model.onnx.data"]


def test_in_place_what_another_program_wrote_stays(tmp_path: Path) -> None:
    source = embedded(tmp_path)
    model = halve(Model.load(source))
    source.write_bytes(source.read_bytes() + b"")
    os.utime(source, ns=(1, 1))
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="changed or removed by another program since it was read"):
        model.save(source, in_place=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_signal_waits_while_files_take_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    source, out = two_layers(tmp_path / "in"), tmp_path / "out.onnx"
    valued(source, -1).save(out)
    came: list[int] = []
    at: list[int] = []
    plain, old = os.replace, signal.signal(number, lambda n, _: came.append(n))

    def signalled(*given: Path) -> None:
        signal.raise_signal(number)
        at.append(len(came))
        plain(*given)

    monkeypatch.setattr(os, "replace", signalled)
    try:
        halve(Model.load(source)).save(out)
    finally:
        signal.signal(number, old)
    loads_halved(out)
    tidy(tmp_path)
    assert at == [0, 0, 0]  # model, data, model
    assert came == [number]


def _stopped(folder: Path, number: signal.Signals) -> None:
    with together() as files:
        files.write(folder, lambda file: file.write(b"half"), None)
        assert len(contents(folder)) == 1
        signal.raise_signal(number)


def test_a_signal_that_ends_the_process_lets_temporary_files_go(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,):
        old = signal.signal(number, signal.SIG_DFL)
        try:
            with pytest.raises(SystemExit) as caught:
                _stopped(tmp_path, number)
            assert caught.value.code == 128 + number
            assert signal.getsignal(number) == signal.SIG_DFL
        finally:
            signal.signal(number, old)
        assert contents(tmp_path) == {}


def test_what_is_ignored_stays_ignored() -> None:
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("no SIGHUP")
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with holding.cleaning(), holding.signals_deferred():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def _broken_off(source: Path, folder: Path) -> None:
    with together():
        halve(Model.load(source)).save(folder / "o.onnx")
        write_text(folder / "r.json", "report")
        with alone():
            write_text(folder / "cache.json", "kept")
        raise RuntimeError


def test_what_belongs_together_is_written_together(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "in")
    before, since = contents(tmp_path), len(written())
    with pytest.raises(RuntimeError):
        _broken_off(source, tmp_path)
    assert contents(tmp_path) == {"cache.json": b"kept", **before}
    assert written()[since:] == []
    with together():
        halve(Model.load(source)).save(tmp_path / "o.onnx")
        write_text(tmp_path / "r.json", "report")
        assert not (tmp_path / "o.onnx").exists()
    loads_halved(tmp_path / "o.onnx")
    assert [path.name for path in written()[since:]] == ["r.json", "o.onnx"]


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    (tmp_path / "keep.tmp").touch()
    other, gone = temporary(tmp_path, 12), [temporary(tmp_path, 123), temporary(tmp_path, 123)]
    other.touch()
    gone[0].write_text("half")
    gone[1].mkdir()
    (gone[1] / "m.onnx").touch()
    assert sorted(sweep(tmp_path, 123)) == sorted(gone)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([other.name, "keep.tmp"])
