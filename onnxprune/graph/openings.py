"""Inputs and outputs that may shrink, as ``--open-io`` asks: a cache of keys and values, most of all.

Only axes whose size the model declares as a number are opened. A dynamic one gets its size from who runs the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import onnx

from onnxprune.errors import UsageError
from onnxprune.runtime import binding

__all__ = ["NONE", "Openings", "closed", "given_by_bodies", "openings"]

#: Input or output -> its axes that may shrink.
Openings = Mapping[str, frozenset[int]]
NONE: Openings = MappingProxyType({})

#: Names that a refusal lists.
NAMED = 12


def openings(graph: onnx.GraphProto, patterns: Iterable[str]) -> dict[str, frozenset[int]]:
    """Return the inputs and outputs that a regular expression matches, each with its axes of fixed size.

    Parameters
    ----------
    graph : GraphProto
    patterns : iterable of str
        Searched for in the names.

    Raises
    ------
    UsageError
        If one matches nothing; the sentence lists the names that there are.
    """
    values = {v.name: v for v in (*binding.real_inputs(graph), *graph.output)}
    opened: dict[str, frozenset[int]] = {}
    for pattern in patterns:
        names = [name for name in values if re.search(pattern, name)]
        if not names:
            listed = ", ".join(repr(n) for n in [*values][:NAMED])
            more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
            raise UsageError(
                f"--open-io {pattern!r} matches no input or output of the model; there are {listed}{more}."
            )
        for name in names:
            axes = binding.declared(values[name]) or ()
            opened[name] = frozenset(axis for axis, size in enumerate(axes) if isinstance(size, int))
    return opened


def closed(opened: Openings, name: str, dims: Sequence[int]) -> tuple[int, ...]:
    """Return the dims of an input or output that must stay as they are."""
    return tuple(dim for axis, dim in enumerate(dims) if axis not in opened.get(name, ()))


def given_by_bodies(graph: onnx.GraphProto, opened: Iterable[str]) -> list[str]:
    """Return those of these outputs that a node with bodies gives, such as the If of a merged decoder."""
    names = {
        name for node in graph.node for name in node.output if any(a.HasField("g") for a in node.attribute)
    }
    return sorted(names.intersection(opened))
