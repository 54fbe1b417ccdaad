"""Own checks of a model's structure, before anything written in C++ sees the file.

Hostile or broken files make the libraries crash, hang or read what they shouldn't, and each of them misses
other things (the full checker inlines functions without a limit, shape inference accepts cycles, onnxruntime
takes the last of two initializers of one name). Everything here is linear in the size of the graph:

- header: an IR version, an operator set, a graph;
- names: every value of a graph is defined once, every value that is read is defined, in scope;
- order: no cycles. Nodes in another order than they compute in are accepted, as onnxruntime does;
- outputs: there is one;
- functions: defined once, no recursion, and the number of nodes after inlining is bounded.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NoReturn

import onnx

from onnxprune.errors import ModelError
from onnxprune.files.protowalk import describe, subgraphs

__all__ = ["MOST_INLINED", "check", "topological_order"]

#: Nodes after inlining all functions, and those for each node that is written down.
MOST_INLINED, PER_NODE = 20_000, 64
#: Bytes after inlining all functions, and those for each byte of nodes.
MOST_BYTES, PER_BYTE = 1 << 26, 16
MOST_DEPTH = 100  # of functions that call each other: what onnx's inliner takes

_Key = tuple[str, str, str]


def check(proto: onnx.ModelProto) -> None:
    """Check the structure of a model; see the module's own text.

    Raises
    ------
    ModelError
        With one sentence that says what is wrong, where, and what to do.
    """
    _check_header(proto)
    _check_functions(proto)
    for function in proto.functions:
        where = f"function {function.name!r}"
        own = _Scope(where)
        own.define(function.input, "another input")
        _check_nodes(function.node, own, [])
        for name in function.output:
            if name not in own.defined:
                raise ModelError(
                    f"The output {name!r} of {where} is computed by none of its nodes; the file "
                    "is damaged or was edited by hand."
                )
    _check_graph(proto.graph, [], "the graph")
    if not proto.graph.output:
        raise ModelError(
            "The model has no outputs, so nothing of what it computes is kept; export it with them."
        )


def _check_header(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph") or proto.ir_version < 1:
        missing = "graph" if proto.ir_version >= 1 else "IR version"
        raise ModelError(f"The input isn't an ONNX model: it has no {missing}; give a .onnx file.")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise ModelError(
            "The model doesn't say which operator set it uses (opset_import is empty), so its "
            "nodes have no meaning; export it again."
        )


class _Scope:
    """The values that one graph defines, and what defines each."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.defined: set[str] = set()
        self.producer: dict[str, int] = {}

    def refuse(self, name: str, what: str) -> NoReturn:
        raise ModelError(
            f"The name {name!r} is defined twice in {self.where}, the second time as {what}; "
            "names must be unique, so export the model again or rename one."
        )

    def define(self, names: Iterable[str], what: str) -> None:
        for name in names:
            if name in self.defined:
                self.refuse(name, what)
            self.defined.add(name)


def _check_graph(graph: onnx.GraphProto, outer: list[set[str]], where: str) -> set[str]:
    """Check one graph and those nested in it.

    Returns
    -------
    set of str
        The names that it takes from the scopes around it.
    """
    scope = _Scope(where)
    initializers = [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]
    if "" in initializers:
        raise ModelError(f"An initializer of {where} has no name; the file is damaged.")
    scope.define(initializers, "another initializer")
    inputs = _Scope(where)  # an input may have an initializer of its name: its default
    inputs.define((value.name for value in graph.input), "another input")
    scope.defined |= inputs.defined
    captured = _check_nodes(graph.node, scope, outer)
    for value in graph.output:
        if value.name in scope.defined:
            continue
        if not _visible(value.name, outer):
            raise ModelError(
                f"The output {value.name!r} of {where} is computed by no node and is no input "
                "or initializer; the file is damaged or was edited by hand."
            )
        captured.add(value.name)
    return captured


def _visible(name: str, outer: list[set[str]]) -> bool:
    return any(name in defined for defined in outer)


def _check_nodes(nodes: Sequence[onnx.NodeProto], scope: _Scope, outer: list[set[str]]) -> set[str]:
    defined, producer = scope.defined, scope.producer
    for index, node in enumerate(nodes):
        for name in node.output[:]:  # a slice is much faster than to iterate over a protobuf container
            if name in defined:
                scope.refuse(name, f"an output of {describe(node, index)}")
            if name:  # an output left out has none
                defined.add(name)
                producer[name] = index
    captured: set[str] = set()
    needs: list[list[int]] = []
    scopes = [*outer, defined]
    for index, node in enumerate(nodes):
        names = node.input[:]
        for graph in subgraphs(node) if len(node.attribute) else ():
            names += sorted(_check_graph(graph, scopes, f"a subgraph of {describe(node, index)}"))
        needs.append([producer[name] for name in names if name in producer])
        for name in names:
            if name in defined or not name:
                continue
            if not _visible(name, outer):
                raise ModelError(
                    f"The input {name!r} of {describe(node, index)} in {scope.where} is "
                    "computed by no node and is no input or initializer; the file is damaged "
                    "or was edited by hand."
                )
            captured.add(name)
    _sort(nodes, needs, scope.where)
    return captured


def topological_order(graph: onnx.GraphProto) -> list[int]:
    """Indices of a graph's nodes in an order in which they can be computed.

    Nodes that are in such an order already keep it; others are moved as little as their needs ask for. What
    subgraphs take from outside counts as an input of the node that holds them.

    Raises
    ------
    ModelError
        If the nodes form a cycle.
    """
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output[:] if name}
    needs = [[producer[name] for name in _names_read(node) if name in producer] for node in graph.node]
    return _sort(graph.node, needs, "the graph")


def _names_read(node: onnx.NodeProto) -> list[str]:
    names: list[str] = node.input[:]
    for graph in subgraphs(node) if len(node.attribute) else ():
        own = {t.name for t in graph.initializer} | {v.name for v in graph.input}
        own.update(name for inner in graph.node for name in inner.output)
        inside = [name for inner in graph.node for name in _names_read(inner)]
        names += [name for name in (*inside, *(value.name for value in graph.output)) if name not in own]
    return names


def _sort(nodes: Sequence[onnx.NodeProto], needs: list[list[int]], where: str) -> list[int]:
    if all(dep < index for index, deps in enumerate(needs) for dep in deps):
        return list(range(len(needs)))
    users: list[list[int]] = [[] for _ in needs]
    missing = [len(deps) for deps in needs]
    for index, deps in enumerate(needs):
        for dep in deps:
            users[dep].append(index)
    ready = [index for index, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users[index]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, user)
    if len(order) < len(needs):
        raise ModelError(
            f"The nodes of {where} form a cycle, so nothing can compute them: "
            f"{_cycle(nodes, needs, set(order))}; the file is damaged or was edited by hand."
        )
    return order


def _cycle(nodes: Sequence[onnx.NodeProto], needs: list[list[int]], sound: set[int]) -> str:
    path: list[int] = []
    seen: dict[int, int] = {}
    index = next(i for i in range(len(needs)) if i not in sound)
    while index not in seen:
        seen[index] = len(path)
        path.append(index)
        index = next(dep for dep in needs[index] if dep not in sound)
    ring = [describe(nodes[i], i) for i in reversed(path[seen[index] :])]
    shown = ring if len(ring) <= 4 else [*ring[:2], f"{len(ring) - 3} more", ring[-1]]
    return " -> ".join([*shown, ring[0]])


def _calls(nodes: Iterable[onnx.NodeProto], known: set[_Key]) -> tuple[int, Counter[_Key]]:
    """Count the plain nodes, and the calls of each function, subgraphs included."""
    plain, calls = 0, Counter[_Key]()
    stack = [nodes]
    while stack:
        for node in stack.pop():
            key = (node.domain, node.op_type, node.overload)
            if key in known:
                calls[key] += 1
            else:
                plain += 1
            if node.attribute:
                stack += [graph.node for graph in subgraphs(node)]
    return plain, calls


def _check_functions(proto: onnx.ModelProto) -> None:
    if not proto.functions:
        return
    bodies: dict[_Key, tuple[int, Counter[_Key]]] = {}
    keys = {(f.domain, f.name, f.overload) for f in proto.functions}
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        if key in bodies:
            raise ModelError(
                f"The function {function.name!r} of domain {function.domain!r} is defined "
                "twice; export the model again or rename one."
            )
        bodies[key] = _calls(function.node, keys)
    _check_calls(proto)
    sizes: dict[_Key, int] = {}
    depth: dict[_Key, int] = {}
    waiting = {key: len(calls) for key, (_, calls) in bodies.items()}
    callers: dict[_Key, list[_Key]] = {key: [] for key in keys}
    for key, (_, calls) in bodies.items():
        for callee in calls:
            callers[callee].append(key)
    ready = [key for key, count in waiting.items() if not count]
    while ready:
        key = ready.pop()
        sizes[key] = _inlined(bodies[key], sizes)
        depth[key] = 1 + max((depth[callee] for callee in bodies[key][1]), default=0)
        if depth[key] > MOST_DEPTH:
            raise ModelError(
                f"The function {key[1]!r} calls others more than {MOST_DEPTH} deep, which onnx doesn't inline; inline "
                "some of them, or export the model without functions."
            )
        for caller in callers[key]:
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    if len(sizes) < len(keys):
        name = min(key for key in keys if key not in sizes)[1]
        raise ModelError(
            f"The function {name!r} calls itself, directly or through others, which ONNX "
            "doesn't allow; the file is damaged or hostile."
        )
    main = _calls(proto.graph.node, keys)
    written = main[0] + sum(main[1].values()) + sum(n + sum(calls.values()) for n, calls in bodies.values())
    nodes = _inlined(main, sizes)
    if nodes > MOST_INLINED + PER_NODE * written:
        raise ModelError(
            f"The model's functions would inline its {written:,} nodes to {_many(nodes)}; such a file exhausts every "
            "tool that opens it and is refused."
        )
    lengths = {(f.domain, f.name, f.overload): f.ByteSize() for f in proto.functions}
    whole: dict[_Key, int] = {}
    for key in sizes:  # callees come first
        whole[key] = min(lengths[key] + sum(n * whole[c] for c, n in bodies[key][1].items()), _UNBOUNDED)
    bytes_ = sum(n * whole[c] for c, n in main[1].items())
    if bytes_ > MOST_BYTES + PER_BYTE * sum(lengths.values()):
        raise ModelError(
            f"The model's functions of {sum(lengths.values()):,} bytes would inline to {_many(bytes_)}; such a file "
            "exhausts every tool that opens it and is refused."
        )


def _many(count: int) -> str:
    return f"{count:,}" if count < _UNBOUNDED else f"more than {_UNBOUNDED:,}"


def _check_calls(proto: onnx.ModelProto) -> None:
    """Refuse calls with more inputs or outputs than the function has."""
    arity = {(f.domain, f.name, f.overload): (len(f.input), len(f.output)) for f in proto.functions}
    stack = [proto.graph.node, *(f.node for f in proto.functions)]
    while stack:
        for index, node in enumerate(stack.pop()):
            if node.attribute:
                stack += [graph.node for graph in subgraphs(node)]
            most = arity.get((node.domain, node.op_type, node.overload))
            if most is not None and (len(node.input) > most[0] or len(node.output) > most[1]):
                raise ModelError(
                    f"{_capital(describe(node, index))} calls a function of {most[0]} inputs and {most[1]} outputs "
                    f"with {len(node.input)} and {len(node.output)}; the file is damaged or was edited by hand."
                )


_UNBOUNDED = 10**12


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _inlined(body: tuple[int, Counter[_Key]], sizes: dict[_Key, int]) -> int:
    plain, calls = body
    return min(plain + sum(count * sizes[key] for key, count in calls.items()), _UNBOUNDED)
