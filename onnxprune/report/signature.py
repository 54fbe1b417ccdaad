"""How inputs and outputs of a model changed: what who runs it must know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx

from onnxprune.runtime.binding import declared, real_inputs

__all__ = ["changed_interface", "interface_lines"]


def changed_interface(before: onnx.GraphProto, after: onnx.GraphProto) -> list[dict[str, Any]]:
    """Return the inputs and outputs whose declared shape differs, in their order.

    Returns
    -------
    list of dict
        ``name``, ``kind`` ("input" or "output"), ``before`` and ``after``: a size or a name for each axis.
    """
    new = {(kind, v.name): declared(v) for kind, v in _values(after)}
    return [
        {"name": v.name, "kind": kind, "before": list(declared(v) or ()), "after": list(shape)}
        for kind, v in _values(before)
        if (shape := new.get((kind, v.name))) is not None and shape != declared(v)
    ]


def _values(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.ValueInfoProto]]:
    yield from (("input", value) for value in real_inputs(graph))
    yield from (("output", value) for value in graph.output)


def interface_lines(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say each change in a line.

    Examples
    --------
    >>> interface_lines([{"name": "past", "kind": "input", "before": ["N", 4, 8], "after": ["N", 2, 8]}])
    ['input past: N x 4 x 8 is now N x 2 x 8']
    """
    return [
        f"{one['kind']} {one['name']}: {' x '.join(map(str, one['before']))} is now "
        f"{' x '.join(map(str, one['after']))}"
        for one in changes
    ]
