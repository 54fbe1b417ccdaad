"""Two names of dynamic axes that a Reshape makes one: attention between inputs whose batches are called otherwise."""

import numpy as np
import onnx
import pytest
from nets import normal
from onnx import TensorProto, helper
from onnxruntime import InferenceSession
from outside import masked
from size_models import Sized

import onnxprune
from onnxprune.graph.analysis import analyse
from onnxprune.graph.inline import inline
from onnxprune.model import Model

HEADS, DIM, WIDTH = 4, 8, 16


def crossed(batch: str = "x") -> onnx.ModelProto:
    """Attention of x to c; the heads of keys and values are told apart by the batch of x (or of c)."""
    b = Sized()

    def heads(source: str, name: str, count: str) -> str:
        y = b.op("MatMul", [source, b.weight(name, WIDTH, HEADS * DIM)], f"{name}_out")
        target = b.do("Concat", b.sizes(count, 0), b.sizes(source, 1), [HEADS], [DIM], axis=0)
        return b.do("Transpose", b.do("Reshape", y, target), perm=[0, 2, 1, 3])

    q, k, v = heads("x", "q", "x"), heads("c", "k", batch), heads("c", "v", batch)
    scores = b.do("MatMul", q, b.do("Transpose", k, perm=[0, 1, 3, 2]))
    y = b.do("Transpose", b.do("MatMul", b.do("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = b.do("Reshape", y, b.do("Concat", b.sizes("x", 0), b.sizes("x", 1), [HEADS * DIM], axis=0))
    y = b.op("MatMul", [y, b.weight("o", HEADS * DIM, 5)], "y")
    return b.model({"x": ["Bx", "T", WIDTH], "c": ["Bc", "S", WIDTH]}, y)


def ran(model: onnx.ModelProto, sizes: tuple[int, int, int]) -> np.ndarray:
    batch, time, other = sizes
    feeds = {"x": normal(batch, time, WIDTH, seed=1), "c": normal(batch, other, WIDTH, seed=2)}
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def batches(model: onnx.ModelProto) -> list[object]:
    """Return the stand-ins of both batches."""
    sizes = analyse(inline(Model.load(model))).sizes
    return [(sizes.length(name) or (None,))[0] for name in "xc"]


@pytest.mark.parametrize("batch", ["x", "c"])
def test_heads_go_whatever_the_batches_are_called(batch: str) -> None:
    model = crossed(batch)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert [(g["units"], g["removed"]) for g in result.report.groups] == [(HEADS, HEADS // 2)]
    twin = masked(model, result)
    for sizes in ((1, 3, 7), (2, 12, 5), (5, 1, 1)):
        np.testing.assert_allclose(ran(twin, sizes), ran(result.model, sizes), atol=1e-5)


def test_sizes_that_may_differ_stay_apart() -> None:
    """The rows of x are regrouped by the batch of c, which need not be that of x: no heads can be told."""
    b = Sized()
    y = b.op("MatMul", ["x", b.weight("q", WIDTH, 32)], "q_out")
    y = b.do("Reshape", y, b.do("Concat", b.sizes("c", 0), [-1], [8], axis=0))
    y = b.op("MatMul", [y, b.weight("o", 8, 5)], "y")
    model = b.model({"x": ["Bx", "T", WIDTH], "c": ["Bc", "S", WIDTH]}, y)
    told = onnxprune.inspect(model).to_json()["frozen"]
    assert any("follows the size of an input" in str(entry) for entry in told)


def test_a_branch_that_is_not_taken_demands_nothing() -> None:
    """In one branch a Reshape would make both batches one; in the other they may differ."""
    model = crossed()
    body = helper.make_graph(list(model.graph.node), "then", [], list(model.graph.output))
    zero = helper.make_node("ConstantOfShape", ["some"], ["none"])
    other = [zero, helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0)]
    other.append(helper.make_node("Add", ["none", "sum"], ["none2"]))
    value = [helper.make_tensor_value_info("none2", TensorProto.FLOAT, None)]
    either = helper.make_node(
        "If", ["flag"], ["either"], then_branch=body, else_branch=helper.make_graph(other, "else", [], value)
    )
    del model.graph.node[:], model.graph.output[:], model.graph.value_info[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3, 5]), "some"))
    model.graph.node.append(either)
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, [1]))
    model.graph.output.append(helper.make_tensor_value_info("either", TensorProto.FLOAT, ["a", "b", "c"]))
    assert batches(crossed())[0] == batches(crossed())[1]
    assert batches(model)[0] != batches(model)[1]
