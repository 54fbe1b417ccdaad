"""Shorter tables behind a map of ids, and the same without the map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.cut.rewrite import Rewritten, rewrite
from onnxprune.graph.vocabulary import PREFIX, Vocabulary, put_nodes
from onnxprune.model import Model

__all__ = ["renumbered", "shortened"]


def shortened(vocabulary: Vocabulary, keep: NDArray[np.int64], unk: int) -> Rewritten:
    """Return the model whose tables have these ids only; it takes the same ids as before.

    Parameters
    ----------
    vocabulary : Vocabulary
    keep : int64[n]
        See `Vocabulary.closed`.
    unk : int
        What ids that are gone are read as; one of ``keep``.

    Raises
    ------
    RewriteError
        If a tensor would not get the shape that the cut implies.
    """
    analysis = vocabulary.analysis
    dead = analysis.grouping.dead(vocabulary.removed(keep))
    rewritten = rewrite(analysis.model, analysis.coupling, analysis.tracer, dead, analysis.other_values())
    model = vocabulary.mapped(rewritten.model, "place", vocabulary.places(keep, unk))
    return replace(rewritten, model=model)


def renumbered(model: Model) -> Model:
    """Return a model that `shortened` gave without its maps: ids count anew."""
    fork = model.fork()
    graph = fork.proto.graph
    place = f"{PREFIX}/place"
    maps = {node.output[0]: node for node in graph.node if _is_map(node, place)}
    now = {result: node.input[1] for result, node in maps.items()}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in now and node.output[0] not in maps:
                node.input[slot] = now[name]
    put_nodes(graph, [node for node in graph.node if node.output[0] not in maps] if maps else graph.node)
    fork.drop(*{node.input[0] for node in maps.values()})
    return fork


def _is_map(node: onnx.NodeProto, place: str) -> bool:
    return (
        node.op_type == "Gather"
        and node.output[0].startswith(f"{place}/")
        and node.input[0].startswith(place)
    )
