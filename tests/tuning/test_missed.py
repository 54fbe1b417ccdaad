"""A search that misses what was asked for tells what was tried, and what it had no time for."""

import json
from pathlib import Path

import numpy as np
import pytest

from onnxprune import cli
from onnxprune.api import tune
from onnxprune.errors import OnnxPruneError
from onnxprune.tuning import explore, missed
from onnxprune.tuning.members import Lever, OutOfTime
from onnxprune.tuning.missed import Missed
from tests.tuning.test_tune import FAST, place

__all__ = ["place"]

LINE = "tune in.onnx out.onnx --max-drop 5 --calib s.npz --labels y --eval e.npz --recover lstsq --target latency=0.05"


@pytest.mark.parametrize("form", ["tables", "json"])
def test_a_missed_target_leaves_the_report_and_prints_the_frontier(
    place: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert cli.main([*LINE.split(), "--report", "r.json", *(["--json"] if form == "json" else [])]) == 9
    report = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert report["best"] is None
    assert "output" not in report["files"]
    names = [member["name"] for member in report["frontier"]]
    assert names
    shown = capsys.readouterr()
    if form == "json":
        assert json.loads(shown.out)["frontier"] == report["frontier"]
    else:
        assert "nothing was found that meets latency=0.05 and loses no more than 5 of accuracy" in shown.out
        assert all(name in shown.out for name in names)
    assert "no model was written; ask for less" in shown.err
    assert "is whole: " in shown.err
    assert "'r.json'." in shown.err
    assert not any("the best was chosen" in note for note in report["notes"])
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize("target", [(), ("latency=0.05",)])
def test_time_that_is_over_is_no_fault_of_what_was_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, target: tuple[str, ...]
) -> None:
    several = [Lever("int8", name) for name in ("first", "second")]

    def apply(self: Lever, source: Path, output: Path, samples: object) -> None:
        if self.setting == "second":
            raise OutOfTime
        raise OnnxPruneError("No layer can be quantised.")

    for module in (explore, missed):
        monkeypatch.setattr(module, "levers", lambda aim: several)
    monkeypatch.setattr(Lever, "apply", apply)
    given = {"max_drop": 5.0, "calib": "s.npz", "labels": "y", "held_out": "e.npz", "minutes": 5.0, **FAST}
    with pytest.raises(Missed) as caught:
        tune("in.onnx", "out.onnx", target=target, **given)
    said = str(caught.value)
    assert "--minutes 5 were over before all was tried, with int8-second not tried yet" in said
    assert "int8-first: No layer can be quantised)" in said
    assert "the same command goes on, or give more --minutes." in said
    assert "ask for less" not in said
    assert not caught.value.report.complete


def test_a_script_that_judges_too_few_is_asked_to_judge_more(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--eval is for labels; and what is refused leaves nothing that could be told of."""
    Path("few.py").write_text("def evaluate(path): return [1] * 9 + [0]", encoding="utf-8")
    line = "tune in.onnx out.onnx --max-drop 5 --calib s.npz --metric few.py"
    np.savez("s.npz", x=np.load("s.npz")["x"])
    assert cli.main(line.split()) == 8
    said = capsys.readouterr().err
    assert "let the script judge more items" in said
    assert "had been written" not in said
