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
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.calibration.samples import Samples
from onnxprune.calibration.ways import Way, along, ways_of
from onnxprune.errors import CalibrationError
from onnxprune.files.bodies import is_joint, stepped
from onnxprune.files.protowalk import captured
from onnxprune.model import Model
from onnxprune.runtime.session import RunError, Session, open_session

__all__ = ["Instead", "Runs", "Stream", "stream_of"]

#: Ops that give a weight in another form.
FORMS = frozenset({"Cast", "DequantizeLinear", "Identity", "Transpose"})
#: What gives the scale of an activation, as its second output.
DYNAMIC = "DynamicQuantizeLinear"
#: Bytes of weights beyond which a session may keep no copies of them, though it is then slower.
HEAVY = 1 << 27

Array = NDArray[Any]
Batch = dict[str, Array]
Instead = Mapping[int, Sequence[NodeProto]]


class Runs(Protocol):
    """What a backend offers: one model over all batches of samples, in their order.

    Attributes
    ----------
    model : Model
    keep : set of str
        Tensors that later calls of `run` ask for although no node after them reads them; the caller changes it.
    instead : mapping
        Position of a node -> the nodes that stand for it in `run`; the caller sets it before the first call.
    """

    model: Model
    keep: set[str]
    instead: Instead

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
            Tensor -> values, without those of branches that a batch doesn't take. The position moves when the last
            batch has been taken; the model may be edited behind it.

        Raises
        ------
        CalibrationError
            If onnxruntime fails on the samples.
        """

    def each(
        self, wanted: Sequence[str] | None = None, beside: Iterable[Batch] | None = None
    ) -> Iterator[Batch]:
        """Run the whole model, whatever the position, yielding tensors of each batch.

        Parameters
        ----------
        wanted : sequence of str
            Any tensors of the model; its outputs by default. An empty list asks for nothing, and nothing runs.
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

    def hidden(self) -> tuple[set[str], set[str]]:
        """Return what can't be asked for: tensors of branches that no batch takes, and of steps of a Loop or Scan."""

    def fork(self, model: Model) -> Runs:
        """Return the runs of another model, of the same nodes, from the same position; these stay where they are."""


def stream_of(
    model: Model,
    samples: Samples,
    types: Mapping[str, int] | None = None,
    most_bytes: int = 1 << 30,
    *,
    what: str = "The model",
    served: bool = False,
) -> Runs:
    """Return a model's runs over samples; here a backend is chosen. See `Stream` for the parameters."""
    return Stream(model, samples, types, most_bytes, what=what, served=served)


@dataclass(frozen=True)
class _Part:
    """What runs next along one way: a session and its inputs, what is held afterwards, and what is asked for."""

    session: Session | None
    names: list[str]
    live: list[str]
    wanted: list[str]


def _advice(error: RunError) -> str:
    """Return what to do where onnxruntime has no kernel, such as for bfloat16 on a CPU."""
    if "Could not find an implementation" not in str(error):
        return ""
    return (
        "; the runtime here has no kernel for this type of numbers: choose another with --calib-provider, or give the "
        "model in fp32"
    )


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
    served : bool
        Compute as users have it, for what they are told.

    Attributes
    ----------
    position : int
        Nodes before it have run.
    keep : set of str
        Tensors that are held on the frontier once they are made, although no later node reads them.
    """

    model: Model
    samples: Samples
    types: Mapping[str, int] | dict[str, int]
    most_bytes: int
    position: int

    def __init__(
        self,
        model: Model,
        samples: Samples,
        types: Mapping[str, int] | None = None,
        most_bytes: int = 1 << 30,
        *,
        what: str = "The model",
        served: bool = False,
    ) -> None:
        self.model, self.samples, self.types, self.most_bytes = model, samples, types or {}, most_bytes
        self.what, self.served = what, served
        self.position = 0
        self.batches: list[Batch] = [dict(b) for b in samples.batches]
        self.keep: set[str] = set()
        self.instead: Instead = {}

    @cached_property
    def ways(self) -> list[Way]:
        """Which branches each batch takes."""
        return ways_of(self.model, self.samples, self._open)

    def protos(self, way: Way) -> list[list[NodeProto]]:
        """For each node, in topological order, what stands for it along a way."""
        graph, stops = self.model.proto.graph, []
        for number, i in enumerate(self.model.order):
            nodes = self.instead.get(number, (graph.node[i],))
            stops.append([part for node in nodes for part in (along(node, way) if way else [node])])
        return stops

    def run(self, to: int, wanted: Sequence[str], *, stay: bool = False) -> Iterator[Batch]:
        """Run up to a node, see `Runs.run`: tensors of the frontier, or made between the last position and ``to``."""
        to = max(to, self.position)
        parts: dict[Way, _Part] = {}
        for batch, way in zip(self.batches, self.ways, strict=True):
            if way not in parts:
                parts[way] = self._part_along(way, to, wanted, batch, stay)
        hold, size = not stay, 0
        new: list[Batch] = []
        for batch, way in zip(self.batches, self.ways, strict=True):
            part = parts[way]
            values = self._run(part.session, part.names, batch)
            if hold:
                new.append({n: values[n] for n in part.live})
                size += sum(
                    getattr(values[n], "nbytes", 0) for n in part.live
                )  # sequences and maps have none
                hold = size <= self.most_bytes
                if not hold:
                    new.clear()
            yield {n: values[n] for n in part.wanted}
        if hold:
            self.position, self.batches = to, new

    def _part_along(self, way: Way, to: int, wanted: Sequence[str], batch: Batch, stay: bool) -> _Part:
        """Open what a batch's way needs up to a node; what is in another branch isn't wanted of it."""
        stops = self.protos(way)
        nodes = [node for stop in stops for node in stop]
        first, last = (sum(map(len, stops[:stop])) for stop in (self.position, to))
        here = {name for node in nodes[first:last] for name in node.output} | batch.keys()
        mine = [n for n in wanted if not way or n in here]  # else only another branch needs it
        live = [] if stay else self._live(nodes, first, last, batch)
        session, names = self._session(nodes, (first, last), {*live, *mine}, batch)
        return _Part(session, names, live, mine)

    def each(
        self, wanted: Sequence[str] | None = None, beside: Iterable[Batch] | None = None
    ) -> Iterator[Batch]:
        """Run the whole model, see `Runs.each`; nothing is held."""
        if wanted is not None and not wanted:
            yield from ({} for _ in self.samples.batches)
            return
        try:
            session = self._open(self.model, wanted or ())
            batches = self.samples.batches
            extra = [{}] * len(batches) if beside is None else beside
            for batch, more in zip(batches, extra, strict=True):
                feeds = {n: a for n, a in {**batch, **more}.items() if n in session.shapes}
                yield session.run(feeds, wanted)
        except RunError as error:
            raise CalibrationError(f"{self.what} fails on the samples: {error}{_advice(error)}.") from error

    def hidden(self) -> tuple[set[str], set[str]]:
        """Tell what can't be asked for, see `Runs.hidden`."""
        graph = self.model.proto.graph
        if not any(is_joint(node) for node in graph.node):
            return set(), set()
        many, ways = stepped(graph), set(self.ways)
        seen = {n for way in ways for node in graph.node for copy in along(node, way) for n in copy.output}
        return {n for node in graph.node for n in node.output if ways} - seen - many, many

    def fork(self, model: Model) -> Stream:
        """Go on with another model, see `Runs.fork`; the batches of the frontier are shared."""
        other = copy.copy(self)
        other.model, other.keep = model, set(self.keep)
        return other

    def _open(self, model: Model, extra_outputs: Iterable[str] = ()) -> Session:
        """Open a session; where weights are large it reads them where they lie, and makes no others of them."""
        light = sum(model.info(name).nbytes for name in model.names()) <= HEAVY
        return open_session(
            model,
            extra_outputs,
            provider=self.samples.provider,
            prepack=light,
            optimise=light,
            mode="served" if self.served else "exact",
        )

    def _run(self, session: Session | None, names: Sequence[str], batch: Batch) -> Batch:
        if session is None:
            return batch
        feeds = {n: batch[n] for n in names}
        try:
            return {**batch, **session.run(feeds)}
        except RunError as error:
            raise CalibrationError(f"{self.what} fails on the samples: {error}{_advice(error)}.") from error

    def _unfolded(self, nodes: Sequence[NodeProto]) -> list[NodeProto]:
        """Return the nodes that give weights in another form: never held, since weights may be edited.

        So is a weight's scale times that of the activation it meets: exporters put the product in front of the layer.
        """
        names: set[str] = set()
        steps = {node.output[1] for node in nodes if node.op_type == DYNAMIC and len(node.output) > 1}
        unfolded = []
        for node in nodes:
            given = [n for n in node.input if n]
            known = [n in names or n in self.model for n in given]
            product = node.op_type == "Mul" and any(known)
            if (node.op_type in FORMS and given and all(known)) or (
                product and all(k or n in steps for k, n in zip(known, given, strict=True))
            ):
                names.update(node.output)
                unfolded.append(node)
        return unfolded

    def _live(self, nodes: Sequence[NodeProto], first: int, to: int, batch: Batch) -> list[str]:
        """Tensors that exist before ``to`` and are read from there on."""
        made = set(batch) | {n for node in nodes[first:to] for n in node.output}
        later = {n: node.input for node in self._unfolded(nodes) for n in node.output}
        made -= {*later, ""}  # outputs and inputs that are left out have that name
        needed: dict[str, None] = {}
        for node in nodes[to:]:
            read = [*node.input, *sorted(captured(node) if node.attribute else ())]
            for name in read:
                read += later.get(name, ())
                if name in made and name not in self.model:  # weights stay there
                    needed[name] = None
        for name in (*(v.name for v in self.model.proto.graph.output), *sorted(self.keep)):
            if name in made:
                needed[name] = None
        return list(needed)

    def _session(
        self, nodes: Sequence[NodeProto], stretch: tuple[int, int], wanted: set[str], batch: Batch
    ) -> tuple[Session | None, list[str]]:
        """Return a session of the nodes that the wanted tensors need, and its inputs."""
        have, (first, to) = set(batch), stretch
        missing = {n for n in wanted if n not in have}
        if not missing:
            return None, []
        picked: list[NodeProto] = []
        needed = set(missing)
        for node in reversed([*self._unfolded(nodes[:first]), *nodes[first:to]]):
            if node.op_type == "Constant" and node.output[0] in self.model:
                continue  # its value lies in the model, and becomes a weight of the part
            if needed.intersection(node.output):
                picked.append(node)
                needed |= set(node.input) | (captured(node) if node.attribute else set())
        picked.reverse()
        made = {n for node in picked for n in node.output}
        lost = missing - made
        if lost:
            raise ValueError(f"{sorted(lost)} can't be had between nodes {first} and {to}")
        part, inputs = self._part(picked, needed - made - {""}, sorted(missing), have)
        try:
            return self._open(part), inputs
        except RunError as error:
            raise CalibrationError(f"A part of the model can't be run for calibration: {error}.") from error

    def _shape(self, name: str) -> list[int | None] | None:
        """Return the rank of a tensor, and the length of a list of integers, which ops that take sizes must know.

        Without a rank its Shape has no elements as far as onnxruntime's inference goes, and sizes made of it don't fit.
        """
        arrays = [b[name] for b in self.batches if name in b and isinstance(b[name], np.ndarray)]
        shapes = {array.shape for array in arrays}
        whole = all(array.dtype.kind == "i" for array in arrays)
        if len({len(shape) for shape in shapes}) != 1:
            return None
        first = next(iter(shapes))
        return list(first) if whole and len(shapes) == 1 and len(first) == 1 else [None] * len(first)

    def _part(
        self, nodes: Sequence[NodeProto], outside: Iterable[str], outputs: Iterable[str], have: set[str]
    ) -> tuple[Model, list[str]]:
        inputs, weights = [], []
        for name in sorted(outside):
            if name in have:
                inputs.append(name)
            elif name in self.model:
                weights.append(name)
        graph = helper.make_graph(
            list(nodes),
            "part",
            [helper.make_tensor_value_info(n, self.types[n], self._shape(n)) for n in inputs],
            [onnx.ValueInfoProto(name=n) for n in outputs],
        )
        return self.model.part(graph, weights), inputs
