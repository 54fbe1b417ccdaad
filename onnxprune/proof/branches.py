"""Each branch of each If is run, whatever the inputs decide: models in which conditions are given.

Inputs drawn at random seldom take both branches. So a comparison is made again with the conditions of a graph's Ifs
replaced by constants, in as few ways as show both branches of each, those in branches of others too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxprune.files.bodies import body_of, is_if, joint_id
from onnxprune.model import Model

__all__ = ["MOST", "Choice", "choices", "decided", "title"]

#: First output of an If -> whether its then branch is taken.
Choice = Mapping[str, bool]
#: Ways that are run, each with a session of its own.
MOST = 32


def choices(model: Model) -> list[list[dict[str, bool]]]:
    """Return what to decide so that every branch of an unfolded model is taken once; nothing without an If.

    Returns
    -------
    list of list of dict
        In each list: decisions that may be made together. Where that can't be run, since one contradicts another, they
        are to be made one by one. Each has what leads to it: the branches that its If lies in.
    """
    joints = {joint_id(node): node for node in model.proto.graph.node if is_if(node)}
    name = {number: next(filter(None, node.output)) for number, node in joints.items()}

    def way(body: str) -> Iterator[tuple[str, bool]]:
        """Yield what leads into a body."""
        number, _, branch = body.partition(".")
        if number in joints:
            yield from way(body_of(joints[number]))
            yield name[number], branch == "then_branch"

    left = [
        {**dict(way(body_of(node))), name[number]: then}
        for number, node in joints.items()
        for then in (True, False)
    ]
    ways: list[list[dict[str, bool]]] = []
    while left:
        together: dict[str, bool] = {}
        chosen: list[dict[str, bool]] = []
        for wanted in left:
            if all(together.get(key, value) == value for key, value in wanted.items()):
                together |= wanted
                chosen.append(wanted)
        left = [wanted for wanted in left if wanted not in chosen]
        ways.append(chosen)
    return ways


def decided(model: Model, choice: Choice) -> Model:
    """Return a model whose Ifs are decided like this; the model itself where there is nothing to decide."""
    if not choice:
        return model
    fork = model.fork()
    given: dict[bool, str] = {}
    for node in fork.proto.graph.node:
        own = next((choice[n] for n in node.output if n in choice), None) if is_if(node) else None
        if own is not None:
            if own not in given:
                given[own] = fork.add(f"onnxprune/{own}", np.array(own))
            node.input[0] = given[own]
    return fork


def title(model: Model, choice: Choice) -> str:
    """Name the innermost branch of a decision."""
    output, then = list(choice.items())[-1]
    node = next((n for n in model.proto.graph.node if output in n.output), None)
    called = repr(node.name) if node is not None and node.name else f"that gives {output!r}"
    return f"the {'then' if then else 'else'} branch of the If {called}"
