"""Runs of a part of a model over all samples, one part after another.

A `Stream` walks a model in topological order. It holds, for every batch of samples, the tensors that later nodes still
need (the frontier), so each node runs about once however many stops are made. Where the frontier is larger than
``most_bytes``, the last one that fitted is kept, and later parts run from there: memory stays bounded, time grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError
from onnxprune.files.protowalk import captured
from onnxprune.model import Model
from onnxprune.runtime.session import RunError, Session

__all__ = ["Stream"]

Array = NDArray[Any]
Batch = dict[str, Array]


class Stream:
    """A model on its way through the samples.

    Parameters
    ----------
    model : Model
        May be edited between stops, after the position that was reached.
    samples : Samples
    types : mapping
        Tensor -> element type, for every tensor of the graph.
    most_bytes : int
        Largest frontier that is held over all batches.

    Attributes
    ----------
    position : int
        Nodes before it have run.
    keep : set of str
        Tensors that are held on the frontier once they are made, although no later node reads them.
    """

    def __init__(
        self,
        model: Model,
        samples: Samples,
        types: Mapping[str, int],
        most_bytes: int = 1 << 30,
    ) -> None:
        self.model, self.samples, self.types, self.most_bytes = model, samples, types, most_bytes
        self.position = 0
        self.batches: list[Batch] = [dict(b) for b in samples.batches]
        self.keep: set[str] = set()

    @property
    def protos(self) -> list[NodeProto]:
        """The nodes in topological order."""
        graph = self.model.proto.graph
        return [graph.node[i] for i in self.model.order]

    def run(self, to: int, wanted: Sequence[str], *, stay: bool = False) -> Iterator[Batch]:
        """Run up to a node, yielding for each batch tensors that exist by then.

        Parameters
        ----------
        to : int
            Position in topological order of the first node that doesn't run.
        wanted : sequence of str
            Tensors to be yielded: on the frontier, or made by nodes between the last position and ``to``.
        stay : bool
            Leave the position where it is: nodes after it are still to be edited.

        Yields
        ------
        dict
            Tensor -> values. The stream's position moves when the last batch has been taken.

        Raises
        ------
        CalibrationError
            If onnxruntime fails on the samples.
        """
        nodes = self.protos
        to = max(to, self.position)
        live = [] if stay else self._live(nodes, to)
        session, names = self._session(nodes, to, {*live, *wanted})
        hold, held = not stay, 0
        new: list[Batch] = []
        for batch in self.batches:
            values = self._run(session, names, batch)
            if hold:
                new.append({n: values[n] for n in live})
                held += sum(getattr(values[n], "nbytes", 0) for n in live)  # sequences and maps have none
                hold = held <= self.most_bytes
                if not hold:
                    new.clear()
            yield {n: values[n] for n in wanted}
        if hold:
            self.position, self.batches = to, new

    def _run(self, session: Session | None, names: Sequence[str], batch: Batch) -> Batch:
        if session is None:
            return batch
        feeds = {n: batch[n] for n in names}
        try:
            return {**batch, **session.run(feeds)}
        except RunError as error:
            raise CalibrationError(f"The model fails on the calibration samples: {error}.") from error

    def _live(self, nodes: Sequence[NodeProto], to: int) -> list[str]:
        """Tensors that exist before ``to`` and are read from there on."""
        made = set(self.batches[0]) if self.batches else set()
        made |= {n for node in nodes[self.position : to] for n in node.output}
        needed: dict[str, None] = {}
        for node in nodes[to:]:
            for name in (*node.input, *sorted(captured(node) if node.attribute else ())):
                if name in made and name not in self.model:  # weights stay there
                    needed[name] = None
        for name in (*(v.name for v in self.model.proto.graph.output), *sorted(self.keep)):
            if name in made:
                needed[name] = None
        return list(needed)

    def _session(
        self, nodes: Sequence[NodeProto], to: int, wanted: set[str]
    ) -> tuple[Session | None, list[str]]:
        """Return a session of the nodes that the wanted tensors need, and its inputs."""
        have = set(self.batches[0]) if self.batches else set()
        missing = {n for n in wanted if n not in have}
        if not missing:
            return None, []
        picked: list[NodeProto] = []
        needed = set(missing)
        for node in reversed(nodes[self.position : to]):
            if node.op_type == "Constant" and node.output[0] in self.model:
                continue  # its value lies in the model, and becomes a weight of the part
            if needed.intersection(node.output):
                picked.append(node)
                needed |= set(node.input) | (captured(node) if node.attribute else set())
        picked.reverse()
        made = {n for node in picked for n in node.output}
        lost = missing - made
        if lost:
            raise ValueError(f"{sorted(lost)} can't be had between nodes {self.position} and {to}")
        proto, inputs = self._part(picked, needed - made - {""}, sorted(missing), have)
        try:
            return self.samples.open(proto), inputs
        except RunError as error:
            raise CalibrationError(f"A part of the model can't be run for calibration: {error}.") from error

    def _shape(self, name: str) -> list[int | None] | None:
        """Return the rank of a tensor, and the length of a list of integers, which ops that take sizes must know.

        Without a rank its Shape has no elements as far as onnxruntime's inference goes, and sizes made of it don't fit.
        """
        shapes = {b[name].shape for b in self.batches if isinstance(b[name], np.ndarray)}
        whole = all(b[name].dtype.kind == "i" for b in self.batches if isinstance(b[name], np.ndarray))
        if len({len(shape) for shape in shapes}) != 1:
            return None
        first = next(iter(shapes))
        return list(first) if whole and len(shapes) == 1 and len(first) == 1 else [None] * len(first)

    def _part(
        self, nodes: Sequence[NodeProto], outside: Iterable[str], outputs: Iterable[str], have: set[str]
    ) -> tuple[onnx.ModelProto, list[str]]:
        source = self.model.proto
        inputs, weights = [], []
        for name in sorted(outside):
            if name in have:
                inputs.append(name)
            elif name in self.model:
                weights.append(numpy_helper.from_array(np.asarray(self.model.weight(name)), name))
        graph = helper.make_graph(
            list(nodes),
            "part",
            [helper.make_tensor_value_info(n, self.types[n], self._shape(n)) for n in inputs],
            [onnx.ValueInfoProto(name=n) for n in outputs],
            weights,
        )
        proto = onnx.ModelProto()
        proto.CopyFrom(onnx.ModelProto(ir_version=source.ir_version, functions=source.functions))
        proto.opset_import.extend(source.opset_import)
        proto.graph.CopyFrom(graph)
        return proto, inputs
