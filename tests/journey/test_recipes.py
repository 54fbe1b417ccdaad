"""Recipes: read from a file, refused in a sentence, and those of the repository run on small models of their kind."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from deployed_models import WORDS, decoder, encoder
from pass_models import CNN, ops

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.journey import passes as passlist
from onnxprune.journey.passes import PassCall
from onnxprune.journey.recipe import read

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def written(place: Path, text: str) -> Path:
    (place / "r.toml").write_text(text, encoding="utf-8")
    return place / "r.toml"


def test_a_recipe_is_a_list_of_passes(tmp_path: Path) -> None:
    text = """
        description = "What it is for."
        [[pass]]
        name = "drop_dead"
        [[pass]]
        name = "prune"
        target = ["macs=0.5", "bytes=0.9"]
        align = 4
        allow-inexact = true
        cap = 0.5
    """
    recipe = read(written(tmp_path, text))
    options = {"target": "macs=0.5|bytes=0.9", "align": "4", "allow_inexact": "true", "cap": "0.5"}
    assert list(recipe.steps) == [PassCall("drop_dead"), PassCall("prune", options)]
    assert recipe.description == "What it is for"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = ", "is no TOML"),
        ("descripton = 'a'\n[[pass]]\nname = 'shrink'", "has 'descripton'; known are"),
        ("", "has no [[pass]]"),
        ("pass = 3", "has no [[pass]]"),
        ("[[pass]]\nratio = 0.5", "number 1 of the recipe"),
        ("[[pass]]\nname = 'prune'\nratio = {a = 1}", "gives the pass 'prune' ratio = {'a': 1}"),
        ("needs = ['samples']\n[[pass]]\nname = 'shrink'", "must be a list of calib, input_shapes"),
        ("[[pass]]\nname = 'shrunk'", "There is no 'shrunk' in passes"),
        ("[[pass]]\nname = 'prune'\nrtio = 0.5", "Did you mean 'ratio'?"),
        ("needs = ['calib']\n[[pass]]\nname = 'prune'\nratio = 0.5", "needs --calib"),
    ],
)
def test_what_no_recipe_is_is_refused_before_anything_runs(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        onnxprune.run(CNN, written(tmp_path, text), tmp_path / "out.onnx")
    assert words in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", str(CNN), str(tmp_path / "out.onnx"), "--recipe", str(tmp_path / "none.toml")])
    assert code == 2
    assert "can't be read: No such file" in capsys.readouterr().err


def test_samples_go_to_the_passes_that_take_some(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(size=(32, 1, 8, 8)).astype(np.float32)
    reports: list[object] = []
    onnxprune.run(
        CNN,
        "drop_dead,prune{ratio=0.5}",
        calib={"image": images},
        each=lambda _, report: reports.append(report),
    )
    assert reports[1].to_json()["calibration"]  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="--calib is of no use to these passes"):
        onnxprune.run(CNN, "drop_dead", calib={"image": images})


def test_the_command_line_says_which_recipe_it_was(tmp_path: Path) -> None:
    recipe, report = written(tmp_path, "[[pass]]\nname = 'prune'\nratio = 0.5\n"), tmp_path / "r.json"
    words = ["run", str(CNN), str(tmp_path / "out.onnx"), "--recipe", str(recipe), "--report", str(report)]
    assert main(words) == 0
    assert str(recipe) in report.read_text(encoding="utf-8")
    direct = onnxprune.run(CNN, "prune{ratio=0.5}").to_proto()
    assert onnx.load(tmp_path / "out.onnx").SerializeToString() == direct.SerializeToString()


def pictures() -> dict[str, np.ndarray]:
    with np.load(CNN.parents[1] / "data" / "digits.npz") as data:
        return {"image": data["train_x"][:200, None].astype(np.float32) / 16}


def texts() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = (np.arange(12) < rng.integers(4, 12, 48)[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(0, WORDS, (48, 12)) * mask, "attention_mask": mask}


#: Recipe -> the model, its samples, and the share of multiply-accumulates that may stay.
KINDS = {
    "edge-cnn": (lambda: onnx.load(CNN), pictures, 0.51),
    "bert-cpu": (encoder, texts, 0.51),
    "llm-int4": (lambda: decoder(bits=4), None, 0.8),
    "trt-2-4": (lambda: onnx.load(CNN), pictures, 0.8),
    "mcu": (lambda: onnx.load(CNN), pictures, 0.7),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_a_recipe_of_the_repository_runs(name: str) -> None:
    make, samples, most = KINDS[name]
    reports: list[object] = []
    result = onnxprune.run(
        make(),
        RECIPES / f"{name}.toml",
        calib=samples and samples(),
        each=lambda _, report: reports.append(report),
    )
    found = [report.to_json() for report in reports if report is not None]  # type: ignore[attr-defined]
    (cut,) = [one for one in found if "law1" in one]
    assert cut["law1"]["max_relative_error"] < 1e-4
    assert cut["macs"]["after"] <= most * cut["macs"]["before"]
    proto = result.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    assert "BatchNormalization" not in ops(proto)
    if name == "trt-2-4":
        assert any(one.get("zeros", 0) for one in found)


def test_recipes_have_passes_and_say_what_they_are_for() -> None:
    recipes = [read(path) for path in RECIPES.glob("*.toml")]
    assert {Path(recipe.name).stem for recipe in recipes} == set(KINDS)
    for recipe in recipes:
        assert len(recipe.description) > 40
        assert passlist.reporting(recipe.steps)
        first = Path(recipe.name).read_text(encoding="utf-8").splitlines()[0]
        assert f"--recipe recipes/{Path(recipe.name).name}" in first


def test_what_passes_are_not_given_is_refused() -> None:
    with pytest.raises(UsageError, match="There is no option 'callib'"):
        onnxprune.run(CNN, "drop_dead", callib=3)  # type: ignore[call-arg]
