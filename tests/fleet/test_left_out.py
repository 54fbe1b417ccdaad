"""What a fleet leaves out of a folder, and what it keeps out of its table."""

import json
from pathlib import Path

import onnx
import pytest
from small_models import chain, residual

from onnxprune.api import fleet
from onnxprune.cli import main
from onnxprune.errors import ModelError
from onnxprune.fleet import journey
from onnxprune.fleet.work import work


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two models."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    onnx.save(chain(), tmp_path / "in" / "a.onnx")
    onnx.save(residual(), tmp_path / "in" / "deep" / "b.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_other_commands_have_made_is_left_out_and_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journey, "apart", work)
    search = place / "in/fast.tune/0123456789abcdef"
    search.mkdir(parents=True)
    (search / "search.json").write_text("{}")
    for name in ("int8", "macs-0.5"):
        onnx.save(chain(), search / f"{name}.onnx")
    fleet("in", "in/before", ratio=0.5)
    (place / "in/own").mkdir()
    onnx.save(chain(), place / "in/own/fleet.onnx")
    (place / "in/own/fleet.json").write_text("a report of its own")
    assert main(["fleet", "in", "out", "--ratio", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "\nleft out: 2 .onnx that 'tune' keeps to go on from\n" in said
    assert "\nleft out: 2 .onnx that another fleet has made\n" in said
    told = json.loads((place / "out/fleet.json").read_text("utf-8"))
    assert [row["name"] for row in told["rows"]] == ["a", "deep-b", "own-fleet"]
    assert fleet(search, "asked", ratio=0.5).names == ["int8", "macs-0.5"], "who names it means it"
    with pytest.raises(ModelError, match=r"has no \.onnx file in it \(left out: 2 \.onnx that 'tune' keeps"):
        fleet("in/fast.tune", "none", ratio=0.5)


PRINTING = """
import numpy as np
def samples():
    print("what a script prints")
    return {"x": np.ones((40, 3, 8, 8), np.float32)}
"""


def test_what_a_script_prints_is_no_part_of_the_table(
    place: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (place / "s.py").write_text(PRINTING)
    caplog.set_level("INFO", "onnxprune.fleet")
    line = ["fleet", "in/deep", "out", "--ratio", "0.5", "--calib", "s.py:samples"]
    assert main([*line, "--json"]) == 0
    assert [row["name"] for row in json.loads(capfd.readouterr().out)["rows"]] == ["b"]
    assert "b: what a script prints" in caplog.messages
