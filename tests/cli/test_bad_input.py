"""Bad input: one clear sentence, its exit code, the input untouched, no output left."""

import hashlib
import json
import re
import stat
from pathlib import Path

import onnx
import pytest
import small_models
from attacks import ATTACKS, Attack, chain

from onnxprune.cli import main
from onnxprune.errors import ModelError
from onnxprune.model import Model

every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


def fingerprint(folder: Path) -> dict[str, str]:
    """What is in a folder: the bytes of files, the targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            found[str(path)] = f"-> {path.readlink()}"
        elif stat.S_ISREG(status.st_mode):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = str(stat.S_IFMT(status.st_mode))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in a folder of its own, so that what a location reaches for lies outside."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def sentence(text: str) -> bool:
    """One line, that starts with a capital or a quoted path and ends with a full stop."""
    return "\n" not in text and text[0] in "'\"ABCDEFGHIJKLMNOPQRSTUVWXYZ" and text.endswith(".")


@every_attack
def test_refused_in_one_sentence(attack: Attack, folder: Path) -> None:
    path = attack.make(folder)
    before = fingerprint(folder.parent)
    with pytest.raises(ModelError, match=attack.says) as caught:
        Model.load(path)
    assert sentence(str(caught.value))
    assert caught.value.exit_code == 3
    assert fingerprint(folder.parent) == before


@every_attack
def test_refused_on_the_command_line(
    attack: Attack, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = attack.make(folder)
    before = fingerprint(folder.parent)
    assert main(["prune", str(path), str(folder / "out.onnx"), "--ratio", "0.5"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert re.search(attack.says, said.err)
    assert fingerprint(folder.parent) == before


def test_every_kind_of_attack_is_there() -> None:
    assert len(ATTACKS) > 60
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def _path(folder: Path, model: onnx.ModelProto) -> str:
    onnx.save(model, folder / "model.onnx")
    return str(folder / "model.onnx")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--ratio", "1.5"], 2, r"--ratio must be at least 0 and below 1, .*; got 1\.5"),
        (["--ratio", "50"], 2, r"got 50\.0\. Did you mean 50%\?"),
        (["--ratio", "1"], 2, "--ratio must be at least 0 and below 1"),
        (["--ratio", "-0.1"], 2, "--ratio must be at least 0 and below 1"),
        (["--ratio", "nan"], 2, "--ratio must be at least 0 and below 1"),
        (["--ignore", "nowhere"], 2, "--ignore 'nowhere' matches no group, weight or node"),
        (["--only", "nowhere"], 2, "--only 'nowhere' matches no group, weight or node"),
        (["--ignore", "("], 2, r"--ignore '\(' isn't a regular expression"),
        (["--input-shape", "x:1,2,3"], 2, "--input-shape x:1,2,3 contradicts the model, whose input 'x' has"),
        (["--input-shape", "q:1,2,3"], 2, "--input-shape names 'q', which isn't an input of the model"),
        (["--criterion", "magic"], 2, "There is no 'magic' in criteria; known are: "),
        (["--ignore", ".*"], 4, "Nothing in the model can be pruned"),
    ],
)
def test_wrong_options(
    options: list[str], code: int, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _path(folder, small_models.chain())
    before = fingerprint(folder)
    arguments = ["prune", path, str(folder / "out.onnx"), *options]
    found = main(arguments if "--ratio" in options else [*arguments, "--ratio", "0.5"])
    said = capsys.readouterr()
    assert re.search(says, said.err)
    assert len(said.err.strip().splitlines()) == 1
    assert found == code
    assert fingerprint(folder) == before


def test_nothing_prunable(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _path(folder, chain())
    before = fingerprint(folder)
    assert main(["prune", path, str(folder / "out.onnx"), "--ratio", "0.5"]) == 4
    assert "Nothing in the model can be pruned" in capsys.readouterr().err
    assert fingerprint(folder) == before


def test_output_is_the_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _path(folder, small_models.chain())
    before = fingerprint(folder)
    assert main(["prune", path, path, "--ratio", "0.5"]) == 7
    assert "is the input itself; give another name, or --in-place to replace it." in capsys.readouterr().err
    assert fingerprint(folder) == before


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("prune IN _ --ratio 0.5", "OUT"),
        ("prune IN OUT --ratio 0.5 --report _", "--report"),
        ("prune IN OUT --ratio 0.5 --plan _", "--plan"),
        ("prune IN OUT --ratio 0.5 --only conv1 --only _", "--only"),
        ("prune IN OUT --ratio 0.5 --calib IN --labels _", "--labels"),
        ("plan IN --ratio 0.5 -o _", "-o/--output"),
        ("run IN OUT --passes _", "--passes"),
        ("run IN OUT --recipe _", "--recipe"),
        ("compress IN _", "OUT"),
        ("tune IN OUT --max-drop 1 --labels y --calib _", "--calib"),
        ("fleet _ out --ratio 0.5", "IN"),
        ("fleet . _ --ratio 0.5", "OUT"),
        ("inspect _", "IN"),
    ],
)
def test_an_empty_text_is_no_path(
    line: str,
    name: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A path of no letters would be the folder that we are in."""
    path = _path(folder, small_models.chain())
    monkeypatch.chdir(folder)
    before = fingerprint(folder)
    given = {"_": "", "IN": path, "OUT": "out.onnx"}
    assert main([given.get(word, word) for word in line.split()]) == 2
    assert capsys.readouterr().err.startswith(f"onnxprune: error: {name} is given an empty text; ")
    assert fingerprint(folder) == before


PRINTING = """
import numpy as np
print("at import")
def samples():
    print("in the function")
    for _ in range(4):
        print("in between")
        yield {"x": np.ones((10, 3, 8, 8), np.float32)}
"""


@pytest.mark.parametrize("line", ["--json", "--report -", "--plan -"])
def test_what_a_script_prints_is_no_result(
    line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _path(folder, small_models.chain())
    (folder / "s.py").write_text(PRINTING, encoding="utf-8")
    told = ["--calib", f"{folder / 's.py'}:samples", "--recover", "stats", *line.split()]
    assert main(["prune", path, str(folder / "out.onnx"), "--ratio", "0.5", "--align", "none", *told]) == 0
    out, err = capsys.readouterr()
    assert "format" in json.loads(out)
    for said, times in (("at import", 1), ("in the function", 1), ("in between", 4)):
        assert err.splitlines().count(said) == times
