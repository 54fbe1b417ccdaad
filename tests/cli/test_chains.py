"""Files of one command as the input of the next: what doesn't fit is told in a sentence, and nothing is written."""

import errno
import gzip
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from small_models import chain

import onnxprune
from onnxprune import cli
from onnxprune.compression import coder, packing
from onnxprune.errors import UsageError
from onnxprune.options.calibration import CalibrateOptions
from onnxprune.options.compression import CompressOptions
from onnxprune.options.sparsity import SparseOptions
from onnxprune.options.tuning import TuneOptions


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(chain(), "in.onnx")
    return tmp_path


@pytest.mark.parametrize(
    "words", [["inspect"], ["prune", "out.onnx", "--ratio", "0.5"], ["compress", "out.onnx.zst"]]
)
def test_a_packed_model_as_the_input_says_what_unpacks_it(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compress", "in.onnx", "in.onnx.zst", "-q"]) == 0
    before = sorted(Path().iterdir())
    assert cli.main([words[0], "in.onnx.zst", *words[1:]]) == 3
    assert "'in.onnx.zst' is packed; unpack it by 'onnxprune decompress'" in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


def test_what_others_have_packed_says_what_unpacks_it(capsys: pytest.CaptureFixture[str]) -> None:
    import zstandard

    data = Path("in.onnx").read_bytes()
    for name, packed, by in (
        ("a.zst", zstandard.compress(data), "zstd -d"),
        ("a.gz", gzip.compress(data), "gunzip"),
    ):
        Path(name).write_bytes(packed)
        assert cli.main(["inspect", name]) == 3
        assert f"{name!r} is packed; unpack it by '{by}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "in.onnx", "--ratio", "0.5"],
        ["sparsify", "in.onnx", "--pattern", "2:4"],
        ["run", "in.onnx", "--passes", "fuse"],
        ["decompress", "packed.onnx.zst"],
    ],
)
def test_a_plain_model_gets_no_name_of_a_packed_one(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`decompress` would refuse it afterwards, and so would a user's own unpacker."""
    assert cli.main(["compress", "in.onnx", "packed.onnx.zst", "-q"]) == 0
    assert cli.main([*words[:2], "out.onnx.zst", *words[2:]]) == 7
    assert "give a name that ends in .onnx, and pack that by 'onnxprune compress'" in capsys.readouterr().err
    assert not Path("out.onnx.zst").exists()


@pytest.mark.parametrize(("where", "what"), [(packing.Drafts, "_inputs"), (coder, "_code")])
def test_a_full_disk_names_the_output(
    where: object, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, what, full)
    assert cli.main(["compress", "in.onnx", "out.onnx.zst"]) == 7
    says = "The output 'out.onnx.zst' can't be written: No space left on device; nothing was left behind."
    assert says in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["in.onnx"]


def test_no_option_is_named_that_the_command_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compress", "in.onnx", "in.onnx", "--target", "bytes=0.5"]) == 7
    assert "is the input itself; give another name." in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind", [(CompressOptions, {}), (TuneOptions, {"max_drop": 1.0}), (CalibrateOptions, {})]
)
@pytest.mark.parametrize(("name", "value"), [("in_place", True), ("external_data_threshold", 1)])
def test_options_of_other_commands_are_refused_in_python(
    kind: tuple[type, dict], name: str, value: object
) -> None:
    """They did nothing, and said nothing."""
    with pytest.raises(UsageError, match=rf"\({name}\) is no option of"):
        kind[0](**kind[1], calib="s.npz", labels="y", **{name: value})
    assert getattr(SparseOptions(pattern="2:4", **{name: value}), name)


def test_the_front_door_has_all_of_it() -> None:
    assert "decompress" in onnxprune.__all__
    code = "import onnxprune; print(onnxprune.api.merge.__name__, onnxprune.decompress.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["merge", "decompress"]
