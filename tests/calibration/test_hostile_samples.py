"""Samples and inputs that are damaged, endless, bombs, or scripts that misbehave: one sentence, exit code 8."""

import io
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models

import onnxprune
from onnxprune.calibration import reading
from onnxprune.calibration.samples import load_samples
from onnxprune.cli import main
from onnxprune.errors import CalibrationError
from onnxprune.wall import board as wall

GRAPH = small_models.chain().graph
NAME = GRAPH.input[0].name
SHAPE = tuple(d.dim_value or 1 for d in GRAPH.input[0].type.tensor_type.shape.dim)


def good(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count * SHAPE[0], *SHAPE[1:])).astype(np.float32)


def npz(path: Path, **arrays: np.ndarray) -> bytes:
    np.savez_compressed(path, **arrays)
    return path.read_bytes()


def truncated(path: Path) -> None:
    path.write_bytes(npz(path, **{NAME: good()})[:-200])


def flipped(path: Path) -> None:
    data = bytearray(npz(path, **{NAME: good()}))
    data[200:220] = bytes(20)
    path.write_bytes(data)


def bomb(path: Path, name: str = "nope", claim: int = 2**30) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (claim,)})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{name}.npy", "w") as file,
    ):
        file.write(head.getvalue())
        for _ in range(4):
            file.write(bytes(1 << 20))


def lying(path: Path) -> None:
    bomb(path, NAME)


def objects(path: Path) -> None:
    np.savez(path, **{NAME: np.array([object()])}, allow_pickle=True)


def no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{NAME}.npy", b"no array")


def not_finite(path: Path) -> None:
    np.savez(path, **{NAME: np.full_like(good(), np.nan)})


DAMAGED = {
    truncated: "can't be read as",
    flipped: "can't be read as",
    bomb: "'nope', which is no input of the model|The given inputs lack",
    lying: f"The array '{NAME}' of .* needs 4,294,967,296 bytes, but there are 4,194,304",
    objects: ".",
    no_array: "can't be read as",
    not_finite: "NaN or infinity|no finite value",
}


@pytest.mark.parametrize("option", ["--calib", "--inputs"])
@pytest.mark.parametrize("make", DAMAGED, ids=lambda make: make.__name__)
def test_damaged(make: object, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(small_models.chain(), tmp_path / "m.onnx")
    make(tmp_path / "s.npz")  # type: ignore[operator]
    before = sorted(os.listdir(tmp_path))
    arguments = ["prune", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), "--ratio", "0.5"]
    assert main([*arguments, option, str(tmp_path / "s.npz")]) == 8
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(DAMAGED[make], said), said  # type: ignore[index]
    assert sorted(os.listdir(tmp_path)) == before


SCRIPT = """
import os, sys
import numpy as np
X = np.random.default_rng(0).standard_normal({shape}).astype(np.float32)
def ends(): sys.exit(0)
def fails(): raise KeyError("k")
def leaves():
    os.chdir("/")
    return {{"{name}": X}}
def fails_late():
    yield {{"{name}": X}}
    raise RuntimeError("late")
def ends_late():
    yield {{"{name}": X}}
    sys.exit(0)
def leaves_late():
    for _ in range(3):
        os.chdir("/")
        yield {{"{name}": X}}
"""


@pytest.mark.parametrize("function", ["ends", "fails", "fails_late", "ends_late", "missing"])
def test_scripts_that_fail(function: str, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(SCRIPT.format(shape=good().shape, name=NAME))
    with pytest.raises(CalibrationError):
        load_samples(GRAPH, f"{tmp_path / 's.py'}:{function}")


@pytest.mark.parametrize("function", ["leaves", "leaves_late"])
def test_scripts_that_change_the_folder(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.py").write_text(SCRIPT.format(shape=good().shape, name=NAME))
    assert load_samples(GRAPH, f"s.py:{function}").count
    assert Path.cwd() == tmp_path


def endless() -> Iterator[dict[str, np.ndarray]]:
    one = good(1)
    while True:
        yield {NAME: one}


def test_endless_readers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST", 50)
    with pytest.raises(CalibrationError, match="don't end: 51 were read"):
        load_samples(GRAPH, endless())
    assert load_samples(GRAPH, endless(), most=60).count >= 60  # who says how many gets them
    with wall.bounds():
        wall.limit(memory=good(1).nbytes * 20)
        with pytest.raises(CalibrationError, match="don't end"):
            load_samples(GRAPH, endless(), most=60)


def test_a_reader_that_fails_is_named() -> None:
    class Reader:
        def get_next(self) -> dict[str, np.ndarray]:
            raise OSError("the disk is gone")

    with pytest.raises(CalibrationError, match=r"the reader fails with OSError\('the disk is gone'\)"):
        load_samples(GRAPH, Reader())
    with pytest.raises(CalibrationError, match="the reader fails with"):
        onnxprune.prune(small_models.chain(), ratio=0.5, inputs=Reader())
