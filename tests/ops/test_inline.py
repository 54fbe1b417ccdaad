"""What onnxruntime must find in the model itself is never moved to external data, for any op."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model import Model
from onnxprune.runtime.session import open_session

from .node_models import Case

#: Ops that fail where one of their constants is external: found by saving them so.
NAMES = (
    "AffineGrid CenterCropPad Col2Im ConstantOfShape DFT Expand OneHot Pad Reshape Resize STFT Split Squeeze Tile "
    "TopK Unsqueeze Upsample ReduceSum ReduceMax ReduceMean HannWindow SplitToSequence"
)
READ_WHEN_LOADED = set(NAMES.split())


def loads(model: onnx.ModelProto | bytes | Path) -> bool:
    """Whether onnxruntime takes a model as users give it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    try:
        onnxruntime.InferenceSession(
            str(source) if isinstance(source, Path) else source, options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # onnxruntime's errors have no common base but this
        return False
    return True


def with_constants(case: Case) -> Iterator[onnx.ModelProto]:
    """Yield the model with all of its inputs, and with all but the first, as initializers."""
    tensors = {}
    for value in case.model.graph.input:
        array = case.inputs.get(value.name)
        if isinstance(array, np.ndarray | np.generic) and array.dtype.kind not in "OUS":
            array = np.asarray(array)
            tensor = numpy_helper.from_array(array, value.name)
            if tensor.data_type == value.type.tensor_type.elem_type:
                tensors[value.name] = tensor
    for chosen in (list(tensors), list(tensors)[1:]):
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        model.ir_version = max(model.ir_version, 4)
        kept = [v for v in model.graph.input if v.name not in chosen]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.graph.initializer.extend(tensors[n] for n in chosen)
        if chosen:
            yield model


def test_constants_of_every_op_load_at_threshold_0(all_node_models: list[Case], tmp_path: Path) -> None:
    seen, known, tried, need, failed = set(), set(), 0, set(), []
    for case in all_node_models:
        nodes = case.model.graph.node
        key = (tuple((n.op_type, len(n.input)) for n in nodes), str(case.model.opset_import))
        if key in seen or len(nodes) > 3:
            continue
        seen.add(key)
        for model in with_constants(case):
            if not loads(model):
                continue
            tried += 1
            known.add(nodes[0].op_type)
            file = tmp_path / "m.onnx"
            Model.load(model).save(file, external_threshold=0)
            if not loads(file):
                failed.append(f"{case.name}: {[t.name for t in model.graph.initializer]}")
            if nodes[0].op_type in READ_WHEN_LOADED - need:
                onnx.save(
                    model, tmp_path / "a.onnx", save_as_external_data=True, location="w", size_threshold=0
                )
                need |= set() if loads(tmp_path / "a.onnx") else {nodes[0].op_type}
                (tmp_path / "w").unlink()
    assert not failed
    assert tried > 350
    assert need == READ_WHEN_LOADED & known  # the comparison sees those that onnx's own writer breaks
    assert READ_WHEN_LOADED - known <= {
        "OneHot"
    }  # onnx's models of it have an opset that onnxruntime 1.29 doesn't know


def split(count: int, raw: bool = True) -> onnx.ModelProto:
    """Return ``Relu(MatMul) -> Split`` into so many parts of one -> Concat -> MatMul."""
    rng = np.random.default_rng(0)
    parts = [f"p{i}" for i in range(count)]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("Split", ["c", "sizes"], parts, axis=1),
        helper.make_node("Concat", parts, ["y"], axis=1),
    ]
    weights = {
        "w": rng.standard_normal((16, 32)).astype(np.float32),
        "v": rng.standard_normal((32, count)).astype(np.float32),
        "sizes": np.ones(count, np.int64),
    }
    tensors = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    if not raw:
        tensors[-1] = helper.make_tensor("sizes", TensorProto.INT64, [count], [1] * count)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", count])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("constant", [False, True])
def test_a_session_holds_long_lists_of_sizes_itself(raw: bool, constant: bool) -> None:
    model = split(300, raw)
    if constant:
        node = helper.make_node("Constant", [], ["sizes"], value=model.graph.initializer.pop())
        model.graph.node.insert(0, node)
    x = np.ones((2, 16), np.float32)
    for optimise in (False, True):
        assert open_session(Model.load(model), optimise=optimise).run({"x": x})["y"].shape == (2, 300)


def test_what_came_external_and_must_be_inline_is_brought_in(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(split(200), source, save_as_external_data=True, location="w", size_threshold=0)
    assert not loads(source)
    model = Model.load(source)
    model.take("w", {1: range(8)})
    model.take("v", {0: range(8)})
    model.save(target)
    assert loads(target)
    proto = onnx.load(target, load_external_data=False)
    where = {t.name: t.data_location for t in proto.graph.initializer}
    assert where == {"w": TensorProto.EXTERNAL, "v": TensorProto.EXTERNAL, "sizes": TensorProto.DEFAULT}


def test_a_long_table_of_indices_goes_out(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.zeros((16, 16), np.int64), "t")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["x", "t"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16, 16])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    Model.load(model).save(tmp_path / "m.onnx", external_threshold=0)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert proto.graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert loads(tmp_path / "m.onnx")
