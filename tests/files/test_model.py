"""The file layer: what is read is right, what no edit touches keeps its bytes, and edits do what they say."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from attacks import chain
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model import Model, WeightInfo

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
KINDS = [
    "FLOAT",
    "DOUBLE",
    "FLOAT16",
    "BFLOAT16",
    "FLOAT8E4M3FN",
    "FLOAT8E5M2",
    "INT8",
    "UINT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT16",
    "UINT32",
    "UINT64",
    "BOOL",
    "COMPLEX64",
    "COMPLEX128",
    "INT4",
    "UINT4",
    "FLOAT4E2M1",
    "INT2",
    "UINT2",
    "STRING",
]


def values(kind: str, *shape: int) -> np.ndarray:
    """Distinct, exactly representable where the type allows."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    if kind == "STRING":
        return numbers.astype(str).astype(object)
    low = {"INT2": -2, "INT4": -8}.get(kind, 0)
    count = {"INT2": 4, "UINT2": 4, "INT4": 16, "UINT4": 16, "FLOAT4E2M1": 2, "BOOL": 2, "FLOAT8E5M2": 8}.get(
        kind, 16
    )
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind))
    return (numbers * 7 % count + low).astype(dtype)


def with_weights(*weights: TensorProto) -> onnx.ModelProto:
    """A model with initializers that nothing reads."""
    return chain(weights=[*weights, numpy_helper.from_array(np.ones((32, 32), np.float32), "w")])


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(np.array_equal(one, other))


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("size", [(3, 5), (40, 60)], ids=["in the proto", "taken out"])
@pytest.mark.parametrize("kind", KINDS)
def test_weight_is_what_was_stored(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    array = values(kind, *size)
    proto = with_weights(numpy_helper.from_array(array, "v"))
    onnx.save(proto, tmp_path / "m.onnx")
    for model in (Model.load(proto), Model.load(tmp_path / "m.onnx")):
        read = model.weight("v")
        assert same(read, numpy_helper.to_array(proto.graph.initializer[0]))
        assert read.tolist() == array.tolist()
        assert not read.flags.writeable
        assert model.info("v").dims == size
        assert model.serialize() == proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "INT64", "UINT32", "BOOL", "COMPLEX64", "INT4"]
)
def test_typed_fields(kind: str) -> None:
    number = TensorProto.DataType.Value(kind)
    array = values(kind, 40, 60)
    proto = with_weights(helper.make_tensor("v", number, (40, 60), array.flatten()))
    assert not proto.graph.initializer[0].HasField("raw_data")
    model = Model.load(proto)
    assert same(model.weight("v"), numpy_helper.to_array(proto.graph.initializer[0]))
    assert model.serialize() == proto.SerializeToString(deterministic=True)
    model.take("v", {0: [3, 1]})
    assert same(model.weight("v"), np.take(array, [3, 1], axis=0))
    assert same(numpy_helper.to_array(model.to_proto().graph.initializer[0]), array[[3, 1]])


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("value_float", 1.5), ("value_floats", [1.5, 2.5, 3.5]), ("value_int", 7), ("value_ints", [1, 2, 3])],
)
def test_constant_nodes_in_every_spelling(attribute: str, value: Any) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], "k", **{attribute: value}),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    proto = chain(nodes, [])
    model = Model.load(proto)
    kind = TensorProto.FLOAT if "float" in attribute else TensorProto.INT64
    shape = (3,) if attribute.endswith("s") else ()
    assert model.info("c") == WeightInfo(shape, kind, model.weight("c").nbytes, "constant", 0)
    assert model.weight("c").tolist() == value
    assert model.serialize() == proto.SerializeToString(deterministic=True)
    model.put("c", np.float32([9, 8]))
    (edited,) = model.proto.graph.node[0].attribute
    assert (edited.name, edited.type) == ("value", onnx.AttributeProto.TENSOR)
    assert model.weight("c").tolist() == [9, 8]
    onnx.checker.check_model(model.to_proto())


def test_take_on_a_constant_without_a_tensor() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value_ints=[4, 5, 6, 7]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    model = Model.load(chain(nodes, []))
    model.take("c", {-1: [0, 2]})
    assert model.weight("c").tolist() == [4, 6]


def test_names_are_all_weights_and_nothing_else() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Constant", [], ["late"], value_float=1.0),
        helper.make_node("Constant", [], ["text"], value_string="a"),
        helper.make_node("Constant", [], ["other"], domain="custom", value_float=1.0),
    ]
    model = Model.load(chain(nodes, [numpy_helper.from_array(np.ones(3), n) for n in "ba"]))
    assert model.names() == ["b", "a", "late"]
    assert "a" in model
    assert "x" not in model
    assert "text" not in model
    assert 3 not in model
    with pytest.raises(
        ModelError, match=r"^The model has no weight 'x': .* of its main graph has that name\.$"
    ):
        model.weight("x")


def test_reading_copies_nothing_where_the_file_is_aligned(tmp_path: Path) -> None:
    onnx.save(with_weights(numpy_helper.from_array(values("UINT8", 40, 60), "v")), tmp_path / "m.onnx")
    model = Model.load(tmp_path / "m.onnx")
    assert np.shares_memory(model.weight("v"), model.fork().weight("v"))
    one, other = model.weight("w"), model.fork().weight("w")  # copied at most once, to be aligned
    assert one.flags.aligned
    assert np.shares_memory(one, other)


# ------------------------------------------------------------------ bytes that nothing touched


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_real_architectures_come_back_byte_by_byte(path: Path, tmp_path: Path) -> None:
    model = Model.load(path)
    digest = model.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    assert digest == model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.to_proto() == onnx.load(path)


def test_what_no_edit_touches_is_kept() -> None:
    proto = chain(
        weights=[
            numpy_helper.from_array(values("FLOAT", 40, 60), "v"),
            numpy_helper.from_array(np.ones((32, 32), np.float32), "w"),
        ]
    )
    proto.doc_string = "a model"
    proto.metadata_props.add(key="k", value="v")
    proto.graph.doc_string = "a graph"
    proto.graph.node[0].metadata_props.add(key="k", value="v")
    proto.graph.quantization_annotation.add(tensor_name="w")
    proto.graph.initializer[0].doc_string = "a weight"
    proto.graph.initializer[0].metadata_props.add(key="k", value="v")
    model = Model.load(proto)
    model.take("v", {0: range(0, 40, 2), 1: range(30)})
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    expected.graph.initializer[0].dims[:] = [20, 30]
    expected.graph.initializer[0].raw_data = values("FLOAT", 40, 60)[::2, :30].tobytes()
    assert model.to_proto() == expected


def test_the_given_proto_is_not_edited() -> None:
    proto = chain()
    before = proto.SerializeToString(deterministic=True)
    model = Model.load(proto)
    model.take("w", {0: [0]})
    model.proto.graph.node[0].name = "edited"
    assert proto.SerializeToString(deterministic=True) == before
    assert model.sha256 == hashlib.sha256(before).hexdigest()


def test_weights_in_functions_branches_and_sparse_tensors_survive() -> None:
    big = numpy_helper.from_array(np.arange(1024, dtype=np.float32).reshape(1, 1024), "big")
    function = helper.make_function(
        "f",
        "f",
        ["a"],
        ["z"],
        [
            helper.make_node("Constant", [], ["c"], value=big),
            helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
            helper.make_node("Add", ["a", "s"], ["z"]),
        ],
        [helper.make_opsetid("", 17)],
    )

    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(values("FLOAT", 32, 32), f"{name}_w")
        return helper.make_graph(
            [helper.make_node("MatMul", ["h", weight.name], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, 1, None)],
            [weight],
        )

    nodes = [
        helper.make_node("f", ["x"], ["h"], domain="f"),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    proto = chain(nodes, [], functions=[function])
    values_, indices = (
        numpy_helper.from_array(np.arange(600, dtype=d), n) for d, n in ((np.float32, "s"), (np.int64, "i"))
    )
    proto.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=values_, indices=indices, dims=[1000])
    )
    model = Model.load(proto)
    assert model.proto.ByteSize() < proto.ByteSize() / 4
    assert model.serialize() == proto.SerializeToString(deterministic=True)
    data, arrays = model.session_parts()
    assert not arrays
    assert data == model.serialize()
    assert model.skeleton().ByteSize() < 2000


# ------------------------------------------------------------------ edits


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "STRING"])
def test_take_is_numpys(kind: str) -> None:
    array = values(kind, 24, 10, 12)
    model = Model.load(with_weights(numpy_helper.from_array(array, "v")))
    keep = {0: np.arange(0, 24, 3), -1: [5, 1, 2]}
    model.take("v", keep)
    expected = array[keep[0]][:, :, [5, 1, 2]]
    assert same(model.weight("v"), expected)
    assert model.info("v").dims == expected.shape
    assert same(numpy_helper.to_array(model.to_proto().graph.initializer[0]), expected)
    model.take("v", {1: [9]})
    assert same(model.weight("v"), expected[:, [9]])


def test_take_of_everything_changes_nothing() -> None:
    model = Model.load(chain())
    model.take("w", {0: range(32), 1: np.arange(32)})
    assert not model.edited


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({2: [0]}, r"weight 'w' has dimensions \(32, 32\), so no axis 2"),
        ({0: [32]}, r"positions to keep on axis 0 of weight 'w' must be a list of numbers in 0 \.\. 31"),
        ({0: [-1]}, r"must be a list of numbers in 0 \.\. 31"),
        ({1: [[0]]}, "must be a list of numbers"),
    ],
)
def test_take_out_of_range(keep: dict[int, Any], says: str) -> None:
    model = Model.load(chain())
    with pytest.raises(ValueError, match=says):
        model.take("w", keep)
    assert not model.edited


@pytest.mark.parametrize("size", [4, 4000])
def test_put(size: int) -> None:
    model = Model.load(chain())
    model.put("w", np.arange(size, dtype=np.float16))
    assert model.info("w") == WeightInfo((size,), TensorProto.FLOAT16, 2 * size, "initializer", None)
    assert same(model.weight("w"), np.arange(size, dtype=np.float16))
    assert model.to_proto().graph.initializer[0].raw_data == np.arange(size, dtype=np.float16).tobytes()


def test_put_does_not_hold_on_to_the_callers_array() -> None:
    model = Model.load(chain())
    array = np.zeros(5, np.float32)
    model.put("w", array)
    array[:] = 1
    assert model.weight("w").tolist() == [0] * 5


def test_an_input_follows_its_default() -> None:
    proto = chain()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [32, 32]))
    model = Model.load(proto)
    model.take("w", {1: range(8)})
    shape = model.proto.graph.input[1].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [32, 8]


def test_added_names_are_unique_everywhere() -> None:
    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Relu", ["x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, 1, None)],
        )

    nodes = [
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("fresh"), else_branch=branch("fresh_1")),
    ]
    model = Model.load(chain(nodes, [numpy_helper.from_array(np.float32(1), "s")]))
    assert model.add("fresh", np.ones(3)) == "fresh_2"
    assert model.add("fresh", np.ones(3000)) == "fresh_3"
    assert model.add("new", np.int64([1])) == "new"
    assert model.add("", np.int64([1])) == "weight_1"
    assert model.weight("fresh_3").sum() == 3000
    onnx.checker.check_model(model.to_proto())


def test_drop() -> None:
    nodes = [helper.make_node("Constant", [], [f"c{i}"], value_int=i) for i in range(4)]
    model = Model.load(chain([*nodes, helper.make_node("Relu", ["x"], ["y"])]))
    model.drop("c1", "w", "c2")
    assert model.names() == ["c0", "c3"]
    assert model.weight("c3") == 3
    with pytest.raises(ModelError, match="no weight 'w'"):
        model.drop("c0", "w")
    assert model.names() == ["c0", "c3"]


def test_weights_are_found_after_edits_of_the_graph() -> None:
    weights = [numpy_helper.from_array(np.full(400, i, np.float32), f"w{i}") for i in range(5)]
    model = Model.load(chain([helper.make_node("Relu", ["x"], ["y"])], weights))
    assert model.weight("w3")[0] == 3
    del model.proto.graph.initializer[1]
    assert model.weight("w3")[0] == 3
    assert "w1" not in model
    first = TensorProto()
    first.CopyFrom(model.proto.graph.initializer[0])
    model.proto.graph.initializer[0].CopyFrom(model.proto.graph.initializer[1])
    model.proto.graph.initializer[1].CopyFrom(first)
    assert model.weight("w0")[0] == 0
    model.proto.graph.initializer[0].name = "renamed"
    model.refresh()
    assert model.weight("renamed")[0] == 2


def test_a_copied_tensor_is_another_weight() -> None:
    model = Model.load(chain())
    twin = model.proto.graph.initializer.add()
    twin.CopyFrom(model.proto.graph.initializer[0])
    twin.name = "twin"
    model.take("w", {0: [1]})
    assert model.weight("twin").shape == (32, 32)
    assert model.weight("w").shape == (1, 32)
    onnx.checker.check_model(model.to_proto())
