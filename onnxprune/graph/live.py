"""What a graph's outputs need, and the removal of the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from onnx import GraphProto, NodeProto

from onnxprune.files.protowalk import captured
from onnxprune.model import Model

__all__ = ["forget", "is_dead", "names_of", "needed", "needed_in", "remove"]


def names_of(model: Model) -> set[str]:
    """Return the names that the main graph gives: outputs of nodes and weights, sparse ones too."""
    graph = model.proto.graph
    names = {name for node in graph.node for name in node.output if name} | set(model.names())
    return names | {t.values.name for t in graph.sparse_initializer}


def needed(model: Model, also: Iterable[str] = ()) -> set[str]:
    """Return the names of the main graph that its outputs need, directly or through others.

    Counted as readers: nodes, the bodies (If, Loop, Scan) of nodes, and quantisation annotations of needed tensors.
    A node without outputs is there for something else than a value, and counts as an output.

    Parameters
    ----------
    model : Model
    also : iterable of str
        Names that are needed besides the outputs.
    """
    return needed_in(model.proto.graph, also)


def needed_in(graph: GraphProto, also: Iterable[str] = ()) -> set[str]:
    """Return what the outputs of a graph need, as `needed` does; of a body names from outside are among it."""
    made: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output if name}
    notes: dict[str, list[str]] = {}
    blind = [name for node in graph.node if not any(node.output) for name in node.input]
    for note in graph.quantization_annotation:
        notes.setdefault(note.tensor_name, []).extend(p.value for p in note.quant_parameter_tensor_names)
    names: set[str] = set()
    stack = [*(value.name for value in graph.output), *also, *blind]
    while stack:
        name = stack.pop()
        if not name or name in names:
            continue
        names.add(name)
        stack += notes.get(name, ())
        node = made.get(name)
        if node is not None:
            stack += [*node.input, *(captured(node) if node.attribute else ()), *node.output]
    return names


def remove(model: Model, names: Iterable[str]) -> None:
    """Remove nodes all of whose outputs are among these names, and weights of these names, in place.

    Graph inputs stay, and so do the weights that are their defaults.
    """
    gone, graph = set(names), model.proto.graph
    inputs = {value.name for value in graph.input}
    weights = [name for name in model.names() if name in gone and name not in inputs]
    if weights:
        model.drop(*weights)
    live = [n for n in graph.node if not is_dead(n, gone)]
    if len(live) < len(graph.node):
        copies = [NodeProto.FromString(n.SerializeToString()) for n in live]
        del graph.node[:]
        graph.node.extend(copies)
    for i in reversed(range(len(graph.sparse_initializer))):
        name = graph.sparse_initializer[i].values.name
        if name in gone and name not in inputs:
            del graph.sparse_initializer[i]
    forget(graph, gone - inputs)


def is_dead(node: NodeProto, gone: Collection[str]) -> bool:
    """Whether a node has outputs, all of them among names that go."""
    return any(node.output) and all(name in gone for name in node.output if name)


def forget(graph: GraphProto, gone: Collection[str]) -> None:
    """Remove what is only said of tensors that are no more."""
    for i in reversed(range(len(graph.value_info))):
        if graph.value_info[i].name in gone:
            del graph.value_info[i]
    for i in reversed(range(len(graph.quantization_annotation))):
        if graph.quantization_annotation[i].tensor_name in gone:
            del graph.quantization_annotation[i]
