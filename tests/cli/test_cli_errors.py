"""Bad input and bad arguments: one sentence, the exit code, the input untouched, nothing left behind."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from small_models import Builder, chain

from onnxprune.cli import main

Args = list[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(chain(), path)
    return path


def ask(*args: object) -> int:
    return main([str(a) for a in args])


def damaged(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = chain()
    change(model)
    return model.SerializeToString()


def make_cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def make_duplicate(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def make_dangling(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def make_external(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")


BAD_FILES = {
    "empty": (b"", 3, "empty"),
    "truncated": (chain().SerializeToString()[:-40], 3, "truncated"),
    "not onnx": (b"PK\x03\x04 this is a zip file, is it not?" * 10, 3, "isn't an ONNX model"),
    "cycle": (damaged(make_cycle), 3, "cycle"),
    "duplicate names": (damaged(make_duplicate), 3, "conv1_out"),
    "dangling input": (damaged(make_dangling), 3, "'nowhere'"),
    "external data outside": (damaged(make_external), 3, "'../secret.bin'"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, code, words = BAD_FILES[kind]
    path = tmp_path / "in.onnx"
    path.write_bytes(data)
    (tmp_path.parent / "secret.bin").write_bytes(b"secret" * 1000)
    assert ask("prune", path, tmp_path / "out.onnx", "--ratio", 0.5, "--report", tmp_path / "r.json") == code
    one_sentence(capsys, words)
    assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]


def one_sentence(capsys: pytest.CaptureFixture[str], words: str) -> None:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("onnxprune: error: ")
    assert printed.err.count("\n") == 1
    assert printed.err.endswith((".\n", "?\n"))
    assert words in printed.err
    assert "bug" not in printed.err


BAD_ARGUMENTS: dict[str, tuple[Args, int, str]] = {
    "ratio of one": (["--ratio", "1"], 2, "--ratio must be at least 0 and below 1"),
    "ratio below zero": (["--ratio", "-0.1"], 2, "--ratio must be at least 0 and below 1"),
    "ratio not a number": (["--ratio", "nan"], 2, "--ratio must be at least 0 and below 1"),
    "ratio a word": (["--ratio", "half"], 2, "must be a number, or one in percent, got 'half'"),
    "no ratio": ([], 2, "--ratio"),
    "unknown option": (["--ratio", "0.5", "--rato", "1"], 2, "--rato"),
    "unknown criterion": (["--ratio", "0.5", "--criterion", "l3"], 2, "'l3'"),
    "unknown name in ignore": (["--ratio", "0.5", "--ignore", "konv1"], 2, "near names are 'conv1"),
    "unknown name in only": (["--ratio", "0.5", "--only", "konv1"], 2, "near names are 'conv1"),
    "broken pattern": (["--ratio", "0.5", "--ignore", "conv1("], 2, "isn't a regular expression"),
    "align zero": (["--ratio", "0.5", "--align", "0"], 2, "--align must be"),
    "shape of unknown input": (["--ratio", "0.5", "--input-shape", "y:1,3,8,8"], 2, "'y'"),
    "shape that contradicts": (["--ratio", "0.5", "--input-shape", "x:1,4,8,8"], 2, "contradicts the model"),
    "shape of another rank": (["--ratio", "0.5", "--input-shape", "x:1,3,8"], 2, "contradicts the model"),
    "shape without name": (["--ratio", "0.5", "--input-shape", "1,3,8,8"], 2, "name:1,3,224,224"),
    "two shapes": (
        ["--ratio", "0.5", "--input-shape", "x:1,3,8,8", "--input-shape", "x:2,3,8,8"],
        2,
        "two shapes",
    ),
    "nothing left": (
        ["--ratio", "0.5", "--ignore", "conv"],
        4,
        "--ignore and --only leave none of the 2 groups",
    ),
    "too little": (["--ratio", "0.01", "--align", "none"], 4, "No group can lose a unit at --ratio 0.01"),
    "inputs that do not fit": (
        ["--ratio", "0.5", "--align", "none", "--inputs", "nowhere.npz"],
        8,
        "nowhere.npz",
    ),
    "out is a folder": (["--ratio", "0.5", "."], 2, "unrecognized arguments"),
}


@pytest.mark.parametrize("kind", BAD_ARGUMENTS)
def test_bad_arguments(kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, code, words = BAD_ARGUMENTS[kind]
    before = model.read_bytes()
    assert ask("prune", model, tmp_path / "out.onnx", *args, "--report", tmp_path / "r.json") == code
    one_sentence(capsys, words)
    assert model.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("prune", tmp_path / "nowhere.onnx", tmp_path / "out.onnx", "--ratio", 0.5) == 3
    one_sentence(capsys, "nowhere.onnx")
    assert ask("prune", tmp_path, tmp_path / "out.onnx", "--ratio", 0.5) == 3
    one_sentence(capsys, str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_nothing_prunable_counts_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = Builder()
    y = b.op("Gemm", ["x", b.weight("w", 6, 5)], "fc")
    onnx.save(b.model({"x": [2, 6]}, y), tmp_path / "in.onnx")
    assert ask("prune", tmp_path / "in.onnx", tmp_path / "out.onnx", "--ratio", 0.5) == 4
    one_sentence(capsys, "1 x axis of the graph output")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_out_equal_to_in_is_refused(
    link: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model if link == "same" else tmp_path / "link.onnx"
    try:
        if link == "symbolic":
            out.symlink_to(model)
        elif link == "hard":
            out.hardlink_to(model)
    except OSError:
        pytest.skip("this system has no such links")
    before = model.read_bytes()
    assert ask("prune", model, out, "--ratio", 0.5, "--align", "none") == 7
    one_sentence(capsys, "--in-place")
    assert model.read_bytes() == before


def test_in_place(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = model.stat().st_size
    assert ask("prune", model, model, "--ratio", 0.5, "--align", "none", "--in-place", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == {"before": size, "after": model.stat().st_size}
    assert found["sha256"]["input"] != found["sha256"]["output"]
    assert [p.name for p in model.parent.iterdir()] == ["model.onnx"]


def test_side_files_never_replace_the_input(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model.read_bytes()
    out = tmp_path / "out.onnx"
    assert ask("prune", model, out, "--ratio", 0.5, "--report", model) == 7
    one_sentence(capsys, "is the input")
    assert ask("prune", model, out, "--ratio", 0.5, "--report", tmp_path / "a", "--plan", tmp_path / "a") == 7
    one_sentence(capsys, "asked for twice")
    assert ask("prune", model, out, "--ratio", 0.5, "--report", model / "r.json") == 7
    one_sentence(capsys, "which is no folder")
    assert ask("plan", model, "-o", model, "--ratio", 0.5) == 7
    one_sentence(capsys, "is the input")
    assert model.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_output_that_cannot_be_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    assert ask("prune", model, tmp_path / "folder", "--ratio", 0.5) == 7
    one_sentence(capsys, "is a folder")
    assert ask("prune", model, model / "out.onnx", "--ratio", 0.5) == 7
    one_sentence(capsys, "which is no folder")
