"""Sequences and optionals whose tensors are known are dissolved, and nothing else is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from nets import node, normal
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

import onnxprune
from onnxprune.graph.sequences import dissolved
from onnxprune.model import Model

F = TensorProto.FLOAT
WIDTH = 24


def graph(tail: str, version: int = 17, **weights: Any) -> onnx.ModelProto:
    """Two layers of x, a and b, and what ``tail`` makes of them: a node a line, its last output the input of a layer.

    Each line is ``output = Op input input name=value``.
    """
    nodes = [node("MatMul", "x wa", "ha"), node("Relu", "ha", "a")]
    nodes += [node("MatMul", "x wb", "hb"), node("Relu", "hb", "b")]
    for line in tail.strip().splitlines():
        output, _, rest = line.strip().partition(" = ")
        op, *words = rest.split()
        attrs = {k: int(v) for k, v in (w.split("=") for w in words if "=" in w)}
        nodes.append(node(op, " ".join(w for w in words if "=" not in w), output, **attrs))
    width = weights.pop("width", WIDTH)
    arrays = {
        "wa": normal(6, WIDTH),
        "wb": normal(6, WIDTH, seed=1),
        "w": normal(width, 3, seed=2),
        **weights,
    }
    arrays |= {"one": np.array(1), "last": np.array(-1), "zero": np.array(0), "eight": np.array(8)}
    nodes.append(node("MatMul", f"{output} w", "y"))
    ends = (
        [helper.make_tensor_value_info("x", F, ["N", 6])],
        [helper.make_tensor_value_info("y", F, ["N", 3])],
    )
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items()]
    whole = helper.make_graph(nodes, "sequences", *ends, constants)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


def ran(model: onnx.ModelProto, size: int) -> np.ndarray:
    x = np.random.default_rng(size).standard_normal((size, 6)).astype(np.float32)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


KNOWN: dict[str, Callable[[], onnx.ModelProto]] = {
    "picked": lambda: graph("s = SequenceConstruct a b\ny0 = SequenceAt s last"),
    "joined": lambda: graph("s = SequenceConstruct a b\nc = ConcatFromSequence s axis=1", width=2 * WIDTH),
    "stacked": lambda: graph(
        "s = SequenceConstruct a b\nc = ConcatFromSequence s axis=1 new_axis=1\nd = Flatten c",
        width=2 * WIDTH,
    ),
    "stacked, old": lambda: graph(
        "s = SequenceConstruct a b\nc = ConcatFromSequence s axis=-2 new_axis=1\nd = Flatten c",
        11,
        width=2 * WIDTH,
    ),
    "put in": lambda: graph(
        "e = SequenceEmpty\ns = SequenceInsert e a\nt = SequenceInsert s b zero\ny0 = SequenceAt t zero"
    ),
    "put before the last": lambda: graph(
        "s = SequenceConstruct a b\nt = SequenceInsert s x last\nc = ConcatFromSequence t axis=1",
        width=2 * WIDTH + 6,
    ),
    "taken out": lambda: graph("s = SequenceConstruct a b\nt = SequenceErase s last\ny0 = SequenceAt t zero"),
    "the last taken out": lambda: graph(
        "s = SequenceConstruct a b\nt = SequenceErase s\ny0 = SequenceAt t zero"
    ),
    "split by sizes": lambda: graph(
        "s = SplitToSequence a sizes axis=1\np = SequenceAt s zero\nq = SequenceAt s one\nc = Concat q p axis=1",
        sizes=np.array([8, 16]),
    ),
    "split by one size": lambda: graph(
        "s = SplitToSequence a eight axis=-1\ny0 = SequenceAt s last", width=8
    ),
    "split, old": lambda: graph("s = SplitToSequence a eight axis=1\ny0 = SequenceAt s last", 11, width=8),
    "split into slices": lambda: graph(
        "u = Unsqueeze a one\nv = Concat u u axis=1\ns = SplitToSequence v axis=1 keepdims=0\ny0 = SequenceAt s one",
        one=np.array([1]),
    ),
    "counted": lambda: graph(
        "s = SequenceConstruct a b\nn = SequenceLength s\nf = Cast n to=1\np = SequenceAt s zero\ny0 = Mul p f"
    ),
    "there": lambda: graph(
        "o = Optional a\nh = OptionalHasElement o\nf = Cast h to=1\ng = OptionalGetElement o\ny0 = Mul g f"
    ),
    "a sequence that may be there": lambda: graph(
        "s = SequenceConstruct a b\no = Optional s\ng = OptionalGetElement o\nt = Identity g\ny0 = SequenceAt t last"
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_goes_and_nothing_changes(name: str) -> None:
    model = KNOWN[name]()
    plain = dissolved(Model.load(model)).to_proto()
    ops = {n.op_type for n in plain.graph.node}
    assert not any("Sequence" in op or "Optional" in op for op in ops)
    onnx.checker.check_model(plain, full_check=True)
    for size in (1, 4):
        np.testing.assert_array_equal(ran(plain, size), ran(model, size))
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert result.report.after.macs < 0.6 * result.report.before.macs


def test_what_is_chosen_at_run_time_stays() -> None:
    """Half of the layer behind it is another matter; its own axes are frozen, as they were."""
    tail = "n = Size x\nm = Mod n two\ns = SequenceConstruct a b\ny0 = SequenceAt s m"
    model = Model.load(graph(tail, two=np.array(2)))
    assert dissolved(model) is model
    grown = (
        "n = Size x\nm = Mod n two\ns = SequenceConstruct a\nt = SequenceInsert s b m\ny0 = SequenceAt t zero"
    )
    model = Model.load(graph(grown, two=np.array(2)))
    assert dissolved(model) is model


def test_a_sequence_that_a_body_reads_stays() -> None:
    model = graph("s = SequenceConstruct a b\ny0 = SequenceAt s one")
    inner = [node("SequenceAt", "s zero", "z")]
    value = [helper.make_tensor_value_info("z", F, None)]
    body = {k: helper.make_graph(inner, k, [], value) for k in ("then_branch", "else_branch")}
    more = [
        node("ReduceSum", "x", "r", keepdims=0),
        node("Cast", "r", "c", to=TensorProto.BOOL),
        node("If", "c", "q", **body),
    ]
    model.graph.node.extend(more)
    model.graph.output.append(helper.make_tensor_value_info("q", F, None))
    plain = dissolved(Model.load(model)).to_proto()
    assert [n.op_type for n in plain.graph.node].count("SequenceConstruct") == 1
    np.testing.assert_array_equal(ran(plain, 3), ran(model, 3))


def test_a_sequence_that_is_an_output_stays() -> None:
    model = graph("s = SequenceConstruct a b\ny0 = SequenceAt s one")
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, None))
    model.graph.output.append(helper.make_value_info("s", kind))
    plain = dissolved(Model.load(model)).to_proto()
    assert [n.op_type for n in plain.graph.node].count("SequenceConstruct") == 1


def test_parts_of_an_axis_of_any_size_are_not_counted() -> None:
    model = Model.load(graph("s = SplitToSequence a one axis=0\ny0 = SequenceAt s zero"))
    assert dissolved(model) is model
