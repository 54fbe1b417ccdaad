"""One calibration, many answers; curves that are kept and reused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import api
from onnxprune.calibration.frontier import stream_bytes
from onnxprune.calibration.samples import load_samples
from onnxprune.calibration.stream import Stream
from onnxprune.cli import main
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.pruning.saliency import criterion_of
from onnxprune.reconstruction import room, sequential
from onnxprune.reconstruction.sequential import Calibration
from pruning.test_calibrated import images, residual


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


def calibration(model: onnx.ModelProto) -> Calibration:
    found = analyse(Model.load(model))
    samples = load_samples(model.graph, {"x": images()}, types=found.inputs)
    made = Calibration(found, samples, list(found.grouping.groups), criterion_of("obs").measure)
    made.measure_curves()
    return made


@pytest.mark.parametrize("most_bytes", [1 << 30, 1])
def test_models_fitted_side_by_side_are_what_each_is_alone(
    most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that begin at another layer; without room for two streams they take turns."""
    monkeypatch.setattr(room, "LASTING", 0)  # targets of the original aren't held from fit to fit
    made = calibration(residual(redundant=False))
    early, late = (next(n for n in made.places if n.startswith(w)) for w in ("w0a", "w1a"))
    order = {n: made.curves[n].order for n in (early, late)}
    asked = [
        {early: order[early][:3]},
        {late: order[late][:4]},
        {early: order[early][:6], late: order[late][:6]},
    ]
    runs: list[Model] = []
    run = Stream.run
    monkeypatch.setattr(
        Stream,
        "run",
        lambda self, *a, **k: runs.append(self.model) or run(self, *a, **k),  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr(sequential, "MOST_BYTES", most_bytes)
    alone = [made.fit(removed) for removed in asked]
    apart = sum(model is made.analysis.model for model in runs)
    runs.clear()
    together = made.fit_all(asked)
    original = sum(model is made.analysis.model for model in runs)
    assert (original < apart) == (most_bytes > 1)
    for one, other in zip(alone, together, strict=True):
        assert one.model.to_proto() == other.model.to_proto()
        assert one.layers == other.layers
        assert {n: u.tolist() for n, u in one.removed.items()} == {
            n: u.tolist() for n, u in other.removed.items()
        }
    assert together[0].model.to_proto() != together[2].model.to_proto()


def test_what_a_stream_will_hold_is_known_before() -> None:
    made = calibration(residual())
    stops = [site.number for site in made.sites]
    stream, most = Stream(made.analysis.model, made.samples, made.analysis.types), 0
    for stop in stops:
        for _ in stream.run(stop, []):
            pass
        most = max(most, sum(a.nbytes for batch in stream.batches for a in batch.values()))
    assert stream_bytes(made.analysis, made.samples, stops) == most


def test_members_before_one_that_cannot_be_had_are_written(tmp_path: Path) -> None:
    with pytest.raises(NothingToPrune, match="can't be met"):
        api.family(
            residual(), tmp_path / "{target}.onnx", target=("macs=0.8,0.01",), calib={"x": images()}, trials=0
        )
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["macs0.8.onnx"]


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
