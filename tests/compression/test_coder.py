"""Packed files: what comes out is what went in, and what is damaged, cut off or hostile is refused in one sentence."""

import hashlib
import io
import json
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import chain

from onnxprune import cli
from onnxprune.api import decompress
from onnxprune.compression.coder import Input, pack, unpack
from onnxprune.compression.record import END, PackedFile, Packing
from onnxprune.errors import ModelError, OutputError

MAGIC = 0x184D2A50


def packed(folder: Path, data: bytes = b"weights " * 4000, more: dict[str, bytes] | None = None) -> Path:
    """Return a packed file of these bytes, and of data files beside them."""
    (folder / "m.onnx").write_bytes(data)
    inputs = [Input("m.onnx", folder / "m.onnx")]
    for number, (name, content) in enumerate((more or {}).items()):
        place = folder / f"data{number}"
        place.write_bytes(content)
        inputs.append(Input(name, place))
    pack(inputs, folder / "m.onnx.zst")
    return folder / "m.onnx.zst"


def crafted(folder: Path, values: object, frame: bytes) -> Path:
    """Return a file with a record of one's own."""
    text = json.dumps(values).encode()
    path = folder / "crafted.zst"
    path.write_bytes(struct.pack("<II", MAGIC, len(text)) + text + frame + END)
    return path


def record(data: bytes, **other: object) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    files = [{"name": "m.onnx", "bytes": len(data), "sha256": digest}]
    return {"onnxprune": 1, "bytes": len(data), "sha256": digest, "files": files, **other}


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=3000), st.lists(st.binary(max_size=700), max_size=2), st.integers(0, 10**6))
def test_what_comes_out_is_what_went_in(data: bytes, more: list[bytes], place: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {f"sub/w{n}.data": content for n, content in enumerate(more)}
        path = packed(folder, data, files)
        out = folder / "out" / "new.onnx"
        packing = unpack(path, out)
        assert out.read_bytes() == data
        assert [(out.parent / name).read_bytes() for name in files] == more
        assert packing.members[0].sha256 == hashlib.sha256(data).hexdigest()
        whole = bytearray(path.read_bytes())  # the negative control: one flipped bit anywhere
        whole[place % len(whole)] ^= 1 << place % 8
        path.write_bytes(whole)
        try:
            again = unpack(path, folder / "again" / "new.onnx")
        except ModelError:
            assert not (folder / "again").exists()
        else:  # a bit that means nothing, such as one of a name
            assert (folder / "again" / "new.onnx").read_bytes() == data
            assert again.sha256 == packing.sha256


@pytest.mark.parametrize("left", [0, 3, 7, 30, 200, -9, -8, -4, -1])
def test_what_is_cut_off_is_refused(tmp_path: Path, left: int) -> None:
    path = packed(tmp_path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ModelError):
        unpack(path, tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_what_follows_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path)
    for more in (b"x", zstandard.compress(b"more") + END, END + zstandard.compress(b"") + END + b"x" + END):
        path.write_bytes(path.read_bytes() + more)
        with pytest.raises(ModelError):
            unpack(path, tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data + b"x", r"behind its end than was written \(bytes: 1\)"),
        (lambda data: data + bytes(1000), r"\(bytes: 1,000\)"),
        (lambda data: data[:-3] + b"\x01" + data[-2:], "end is missing or changed"),
        (lambda data: data[:-8], "end is missing or changed"),
    ],
)
def test_a_wrong_end_is_told_for_what_it_is(
    tmp_path: Path, change: Callable[[bytes], bytes], says: str
) -> None:
    path = packed(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError, match=says):
        unpack(path, tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_what_is_no_model_is_not_unpacked(tmp_path: Path) -> None:
    path = packed(tmp_path, b"weights " * 4000, {"m.data": b"data"})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=r"what is in it is no ONNX model, so nothing was unpacked"):
        decompress(path, tmp_path / "o.onnx")
    assert sorted(tmp_path.iterdir()) == before


def test_bombs_are_refused_before_they_grow(tmp_path: Path) -> None:
    small = b"x" * 100
    bomb = zstandard.compress(bytes(1 << 26))
    with pytest.raises(ModelError, match="more than its record says"):
        unpack(crafted(tmp_path, record(small), zstandard.compress(small + bytes(1 << 20))), tmp_path / "o")
    with pytest.raises(ModelError, match="sha256"):
        unpack(crafted(tmp_path, record(small), bomb), tmp_path / "o")
    huge = record(small, bytes=1 << 45)
    huge["files"][0]["bytes"] = 1 << 45  # type: ignore[index]
    with pytest.raises(ModelError, match="which no model does"):
        unpack(crafted(tmp_path, huge, bomb), tmp_path / "o")
    window = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    frame = zstandard.ZstdCompressor(compression_params=window).compressobj().compress(small)
    with pytest.raises(ModelError):
        unpack(crafted(tmp_path, record(small), frame), tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "name", ["../o", "/etc/o", "a/../b", "", ".", "a\\b", "C:o", "a\nb", "a//b", 7, None]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: object) -> None:
    data, digest = b"x", hashlib.sha256(b"x").hexdigest()
    size = Packing((PackedFile("m.onnx", 1, digest), PackedFile("o", 1, digest)), digest).nbytes
    for one, says in (("w.data", "isn't what zstd|ends too early|tar"), (name, "record can't be read")):
        values = record(data, bytes=size)
        values["files"].append({"name": one, "bytes": 1, "sha256": digest})  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match=says):
            unpack(crafted(tmp_path, values, zstandard.compress(data)), tmp_path / "o" / "m.onnx")
        assert not (tmp_path / "o" / "m.onnx").exists()


def test_more_than_one_piece_comes_out_whole(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 3, 3 * (1 << 20) + 17, dtype=np.uint8).tobytes()
    path = packed(tmp_path, data)
    unpack(path, tmp_path / "out" / "m.onnx")
    assert (tmp_path / "out" / "m.onnx").read_bytes() == data


@pytest.mark.parametrize(
    "other",
    [
        {"onnxprune": 2}, {"bytes": 2}, {"bytes": -1}, {"sha256": "z" * 64}, {"files": []}, {"files": None},
        {"files": [{"name": "m", "bytes": True, "sha256": "0" * 64}]},
    ],
)  # fmt: skip
def test_records_that_contradict_themselves_are_refused(tmp_path: Path, other: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="record can't be read"):
        unpack(crafted(tmp_path, record(b"x", **other), zstandard.compress(b"x")), tmp_path / "o")


def test_a_file_of_another_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "plain.zst").write_bytes(zstandard.compress(b"x" * 99))
    with pytest.raises(ModelError, match="without a record by onnxprune"):
        unpack(tmp_path / "plain.zst", tmp_path / "o")
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(ModelError, match="no file that 'onnxprune compress' has written"):
        unpack(tmp_path / "text", tmp_path / "o")


def test_what_others_have_is_not_replaced(tmp_path: Path) -> None:
    path = packed(tmp_path, more={"m.data": b"new"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.data").write_bytes(b"old")
    with pytest.raises(OutputError, match="is there already"):
        unpack(path, out / "m.onnx")
    assert [p.name for p in out.iterdir()] == ["m.data"]
    with pytest.raises(OutputError, match="name of the model's data"):
        unpack(path, tmp_path / "other" / "m.data")
    (out / "m.data").write_bytes(b"new")
    unpack(path, out / "m.onnx")
    with pytest.raises(OutputError, match="the input itself"):
        unpack(path, path)


@pytest.mark.skipif(not shutil.which("zstd"), reason="zstd isn't installed")
def test_the_zstd_of_the_system_unpacks_it_too(tmp_path: Path) -> None:
    path = packed(tmp_path, b"abc" * 5000)
    done = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True)
    assert done.stdout == b"abc" * 5000
    path = packed(tmp_path, b"abc" * 5000, {"m.data": b"w" * 700})
    done = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert {m.name: m.size for m in archive} == {"m.onnx": 15000, "m.data": 700}


def test_sizes_of_tars_are_counted() -> None:
    members = tuple(PackedFile(name, size, "0" * 64) for name, size in (("m.onnx", 1), ("m.data", 512)))
    packing = Packing(members, "0" * 64)
    assert packing.nbytes == 512 + 512 + 512 + 512 + 1024
    assert not Packing(members[:1], "0" * 64).is_tar


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = packed(tmp_path, chain().SerializeToString())
    assert cli.main(["decompress", str(path), str(tmp_path / "o.onnx")]) == 0
    assert "as recorded" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-20])
    assert cli.main(["decompress", str(path), str(tmp_path / "p.onnx")]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert cli.main(["decompress", str(tmp_path / "none.zst"), str(tmp_path / "p.onnx")]) == 3
    assert not (tmp_path / "p.onnx").exists()
