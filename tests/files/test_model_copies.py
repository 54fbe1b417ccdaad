"""Copies of a model are independent and light; order and checks are linear."""

import hashlib
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks import chain, external
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.files import opening
from onnxprune.files.protowalk import tensors
from onnxprune.model import Model


def chain_and(*weights: TensorProto) -> onnx.ModelProto:
    """A model with initializers that nothing reads, before its own."""
    return chain(weights=[*weights, numpy_helper.from_array(np.ones((32, 32), np.float32), "w")])


def test_forks_are_independent() -> None:
    model = Model.load(chain())
    fork = model.fork()
    fork.take("w", {0: [1]})
    fork.proto.graph.node[0].name = "edited"
    assert model.weight("w").shape == (32, 32)
    assert not model.edited
    assert fork.edited
    model.put("w", np.zeros(3000))
    assert fork.weight("w").shape == (1, 32)
    assert fork.sha256 == model.sha256 == Model.load(chain()).sha256


def test_skeleton_has_everything_but_the_weights() -> None:
    proto = chain_and(
        numpy_helper.from_array(np.arange(4), "small"),
        helper.make_tensor("typed", TensorProto.INT64, [900], range(900)),
    )
    skeleton = Model.load(proto).skeleton()
    small, typed, w = skeleton.graph.initializer
    assert numpy_helper.to_array(small).tolist() == [0, 1, 2, 3]
    assert (typed.name, list(typed.dims), typed.data_type, len(typed.int64_data)) == ("typed", [900], 7, 0)
    assert (w.name, list(w.dims), w.data_type, w.HasField("raw_data")) == ("w", [32, 32], 1, False)
    assert skeleton.graph.node == proto.graph.node


def test_a_light_proto_is_not_a_model_of_its_own() -> None:
    model = Model.load(chain())
    with pytest.raises(
        ModelError, match=r"'w' belongs to another Model, .* pass that Model itself, or its to_proto"
    ):
        Model.load(model.proto)
    assert Model.load(model) is model


def test_external_data_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.ones((32, 32), np.float32).tobytes())
    proto = chain(weights=[external(location="w.bin")])
    with pytest.raises(
        ModelError, match="a model in memory has no folder to look in; load the model from its path"
    ):
        Model.load(proto)
    assert Model.load(proto, base_dir=tmp_path).weight("w").sum() == 1024


def test_more_than_protobuf_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(chain())
    assert model.nbytes == len(model.serialize())
    monkeypatch.setattr("onnxprune.model._MOST_BYTES", 4000)
    with pytest.raises(
        ModelError, match="more than the 2 GB that protobuf holds in memory; work on its file"
    ):
        model.serialize()


def test_a_proto_too_large_to_be_serialised() -> None:
    proto = chain_and(numpy_helper.from_array(np.arange(4), "small"))
    expected = proto.SerializeToString(deterministic=True)

    light, found = opening._light_copy(proto)
    assert light.ByteSize() < 1000
    assert [len(data) for data, _ in found.values()] == [4096]
    opened = opening._admit(light, found, None, None)
    model = Model(opened.store, None, opened.source, opened.origin)
    assert model.serialize() == expected
    assert model.sha256 == hashlib.sha256(expected).hexdigest()


# ------------------------------------------------------------------ order, time


def test_unsorted_nodes_are_accepted_and_kept() -> None:
    nodes = [
        helper.make_node("Relu", ["b"], ["y"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Abs", ["x"], ["side"]),
    ]
    proto = chain(nodes, [])
    model = Model.load(proto)
    assert model.order == [2, 1, 0, 3]
    assert model.serialize() == proto.SerializeToString(deterministic=True)


def test_order_sees_what_branches_capture() -> None:
    def branch(name: str, reads: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Relu", [reads], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, 1, None)],
        )

    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=branch("t", "late"), else_branch=branch("e", "x")),
        helper.make_node("Abs", ["x"], ["late"]),
        helper.make_node("Cast", ["x"], ["c"], to=9),
    ]
    assert Model.load(chain(nodes, [])).order == [1, 2, 0]


def test_a_branch_may_reuse_a_name() -> None:
    def branch() -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Relu", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", 1, None)]
        )

    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=9),
        helper.make_node("If", ["c"], ["y"], then_branch=branch(), else_branch=branch()),
    ]
    assert Model.load(chain(nodes, [])).order == [0, 1]


def test_a_chain_of_100_000_nodes_is_checked_in_linear_time() -> None:
    def seconds(count: int) -> float:
        graph = onnx.GraphProto(name="chain")
        for i in range(count):
            graph.node.add(op_type="Relu", input=[f"v{i}"], output=[f"v{i + 1}"])
        graph.input.append(helper.make_tensor_value_info("v0", 1, [1]))
        graph.output.append(helper.make_tensor_value_info(f"v{count}", 1, [1]))
        proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
        start = time.perf_counter()
        model = Model.load(proto)
        assert len(model.order) == count
        model.skeleton()
        model.fork()
        return time.perf_counter() - start

    seconds(1000)
    assert seconds(100_000) < 40 * seconds(10_000)  # 10 is linear, 100 quadratic


def test_every_tensor_is_walked() -> None:
    proto = Model.load(chain()).proto
    assert [str(place) for place, _ in tensors(proto)] == ["initializer 'w'"]
