"""A model whose LayerNorms are RMS norms, and the way back to LayerNorms where nobody has cut their width.

A LayerNorm takes a mean off that an RMS norm does not see. So the way back is there only while what writes the stream
writes no mean: what was fitted by least squares to targets without one has none, what went down by descent may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from onnxprune.graph.folding import merged, weight_protos
from onnxprune.graph.origins import Origins
from onnxprune.model import Model

__all__ = ["OneStream", "RmsModel", "first_output"]

#: A mean of so much of the largest number is rounding.
NO_MEAN = 1e-6


@dataclass(frozen=True)
class OneStream:
    """What was rewritten for one stream.

    Attributes
    ----------
    made : tuple of str
        First outputs of the nodes that are new or changed.
    gone : tuple of str
        First outputs of the original's nodes that are gone or changed.
    weights : tuple of str
        Weights with other values.
    axes : tuple of (str, int)
        Axes of weights that hold the channels of the stream.
    writers : tuple of str
        First outputs of the nodes that write the stream by weights without their mean.
    """

    made: tuple[str, ...]
    gone: tuple[str, ...]
    weights: tuple[str, ...]
    axes: tuple[tuple[str, int], ...]
    writers: tuple[str, ...] = ()


@dataclass(frozen=True)
class RmsModel:
    """A model with RMS norms that computes what the original does.

    Attributes
    ----------
    original, model : Model
    parts : list
        One for each stream.
    origins : Origins
        What to call what is new in `model`.
    """

    original: Model
    model: Model
    parts: list[OneStream] = field(default_factory=list)
    origins: Origins = field(default_factory=Origins)

    def restored(self, result: Model) -> Model:
        """Put back the norms of the original where all that was rewritten for a stream is still as it was made.

        Parameters
        ----------
        result : Model
            Made from `model`; nothing may have been renamed.
        """
        now, made = _by_output(result), _by_output(self.model)
        parts = [part for part in self.parts if self._whole(part, result, now, made)]
        parts = [part for part in parts if self._mean_free(part, result, now)]
        if not parts:
            return result
        fork, graph = result.fork(), self.original.proto.graph
        new = {name for part in parts for name in part.made}
        old = {name for part in parts for name in part.gone}
        kept = [n for n in fork.proto.graph.node if first_output(n) not in new]
        missing = {i for i, n in enumerate(graph.node) if first_output(n) in old}
        nodes = merged(kept, graph.node, missing)
        del fork.proto.graph.node[:]
        fork.proto.graph.node.extend(nodes)
        self._put_weights(fork, [name for part in parts for name in part.weights])
        return fork

    def _whole(
        self, part: OneStream, result: Model, now: dict[str, NodeProto], made: dict[str, NodeProto]
    ) -> bool:
        for name, axis in part.axes:
            if name not in result or result.info(name).dims[axis] != self.model.info(name).dims[axis]:
                return False
        for name in part.made:
            if name not in now or now[name] != made[name]:
                return False
            for read in made[name].input:
                if read in self.model and not self._kept(read, result):
                    return False
        return True

    def _kept(self, name: str, result: Model) -> bool:
        """Whether a weight is as wide as it was made; of what is new the values, which the original lacks."""
        if name not in result or result.info(name).dims != self.model.info(name).dims:
            return False
        return name in self.original or np.array_equal(result.weight(name), self.model.weight(name))

    def _mean_free(self, part: OneStream, result: Model, now: dict[str, NodeProto]) -> bool:
        """Whether what writes a stream still writes no mean."""
        made, found = weight_protos(self.model), weight_protos(result)
        axes = dict(reversed(part.axes))  # of each weight the first one
        read = {name for writer in part.writers if writer in now for name in now[writer].input}
        for name in {*part.weights, *(name for name in read if name in found)}:
            if name in made and found.get(name) == made[name]:
                continue
            array = result.weight(name).astype(np.float64)
            if np.abs(array.mean(axis=axes.get(name))).max() > NO_MEAN * np.abs(array).max():
                return False
        return True

    def _put_weights(self, fork: Model, names: Sequence[str]) -> None:
        """Give weights that are as they were made the values that they had, and drop what is new and not read."""
        fork.refresh()
        new, now, old = weight_protos(self.model), weight_protos(fork), weight_protos(self.original)
        graph = fork.proto.graph
        same = {name for name in names if now.get(name) == new[name]}
        for tensor in graph.initializer:
            if tensor.name in same:
                tensor.ParseFromString(old[tensor.name])
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in same:
                node.ParseFromString(old[node.output[0]])
        fork.refresh()
        read = {name for node in graph.node for name in node.input}
        fork.drop(*sorted(name for name in new.keys() - old.keys() if name in now and name not in read))


def first_output(node: NodeProto) -> str:
    """Return what a node goes by."""
    return next((name for name in node.output if name), "")


def _by_output(model: Model) -> dict[str, NodeProto]:
    return {first_output(node): node for node in model.proto.graph.node}
