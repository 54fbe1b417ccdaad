"""Every sample runs, and what it claims is true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
NUMBERED = sorted(path.name for path in SAMPLES.iterdir() if path.name[:2].isdigit())


def run(name: str, out: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(SAMPLES / name / "run.py"), str(out)],
        capture_output=True,
        encoding="utf-8",
        cwd=out,
        env={**os.environ, "PYTHONPATH": str(SAMPLES.parent)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accuracy(model: Path) -> float:
    """Return the share of right answers; written apart from the samples' own, to check them."""
    with np.load(SAMPLES / "data" / "digits.npz") as data:
        images, labels = data["test_x"], data["test_y"]
    logits = ort.InferenceSession(str(model)).run(None, {"image": images[:, None].astype(np.float32) / 16})[0]
    right: float = np.mean(np.argmax(logits, axis=1) == labels)
    return float(right)


def test_samples_are_numbered_without_gaps() -> None:
    assert [int(name[:2]) for name in NUMBERED] == list(range(1, len(NUMBERED) + 1))
    assert len(NUMBERED) >= 6


@pytest.mark.parametrize("name", NUMBERED)
def test_a_sample_has_a_page_and_a_script(name: str) -> None:
    page = (SAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert f"python samples/{name}/run.py" in page
    assert (SAMPLES / name / "run.py").is_file()


@pytest.mark.parametrize(("name", "floor"), [("01_digits_cnn", 0.97), ("02_digits_transformer", 0.95)])
def test_the_nets_are_trained_small_and_free_of_paths(name: str, floor: float) -> None:
    (path,) = (SAMPLES / name).glob("*.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert path.stat().st_size < 500_000
    assert accuracy(path) > floor
    assert not any(mark in path.read_bytes() for mark in (b"site-packages", b"/home/", b".py"))


@pytest.mark.parametrize(("name", "floor"), [("01_digits_cnn", 0.97), ("02_digits_transformer", 0.9)])
def test_the_main_job(name: str, floor: float, tmp_path: Path) -> None:
    printed = run(name, tmp_path)
    (original,) = (SAMPLES / name).glob("*.onnx")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for key in ("parameters", "macs", "bytes"):
        assert report[key]["after"] < report[key]["before"]
    assert report["bytes"] == {
        "before": original.stat().st_size,
        "after": (tmp_path / "small.onnx").stat().st_size,
    }
    assert report["law1"]["max_relative_error"] < 1e-4
    before, after = accuracy(original), accuracy(tmp_path / "small.onnx")
    assert after > floor
    assert f"{before:.2%}" in printed
    assert f"{after:.2%}" in printed


def test_an_edited_plan_is_what_gets_applied(tmp_path: Path) -> None:
    printed = run("03_plan_edit_apply", tmp_path)
    (name,) = [line.split()[5] for line in printed.splitlines() if line.startswith("edited by hand")]
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    (spared,) = [group for group in plan["groups"] if group["name"] == name]
    assert spared["removed_units"] == []
    assert "law 1 holds" in printed
    assert accuracy(tmp_path / "small.onnx") > 0.3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("04_python_api", "UsageError (exit code 2)"),
        ("05_passes", "written by 'my company'"),
        ("07_pipelines", "onnx-ir: "),
        ("06_explain_frozen", "no longer frozen"),
        ("08_notebook", "accuracy 98.67% -> "),
    ],
)
def test_the_other_samples_run(name: str, said: str, tmp_path: Path) -> None:
    assert said in run(name, tmp_path)


def test_back_to_the_trainer_and_into_the_file_again(tmp_path: Path) -> None:
    """Training wins back what a hard cut lost, in the file itself, and zeros stay zero."""
    pytest.importorskip("torch")
    assert "module and file, both cut by the plan" in run("09_retrain_in_pytorch", tmp_path)
    cut, trained = accuracy(tmp_path / "small.onnx"), accuracy(tmp_path / "trained.onnx")
    assert cut < 0.8 < 0.95 < trained
    zeros, final = onnx.load(tmp_path / "zeros.onnx"), onnx.load(tmp_path / "final.onnx")
    for before, after in zip(zeros.graph.initializer, final.graph.initializer, strict=True):
        empty = onnx.numpy_helper.to_array(before) == 0
        assert before.name == after.name
        if len(before.dims) > 1:
            assert (onnx.numpy_helper.to_array(after)[empty] == 0).all()
    assert accuracy(tmp_path / "final.onnx") > accuracy(tmp_path / "zeros.onnx")
