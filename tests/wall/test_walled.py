"""Calls from Python behind the wall: the result comes back, errors too, and a crash becomes one."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import small_models

import onnxprune
from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.wall import board, process
from onnxprune.wall.process import call
from wall.test_wall import endless

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is a wall on Linux only")


def test_results_and_errors_come_back(tmp_path: Path) -> None:
    onnx.save(small_models.chain(), tmp_path / "m.onnx")
    found = call(onnxprune.plan, tmp_path / "m.onnx", ratio=0.5)
    assert found == onnxprune.plan(tmp_path / "m.onnx", ratio=0.5)
    with pytest.raises(ModelError, match="can't be read"):
        call(onnxprune.plan, tmp_path / "missing.onnx", ratio=0.5)


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ({"max_seconds": 0.5}, "takes longer than 0.5 s"),
        ({"max_memory": 20e6}, "needs more than 20 MB of memory"),
    ],
)
def test_limits_become_errors(limit: dict[str, float], says: str, tmp_path: Path) -> None:
    onnx.save(endless(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=says):
        call(onnxprune.prune, tmp_path / "m.onnx", tmp_path / "o.onnx", ratio=0.5, **limit)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_crash_becomes_an_error() -> None:
    with pytest.raises(ModelError, match=r"crashes the process \(SIGABRT\), so the model can't be used"):
        call(os.abort)


def test_what_a_call_writes_goes_if_the_caller_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def run(*_: object, **__: object) -> SimpleNamespace:
        assert board._board is not None
        seen.extend(board._board.litter)
        return SimpleNamespace(returncode=1, stderr=b"onnxprune: error: stopped")

    monkeypatch.setattr(process.subprocess, "run", run)
    with board.bounds(), pytest.raises(OnnxPruneError, match="stopped"):
        call(len, [])
    (folder,) = seen
    assert "onnxprune-" in folder.decode()
    assert not os.path.exists(folder)
