"""What a killed process has left goes with the next run into the folder; what may still be in use stays."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from small_models import chain

import onnxprune
from onnxprune.files import holding
from onnxprune.files.holding import PREFIX, remove_orphans, scratch, temporary

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing is removed")

KILLED = """
import os, signal, sys
from pathlib import Path
from onnxprune.files.holding import scratch, temporary
path = temporary(Path(sys.argv[1]))
path.mkdir() if "folder" in sys.argv else path.write_bytes(b"half")
(path / "inside").write_bytes(b"half") if path.is_dir() else None
with scratch():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(folder: Path, *words: str) -> None:
    env = {**os.environ, "TMPDIR": str(folder)}
    assert subprocess.run([sys.executable, "-c", KILLED, str(folder), *words], env=env).returncode == -9


@pytest.mark.parametrize("words", [[], ["folder"]])
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, words: list[str]) -> None:
    killed(tmp_path, *words)
    assert len(list(tmp_path.iterdir())) == 2
    onnxprune.prune(chain(), tmp_path / "o.onnx", ratio=0.5, align=None)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert [name for name in left if name.startswith(PREFIX)] == []


def test_so_does_the_next_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch() as place:
        assert list(tmp_path.glob("onnxprune-*")) == [place]


def test_what_may_be_in_use_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own, orphan = temporary(tmp_path), temporary(tmp_path, gone.pid)
    with monkeypatch.context() as patch:
        patch.setattr(holding, "_here", lambda: "another host")
        elsewhere = temporary(tmp_path, gone.pid)
    foreign = tmp_path / f"{PREFIX}{gone.pid}.txt"
    for path in (own, orphan, elsewhere, foreign):
        path.write_bytes(b"")
    remove_orphans(tmp_path)
    assert set(tmp_path.iterdir()) == {own, elsewhere, foreign}
