"""Tensors that lie about their data, and external data that isn't where it may be."""

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from attacks import FLOAT, attack, chain, external, save

SIZE = 32 * 32 * 4
DATA = np.arange(1024, dtype=np.float32).tobytes()
OUT = "leads out of the model's folder; only files in that folder are read"


def _with(folder: Path, tensor: TensorProto, data: bytes = DATA) -> Path:
    return save(folder, chain(weights=[tensor]), data)


def _secret(folder: Path) -> Path:
    """A file that a location may want to reach."""
    secret = folder.parent / "secret.bin"
    secret.write_bytes(DATA)
    return secret


@attack(f"initializer 'w' is at '../secret.bin', which {OUT}")
def parent(folder: Path) -> Path:
    _secret(folder)
    return _with(folder, external(location="../secret.bin", offset=0, length=SIZE))


@attack(OUT)
def parent_inside(folder: Path) -> Path:
    (folder / "sub").mkdir()
    _secret(folder)
    return _with(folder, external(location="sub/../../secret.bin"))


@attack(OUT)
def parent_of_windows(folder: Path) -> Path:
    return _with(folder, external(location="..\\secret.bin"))


@attack(OUT)
def absolute(folder: Path) -> Path:
    return _with(folder, external(location=str(_secret(folder).resolve())))


@attack(OUT)
def absolute_of_windows(folder: Path) -> Path:
    return _with(folder, external(location="C:\\secret.bin"))


@attack(OUT)
def location_with_nul(folder: Path) -> Path:
    return _with(folder, external(location="w.bin\0.txt"))


@attack("a link to '.*secret.bin' outside of the model's folder; .*Hugging Face cache")
def symlink(folder: Path) -> Path:
    (folder / "link.bin").symlink_to(_secret(folder))
    return _with(folder, external(location="link.bin"))


@attack("a link to '.*secret.bin' outside of the model's folder")
def symlinked_folder(folder: Path) -> Path:
    _secret(folder)
    (folder / "sub").symlink_to(folder.parent)
    return _with(folder, external(location="sub/secret.bin"))


@attack("should be at '.*absent.bin', which doesn't exist; put it there")
def no_such_file(folder: Path) -> Path:
    return _with(folder, external(location="absent.bin"))


@attack("which isn't a file")
def data_is_a_folder(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return _with(folder, external(location="sub"))


@attack("which isn't a file")
def data_is_a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return _with(folder, external(location="pipe"))


@attack("can't be read: File name too long")
def long_location(folder: Path) -> Path:
    return _with(folder, external(location="w" * 5000))


@attack("no location is given")
def no_location(folder: Path) -> Path:
    return _with(folder, external(offset=0))


@attack("'location' twice")
def two_locations(folder: Path) -> Path:
    tensor = external(location="w.bin")
    tensor.external_data.add(key="location", value="other.bin")
    return _with(folder, tensor)


@attack("has an unknown key '__class__'; onnxruntime knows location, offset, length, checksum")
def unknown_key(folder: Path) -> Path:
    return _with(folder, external(location="w.bin", __class__="x"))


@attack("has offset '-8', where a number of bytes is due")
def negative_offset(folder: Path) -> Path:
    return _with(folder, external(location="w.bin", offset=-8))


@attack("has length '0x1000', where a number of bytes is due")
def length_in_hexadecimal(folder: Path) -> Path:
    return _with(folder, external(location="w.bin", length="0x1000"))


@attack(f"is {SIZE // 2} bytes long, but its dimensions and type need {SIZE}")
def length_too_short(folder: Path) -> Path:
    """onnx.load and the checker accept this, and give a short tensor."""
    return _with(folder, external(location="w.bin", length=SIZE // 2))


@attack(f"is {SIZE} bytes from byte 64 of 'w.bin', but that file ends at byte {SIZE}; it's truncated")
def past_the_end(folder: Path) -> Path:
    return _with(folder, external(location="w.bin", offset=64, length=SIZE))


@attack("but that file ends at byte 0")
def empty_data_file(folder: Path) -> Path:
    path = _with(folder, external(location="w.bin"))
    (folder / "w.bin").write_bytes(b"")
    return path


@attack("but that file ends at byte")
def huge_dims_external(folder: Path) -> Path:
    return _with(folder, external(dims=(2**31, 2**31), location="w.bin"))


@attack("dimensions of initializer 'w' .* need \\d+ bytes, but it holds 4096")
def huge_dims(folder: Path) -> Path:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2**62, 2**62], raw_data=DATA)
    return _with(folder, tensor)


@attack("are 1x1x1x1x1x1x1x1...; there may be at most 64")
def many_dims(folder: Path) -> Path:
    return _with(folder, TensorProto(name="w", data_type=FLOAT, dims=[1] * 5000, raw_data=bytes(4)))


@attack("are -32x-32; there may be at most 64, none negative")
def negative_dims(folder: Path) -> Path:
    return _with(folder, TensorProto(name="w", data_type=FLOAT, dims=[-32, -32], raw_data=DATA))


@attack("need 4096 bytes, but it holds 4095")
def one_byte_short(folder: Path) -> Path:
    return _with(folder, TensorProto(name="w", data_type=FLOAT, dims=[32, 32], raw_data=DATA[:-1]))


@attack(r"dimensions of initializer 'w' \(32x32, FLOAT\) need 1024 values, but it holds 0")
def no_data(folder: Path) -> Path:
    return _with(folder, TensorProto(name="w", data_type=FLOAT, dims=[32, 32]))


@attack("need 4096 bytes, but it holds 4000")
def few_packed_values(folder: Path) -> Path:
    return _with(folder, TensorProto(name="w", data_type=FLOAT, dims=[32, 32], float_data=[0.5] * 1000))


@attack("need 1024 values, but it holds 100")
def few_values(folder: Path) -> Path:
    return _with(folder, TensorProto(name="w", data_type=FLOAT, dims=[32, 32], float_data=[0.5] * 100))


@attack("need 2 values, but it holds 1")
def few_strings(folder: Path) -> Path:
    return _with(folder, TensorProto(name="w", data_type=TensorProto.STRING, dims=[2], string_data=[b"a"]))


@attack("need 5 bytes, but it holds 4")
def few_nibbles(folder: Path) -> Path:
    return _with(folder, TensorProto(name="w", data_type=TensorProto.INT4, dims=[9], raw_data=bytes(4)))


@attack("element type of initializer 'w' is 99, which the installed onnx .* doesn't know")
def unknown_type(folder: Path) -> Path:
    tensor = TensorProto(name="w", dims=[32, 32], raw_data=DATA)
    tensor.data_type = 99
    return _with(folder, tensor)


@attack("said to be external, but it also has data of its own")
def embedded_and_external(folder: Path) -> Path:
    tensor = external(location="w.bin")
    tensor.raw_data = DATA
    return _with(folder, tensor)


@attack("said to be external, but strings must not be")
def external_strings(folder: Path) -> Path:
    tensor = external(location="w.bin")
    tensor.data_type = TensorProto.STRING
    return _with(folder, tensor)


def _relu(inputs: list[str]) -> list[onnx.NodeProto]:
    return [helper.make_node("Add", inputs, ["y"], "add")]


@attack(f"attribute 'value' of .*Constant.* is at '../secret.bin', which {OUT}")
def constant_node(folder: Path) -> Path:
    constant = helper.make_node("Constant", [], ["c"], "k", value=external(location="../secret.bin"))
    return save(folder, chain([constant, *_relu(["x", "c"])], []))


@attack(f"in a subgraph of node 'if' .*{OUT}")
def initializer_in_a_branch(folder: Path) -> Path:
    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Add", ["x", f"{name}w"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, None)],
            [external(f"{name}w", location="../secret.bin")],
        )

    nodes = [
        helper.make_node("Greater", ["x", "x"], ["c"]),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("t"), else_branch=branch("e")),
    ]
    return save(folder, chain(nodes, []))


@attack(f"in function 'f' .*{OUT}")
def constant_in_a_function(folder: Path) -> Path:
    body = [
        helper.make_node("Constant", [], ["c"], value=external(location="../secret.bin")),
        helper.make_node("Add", ["a", "c"], ["z"]),
    ]
    function = helper.make_function("f", "f", ["a"], ["z"], body, [helper.make_opsetid("", 17)])
    return save(folder, chain([helper.make_node("f", ["x"], ["y"], domain="f")], [], functions=[function]))


def _sparse(values: TensorProto, indices: TensorProto) -> onnx.ModelProto:
    model = chain(weights=[])
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=values, indices=indices, dims=[32, 32])
    )
    return model


@attack(f"values of sparse initializer 'w' is at '../secret.bin', which {OUT}")
def sparse_values(folder: Path) -> Path:
    indices = numpy_helper.from_array(np.array([0, 5], np.int64), "i")
    return save(folder, _sparse(external(dims=(2,), location="../secret.bin"), indices))


@attack(f"indices of sparse initializer 'w' is at '../secret.bin', which {OUT}")
def sparse_indices(folder: Path) -> Path:
    indices = external("i", (2,), location="../secret.bin")
    indices.data_type = TensorProto.INT64
    return save(folder, _sparse(numpy_helper.from_array(np.ones(2, np.float32), "w"), indices))


@attack(
    r"sparse initializer 'w' would be 1099511627776x1099511627776 when made dense, but at most 4,294,967,296"
)
def sparse_bomb(folder: Path) -> Path:
    """A few bytes that become 2^80 when made dense."""
    model = _sparse(
        numpy_helper.from_array(np.ones(2, np.float32), "w"),
        numpy_helper.from_array(np.array([0, 5], np.int64), "i"),
    )
    model.graph.sparse_initializer[0].dims[:] = [2**40, 2**40]
    return save(folder, model)


@attack("need 4096 bytes, but it holds 0")
def empty_beside_values(folder: Path) -> Path:
    tensor = helper.make_tensor("w", FLOAT, [32, 32], [1.0] * 1024)
    tensor.raw_data = b""  # set, so libraries read it and not the values
    return _with(folder, tensor)
