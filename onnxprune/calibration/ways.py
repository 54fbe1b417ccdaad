"""Which branches of Ifs samples take, and a graph's nodes along that way.

A branch that isn't taken is not run: it may not fit, and what it would give says nothing of what the model sees. So
each batch of samples has a *way*, and a part of the model is run along it: the nodes of the branches that it takes,
without the others, where an If passes on what its branch gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from onnx import NodeProto, helper

from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError
from onnxprune.files.bodies import body_of, is_if, joint_id, number_of, stepped, unmark
from onnxprune.model import Model
from onnxprune.runtime.session import RunError, Session

__all__ = ["Way", "along", "ways_of"]

#: Pairs of an If's number and whether its then branch is taken; of Ifs in branches that are taken, too.
Way = frozenset[tuple[str, bool]]


def ways_of(
    model: Model, samples: Samples, session_of: Callable[[Model, Iterable[str]], Session]
) -> list[Way]:
    """Return the way of each batch.

    Parameters
    ----------
    model : Model
        Unfolded; Ifs that are run in each step of a Loop or Scan have no part in it.
    samples : Samples
    session_of : callable
        Opens a model with more outputs.

    Raises
    ------
    CalibrationError
        If onnxruntime fails on the samples.
    """
    graph = model.proto.graph
    ways: list[Way] = [frozenset()] * len(samples.batches)
    many = stepped(graph) if any(is_if(n) for n in graph.node) else set()
    joints = {joint_id(n): n for n in graph.node if is_if(n) and not many & set(n.output)}
    while True:
        changed = False
        for way in dict.fromkeys(ways):
            mine = [n for n, own in enumerate(ways) if own == way]
            known = {number for number, _ in way}
            asked = [j for j in joints.values() if joint_id(j) not in known and _taken(body_of(j), way)]
            if asked:
                names = list(dict.fromkeys(j.input[0] for j in asked))
                for n, values in zip(
                    mine, _values(model, way, samples, mine, (names, session_of)), strict=True
                ):
                    ways[n] = way | {(joint_id(j), values[j.input[0]]) for j in asked}
                changed = True
        if not changed:
            return ways


def _values(
    model: Model, way: Way, samples: Samples, mine: Sequence[int],
    asked: tuple[list[str], Callable[[Model, Iterable[str]], Session]],
) -> list[dict[str, bool]]:  # fmt: skip
    """Return the conditions of batches along the way that they have taken so far."""
    names, session_of = asked
    given = {n: bool(np.ravel(model.weight(n))[0]) for n in names if n in model}
    computed = [n for n in names if n not in given and n not in samples.batches[mine[0]]]
    found = []
    try:
        session = session_of(_decided(model, way), computed) if computed else None
        for number in mine:
            batch = samples.batches[number]
            values = {} if session is None else session.run(batch, computed)
            found.append(
                {n: given[n] if n in given else bool(np.ravel({**batch, **values}[n])[0]) for n in names}
            )
    except RunError as error:
        raise CalibrationError(f"The conditions of the model's Ifs fail on the samples: {error}.") from error
    return found


def _decided(model: Model, way: Way) -> Model:
    fork = model.fork()
    nodes = [copy for node in fork.proto.graph.node for copy in along(node, way)]
    del fork.proto.graph.node[:]
    fork.proto.graph.node.extend(nodes)
    fork.refresh()
    return fork


def _taken(body: str, way: Way) -> bool:
    number, _, branch = body.partition(".")
    return not body or (number, branch == "then_branch") in way


def along(node: NodeProto, way: Way) -> list[NodeProto]:
    """Return what stands for a node of an unfolded graph along a way: a copy, nothing in another branch.

    What is inside of a Loop or Scan, or of an If that the way doesn't decide, stays in its body.
    """
    body, decided = body_of(node), {number for number, _ in way}
    if number_of(body) in decided and not _taken(body, way):
        return []
    copy = NodeProto.FromString(node.SerializeToString())
    if number_of(body) in decided:
        unmark(copy)
    if not is_if(node) or joint_id(node) not in decided:
        return [copy]
    count = len(node.output)
    ends = node.input[1 : 1 + count] if (joint_id(node), True) in way else node.input[1 + count :]
    return [
        helper.make_node("Identity", [end], [output], name=f"{node.name}/{output}")
        for end, output in zip(ends, node.output, strict=True) if output
    ]  # fmt: skip
