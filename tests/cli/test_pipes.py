"""Pipes and standard streams in the place of files: read where that can be, and else named as what they are."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import chain

from onnxprune.cli import main


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(chain(), tmp_path / "in.onnx")
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x)
    (tmp_path / "r.toml").write_text('[[pass]]\nname = "drop_dead"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def piped(file: Path) -> Iterator[str]:
    """A pipe with the bytes of a file in it, as ``<(cat FILE)`` gives one."""
    reading, writing = os.pipe()

    def fill() -> None:
        with os.fdopen(writing, "wb") as into, suppress(BrokenPipeError):
            into.write(file.read_bytes())

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        filling.join()


def test_a_recipe_comes_through_a_pipe(place: Path) -> None:
    with piped(place / "r.toml") as recipe:
        assert main(["run", "in.onnx", "out.onnx", "--recipe", recipe]) == 0
    assert (place / "out.onnx").exists()


LINES = {
    "samples": ("prune in.onnx out.onnx --ratio 0.5 --calib PIPE", 8, "is a pipe or a device"),
    "moments": ("prune in.onnx out.onnx --ratio 0.5 --moments PIPE", 8, "is a pipe or a device"),
    "parts": ("merge PIPE -o out.npz", 8, "is a pipe or a device"),
    "packed": ("decompress PIPE out.onnx", 3, "isn't a file"),
    "plan": ("apply in.onnx - out.onnx", 6, "'-' can't be read: that is standard output"),
    "model": ("compress - out.zst", 3, "A model can't be read from standard input"),
    "output": ("compress in.onnx - --to zst", 7, "is standard output, and a model needs a file"),
    "output of moments": ("calibrate in.onnx --calib s.npz -o /dev/full", 7, "where a file is needed"),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
@pytest.mark.parametrize("what", LINES)
def test_what_must_be_a_file_is_told(what: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, code, says = LINES[what]
    before = sorted(place.iterdir())
    with piped(place / "s.npz") as pipe:
        assert main([pipe if word == "PIPE" else word for word in line.split()]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "bug" not in said
    assert sorted(place.iterdir()) == before
