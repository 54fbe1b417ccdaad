"""One calibration, many answers; curves that are kept and reused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_calibrated import images, residual

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.repair import Calibration


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))


def test_a_family_is_what_its_members_are_alone(tmp_path: Path) -> None:
    model, x = residual(redundant=False), {"x": images()}
    found = api.family(model, tmp_path / "s.onnx", target=("macs=0.8,0.5",), align=None, calib=x, trials=0)
    assert list(found) == ["macs=0.8", "macs=0.5"]
    for target, result in found.items():
        alone = onnxprune.prune(model, target=(target,), align=None, calib=x, trials=0)
        assert result.path == tmp_path / f"s-{target.replace('=', '')}.onnx"
        assert result.model == alone.model == onnx.load(result.path)
        assert all(line["holds"] for line in result.report.targets)
        assert result.report.options["target"] == [target]
    assert found["macs=0.5"].report.after.macs < found["macs=0.8"].report.after.macs


def test_curves_are_taken_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[int] = []
    measure = Calibration.measure_curves
    monkeypatch.setattr(Calibration, "measure_curves", lambda self: (calls.append(1), measure(self))[1])
    model, x = residual(), images()
    first = api.sensitivity(model, calib={"x": x})
    assert [line["half"] for line in first.groups] == sorted(
        (line["half"] for line in first.groups), reverse=True
    )
    assert api.sensitivity(model, calib={"x": x}) == first
    onnxprune.prune(model, target=("macs=0.6",), calib={"x": x}, trials=0)
    assert len(calls) == 1, "samples, model and criterion are the same"
    api.sensitivity(model, calib={"x": x + np.float32(0.01)})
    api.sensitivity(residual(seed=3), calib={"x": x})
    api.sensitivity(model, calib={"x": x}, criterion="wanda")
    assert len(calls) == 4
    for path in (tmp_path / "cache" / "curves").iterdir():
        kept = json.loads(path.read_text())
        kept["value"][0][1][0] = kept["value"][0][1][1]  # an order that names a unit twice
        path.write_text(json.dumps(kept))
    api.sensitivity(model, calib={"x": x})
    assert len(calls) == 5, "what is broken is measured again"


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, samples = tmp_path / "m.onnx", tmp_path / "s.npz"
    onnx.save(residual(), path)
    np.savez(samples, x=images(60))
    given = ["--calib", str(samples), "--trials", "0"]
    out = str(tmp_path / "{target}.onnx")
    assert (
        main(
            [
                "prune",
                str(path),
                out,
                "--target",
                "macs=0.8,0.6",
                *given,
                "--report",
                str(tmp_path / "r.json"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "Family" in printed
    assert (tmp_path / "macs0.6.onnx").exists()
    assert json.loads((tmp_path / "r-macs0.8.json").read_text())["targets"][0]["holds"]
    assert main(["prune", str(path), out, "--target", "macs=0.8,0.6", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert [line["target"] for line in lines] == ["macs=0.8", "macs=0.6"]
    assert main(["sensitivity", str(path), "--calib", str(samples), "--json"]) == 0
    assert {g["name"] for g in json.loads(capsys.readouterr().out)["groups"]} >= {"w0a:0", "w1a:0"}
    assert main(["sensitivity", str(path)]) == 2
    with pytest.raises(UsageError, match="several values"):
        onnxprune.prune(residual(), target=("macs=0.8,0.6",))
