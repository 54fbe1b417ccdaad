"""Texts for inputs of strings: a model that reads some has lists of those that it knows."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from onnxprune.files.protowalk import captured

__all__ = ["categories"]

# Attributes of ai.onnx.ml and of text ops that list what is looked up, not what comes out.
_LISTS = frozenset(("keys_strings", "keys_tensor", "cats_strings", "pool_strings", "string_vocabulary"))


def categories(graph: onnx.GraphProto, name: str) -> list[str]:
    """Return the texts that nodes behind an input look up, in the order of the graph; empty where none are listed.

    Parameters
    ----------
    graph : GraphProto
    name : str
        Of an input of strings.
    """
    reached = {name}
    texts = {t.name: t for t in graph.initializer if t.data_type == TensorProto.STRING}
    entries: dict[str, None] = {}
    for _ in graph.node:  # nodes may stand in any order
        size = len(reached)
        for node in graph.node:
            if reached & {*node.input, *(captured(node) if node.attribute else ())}:
                reached |= set(node.output)
                beside = [texts[n] for n in node.input if n in texts]
                entries |= dict.fromkeys(_listed(node))
                entries |= dict.fromkeys(text for tensor in beside for text in _texts(tensor))
        if len(reached) == size:
            break
    return [text for text in entries if text]


def _listed(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        if attribute.name in _LISTS and attribute.type == AttributeProto.STRINGS:
            yield from (text.decode("utf-8", "replace") for text in attribute.strings)
        elif attribute.name in _LISTS and attribute.type == AttributeProto.TENSOR:
            yield from _texts(attribute.t) if attribute.t.data_type == TensorProto.STRING else ()


def _texts(tensor: onnx.TensorProto) -> list[str]:
    return [str(text) for text in numpy_helper.to_array(tensor).ravel()]
