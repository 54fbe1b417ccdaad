"""`If` whose condition is decided is its branch; one that depends on the input stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.graph.branches import settle
from onnxprune.graph.inline import inline
from onnxprune.model import Model

from outside import exact, feeds_of, half, run  # isort: skip
from small_models import Builder  # isort: skip

F = TensorProto.FLOAT


def info(name: str, kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


def scalar(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [])


def body(nodes: Sequence[NodeProto], outputs: Sequence[str], **weights: np.ndarray) -> onnx.GraphProto:
    own = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    return helper.make_graph(list(nodes), "body", [], [info(n) for n in outputs], own)


def ops(*chain: str, source: str, prefix: str = "t") -> list[NodeProto]:
    names = [source, *(f"{prefix}{n}" for n in range(len(chain)))]
    return [helper.make_node(op, [a], [b]) for op, a, b in zip(chain, names, names[1:], strict=False)]


def other(x: str) -> onnx.GraphProto:
    """A branch that nobody takes, whose names are those of the other."""
    return body(ops("Neg", "Neg", source=x), ["t1"])


CASES = [
    "weight", "constant", "false", "size", "rank", "computed", "nested", "captured", "own weight",
    "twice", "two beside", "weight out", "conv inside", "loop behind", "function", "condition is an output",
]  # fmt: skip


def decided(kind: str) -> onnx.ModelProto:
    """Conv (16 channels), an If whose condition is decided, and a Conv that reads its result."""
    b = Builder(7)
    x = b.op("Relu", [b.conv("x", "first", 3, 16)], "relu")
    yes = b.constant("yes", np.array(True))
    then, output, count = body(ops("Abs", "Relu", source=x), ["t1"]), "", 1
    if kind == "constant":
        yes = b.op("Constant", [], "yes_node", value=numpy_helper.from_array(np.array([True])))
    elif kind == "false":
        no = b.constant("no", np.array(False))
        output = b.op("If", [no], "if", then_branch=other(x), else_branch=then)
    elif kind == "size":
        size = b.op("Gather", [b.op("Shape", [x], "shape"), b.constant("one", np.array(1))], "size")
        yes = b.op("Equal", [size, b.constant("sixteen", np.array(16))], "equal")
    elif kind == "rank":
        rank = b.op("Size", [b.op("Shape", [x], "shape")], "rank")
        yes = b.op("Not", [b.op("Equal", [rank, b.constant("three", np.array(3))], "equal")], "not")
    elif kind == "computed":
        big = b.op(
            "Greater", [b.constant("five", np.array(5.0)), b.constant("two", np.array(2.0))], "greater"
        )
        yes = b.op("And", [big, yes], "and")
    elif kind == "nested":
        inner = helper.make_node("If", ["yes"], ["t1"], then_branch=body(ops("Abs", source="t0", prefix="u"), ["u0"]),
                                 else_branch=body(ops("Neg", source="t0", prefix="v"), ["v0"]))  # fmt: skip
        then = body([*ops("Abs", source=x), inner], ["t1"])
    elif kind == "captured":
        w, size = b.weight("outer", 16, 1, 1), b.op("Shape", [x], "shape")
        again = helper.make_node("Reshape", ["t0", size], ["t1"])
        then = body([helper.make_node("Mul", [x, w], ["t0"]), again], ["t1"])
    elif kind == "own weight":
        w = np.linspace(0.5, 2, 16).astype(np.float32).reshape(16, 1, 1)
        then = body([helper.make_node("Mul", [x, "w"], ["t1"])], ["t1"], w=w)

    elif kind == "twice":
        then, count = body(ops("Abs", "Relu", source=x), ["t1", "t0"]), 2
    elif kind == "two beside":
        x = b.op(
            "If",
            [yes],
            "before",
            then_branch=body(ops("Abs", "Tanh", source=x), ["t1"]),
            else_branch=other(x),
        )
        then = body(ops("Abs", "Relu", source=x), ["t1"])
    elif kind == "weight out":
        w = np.linspace(0.5, 2, 16).astype(np.float32).reshape(16, 1, 1)
        then = body([], ["w"], w=w)
    elif kind == "conv inside":
        w = b.rng.normal(size=(16, 16, 3, 3)).astype(np.float32)
        conv = helper.make_node("Conv", [x, "w"], ["t1"], pads=[1] * 4)
        then = body([conv], ["t1"], w=w)
    if not output:
        no = body(ops("Neg", "Neg", source=x), ["t1", "t0"][:count])
        output = b.op("If", [yes], "if", outputs=count, then_branch=then, else_branch=no)
    if kind == "weight out":
        output = b.op("Mul", [output, x], "mul")
    if kind == "twice":
        output = b.op("Sum", [output, "if_out1"], "sum")
    if kind == "loop behind":  # a body that has names of its own, equal to those of the branch
        step = helper.make_graph(
            [*ops("Abs", "Relu", source="v"), helper.make_node("Identity", ["go"], ["on"])], "step",
            [scalar("i", TensorProto.INT64), scalar("go", TensorProto.BOOL), info("v")],
            [scalar("on", TensorProto.BOOL), info("t1")])  # fmt: skip
        three = b.constant("three", np.array(3))
        loop = b.op("Loop", [three, "", b.conv(output, "middle", 16, 2)], "loop", body=step)
        output = b.op("Add", [b.conv(loop, "behind", 2, 16), output], "add")
    model = b.model({"x": ["N", 3, 8, 8]}, b.conv(output, "last", 16, 4))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(model.graph.output[0].name, F, ["N", 4, 8, 8])
    )
    if kind == "condition is an output":
        model.graph.output.append(
            helper.make_tensor_value_info(b.constant("yes", np.array(True)), TensorProto.BOOL, [])
        )
    return in_function(model) if kind == "function" else model


def in_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the If into a local function."""
    node = next(n for n in model.graph.node if n.op_type == "If")
    opsets = [helper.make_opsetid("", 17)]
    captured = model.graph.node[1].output[0]
    copy = NodeProto.FromString(node.SerializeToString())
    function = helper.make_function("own", "F", [captured, "yes"], [node.output[0]], [copy], opsets)
    model.functions.append(function)
    node.CopyFrom(helper.make_node("F", [captured, "yes"], [node.output[0]], domain="own", name="call"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


@pytest.mark.parametrize("kind", CASES)
def test_decided_branches_are_cut(kind: str) -> None:
    model = decided(kind)
    onnx.checker.check_model(model, full_check=kind != "function")
    whole = inline(Model.load(model)).to_proto()
    assert not any(n.op_type == "If" for n in whole.graph.node)
    onnx.checker.check_model(whole, full_check=True)
    for batch in (1, 3):
        feeds = feeds_of(model, batch)
        for want, have in zip(run(model, feeds), run(whole, feeds), strict=True):
            np.testing.assert_array_equal(want, have)
    if kind == "condition is an output":
        model.graph.output.pop()
    if kind not in ("function",):
        assert exact(model, half(model)) < 0.62
    else:
        assert half(model).report.after.parameters < 0.62 * half(model).report.before.parameters


@pytest.mark.parametrize("kind", ["batch", "data", "input", "default", "greater"])
def test_what_depends_on_the_input_stays(kind: str) -> None:
    """A condition that has one value at each size that is guessed isn't decided by that."""
    b = Builder(7)
    x = b.op("Relu", [b.conv("x", "first", 3, 16)], "relu")
    if kind in ("batch", "greater"):
        size = b.op("Gather", [b.op("Shape", [x], "shape"), b.constant("zero", np.array(0))], "size")
        op, number = ("Equal", 77) if kind == "batch" else ("Greater", 4000)
        yes = b.op(op, [size, b.constant("number", np.array(number))], "compare")
    elif kind == "data":
        yes = b.op(
            "Greater", [b.op("ReduceSum", [x], "sum", keepdims=0), b.constant("n", np.float32(9))], "more"
        )
    else:
        yes = "yes"
    output = b.op(
        "If", [yes], "if", then_branch=body(ops("Abs", "Relu", source=x), ["t1"]), else_branch=other(x)
    )
    if kind == "default":
        b.constant("yes", np.array(True))
    model = b.model({"x": ["N", 3, 8, 8]}, b.conv(output, "last", 16, 4))
    if yes == "yes":
        model.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    loaded = Model.load(model)
    assert settle(loaded) is loaded
    assert len(half(model).report.law1["branches"]) == 2
    same = onnxprune.prune(model, ratio=0)
    assert same.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_names_of_nodes_are_told_apart() -> None:
    """Bodies may name their nodes as the graph around them does, and as each other; one graph may not."""
    b = Builder(7)
    x, yes = b.op("Relu", [b.conv("x", "conv", 3, 16)], "relu"), b.constant("yes", np.array(True))
    for n in range(3):
        then = body(ops("Abs", "Relu", source=x), ["t1"])
        for inner, name in zip(then.node, ("conv", "relu_1"), strict=True):
            inner.name = name
        x = b.op("If", [yes], f"if{n}", then_branch=then, else_branch=other(x))
    model = b.model({"x": ["N", 3, 8, 8]}, b.conv(x, "last", 16, 4))
    names = [n.name for n in inline(Model.load(model)).proto.graph.node]
    assert len(set(names)) == len(names)
    assert {"conv", "relu", "relu_1"} <= set(names)
    assert exact(model, half(model)) < 0.62


def test_nothing_to_cut_gives_the_input_back() -> None:
    model = decided("nested")
    same = onnxprune.prune(model, ratio=0)
    assert same.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
