"""Models over samples: the one place that opens sessions on them.

Whoever needs what a model gives on samples asks `stream_of` for its `Runs`: ``each`` runs the whole model, ``run`` a
part of it, and the next part later. A second backend (other processes, other machines) is one more class with these
methods, chosen in `stream_of`; what is summed over batches merges (`onnxprune.reconstruction.moments`).

The backend of this process is `Stream`. It walks a model in topological order and holds, for every batch of samples,
the tensors that later nodes still need (the frontier), so each node runs about once however many stops are made. Where
the frontier is larger than ``most_bytes``, the last one that fitted is kept, and later parts run from there: memory
stays bounded, time grows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError
from onnxprune.files.protowalk import captured
from onnxprune.model import Model
from onnxprune.runtime.session import RunError, Session, open_session

__all__ = ["Runs", "Stream", "stream_of"]

#: Ops that give a weight in another form.
FORMS = frozenset({"Cast", "DequantizeLinear", "Identity", "Transpose"})

Array = NDArray[Any]
Batch = dict[str, Array]


class Runs(Protocol):
    """What a backend offers: one model over all batches of samples, in their order.

    Attributes
    ----------
    model : Model
    keep : set of str
        Tensors that later calls of `run` ask for although no node after them reads them; the caller changes it.
    """

    model: Model
    keep: set[str]

    def run(self, to: int, wanted: Sequence[str], *, stay: bool = False) -> Iterator[Batch]:
        """Run up to a node, yielding for each batch tensors that exist by then.

        Parameters
        ----------
        to : int
            Position in topological order of the first node that doesn't run.
        wanted : sequence of str
            Tensors to be yielded: read or kept after the last position, or made by nodes between it and ``to``.
        stay : bool
            Leave the position where it is: nodes after it are still to be edited.

        Yields
        ------
        dict
            Tensor -> values. The position moves when the last batch has been taken; the model may be edited behind it.

        Raises
        ------
        CalibrationError
            If onnxruntime fails on the samples.
        """

    def each(self, wanted: Sequence[str] = (), beside: Iterable[Batch] | None = None) -> Iterator[Batch]:
        """Run the whole model, whatever the position, yielding tensors of each batch.

        Parameters
        ----------
        wanted : sequence of str
            Any tensors of the model; its outputs by default.
        beside : iterable of dict, optional
            For each batch, values of inputs that aren't the samples': asked for just before the batch runs.

        Yields
        ------
        dict
            Tensor -> values.

        Raises
        ------
        CalibrationError
            If onnxruntime fails on the samples.
        """

    def fork(self, model: Model) -> Runs:
        """Return the runs of another model, of the same nodes, from the same position; these stay where they are."""


def stream_of(
    model: Model,
    samples: Samples,
    types: Mapping[str, int] | None = None,
    most_bytes: int = 1 << 30,
    *,
    what: str = "The model",
) -> Runs:
    """Return a model's runs over samples; here a backend is chosen. See `Stream` for the parameters."""
    return Stream(model, samples, types, most_bytes, what=what)


class Stream:
    """A model on its way through the samples, in this process: a backend of `Runs`.

    Parameters
    ----------
    model : Model
        May be edited between stops, after the position that was reached.
    samples : Samples
    types : mapping, optional
        Tensor -> element type, for every tensor of the graph; only `run` needs them.
    most_bytes : int
        Largest frontier that is held over all batches.
    what : str
        What the model is, for errors.

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
        types: Mapping[str, int] | None = None,
        most_bytes: int = 1 << 30,
        *,
        what: str = "The model",
    ) -> None:
        self.model, self.samples, self.types, self.most_bytes = model, samples, types or {}, most_bytes
        self.what = what
        self.position = 0
        self.batches: list[Batch] = [dict(b) for b in samples.batches]
        self.keep: set[str] = set()

    @property
    def protos(self) -> list[NodeProto]:
        """The nodes in topological order."""
        graph = self.model.proto.graph
        return [graph.node[i] for i in self.model.order]

    def run(self, to: int, wanted: Sequence[str], *, stay: bool = False) -> Iterator[Batch]:
        """Run up to a node, see `Runs.run`: tensors of the frontier, or made between the last position and ``to``."""
        nodes = self.protos
        to = max(to, self.position)
        live = [] if stay else self._live(nodes, to)
        session, names = self._session(nodes, to, {*live, *wanted})
        hold, size = not stay, 0
        new: list[Batch] = []
        for batch in self.batches:
            values = self._run(session, names, batch)
            if hold:
                new.append({n: values[n] for n in live})
                size += sum(getattr(values[n], "nbytes", 0) for n in live)  # sequences and maps have none
                hold = size <= self.most_bytes
                if not hold:
                    new.clear()
            yield {n: values[n] for n in wanted}
        if hold:
            self.position, self.batches = to, new

    def each(self, wanted: Sequence[str] = (), beside: Iterable[Batch] | None = None) -> Iterator[Batch]:
        """Run the whole model, see `Runs.each`; nothing is held."""
        try:
            session = self._open(self.model, wanted)
            batches = self.samples.batches
            extra = [{}] * len(batches) if beside is None else beside
            for batch, more in zip(batches, extra, strict=True):
                yield session.run({**batch, **more}, list(wanted) or None)
        except RunError as error:
            raise CalibrationError(f"{self.what} fails on the samples: {error}.") from error

    def fork(self, model: Model) -> Stream:
        """Go on with another model, see `Runs.fork`; the batches of the frontier are shared."""
        other = copy.copy(self)
        other.model, other.keep = model, set(self.keep)
        return other

    def _open(self, model: Model | onnx.ModelProto, extra_outputs: Iterable[str] = ()) -> Session:
        provider = self.samples.provider
        return open_session(model, extra_outputs, provider=provider, prepack=True, optimise=True)

    def _run(self, session: Session | None, names: Sequence[str], batch: Batch) -> Batch:
        if session is None:
            return batch
        feeds = {n: batch[n] for n in names}
        try:
            return {**batch, **session.run(feeds)}
        except RunError as error:
            raise CalibrationError(f"{self.what} fails on the samples: {error}.") from error

    def _unfolded(self, nodes: Sequence[NodeProto]) -> list[NodeProto]:
        """Return the nodes that give weights in another form: never held, since weights may be edited."""
        names: set[str] = set()
        unfolded = []
        for node in nodes:
            given = [n for n in node.input if n]
            if node.op_type in FORMS and given and all(n in names or n in self.model for n in given):
                names.update(node.output)
                unfolded.append(node)
        return unfolded

    def _live(self, nodes: Sequence[NodeProto], to: int) -> list[str]:
        """Tensors that exist before ``to`` and are read from there on."""
        made = set(self.batches[0]) if self.batches else set()
        made |= {n for node in nodes[self.position : to] for n in node.output}
        made -= {n for node in self._unfolded(nodes) for n in node.output}
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
        for node in reversed([*self._unfolded(nodes[: self.position]), *nodes[self.position : to]]):
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
            return self._open(proto), inputs
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
