"""Graphs that are no graphs, and functions that are bombs."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from attacks import FLOAT, attack, chain, save


def _node(op: str, inputs: str, outputs: str, **attrs: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"{op}_{outputs}", **attrs)


@attack(
    r"nodes of the graph form a cycle, so nothing can compute them: .*'Relu_b' \(Relu\) -> .*'Add_a' \(Add\)"
)
def cycle(folder: Path) -> Path:
    return save(
        folder, chain([_node("Add", "x b", "a"), _node("Relu", "a", "b"), _node("Relu", "b", "y")], [])
    )


@attack("form a cycle")
def self_loop(folder: Path) -> Path:
    return save(folder, chain([_node("Add", "x y", "y")], []))


@attack(r"form a cycle, so nothing can compute them: .* 997 more")
def long_cycle(folder: Path) -> Path:
    ring = [_node("Relu", f"v{i}", f"v{(i + 1) % 1000}") for i in range(1000)]
    return save(folder, chain([*ring, _node("Add", "x v5", "y")], []))


def _branch(name: str, inputs: str) -> onnx.GraphProto:
    return helper.make_graph(
        [_node("Identity", inputs, name)], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
    )


@attack("form a cycle")
def cycle_through_a_branch(folder: Path) -> Path:
    """A branch captures a value that is computed from the If's own output."""
    nodes = [
        _node("Greater", "x x", "c"),
        _node("If", "c", "h", then_branch=_branch("t", "y"), else_branch=_branch("e", "x")),
        _node("Relu", "h", "y"),
    ]
    return save(folder, chain(nodes, []))


@attack("'missing' of node 'Identity_t'.*in a subgraph of node 'If_y'.* is computed by no node")
def dangling_capture(folder: Path) -> Path:
    nodes = [
        _node("Greater", "x x", "c"),
        _node("If", "c", "y", then_branch=_branch("t", "missing"), else_branch=_branch("e", "x")),
    ]
    return save(folder, chain(nodes, []))


@attack(r"input 'nowhere' of node 'Add_y' \(Add\) in the graph is computed by no node")
def dangling_input(folder: Path) -> Path:
    return save(folder, chain([_node("Add", "x nowhere", "y")], []))


@attack("output 'z' of the graph is computed by no node")
def dangling_output(folder: Path) -> Path:
    return save(folder, chain(output="z"))


@attack(r"name 'y' is defined twice in the graph, the second time as an output of node 'Abs_y' \(Abs\)")
def value_computed_twice(folder: Path) -> Path:
    return save(folder, chain([_node("Relu", "x", "y"), _node("Abs", "x", "y")], []))


@attack("name 'w' is defined twice in the graph, the second time as an output of node")
def initializer_computed(folder: Path) -> Path:
    return save(folder, chain([_node("Relu", "x", "w"), _node("Relu", "w", "y")]))


@attack("name 'x' is defined twice in the graph, the second time as an output of node")
def input_computed(folder: Path) -> Path:
    return save(folder, chain([_node("Relu", "x", "x"), _node("Relu", "x", "y")]))


@attack("name 'w' is defined twice in the graph, the second time as another initializer")
def initializer_twice(folder: Path) -> Path:
    """Of two such initializers onnxruntime takes the last, others the first."""
    model = chain()
    model.graph.initializer.append(model.graph.initializer[0])
    return save(folder, model)


@attack("name 'x' is defined twice in the graph, the second time as another input")
def input_twice(folder: Path) -> Path:
    model = chain()
    model.graph.input.append(model.graph.input[0])
    return save(folder, model)


@attack("initializer of the graph has no name")
def nameless_initializer(folder: Path) -> Path:
    model = chain()
    model.graph.initializer.add(data_type=TensorProto.FLOAT, dims=[1], float_data=[1.0])
    return save(folder, model)


def _function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bomb", 1)]
    return helper.make_function("bomb", name, ["a"], ["z"], nodes, opsets)


@attack("functions would inline its 80 nodes to 549,755,813,888")
def function_bomb(folder: Path) -> Path:
    """40 functions that each call the next one twice: 2^39 nodes from a few kilobytes."""
    functions = [_function("f40", [helper.make_node("Relu", ["a"], ["z"])])]
    for i in range(39, 0, -1):
        body = [
            helper.make_node(f"f{i + 1}", ["a"], ["m"], domain="bomb"),
            helper.make_node(f"f{i + 1}", ["m"], ["z"], domain="bomb"),
        ]
        functions.append(_function(f"f{i}", body))
    return save(folder, chain([helper.make_node("f1", ["x"], ["y"], domain="bomb")], [], functions=functions))


@attack("function 'f' calls itself, directly or through others")
def recursive_function(folder: Path) -> Path:
    functions = [
        _function("f", [helper.make_node("g", ["a"], ["z"], domain="bomb")]),
        _function("g", [helper.make_node("f", ["a"], ["z"], domain="bomb")]),
    ]
    return save(folder, chain([helper.make_node("f", ["x"], ["y"], domain="bomb")], [], functions=functions))


@attack("function 'f' of domain 'bomb' is defined twice")
def function_twice(folder: Path) -> Path:
    function = _function("f", [helper.make_node("Relu", ["a"], ["z"])])
    return save(
        folder,
        chain([helper.make_node("f", ["x"], ["y"], domain="bomb")], [], functions=[function, function]),
    )


@attack("output 'z' of function 'f' is computed by none of its nodes")
def function_without_output(folder: Path) -> Path:
    function = _function("f", [helper.make_node("Relu", ["a"], ["other"])])
    return save(folder, chain([helper.make_node("f", ["x"], ["y"], domain="bomb")], [], functions=[function]))


@attack("input 'w' of .* in function 'f' is computed by no node")
def function_reads_the_graph(folder: Path) -> Path:
    """A function sees its inputs and nothing else."""
    function = _function("f", [helper.make_node("Add", ["a", "w"], ["z"])])
    return save(folder, chain([helper.make_node("f", ["x"], ["y"], domain="bomb")], functions=[function]))
