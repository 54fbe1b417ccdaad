"""Who writes into a file while it is read gets no result of it: weights are mapped, each step reads them anew."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from two_layers import contents, two_layers

import onnxprune
from onnxprune import cli
from onnxprune.errors import ModelError, VerificationError
from onnxprune.model import Model
from onnxprune.pruning import journey

MANY = {"ratio": 0.5, "align": None}
CHANGED = "changed while it was read; wait until nobody writes to it, and run this again"


def embedded(folder: Path) -> Path:
    model = onnx.load(two_layers(folder.with_name("external")))
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def rewritten(path: Path) -> None:
    """Write other weights of the same size into a file."""
    with path.open("r+b") as file:
        data = bytearray(file.read())
        place = data.index(np.arange(8, 16, dtype=np.float32).tobytes())
        data[place : place + 32] = np.arange(16, 24, dtype=np.float32)[::-1].tobytes()
        file.seek(0)
        file.write(data)
    os.utime(path, ns=(1, 1))  # the clock of some file systems is coarse


def replaced(path: Path) -> None:
    """Put another file in the place of one."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


@pytest.fixture(params=["model", "data"])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A model, and the file with its weights."""
    if request.param == "model":
        source = embedded(tmp_path / "in")
        return source, source
    source = two_layers(tmp_path / "in")
    return source, source.with_name("model.onnx.data")


def when(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], None]) -> None:
    """Change something when a step of a journey is over."""
    step = getattr(journey, name)

    def stepped(*given: object, **more: object) -> object:
        result = step(*given, **more)
        change()
        return result

    monkeypatch.setattr(journey, name, stepped)


COMMANDS = {
    "prune": ["prune", "IN", "OUT", "--ratio", "0.5", "--align", "none", "--report", "REPORT"],
    "run": ["run", "IN", "OUT", "--passes", "prune{ratio=0.5 align=none}"],
    "plan": ["plan", "IN", "-o", "PLAN", "--ratio", "0.5", "--align", "none"],
    "in place": ["prune", "IN", "IN", "--in-place", "--ratio", "0.5", "--align", "none"],
}


@pytest.mark.parametrize("change", [rewritten, replaced])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_made_of_a_file_that_changes(
    command: str,
    change: Callable[[Path], None],
    read: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, weights = read
    when(monkeypatch, "analyse", lambda: change(weights))
    places = {
        "IN": source,
        "OUT": tmp_path / "out.onnx",
        "REPORT": tmp_path / "r.json",
        "PLAN": tmp_path / "p",
    }
    before = {*contents(tmp_path)}
    code = cli.main([str(places.get(word, word)) for word in COMMANDS[command]])
    said = capsys.readouterr().err
    assert code in ((3, 7) if command == "in place" else (3,))
    assert (CHANGED in said) or (code == 7 and "by another program since it was read" in said)
    assert {*contents(tmp_path)} == before


def test_a_proof_that_fails_for_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = embedded(tmp_path / "in")

    def fails(*_: object) -> None:
        rewritten(source)
        raise VerificationError("the two differ")

    monkeypatch.setattr(journey, "_prove", fails)
    with pytest.raises(ModelError, match=CHANGED):
        onnxprune.prune(source, tmp_path / "out.onnx", **MANY)
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_that_was_replaced_before_is_what_it_was(tmp_path: Path) -> None:
    """A Model that is held on to reads the old file, whatever has its name now."""
    source = embedded(tmp_path / "in")
    model = Model.load(source)
    replaced(source)
    onnxprune.prune(model, tmp_path / "out.onnx", **MANY)
    onnxprune.prune(model, tmp_path / "out.onnx", **MANY)
    onnxprune.prune(tmp_path / "out.onnx", tmp_path / "out.onnx", in_place=True, **MANY)


def test_a_file_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = embedded(tmp_path / "in")
    when(monkeypatch, "analyse", source.unlink)
    with pytest.raises(ModelError, match="was removed while it was read"):
        onnxprune.prune(source, tmp_path / "out.onnx", **MANY)
