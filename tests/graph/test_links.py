"""External data behind links that are fine, and in subgraphs."""

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from attacks import chain, external
from onnx import TensorProto, helper
from two_layers import SIZE, W, contents, halve, loads_halved, two_layers

from onnxprune.errors import OutputError
from onnxprune.model import Model

# ------------------------------------------------------------------ links that are fine


def hugging_face_cache(folder: Path) -> Path:
    """snapshots/<revision>/* are symlinks to blobs/<digest>."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "abc"
    for path in (blobs, snapshot):
        path.mkdir(parents=True)
    source = two_layers(folder / "made")
    for name, blob in (("model.onnx", "b0"), ("model.onnx.data", "b1")):
        (source.parent / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot / "model.onnx"


def linked_inside(folder: Path) -> Path:
    source = two_layers(folder, "link.bin")
    (folder / "link.bin").rename(folder / "real.bin")
    (folder / "link.bin").symlink_to("real.bin")
    return source


def hard_linked(folder: Path) -> Path:
    source = two_layers(folder / "in")
    os.link(folder / "in" / "model.onnx.data", folder / "other.bin")
    return source


@pytest.mark.parametrize("make", [hugging_face_cache, linked_inside, hard_linked])
def test_links_that_are_fine(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path / "cache") if make is not hard_linked else make(tmp_path)
    before = contents(tmp_path)
    halve(Model.load(source)).save(tmp_path / "out.onnx")
    loads_halved(tmp_path / "out.onnx")
    after = contents(tmp_path)
    assert after | before == after


def test_in_place_in_a_cache_is_refused(tmp_path: Path) -> None:
    source = hugging_face_cache(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="a cache of downloads, whose files other revisions share"):
        halve(Model.load(source)).save(source, in_place=True)
    assert contents(tmp_path) == before
    assert source.is_symlink()


def test_subgraph_tensors_follow_their_data(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        weight = external(f"{name}_w", location="w.bin", offset=0, length=SIZE)
        node = helper.make_node("MatMul", ["x", weight.name], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, 1, None)], [weight])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    onnx.save(chain(nodes, []), tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    model.proto.doc_string = "edited"
    (tmp_path / "out").mkdir()
    model.save(tmp_path / "out" / "model.onnx")
    assert (tmp_path / "out" / "model.onnx.data").read_bytes() == W.tobytes()
    again = Model.load(tmp_path / "out" / "model.onnx").to_proto()
    assert again.graph.node[2].attribute[0].g.initializer[0].raw_data == W.tobytes()
