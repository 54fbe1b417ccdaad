"""Folders in and out: what lies beside a model follows it, and the output's folder is made."""

from pathlib import Path

import onnx
import pytest
from deployed_models import decoder
from onnxruntime import InferenceSession
from small_models import residual

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import OnnxPruneError, OutputError

CONFIG = 'name: "m"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 8\n'


@pytest.fixture
def triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a repository, its weights beside it in a folder called like a model."""
    place = tmp_path / "repository" / "m" / "model.onnx"
    place.mkdir(parents=True)
    onnx.save(
        residual(), place / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    (place.parent / "config.pbtxt").write_text(CONFIG)
    (place.parent / "labels").mkdir()
    (place.parent / "labels" / "names.txt").write_text("a\nb\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("words", ["prune --ratio 0.5", "sparsify --pattern 2:4"])
def test_all_that_belongs_to_a_model_follows_it(triton: Path, words: str) -> None:
    command, *more = words.split()
    assert main([command, "repository/m", "new/repository/m", *more, "--report", "told/r.json", "-q"]) == 0
    out = triton / "new/repository/m"
    assert tree(out) == {
        "config.pbtxt",
        "labels/names.txt",
        "model.onnx/model.onnx",
        "model.onnx/model.onnx.data",
    }
    assert (out / "config.pbtxt").read_text() == CONFIG
    InferenceSession(out / "model.onnx/model.onnx")
    size = sum(p.stat().st_size for p in (out / "model.onnx").iterdir())
    assert command == "sparsify" or size < sum(
        p.stat().st_size for p in (triton / "repository/m/model.onnx").iterdir()
    )
    assert (triton / "told/r.json").is_file()


def test_a_run_that_fails_leaves_no_folder(triton: Path) -> None:
    before = tree(triton)
    for output in ("new/deep/m", "new/deep/o.onnx"):
        assert main(["prune", "repository/m", output, "--ratio", "0.5", "--only", "nothing"]) != 0
        assert main(["prune", "repository/m", output, "--ratio", "0.5", "--inputs", "gone.npz"]) != 0
    assert tree(triton) == before
    assert not (triton / "new").exists()


def test_one_file_of_a_folder_goes_to_a_file(triton: Path) -> None:
    onnxprune.prune("repository/m", "new/small.onnx", ratio=0.5)
    assert tree(triton / "new") == {"small.onnx", "small.onnx.data"}


@pytest.mark.parametrize("output", ["repository/m", "repository", "repository/m/small"])
def test_a_folder_in_the_folder_is_refused(triton: Path, output: str) -> None:
    before = tree(triton)
    with pytest.raises(OutputError, match="are in each other; give another one"):
        onnxprune.prune("repository/m", output, ratio=0.5)
    assert tree(triton) == before


def test_a_folder_of_several_models_names_them(triton: Path) -> None:
    onnx.save(residual(), triton / "repository/m/other.onnx")
    onnx.save(residual(), triton / "repository/m/third.onnx")
    with pytest.raises(OnnxPruneError, match=r"name the \.onnx file in it"):
        onnxprune.prune("repository/m", "new", ratio=0.5)
    assert not (triton / "new").exists()


@pytest.mark.parametrize("named", [True, False])
def test_a_config_that_names_what_has_shrunk_is_not_copied(tmp_path: Path, named: bool) -> None:
    """Triton would refuse the model: its sizes are no longer those of the file."""
    place = tmp_path / "m"
    (place / "1").mkdir(parents=True)
    onnx.save(decoder(), place / "1" / "model.onnx")
    entry = 'input [ { name: "past.0.key" data_type: TYPE_FP32 dims: [ 4, -1, 16 ] } ]\n' if named else ""
    (place / "config.pbtxt").write_text(CONFIG + entry)
    words = ["prune", str(place), str(tmp_path / "out"), "--ratio", "0.5", "-q"]
    assert main([*words, "--open-io", "past|present"]) == (7 if named else 0)
    assert (tmp_path / "out").exists() != named
    assert main(words) == 0  # nothing of its interface changes
    assert (tmp_path / "out" / "config.pbtxt").read_text() == CONFIG + entry


def test_a_repository_of_triton_is_cut_as_it_is(tmp_path: Path) -> None:
    """Its models are two levels down, and one of them has its weights beside it in a folder called like a model."""
    root = tmp_path / "repository"
    for name, version in (("one", "1"), ("one", "2"), ("two", "1")):
        place = root / name / version
        place.mkdir(parents=True)
        (place.parent / "config.pbtxt").write_text(CONFIG)
        if name == "one":
            onnx.save(residual(), place / "model.onnx")
        else:
            (place / "model.onnx").mkdir()
            onnx.save(
                decoder(), place / "model.onnx" / "model.onnx", save_as_external_data=True, location="w"
            )
    words = ["prune", str(root), str(tmp_path / "out"), "--ratio", "0.5", "--align", "none", "-q"]
    assert main([*words, "--report", str(tmp_path / "r.json")]) == 0
    new = tree(tmp_path / "out")
    assert new == {p.replace("model.onnx/w", "model.onnx/model.onnx.data") for p in tree(root)}
    for name in (n for n in new if n.endswith(".onnx")):
        InferenceSession(tmp_path / "out" / name)
        before, after = (
            sum(p.stat().st_size for p in (d / name).parent.iterdir()) for d in (root, tmp_path / "out")
        )
        assert after < 0.9 * before, name
    assert len(list(tmp_path.glob("r-*.json"))) == 3


def test_models_below_a_models_folder_are_cut_too(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "onnx").mkdir(parents=True)
    onnx.save(residual(), root / "model.onnx")
    onnx.save(decoder(), root / "onnx" / "model.onnx")
    assert main(["prune", str(root), str(tmp_path / "out"), "--ratio", "0.5", "--align", "none", "-q"]) == 0
    for name in ("model.onnx", "onnx/model.onnx"):
        assert (tmp_path / "out" / name).stat().st_size < 0.9 * (root / name).stat().st_size
