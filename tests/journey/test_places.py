"""All paths of a run are compared before any work, and what can't be written is refused then."""

import os
import stat
import threading
from pathlib import Path

import onnx
import pytest
from attacks import chain
from two_layers import V, contents, halve, loads_halved, two_layers

import onnxprune
from onnxprune import cli
from onnxprune.files.commit import write_text
from onnxprune.files.target import stream_of
from onnxprune.model import Model
from onnxprune.pruning import journey

MANY = ["--ratio", "0.5", "--align", "none", "-q"]
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to be root")
user = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
posix = pytest.mark.skipif(os.name == "nt", reason="links, devices and modes are POSIX's")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model whose weights are in ``weights.bin``, in which we are."""
    two_layers(tmp_path, "weights.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*line: str) -> int:
    return cli.main([*line])


def refused(
    place: Path,
    line: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command is refused in one sentence, before any work, and changes nothing."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was done before the refusal")

    before = contents(place)
    for name in (
        "onnxprune.pruning.journey.analyse",
        "onnxprune.sparsity.journey.select",
        "onnxprune.journey.passes.apply",
    ):
        monkeypatch.setattr(name, work)
    assert cli.main(line) == 7
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert contents(place) == before


SIDES = {
    "report": ["prune", "model.onnx", "o.onnx", *MANY, "--report"],
    "plan": ["prune", "model.onnx", "o.onnx", *MANY, "--plan"],
    "-o": ["plan", "model.onnx", "--ratio", "0.5", "-o"],
    "html": ["inspect", "model.onnx", "-q", "--html"],
    "sparsify": ["sparsify", "model.onnx", "o.onnx", "--pattern", "2:4", "--report"],
    "apply": ["apply", "model.onnx", "p.json", "o.onnx", "--report"],
}
ALIASES = [
    "weights.bin",
    "./weights.bin",
    "sub/../weights.bin",
    "ABSOLUTE",
    "symbolic",
    "hard",
    "linked/weights.bin",
]


@posix
@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("side", SIDES)
def test_no_side_file_replaces_the_inputs_data(
    side: str, alias: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "sub").mkdir()
    (place / "symbolic").symlink_to("weights.bin")
    os.link(place / "weights.bin", place / "hard")
    (place / "linked").symlink_to(".")
    onnxprune.plan("model.onnx", ratio=0.5, align=None).save("p.json")
    given = str(place / "weights.bin") if alias == "ABSOLUTE" else alias
    refused(place, [*SIDES[side], given], "the input's external data", capsys, monkeypatch)


@posix
@pytest.mark.parametrize("alias", ["o.onnx", "./o.onnx", "ABSOLUTE", "linked/o.onnx"])
@pytest.mark.parametrize("side", ["report", "plan", "sparsify", "apply"])
def test_no_side_file_is_the_output(
    side: str, alias: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "linked").symlink_to(".")
    onnxprune.plan("model.onnx", ratio=0.5, align=None).save("p.json")
    given = str(place / "o.onnx") if alias == "ABSOLUTE" else alias
    refused(place, [*SIDES[side], given], "asked for twice", capsys, monkeypatch)


def _samples(place: Path) -> None:
    import numpy as np

    (place / "folder").mkdir()
    np.savez(place / "x.npz", x=np.ones((5, 32), np.float32))
    np.save(place / "folder" / "x.npy", np.ones((5, 32), np.float32))
    (place / "script.py").write_text("def load():\n    return []\n")


@pytest.mark.parametrize(
    ("options", "target"),
    [
        (["--calib", "x.npz"], "x.npz"),
        (["--calib", "folder"], "folder/x.npy"),
        (["--calib", "script.py:load"], "script.py"),
        (["--inputs", "x.npz"], "x.npz"),
    ],
)
@pytest.mark.parametrize("side", ["output", "report"])
def test_nothing_replaces_samples(
    options: list[str],
    target: str,
    side: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _samples(place)
    given = [target] if side == "output" else ["o.onnx", "--report", target]
    line = ["prune", "model.onnx", *given, *MANY, *options]
    refused(place, line, f"what {options[0]} reads", capsys, monkeypatch)


@pytest.mark.parametrize("target", ["p.json", "./p.json"])
def test_nothing_replaces_the_plan_that_is_applied(
    target: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxprune.plan("model.onnx", ratio=0.5, align=None).save("p.json")
    refused(place, ["apply", "model.onnx", "p.json", target], "is the plan", capsys, monkeypatch)
    refused(
        place,
        ["apply", "model.onnx", "p.json", "o.onnx", "--report", target],
        "is the plan",
        capsys,
        monkeypatch,
    )


@pytest.mark.parametrize("side", ["output", "report"])
def test_nothing_replaces_another_models_data(
    side: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_layers(place / "new", "theirs.bin")
    for name in ("model.onnx", "theirs.bin"):
        (place / "new" / name).rename(place / f"other-{name}" if name == "model.onnx" else place / name)
    given = ["theirs.bin"] if side == "output" else ["o.onnx", "--report", "theirs.bin"]
    says = "holds weights of 'other-model.onnx'"
    refused(place, ["prune", "model.onnx", *given, *MANY], says, capsys, monkeypatch)


@posix
@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("folder", "is a folder"),
        ("folder/", "is a folder"),
        (".", "is a folder"),
        ("model.onnx/o.onnx", "model.onnx', which is no folder"),
        ("model.onnx/deep/o.onnx", "model.onnx', which is no folder"),
        ("x" * 300, "File name too long"),
        ("x" * 252, "File name too long"),  # its data's name
        ("fifo", "is a device or a pipe"),
        ("/dev/null", "is a device or a pipe"),
        ("/dev/stdout", "is a device or a pipe"),
        ("tonull", "is a device or a pipe"),
        ("round", "a link that leads in a circle"),
        ("dangling", "is a link into a folder that doesn't exist"),
        ("with\0null", "embedded null byte"),
        ("taken.onnx", "which is a folder"),  # its data's name
        ("/proc/o.onnx", "can't be written"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "run", "sparsify"])
def test_what_can_not_be_written_is_refused_before_the_work(
    command: str,
    target: str,
    says: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (place / "folder").mkdir()
    (place / "taken.onnx.data").mkdir()
    os.mkfifo(place / "fifo")
    (place / "tonull").symlink_to("/dev/null")
    (place / "round").symlink_to("round")
    (place / "dangling").symlink_to("no/such")
    more = {"prune": MANY, "run": ["--passes", "drop_dead"], "sparsify": ["--pattern", "2:4"]}[command]
    refused(place, [command, "model.onnx", target, *more], says, capsys, monkeypatch)
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)


@user
@pytest.mark.parametrize("what", ["folder", "file"])
def test_without_permission(
    what: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "closed").mkdir()
    (place / "closed" / "o.onnx").touch()
    os.chmod(place / "closed" / "o.onnx" if what == "file" else place / "closed", 0o500)
    refused(place, ["prune", "model.onnx", "closed/o.onnx", *MANY], "read-only", capsys, monkeypatch)
    os.chmod(place / "closed", 0o700)


@root
@pytest.mark.parametrize("way", ["model", "report"])
def test_a_read_only_file_system(
    way: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "disk").mkdir()
    if os.system(f"mount -t tmpfs -o size=1m,ro none {place / 'disk'} 2>/dev/null"):
        pytest.skip("can't mount a disk here")
    try:
        given = ["disk/o.onnx"] if way == "model" else ["o.onnx", "--report", "disk/r.json"]
        refused(place, ["prune", "model.onnx", *given, *MANY], "is read-only", capsys, monkeypatch)
    finally:
        os.system(f"umount {place / 'disk'}")


# ------------------------------------------------------------------ what is kept


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444 | 0o200, 0o666])
@pytest.mark.parametrize("way", ["in place", "over an older one"])
def test_the_mode_is_kept_and_so_is_the_datas(mode: int, way: str, place: Path) -> None:
    out = place / ("model.onnx" if way == "in place" else "o.onnx")
    if way != "in place":
        assert run("prune", "model.onnx", "o.onnx", "--ratio", "0.25", "--align", "none", "-q") == 0
        os.chmod(place / "o.onnx.data", mode)
    os.chmod(out, mode)
    assert run("prune", "model.onnx", out.name, *MANY, "--in-place", "--report", "r.json") == 0
    for path in (out, place / f"{out.name}.data"):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    usual = place / "usual"
    usual.touch()
    assert (place / "r.json").stat().st_mode == usual.stat().st_mode


@root
def test_the_owner_is_kept(place: Path) -> None:
    os.chown("model.onnx", 1234, 2345)
    assert run("prune", "model.onnx", "model.onnx", *MANY, "--in-place") == 0
    for name in ("model.onnx", "model.onnx.data"):
        assert (os.stat(name).st_uid, os.stat(name).st_gid) == (1234, 2345)


@posix
def test_a_link_stays_and_what_it_leads_to_is_replaced(place: Path) -> None:
    onnx.save(chain(), "inside.onnx")
    (place / "real").mkdir()
    onnx.save(chain(), "real/old.onnx")
    (place / "o.onnx").symlink_to("real/old.onnx")
    halve(Model.load("inside.onnx")).save("o.onnx")
    assert (place / "o.onnx").is_symlink()
    assert list(Model.load("real/old.onnx").info("w").dims) == [32, 16]
    (place / "r.json").symlink_to("real/r.json")
    write_text(place / "r.json", "text")
    assert (place / "real" / "r.json").read_text() == "text"
    assert (place / "r.json").is_symlink()


@posix
def test_a_link_into_another_folder_can_not_have_data(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "real").mkdir()
    (place / "o.onnx").symlink_to("real/o.onnx")
    refused(place, ["prune", "model.onnx", "o.onnx", *MANY], "isn't beside the other", capsys, monkeypatch)


def test_in_place_spares_data_that_a_copy_reads(place: Path) -> None:
    two_layers(place / "mine")
    source = place / "mine" / "model.onnx"
    (place / "mine" / "copy.onnx").write_bytes(source.read_bytes())
    (place / "mine" / "renamed").write_bytes(source.read_bytes())  # a model by its bytes, not by its name
    for gone in ("copy.onnx", "renamed"):
        halve(Model.load(source)).save(source, in_place=True)
        loads_halved(source)
        assert (Model.load(place / "mine" / gone).weight("v") == V).all()
        (place / "mine" / gone).unlink()
        two_layers(place / "mine")
        if gone == "copy.onnx":
            assert (place / "mine" / "renamed").exists()


def test_an_output_called_like_its_own_data(place: Path) -> None:
    two_layers(place / "in", "o.onnx")
    (place / "out").mkdir()
    assert run("run", "in/model.onnx", "out/o.onnx", "--passes", "drop_dead", "-q") == 0
    assert (Model.load("out/o.onnx").weight("v") == V).all()


def test_a_report_that_can_not_be_written_keeps_the_model_from_being_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "r.json").write_text("old")
    before = contents(place)
    plain = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == "r.json" and "r.json" not in str(source):
            raise OSError(5, "Input/output error")
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert run("prune", "model.onnx", "o.onnx", *MANY, "--report", "r.json", "--plan", "p.json") == 7
    assert "Input/output error; nothing was left behind" in capsys.readouterr().err
    assert contents(place) == before
    if Path("/dev/full").exists():
        assert run("prune", "model.onnx", "o.onnx", *MANY, "--report", "/dev/full") == 7
        assert "No space left on device" in capsys.readouterr().err
        assert contents(place) == before


# ------------------------------------------------------------------ devices and pipes


@posix
def test_a_report_goes_through_a_pipe(place: Path) -> None:
    os.mkfifo(place / "pipe")
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append((place / "pipe").read_text()))
    reader.start()
    assert run("prune", "model.onnx", "o.onnx", *MANY, "--report", "pipe") == 0
    reader.join()
    assert heard[0].startswith("{")
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_a_report_goes_to_standard_output(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if name == "link":
        (place / "link").symlink_to("/dev/stdout")
    assert stream_of(Path(name)) == 1
    assert run("prune", "model.onnx", "o.onnx", *MANY, "--report", name) == 0
    assert capfd.readouterr().out.startswith("{")


@posix
def test_a_report_goes_to_a_device(place: Path) -> None:
    assert run("prune", "model.onnx", "o.onnx", *MANY, "--report", "/dev/null") == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_work_is_done_where_all_is_well(place: Path) -> None:
    """The negative control of `refused`."""
    assert journey.analyse is not None
    assert run("prune", "model.onnx", "o.onnx", *MANY, "--report", "r.html", "--plan", "p.json") == 0
    assert {"o.onnx", "o.onnx.data", "r.html", "p.json"} <= set(contents(place))
