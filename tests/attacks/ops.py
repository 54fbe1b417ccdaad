"""Nodes that no op allows, names that are no text, sizes that none can have."""

from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from attacks import attack, chain, save


def _one(op: str, inputs: str, outputs: str = "y", **attrs: object) -> onnx.ModelProto:
    return chain([helper.make_node(op, inputs.split(" ") if inputs else [], outputs.split(), **attrs)], [])


@attack("The Shape node that gives 'y' has 0 inputs, but its op has 1")
def no_input(folder: Path) -> Path:
    return save(folder, _one("Shape", ""))


@attack("The Relu node that gives 'y' has 2 inputs, but its op has 1")
def too_many_inputs(folder: Path) -> Path:
    return save(folder, _one("Relu", "x x"))


@attack("The Relu node that gives 'y' has 2 outputs, but its op has 1")
def too_many_outputs(folder: Path) -> Path:
    return save(folder, _one("Relu", "x", "y z"))


@attack("The Einsum node that gives 'y' leaves out one of the inputs")
def variadic_left_out(folder: Path) -> Path:
    return save(folder, _one("Einsum", "x ", equation="ij,jk->ik"))


@attack("The MatMul node that gives 'y' leaves out its input 1, which its op needs")
def required_left_out(folder: Path) -> Path:
    return save(folder, _one("MatMul", "x "))


@attack("attribute 'axis' of type FLOAT, but its op wants INT")
def attribute_of_another_type(folder: Path) -> Path:
    return save(folder, _one("Concat", "x x", axis=1.0))


@attack("The Concat node that gives 'y' has no attribute 'axis', which its op needs")
def attribute_missing(folder: Path) -> Path:
    return save(folder, _one("Concat", "x x"))


@attack("attribute 'value' whose tensor was never set")
def tensor_never_set(folder: Path) -> Path:
    model = _one("ConstantOfShape", "x")
    model.graph.node[0].attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR))
    return save(folder, model)


@attack("has 0 inputs, but its op has 1")
def inside_a_branch(folder: Path) -> Path:
    branch = helper.make_graph(
        [helper.make_node("Shape", [], ["b"])], "b", [], [onnx.ValueInfoProto(name="b")]
    )
    nodes = [
        helper.make_node("IsInf", ["x"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    return save(folder, chain(nodes, []))


@attack(r"asks for version 1099511627776 of the operator set 'ai.onnx', which can't exist")
def opset_of_the_far_future(folder: Path) -> Path:
    model = chain()
    model.opset_import[0].version = 2**40
    return save(folder, model)


@attack("asks for version -1 of the operator set 'ai.onnx'")
def opset_below_zero(folder: Path) -> Path:
    model = chain()
    model.opset_import[0].version = -1
    return save(folder, model)


def _bytes(folder: Path, old: bytes, new: bytes) -> Path:
    path = save(folder, chain())
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


@attack("A name in node 0 isn't text in UTF-8")
def node_name_no_text(folder: Path) -> Path:
    return _bytes(folder, b"first", b"fir\xff\xfe")


@attack("A name in node 1 isn't text in UTF-8")
def op_no_text(folder: Path) -> Path:
    return _bytes(folder, b"Relu", b"Rel\xff")


@attack("The name of an initializer isn't text in UTF-8")
def weight_name_no_text(folder: Path) -> Path:
    model = chain(weights=[numpy_helper.from_array(np.ones((32, 32), np.float32), "w"),
                           numpy_helper.from_array(np.ones(3, np.float32), "unused")])  # fmt: skip
    path = save(folder, model)
    path.write_bytes(path.read_bytes().replace(b"unused", b"\xff\xfeused"))
    return path


@attack("dimensions of initializer 'w' are 4611686018427387904x4611686018427387904x0, which no tensor has")
def huge_dims_times_zero(folder: Path) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**62, 2**62, 0])
    return save(folder, chain(weights=[tensor]))


@attack("a model of more than 10,000 fields is no model of ONNX")
def many_fields(folder: Path) -> Path:
    path = save(folder, chain())
    path.write_bytes(b"\x08\x01" * 500_000)
    return path


@attack("a graph of more than 10,000 fields is no graph of ONNX")
def many_fields_in_the_graph(folder: Path) -> Path:
    path = save(folder, chain())
    graph = b"\x08\x01" * 100_000
    path.write_bytes(
        b"\x08\x08\x3a"
        + bytes([0x80 | len(graph) & 127, 0x80 | len(graph) >> 7 & 127, len(graph) >> 14])
        + graph
    )
    return path


def _functions(depth: int, calls: int, attribute: int = 0) -> list[onnx.FunctionProto]:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1), helper.make_opsetid("q", 1)]
    last = helper.make_node("Foo", ["a"], ["b"], domain="q", big=list(range(attribute or 1)))
    found = [helper.make_function("f", "f0", ["a"], ["b"], [last], opsets)]
    for i in range(1, depth):
        nodes = [
            helper.make_node(
                f"f{i - 1}",
                ["a" if j == 0 else f"c{j}"],
                ["b" if j == calls - 1 else f"c{j + 1}"],
                domain="f",
            )
            for j in range(calls)
        ]
        found.append(helper.make_function("f", f"f{i}", ["a"], ["b"], nodes, opsets))
    return found


@attack("calls others more than 100 deep, which onnx doesn't inline")
def functions_too_deep(folder: Path) -> Path:
    functions = _functions(150, 1)
    return save(folder, chain([helper.make_node("f149", ["x"], ["y"], domain="f")], [], functions=functions))


@attack("functions would inline its 52 nodes to 100,000")
def functions_of_many_nodes(folder: Path) -> Path:
    functions = _functions(6, 10)
    return save(folder, chain([helper.make_node("f5", ["x"], ["y"], domain="f")], [], functions=functions))


@attack(r"functions of [\d,]+ bytes would inline to [\d,]+; such a file exhausts")
def functions_of_many_bytes(folder: Path) -> Path:
    functions = _functions(4, 20, 20_000)
    return save(folder, chain([helper.make_node("f3", ["x"], ["y"], domain="f")], [], functions=functions))


@attack(r"calls a function of 1 inputs and 1 outputs with 2 and 1")
def function_arity(folder: Path) -> Path:
    return save(
        folder, chain([helper.make_node("f0", ["x", "x"], ["y"], domain="f")], [], functions=_functions(1, 1))
    )
