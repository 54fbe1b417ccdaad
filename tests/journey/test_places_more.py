"""What else lies in the folder of a result, and what has odd names."""

import os
import shutil
import socket
from pathlib import Path

import onnx
import pytest
from two_layers import contents, two_layers

import onnxprune
from onnxprune import cli
from onnxprune.errors import OutputError
from onnxprune.model import Model

MANY = ["--ratio", "0.5", "--align", "none", "-q"]
FEW = ["--ratio", "0.25", "--align", "none", "-q"]
posix = pytest.mark.skipif(os.name == "nt", reason="links, devices and modes are POSIX's")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model whose weights are in ``weights.bin``, in which we are."""
    two_layers(tmp_path, "weights.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*line: str) -> int:
    return cli.main([*line])


@pytest.mark.parametrize("name", ["o.onnx.data", "o.onnx.1.data", "./o.onnx.data"])
def test_a_report_is_not_called_like_the_outputs_data(name: str, place: Path) -> None:
    before = contents(place)
    assert run("prune", "model.onnx", "o.onnx", *MANY, "--report", name) == 7
    assert contents(place) == before


@posix
@pytest.mark.parametrize("name", ["o.onnx", "ü.onnx", "a b.onnx", "[a].onnx", "x\n.onnx", "o.onnx.data.onnx"])
def test_odd_names_twice(name: str, place: Path) -> None:
    for ratio in (MANY, FEW, MANY):
        assert run("prune", "model.onnx", name, *ratio) == 0
        assert sorted(set(contents(place)) - {"model.onnx", "weights.bin"}) == [name, f"{name}.data"]
        Model.load(name)


@posix
def test_a_name_that_no_model_can_hold(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place)
    assert run("prune", "model.onnx", os.fsdecode(b"\xff.onnx"), *MANY) == 7
    assert "no UTF-8" in capsys.readouterr().err
    assert contents(place) == before


@posix
@pytest.mark.parametrize("what", ["symlink", "dangling", "hard link", "pipe"])
def test_what_has_the_name_of_the_data_stays(what: str, place: Path) -> None:
    if what == "pipe":
        os.mkfifo("o.onnx.data")
    elif what == "hard link":
        os.link("weights.bin", "o.onnx.data")
    else:
        os.symlink("weights.bin" if what == "symlink" else "nowhere", "o.onnx.data")
    status, data = os.lstat("o.onnx.data"), Path("weights.bin").read_bytes()
    for ratio in (MANY, FEW):
        assert run("prune", "model.onnx", "o.onnx", *ratio) == 0
        Model.load("o.onnx")
    now = os.lstat("o.onnx.data")
    assert (now.st_ino, now.st_mode) == (status.st_ino, status.st_mode)
    assert Path("weights.bin").read_bytes() == data
    assert not Path("nowhere").exists()


@posix
@pytest.mark.parametrize("reader", ["symlink", "dotted", "text"])
def test_data_that_a_model_reads_by_another_name_stays(reader: str, place: Path) -> None:
    source = two_layers(place / "new")
    other = onnx.load(source, load_external_data=False)
    if reader != "text":
        os.symlink("model.onnx.data", "new/alias.bin")
        for tensor in other.graph.initializer:
            tensor.external_data[0].value = "alias.bin" if reader == "symlink" else "./model.onnx.data"
    onnx.save(
        other, "new/x.textproto" if reader == "text" else "new/x", "textproto" if reader == "text" else None
    )
    data = Path("new/model.onnx.data").read_bytes()
    assert run("prune", str(source), str(source), *MANY, "--in-place") == 0
    assert Path("new/model.onnx.data").read_bytes() == data
    Model.load(source)


@posix
def test_what_is_no_model_is_no_reader(place: Path) -> None:
    for name, data in {"a.onnx": b"\xff" * 999, "b.onnx": b"", "c.onnx": b"hello", "d": bytes(99)}.items():
        Path(name).write_bytes(data)
    os.mkfifo("e.onnx")
    os.symlink("e.onnx", "f.onnx")
    os.symlink("nowhere", "g.onnx")
    os.mkdir("h.onnx")
    for ratio in (MANY, FEW):
        assert run("prune", "model.onnx", "o.onnx", *ratio) == 0
    assert Path("o.onnx.data").exists()
    assert not Path("o.onnx.1.data").exists()


def test_the_data_of_an_older_output_goes_when_the_new_one_has_none(place: Path) -> None:
    onnx.save(onnx.load("model.onnx"), "whole.onnx")
    for source, count in (("model.onnx", 1), ("whole.onnx", 0), ("model.onnx", 1)):
        assert run("prune", source, "o.onnx", *MANY) == 0
        assert len(list(place.glob("o.onnx*.data"))) == count


def test_two_models_of_one_data_file_each_in_place(place: Path) -> None:
    two_layers(place / "new")
    shutil.copy("new/model.onnx", "new/b.onnx")
    for name in ("new/model.onnx", "new/b.onnx"):
        assert run("prune", name, name, *MANY, "--in-place") == 0
        for other in ("new/model.onnx", "new/b.onnx"):
            Model.load(other)


def test_from_python_too_no_report_replaces_a_model_or_its_data(place: Path) -> None:
    result = onnxprune.prune("model.onnx", "o.onnx", ratio=0.5, align=None)
    before = contents(place)
    for name in before:
        for text in (result.report, result.plan):
            with pytest.raises(OutputError, match="give another name"):
                text.save(name)
    assert contents(place) == before
    for _ in range(2):
        result.report.save("r.json")
        result.report.save("r.html")


def test_a_family_over_an_older_one_with_its_reports(place: Path) -> None:
    line = ["--target", "params=0.7,0.5", "--report", "r.json", "--plan", "p.json", "-q", "--align", "none"]
    for _ in range(2):
        assert run("prune", "model.onnx", "o.onnx", *line) == 0
    ends = [f"-params{share}.{kind}" for share in ("0.5", "0.7") for kind in ("json", "onnx", "onnx.data")]
    assert {f"{'r' if end.endswith('json') else 'o'}{end}" for end in ends} <= set(contents(place))


def test_a_member_that_can_not_be_had_leaves_those_before_it_and_their_reports(place: Path) -> None:
    line = ["--target", "params=0.7,0.0001", "--report", "r.json", "-q", "--align", "none"]
    assert run("prune", "model.onnx", "o.onnx", *line) != 0
    assert {"o-params0.7.onnx", "r-params0.7.json"} <= set(contents(place))


@posix
@pytest.mark.parametrize("target", ["/dev/fd/99", "socket"])
def test_no_report_to_what_takes_none(target: str, place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        assert run("prune", "model.onnx", "o.onnx", *MANY, "--report", target) == 7
    assert not Path("o.onnx").exists()
