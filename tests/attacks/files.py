"""Files that aren't complete ONNX models."""

import os
from pathlib import Path

from attacks import attack, chain, save


@attack("can't be read: No such file or directory; give a .onnx file")
def absent(folder: Path) -> Path:
    return folder / "model.onnx"


@attack("is a folder; name the .onnx file in it")
def folder_for_a_file(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


@attack("isn't a file; name a .onnx file")
def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")  # to open it would wait for ever
    return folder / "model.onnx"


@attack("is empty; give a complete .onnx file")
def empty(folder: Path) -> Path:
    (folder / "model.onnx").touch()
    return folder / "model.onnx"


def _bytes(folder: Path, content: bytes) -> Path:
    (folder / "model.onnx").write_bytes(content)
    return folder / "model.onnx"


@attack(r"isn't an ONNX model, or is truncated \(the field at byte \d+ runs \d+ bytes past the end")
def truncated(folder: Path) -> Path:
    return _bytes(folder, chain().SerializeToString()[:-100])


@attack("isn't an ONNX model, or is truncated")
def truncated_in_a_length(folder: Path) -> Path:
    return _bytes(folder, chain().SerializeToString()[:3])


@attack("isn't an ONNX model")
def text(folder: Path) -> Path:
    return _bytes(folder, b"This is a note about a model, and no model.\n")


@attack("isn't an ONNX model")
def zeros(folder: Path) -> Path:
    return _bytes(folder, bytes(5000))


@attack("isn't an ONNX model")
def noise(folder: Path) -> Path:
    return _bytes(folder, bytes((i * 7919 + 13) % 251 for i in range(5000)))


@attack("looks like a zip archive")
def checkpoint(folder: Path) -> Path:
    return _bytes(folder, b"PK\x03\x04" + bytes(1000))


@attack("looks like a Git LFS pointer, so the real file is still to be fetched")
def git_lfs_pointer(folder: Path) -> Path:
    return _bytes(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@attack("has no IR version")
def another_protobuf(folder: Path) -> Path:
    return _bytes(folder, chain().graph.SerializeToString())


@attack("has no graph")
def no_graph(folder: Path) -> Path:
    model = chain()
    model.ClearField("graph")
    return save(folder, model)


@attack("opset_import is empty")
def no_opset(folder: Path) -> Path:
    model = chain()
    del model.opset_import[:]
    return save(folder, model)


@attack("isn't an ONNX model")
def endless_nesting(folder: Path) -> Path:
    """200 If nodes in each other, which no Python protobuf can even build."""

    def field(number: int, content: bytes) -> bytes:
        length, out = len(content), bytearray([number << 3 | 2])
        while length > 127:
            out.append(length & 127 | 128)
            length >>= 7
        return bytes([*out, length]) + content

    graph = field(2, b"innermost") + field(10, bytes(2000))
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))
    return _bytes(folder, b"\x08\x0a" + field(7, graph))
