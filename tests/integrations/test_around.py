"""What stands around the program: hook, action and image; reports that are the same each time; what rooms log."""

import ast
import json
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import residual

import onnxprune
from onnxprune.cli import main
from onnxprune.integrations import plans

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and samples."""
    onnx.save(residual(), tmp_path / "in.onnx")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_hook_refuses_plans_that_are_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxprune.plan("in.onnx", ratio=0.5).save("a.plan.json")
    values = json.loads(Path("a.plan.json").read_text())
    Path("b.plan.json").write_text(json.dumps({**values, "rato": 0.5}))
    Path("c.plan.json").write_text("{")
    assert plans.main(["a.plan.json"]) == 0
    assert capsys.readouterr().err == ""
    assert plans.main(["b.plan.json", "a.plan.json", "c.plan.json"]) == 6
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "'rato'" in said[0]
    assert "c.plan.json' isn't JSON" in said[1]
    hook = (ROOT / ".pre-commit-hooks.yaml").read_text()
    entry = re.search(r"entry: (.*)", hook)
    assert entry
    words = [sys.executable, *shlex.split(entry[1])[1:], "c.plan.json"]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 6


@pytest.mark.parametrize("suffix", ["json", "html", "md", "csv"])
def test_reproducible_reports_have_the_same_bytes(place: Path, suffix: str) -> None:
    def made(*more: str) -> bytes:
        line = ["prune", "in.onnx", "o.onnx", "--ratio", "0.5", "--calib", "s.npz", "--recover", "lstsq"]
        assert main([*line, "--report", f"r.{suffix}", "-q", *more]) == 0
        return Path(f"r.{suffix}").read_bytes()

    assert made("--reproducible") == made("--reproducible")
    assert suffix in ("md", "csv") or made() != made()  # seconds differ
    assert (
        main(["sparsify", "in.onnx", "o.onnx", "--pattern", "2:4", "--reproducible", "--report", "z.json"])
        == 0
    )
    told = json.loads(Path("z.json").read_text())
    assert (told["seconds"], told["created"]) == ({}, "")


def test_what_asks_for_times_is_not_reproducible(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("--ratio 0.5 --check-speed", "--target latency=0.5"):
        assert main(["prune", "in.onnx", "o.onnx", *words.split(), "--reproducible"]) == 2
        assert "--reproducible leaves times out of the report" in capsys.readouterr().err
    assert not Path("o.onnx").exists()


def test_rooms_log_by_their_names_and_verbose_shows_it(
    place: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    line = ["prune", "in.onnx", "o.onnx", "--ratio", "0.5", "--calib", "s.npz", "--recover", "lstsq"]
    assert main(line) == 0
    assert "graph:" not in capsys.readouterr().err
    assert main([*line, "-v"]) == 0
    said = capsys.readouterr().err
    for text in ("graph: ", "calibration: 40 samples", "reconstruction: ", "pruning: ", "proof: passed"):
        assert text in said
    with caplog.at_level(logging.INFO, "onnxprune"):
        onnxprune.prune("in.onnx", ratio=0.5)
    assert {"onnxprune.graph", "onnxprune.proof"} <= {record.name for record in caplog.records}
    assert not [
        h for h in logging.getLogger("onnxprune").handlers if type(h).__module__.startswith("onnxprune")
    ]


def test_a_logger_has_the_name_of_its_room() -> None:
    names = {}
    for path in (ROOT / "onnxprune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and "getLogger" in ast.dump(node) and "_log" in ast.dump(node):
                names[path.relative_to(ROOT / "onnxprune").parts[0]] = ast.unparse(node.value)
    names.pop("passes", None)
    assert len(names) >= 7
    assert names == {room: f"logging.getLogger('onnxprune.{room}')" for room in names}


def test_the_options_of_the_action_are_those_of_the_program() -> None:
    action = (ROOT / "action.yml").read_text()
    command = re.search(r"onnxprune (prune .*) \| tee", action)
    assert command
    for flag in re.findall(r"--[a-z-]+", command[1]):
        assert (
            flag
            in subprocess.run(
                [sys.executable, "-m", "onnxprune", "prune", "--help"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    used = set(re.findall(r"inputs\.(\w+)", action))
    assert used == {"model", "output", "options", "report", "python"}
