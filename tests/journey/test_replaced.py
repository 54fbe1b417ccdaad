"""A result never stands beside data that isn't its own, and the input's data file is no output."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from two_layers import contents, two_layers

import onnxprune
from onnxprune import cli
from onnxprune.journey import staging
from onnxprune.pruning import journey

MANY = {"ratio": 0.5, "align": None}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of any size are verified as files beside their place."""
    monkeypatch.setattr(staging, "LARGE", 0)


def outputs(path: Path) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.linspace(-1, 1, 32, dtype=np.float32)[None]})[0]


@pytest.mark.usefixtures("large")
def test_at_each_step_of_a_replacement_the_output_is_old_or_new_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = two_layers(tmp_path / "in"), tmp_path / "out.onnx"
    onnxprune.prune(source, tmp_path / "new.onnx", **MANY)
    onnxprune.prune(source, out, ratio=0.25, align=None)
    old, new = outputs(out), outputs(tmp_path / "new.onnx")
    assert not np.allclose(old, new)
    seen = []

    def look() -> None:
        if out.exists():
            now = outputs(out)
            assert any(np.allclose(now, y) for y in (old, new))
            seen.append(now)

    def looking(change: Callable[..., None]) -> Callable[..., None]:
        def changed(*given: object, **more: object) -> None:
            look()
            change(*given, **more)
            look()

        return changed

    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, looking(getattr(os, name)))
    onnxprune.prune(source, out, **MANY)
    assert len(seen) > 1
    np.testing.assert_array_equal(outputs(out), new)
    assert {p.name for p in tmp_path.iterdir()} >= {"in", "new.onnx", "out.onnx"}


COMMANDS = {
    "prune": ["prune", "IN", "OUT", "--ratio", "0.5"],
    "prune with samples": ["prune", "IN", "OUT", "--ratio", "0.5", "--calib", "synthetic", "--samples", "40"],
    "prune nothing": ["prune", "IN", "OUT", "--ratio", "0"],
    "sparsify": ["sparsify", "IN", "OUT", "--pattern", "2:4"],
    "run": ["run", "IN", "OUT", "--passes", "drop_dead"],
    "apply": ["apply", "IN", "PLAN", "OUT"],
}


@pytest.mark.parametrize("spelled", ["plain", "roundabout", "link"])
@pytest.mark.parametrize(
    ("name", "says"), [("model.onnx.data", "external data"), ("model.onnx", "is the input itself")]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_input_and_its_data_file_are_refused_as_output_before_any_work(
    command: str,
    name: str,
    says: str,
    spelled: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = two_layers(tmp_path / "in")
    data = tmp_path / "in" / name
    onnxprune.plan(source, **MANY).save(tmp_path / "plan.json")
    if spelled == "roundabout":
        data = tmp_path / "in" / ".." / "in" / name
    elif spelled == "link":
        (tmp_path / "link").symlink_to(tmp_path / "in")
        data = tmp_path / "link" / name
    before = contents(tmp_path)

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was done before the refusal")

    monkeypatch.setattr(journey, "analyse", work)
    monkeypatch.setattr("onnxprune.sparsity.journey.select", work)
    monkeypatch.setattr("onnxprune.journey.passes.apply", work)
    places = {"IN": str(source), "OUT": str(data), "PLAN": str(tmp_path / "plan.json")}
    assert cli.main([places.get(word, word) for word in COMMANDS[command]]) == 7
    assert says in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_the_results_data_is_read_by_all(tmp_path: Path) -> None:
    """The negative control: another name is taken."""
    source = two_layers(tmp_path / "in")
    onnxprune.prune(source, tmp_path / "out.onnx", **MANY)
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0].dims[1] == 16
