"""Close the bodies that were laid open: the inverse of `onnxprune.files.unfold`.

What was not edited comes back to the byte; what has been added goes to the innermost body that it reads from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.files.bodies import (
    DOMAIN,
    ENTRY,
    OUT,
    body_of,
    fresh_name,
    is_entry,
    is_joint,
    joint_id,
    made_by,
    number_of,
    renamed,
    table,
    unmark,
)  # fmt: skip
from onnxprune.files.protowalk import captured

__all__ = ["fold"]

Item = TypeVar("Item", NodeProto, TensorProto, ValueInfoProto)


def fold(proto: onnx.ModelProto, wanted: Iterable[str] = ()) -> None:
    """Close all bodies that were laid open, in place.

    Parameters
    ----------
    proto : ModelProto
        Unfolded, perhaps only a part of such a graph: where a joint is missing, what is wanted of its bodies belongs to
        the main graph, and the rest goes.
    wanted : iterable of str
        Values that the main graph shall have, by their names in the unfolded graph. What an If would compute in one of
        its branches is then computed whatever the condition is.

    Raises
    ------
    ValueError
        If a wanted value is computed in each step of a Loop or Scan, so that the main graph can't have it.
    """
    _Fold(proto.graph, wanted).close()


class _Fold:
    """Where each node and weight of an unfolded graph belongs."""

    def __init__(self, graph: GraphProto, wanted: Iterable[str] = ()) -> None:
        self.graph = graph
        self.nodes = list(graph.node)
        self.joints = {joint_id(node): n for n, node in enumerate(self.nodes) if is_joint(node)}
        self.entries = {joint_id(n): n for n in self.nodes if is_entry(n)}
        self.maker = {name: n for n, node in enumerate(self.nodes) for name in node.output if name}
        self.hoisted: set[int] = set()
        self._hoist(wanted)
        self.at: dict[int, str | None] = {}  # number of a node -> its body, None where it goes
        self.values: dict[str, str] = {}  # name -> its body, for what nodes make
        for number in _order(self.nodes, self.maker):
            self.at[number] = self._place(number)
        self.weights = self._weights()

    def _hoist(self, wanted: Iterable[str]) -> None:
        """Take the nodes of bodies that lead to what is wanted into the main graph."""
        todo = [n for name in wanted if (n := self.maker.get(name)) is not None]
        while todo:
            number = todo.pop()
            node = self.nodes[number]
            if is_entry(node):
                op = node.op_type.removesuffix(ENTRY)
                raise ValueError(f"a value is computed in each step of {op} {node.name!r}")
            if number in self.hoisted or not body_of(node):
                continue
            self.hoisted.add(number)
            read = [*node.input, *(captured(node) if node.attribute else ())]
            if node.domain == DOMAIN:
                read = self._outside(node)
            todo += [m for name in read if (m := self.maker.get(name)) is not None]

    def _outside(self, joint: NodeProto) -> list[str]:
        """Return what a joint's node reads from around it, its bodies included."""
        number = joint_id(joint)
        seen, todo, read = set[int](), list(joint.input), list[str]()
        while todo:
            name = todo.pop()
            maker = self.maker.get(name)
            inside = maker is not None and self._within(body_of(self.nodes[maker]), number)
            if not inside:
                entry = maker is not None and self.nodes[maker] is self.entries.get(number)
                read += self.nodes[maker].input if entry and maker is not None else [name]
            elif maker is not None and maker not in seen:
                seen.add(maker)
                todo += [*self.nodes[maker].input, *captured(self.nodes[maker])]
        return read

    def _within(self, body: str, number: str) -> bool:
        return any(number_of(b) == number for b in self.path(body))

    def path(self, body: str) -> list[str]:
        """Return the bodies that one lies in, the outermost first, itself last."""
        path: list[str] = []
        while body:
            path.insert(0, body)
            number = self.joints.get(number_of(body))
            body = "" if number is None or number in self.hoisted else body_of(self.nodes[number])
        return path

    def lives(self, body: str) -> bool:
        """Whether all nodes that a body belongs to are there."""
        return all(number_of(b) in self.joints for b in self.path(body))

    def _place(self, number: int) -> str | None:
        node = self.nodes[number]
        body = "" if number in self.hoisted else body_of(node)
        if not self.lives(body):
            return None
        for name in node.input:
            if node.domain == DOMAIN and not self._around(node, name):
                continue
            body = self._deeper(body, self.values.get(name, ""))
        for name in captured(node) if node.attribute else ():
            body = self._deeper(body, self.values.get(name, ""))
        entry = is_entry(node)
        self.values |= dict.fromkeys(node.output, f"{joint_id(node)}.body" if entry else body)
        return body

    def _around(self, joint: NodeProto, name: str) -> bool:
        """Whether a joint reads a value as its node does, and not as the end of a body."""
        return is_entry(joint) or (joint.op_type == "If" and name == joint.input[0])

    def _deeper(self, one: str, other: str) -> str:
        return other if len(self.path(other)) > len(self.path(one)) else one

    def _weights(self) -> dict[str, str]:
        """Weight -> the body that it stays in: that it is marked for, where nothing outside of it reads it."""
        marks = {t.name: body for t in self.graph.initializer if (body := body_of(t))}
        self.lost = {name for name, body in marks.items() if not self.lives(body)}
        for number, node in enumerate(self.nodes):
            at = self.at[number]
            if at is None:
                continue
            for slot, name in enumerate(node.input):
                if name in marks:
                    own = self._end(node, slot) if node.domain == DOMAIN else at
                    marks[name] = self._common(marks[name], own)
                    self.lost.discard(name)
            for name in captured(node) if node.attribute else ():
                if name in marks:
                    marks[name] = self._common(marks[name], at)
        return {name: body for name, body in marks.items() if body and self.lives(body)}

    def _end(self, joint: NodeProto, slot: int) -> str:
        """Return the body whose end an input of a joint is."""
        if is_entry(joint) or (joint.op_type == "If" and slot == 0):
            return body_of(joint)
        if joint.op_type != "If":
            return f"{joint_id(joint)}.body"
        return f"{joint_id(joint)}.{'then' if slot <= len(joint.output) else 'else'}_branch"

    def _common(self, one: str, other: str) -> str:
        shared = [a for a, b in zip(self.path(one), self.path(other), strict=False) if a == b]
        return shared[-1] if shared else ""

    # -- closing

    def close(self) -> None:
        """Put nodes, weights and types back into their bodies, in place."""
        graph = self.graph
        inside: dict[str, list[NodeProto]] = {}
        for number, node in enumerate(self.nodes):
            at = self.at[number]
            if at is not None and not (is_entry(node)):
                inside.setdefault(at, []).append(node)
        names = self._own_names()
        calls = self._calls(inside.values())
        self.tensors, stay = self._apart(graph.initializer, lambda t: self.weights.get(t.name, ""))
        if self.tensors or self.lost:
            del graph.initializer[:]
            graph.initializer.extend(t for t in stay if t.name not in self.lost)
        self.types, left = self._apart(graph.value_info, body_of)
        if self.types:
            del graph.value_info[:]
            graph.value_info.extend(left)
        nodes = [self._closed(node, inside, names, calls) for node in inside.get("", ())]
        del graph.node[:]
        graph.node.extend(nodes)

    def _calls(self, graphs: Iterable[Sequence[NodeProto]]) -> dict[str, str]:
        """Return the own names of nodes that are called otherwise, but where what came from elsewhere is called so."""
        calls = {new: old for j in self.joints.values() for new, old in table(self.nodes[j], "nodes")}
        for nodes in graphs:
            often = Counter(calls.get(node.name, node.name) for node in nodes)
            for node in nodes:
                if node.name in calls and often[calls[node.name]] > 1:
                    del calls[node.name]
        return calls

    def _own_names(self) -> dict[str, str]:
        """Return what is called otherwise in a body, for what stays in one."""
        names = {new: old for j in self.joints.values() for new, old in table(self.nodes[j], "flat")}
        return {n: old for n, old in names.items() if self.values.get(n) or self.weights.get(n)}

    def _apart(
        self, items: Iterable[Item], home: Callable[[Item], str]
    ) -> tuple[dict[str, list[Item]], list[Item]]:
        """Sort copies of weights or types: body -> those that belong to it, and those of the main graph."""
        apart: dict[str, list[Item]] = {}
        stay: list[Item] = []
        for item in items:
            copy = type(item).FromString(item.SerializeToString())
            unmark(copy)
            apart.setdefault(at, []).append(copy) if (at := home(item)) else stay.append(copy)
        return apart, stay

    def _closed(
        self,
        node: NodeProto,
        inside: Mapping[str, list[NodeProto]],
        names: Mapping[str, str],
        calls: Mapping[str, str],
    ) -> NodeProto:
        if node.domain != DOMAIN:
            copy = renamed(node, names)
            if node.name in calls:
                copy.name = calls[node.name]
            unmark(copy)
            return copy
        number = joint_id(node)
        closed: NodeProto = NodeProto.FromString(next(a.s for a in node.attribute if a.name == "frame"))
        around = node.input[:1] if node.op_type == "If" else self.entries[number].input
        closed.input[:] = [names.get(n, n) for n in around]
        closed.output[:] = [names.get(n, n) for n in node.output]
        if node.name:
            closed.name = calls.get(node.name, node.name)
        for attribute in closed.attribute:
            if attribute.HasField("g"):
                body = f"{number}.{attribute.name}"
                attribute.g.node.extend(self._closed(n, inside, names, calls) for n in inside.get(body, ()))
                self._fill(attribute.g, body, self._ends(node, attribute.name), names)
        return closed

    def _ends(self, joint: NodeProto, branch: str) -> list[str]:
        count = len(joint.output)
        if joint.op_type == "If":
            return list(joint.input[1 : 1 + count] if branch == "then_branch" else joint.input[1 + count :])
        return list(joint.input[: count + (joint.op_type == "Loop")])

    def _fill(self, graph: GraphProto, body: str, ends: Sequence[str], names: Mapping[str, str]) -> None:
        """Give a body its weights, types and the names of its inputs and outputs."""
        for tensor in self.tensors.get(body, ()):
            tensor.name = names.get(tensor.name, tensor.name)
            graph.initializer.append(tensor)
        if graph.input:
            for value, name in zip(graph.input, self.entries[number_of(body)].output, strict=True):
                value.name = names.get(name, name)
        made = set(made_by(graph))
        types: dict[str, ValueInfoProto] = {}
        for info in self.types.get(body, ()):
            info.name = names.get(info.name, info.name)
            if info.name in made:
                graph.value_info.append(info)
        for info in self.types.get(body + OUT, ()):
            types[names.get(info.name, info.name)] = info
        for value in graph.input:
            if value.name in types:
                value.type.CopyFrom(types[value.name].type)
        for value, end in zip(graph.output, ends, strict=True):
            name = names.get(end, end)
            if name != value.name and name not in made:
                alias = fresh_name(f"{value.name}_out", made | set(self.maker))
                graph.node.append(helper.make_node("Identity", [name], [alias], name=alias))
                made.add(alias)
                name = alias
            known = types.get(value.name) if name == value.name else types.get(name)
            if known is not None:
                value.type.CopyFrom(known.type)
            value.name = name


def _order(nodes: Sequence[NodeProto], maker: Mapping[str, int]) -> Iterator[int]:
    """Yield numbers of nodes, each behind those that make what it reads."""
    done: set[int] = set()
    for first in range(len(nodes)):
        stack = [first]
        while stack:
            number = stack[-1]
            if number in done:
                stack.pop()
                continue
            node = nodes[number]
            read = (*node.input, *(captured(node) if node.attribute else ()))
            todo = [m for name in read if (m := maker.get(name)) is not None and m not in done]
            if todo:
                stack += todo
                continue
            stack.pop()
            done.add(number)
            yield number
